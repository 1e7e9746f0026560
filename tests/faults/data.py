"""Cases of data sets: media files, annotations, names of classes, and the world's own masters.

Each is looked at by `check`, which must name what is wrong, and then by eval.py or by train.py,
which must refuse exactly what `check` does not call good.
"""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from crab_mini.av_uie.rows import read_annotations
from crab_mini.av_uie.samples import decode
from crab_mini.tasks.base import TASKS
from crab_mini.world.clips import Clips

from . import good, mutate

EVAL = ["--ckpt", "run/crab.pt", *good.QUICK]
EXACT = (".png", ".flac")       # formats with checksums: a file that is accepted decodes to what it was


@dataclass
class Case:
    """A corrupted input and the programs that get it.

    names: a refusal must hold one of these. right: () -> what is wrong with an accepted result, ""
    if nothing. refused: whether it may not be accepted at all.
    """
    what: str
    programs: list[tuple]
    names: tuple[str, ...]
    right: object = None
    refused: bool = False


def program(name: str, *argv) -> tuple:
    """A program of good.PROGRAMS and its command line."""
    return name, good.PROGRAMS[name], [str(word) for word in argv]


def only(task: str, folder: Path) -> Path:
    """A data folder with one task of `nine`, to corrupt."""
    root = folder / "data"
    shutil.copytree(good.ROOT / "nine" / task, root / task)
    shutil.copyfile(root / task / "train.json", root / task / "test.json")
    return root


def both(root: Path, task: str) -> list[tuple]:
    """check and eval.py."""
    return [program("check", root), program("eval", *EVAL, "--data", root, "--task", task, "--out",
                                            root.parent / "shown", "--show", 1)]


def decoded(root: Path, task: str) -> list:
    """What the loader makes of the first sample."""
    row = read_annotations(root, "test", [task])[0]
    sample = decode(row, 32)
    return [value for value in (sample.frames, sample.sounds, sample.masks, sample.class_map) if value is not None]


def differs(before: list, now: list, exact: bool) -> str:
    """In what two decoded samples differ: shapes always count, values where the format has checksums."""
    if [a.shape for a in before] != [b.shape for b in now]:
        return f"shapes {[tuple(b.shape) for b in now]} instead of {[tuple(a.shape) for a in before]}"
    if exact and not all(torch.equal(a, b) for a, b in zip(before, now)):
        return "accepted, but decoded to something else"
    return ""


def media(rng: random.Random, folder: Path) -> Case:
    """One media file of one task, its bytes or its place."""
    task = rng.choice(list(TASKS))
    root = only(task, folder)
    row = read_annotations(root, "test", [task])[0]
    path = rng.choice([path for path in (row.video, row.image, row.audio, row.mask) if path is not None])
    before = decoded(root, task)
    if rng.random() < 0.2:
        others = [p for p in (good.ROOT / "outside" / task).rglob("*" + path.suffix)]
        what = mutate.displaced(path, rng, others[0])
        exact, refused = False, True
    else:
        what, data = mutate.corrupted(path.read_bytes(), rng)
        exact, refused = path.suffix in EXACT, False
        path.write_bytes(data)
    return Case(f"{path.relative_to(root)}: {what}", both(root, task), (path.name, str(path.parent.name)),
                lambda: differs(before, decoded(root, task), exact), refused)


def annotations(rng: random.Random, folder: Path) -> Case:
    """The annotation file of one task: values, structure, text."""
    task = rng.choice(list(TASKS))
    root = only(task, folder)
    paths = [root / task / f"{split}.json" for split in ("train", "test")]
    rows = json.loads(paths[0].read_text())
    if rng.random() < 0.75:
        what, value = mutate.changed(rows, rng, within=(0,) if rng.random() < 0.9 else ())
        data = mutate.dump(value)
    else:
        what, data = mutate.corrupted_text(paths[0].read_text(), rng)
    for path in paths:
        path.write_bytes(data)
    return Case(f"{task}: {what}", both(root, task), (str(root),))


def places_of_lists(rng: random.Random, folder: Path) -> Case:
    """A list of the data folder (annotations, classes.json, clips.json) that is no regular file."""
    task = rng.choice(("ave", "s4"))
    root = folder / "data"
    shutil.copytree(good.ROOT / "mini", root)
    name = rng.choice((f"{task}/test.json", "classes.json", "clips.json"))
    outside = good.ROOT / "nine" / "ave" / "train.json"
    what = mutate.displaced(root / name, rng, outside)
    # Without these two files the folder is one of another kind, which may be good.
    refused = not (what == "gone" and name != f"{task}/test.json")
    programs = both(root, task)
    if what == "gone" and name != f"{task}/test.json":
        programs = programs[:1]
    return Case(f"{name}: {what}", programs, (Path(name).name,), None, refused)


def class_names(rng: random.Random, folder: Path) -> Case:
    """classes.json: for the class maps of avss and the words of captions."""
    task = rng.choice(("avss", "avcap"))
    root, path = only(task, folder), folder / "data" / "classes.json"
    names = json.loads((good.ROOT / "mini" / "classes.json").read_text())
    path.write_text(json.dumps(names))
    if rng.random() < 0.6:
        what, value = mutate.changed(names, rng)
        data = mutate.dump(value)
    else:
        what, data = mutate.corrupted_text(path.read_text(), rng)
    path.write_bytes(data)
    return Case(f"{task}: classes.json: {what}", both(root, task), ("classes.json", "test.json", "train.json"))


# ---- the world's masters

def masters_program(argv: list[str]) -> int:
    """What training reads of a rendered folder, without the minutes that it then takes."""
    import sys

    from crab_mini.config import ConfigError, preset
    from crab_mini.errors import DataError
    from crab_mini.stages.clips import check_clips
    try:
        check_clips(Path(argv[0]), preset("nano"), False)
        for split in ("train", "test"):
            Clips(Path(argv[0]), split)
    except (ConfigError, DataError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


def masters(rng: random.Random, folder: Path) -> Case:
    """clips.json or a file in clips/."""
    root = folder / "data"
    shutil.copytree(good.ROOT / "mini", root)
    index = root / "clips.json"
    if rng.random() < 0.5:
        if rng.random() < 0.7:
            what, value = mutate.changed(json.loads(index.read_text()), rng)
            data = mutate.dump(value)
        else:
            what, data = mutate.corrupted_text(index.read_text(), rng)
        index.write_bytes(data)
        path, refused = index, False
    else:
        path = rng.choice(sorted((root / "clips").iterdir()))
        if rng.random() < 0.3:
            what = mutate.displaced(path, rng, good.ROOT / "outside/ave/video/a.png")
            refused = True
        else:
            what, data = mutate.corrupted(path.read_bytes(), rng)
            path.write_bytes(data)
            refused = False
    names = ("clips.json", path.name)
    programs = [program("check", root), ("masters", masters_program, [str(root)])]
    if rng.random() < 0.08 and not path.name.startswith("test"):       # training opens no masters of the test split
        shutil.copytree(good.ROOT / "text", folder / "out")
        argv = [word if word != "mini" else str(root) for word in good.TRAIN]
        programs.append(program("train", *argv, *good.ONE_STEP, "--out", folder / "out"))
    exact = path is not index
    return Case(f"{path.relative_to(root)}: {what}", programs, names,
                lambda: same_masters(root) if exact else "", refused)


def same_masters(root: Path) -> str:
    """Whether the clips are what they were."""
    for split in ("train", "test"):
        before, now = Clips(good.ROOT / "mini", split), Clips(root, split)
        wrong = differs([before.frames, before.labels, before.mels], [now.frames, now.labels, now.mels], True)
        if wrong:
            return wrong
    return ""
