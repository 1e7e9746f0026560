"""Hundreds of damaged files and annotations: `check` and the loader neither crash nor hang, and name each one.

Two kinds of damage. Some must be found (a file that is cut, emptied, swapped, replaced or gone; a field of the wrong
type or meaning): one line has to name that file or sample. Flipped bytes may leave a file usable: there the promise is
a sample or a DataError, nothing else.
"""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from crab_mini.av_uie.check import check
from crab_mini.av_uie.rows import read_annotations
from crab_mini.av_uie.samples import decode
from crab_mini.errors import DataError
from crab_mini.tasks.base import TASKS

from . import small_av_uie as small

VALUES = (None, True, -1, 11, 10 ** 30, 0.5, "", "   ", "\ud800", [], [[]], {}, {"a": 1}, "/etc/passwd", "../../x",
          "a\nb\0c", "x" * 3000, float("nan"))
FOUND = []                      # how many cases were run, by test: the last test adds them up


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A good folder of all nine tasks; avcap's clip is a video file where PyAV is there."""
    root = small.build(tmp_path_factory.mktemp("fuzz") / "good")
    try:
        small.video(root / "avcap/video/b.mp4", 3)
        small.video(root / "ave/video/b.webm", 8, codec="libvpx")
        small.video(root / "avvp/video/b.avi", 8)
    except ImportError:
        return root
    for task, name in (("avcap", "b.mp4"), ("ave", "b.webm"), ("avvp", "b.avi")):
        row = json.loads((root / task / "train.json").read_text())[0]
        small.write(root, task, [row | {"video_path": name}])
        (root / task / "video/a.png").unlink()
    for name in ("a.mp3", "a.wav"):
        small.tone(root / "avcap/audio" / name, 3)
    row = json.loads((root / "avcap/train.json").read_text())[0]
    small.write(root, "avcap", [row | {"audio_path": "a.mp3"}])
    (root / "avcap/audio/a.wav").unlink()
    return root


@pytest.fixture
def alarm():
    """A hang becomes a failure."""
    def ring(*_):
        raise TimeoutError("hung for two minutes")
    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)        # for a whole test of some dozens of cases: a second where nobody else computes
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def only(whole: Path, task: str, target: Path) -> Path:
    """A data folder with one task, to damage."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole / task, target / task)
    (target / task / "test.json").unlink()
    return target


def lines(root: Path, task: str) -> list[str]:
    """What `check` says, less the missing test.json; the loader must agree that there is a fault, or none."""
    said = [str(e) for _, _, e in check(root, progress=False).problems if not e.file.endswith("test.json")]
    problems = []
    try:
        for row in read_annotations(root, "train", [task], problems):
            assert decode(row, 16).frames.shape[1:] == (3, 16, 16)
    except DataError as error:
        problems.append(error)
    assert bool(problems) == bool(said), (said, problems)
    assert all("\n" not in line and len(line) < 5000 for line in said)
    return said


def media_of(whole: Path, task: str) -> list[Path]:
    """The files that the task's one sample needs, relative to the data folder."""
    row = read_annotations(whole, "train", [task])[0]
    return [path.relative_to(whole) for path in (row.video, row.image, row.audio, row.mask) if path is not None]


def damages(path: Path, other: Path, rng: random.Random):
    """(name, function that damages a file for good): what every format must notice."""
    data = path.read_bytes()

    def put(new: bytes):
        return lambda: path.write_bytes(new)

    yield "empty", put(b"")
    for share in (0.02, 0.3, rng.uniform(0.3, 0.95), 0.99):
        yield f"cut at {share:.0%}", put(data[:int(len(data) * share)])
    yield "one byte short", put(data[:-1])
    yield "noise", put(rng.randbytes(len(data)))
    yield "zeros", put(bytes(len(data)))
    yield "text", put(b"this is no media file\n" * 20)
    yield "head gone", put(data[16:])
    yield "head noise", put(rng.randbytes(12) + data[12:])
    yield "another format", put(other.read_bytes())
    yield "html", put(b"<!DOCTYPE html><title>404</title>" * 9)
    yield "gone", path.unlink
    yield "a folder", lambda: (path.unlink(), path.mkdir())
    yield "a link out", lambda: (path.unlink(), path.symlink_to("/etc/hostname"))
    yield "a link to itself", lambda: (path.unlink(), path.symlink_to(path.name))


@pytest.mark.parametrize("task", TASKS)
def test_every_damaged_file_is_named(whole, tmp_path, task, alarm):
    rng, count = random.Random(task), 0
    for relative in media_of(whole, task):
        root = only(whole, task, tmp_path / "data")
        other = whole / ("s4/AVS/v1s/u/audio.wav" if relative.suffix != ".wav" else "s4/AVS/v1s/u/frames/3.jpg")
        for name, damage in damages(root / relative, other, rng):
            only(whole, task, root)
            damage()
            said = lines(root, task)
            assert said and any(relative.name in line for line in said), f"{relative}, {name}: {said}"
            count += 1
    FOUND.append(count)


@pytest.mark.parametrize("task", TASKS)
def test_every_wrong_field_is_named(whole, tmp_path, task, alarm):
    root, count = only(whole, task, tmp_path / "data"), 0
    path = root / task / "train.json"
    good = json.loads(path.read_text())[0]
    allowed = {"id": (-1, 11, 10 ** 30, "/etc/passwd", "../../x", "a\nb\0c", "x" * 3000),
               "text or null": (None, ""), "number": (11, 10 ** 30), "types": (), "second": ()}
    text = tuple(value for value in VALUES if isinstance(value, str) and value.strip() and value != "\ud800")
    for key, kind in TASKS[task].fields.items():
        for value in VALUES:
            harmless = text if kind in ("text", "text or list") and not key.endswith("path") else allowed.get(kind, ())
            path.write_text(json.dumps([good | {key: value}]))
            said = lines(root, task)
            count += 1
            if not any(value is v or (type(value), value) == (type(v), v) for v in harmless):
                assert said and any(key in line or "train.json[0]" in line or "missing" in line for line in said), \
                    f"{key}: {value!r}: {said}"
        if kind != "text or null":
            path.write_text(json.dumps([{k: v for k, v in good.items() if k != key}]))
            assert any(f"train.json[0]: {key}: missing key" in line for line in lines(root, task)), key
    FOUND.append(count)


def test_every_cut_annotation_file_is_named(whole, tmp_path, alarm):
    rng = random.Random(5)
    for task in TASKS:
        root = only(whole, task, tmp_path / "data")
        path = root / task / "train.json"
        data = path.read_bytes()
        bad = [data[:rng.randrange(len(data))] for _ in range(6)] + [b"\xff" + data, data[:-1] + b",]", b"null",
                                                                     b"[null]", b"\0" * 50, data + data]
        for content in bad:
            path.write_bytes(content)
            said = lines(root, task)
            assert said and all("train.json" in line for line in said), content[-40:]
        FOUND.append(len(bad))


@pytest.mark.parametrize("task", TASKS)
def test_flipped_bytes_never_crash(whole, tmp_path, task, alarm):
    rng = random.Random(task)
    root = only(whole, task, tmp_path / "data")
    for relative in media_of(whole, task) + [Path(task) / "train.json"]:
        data = (whole / relative).read_bytes()
        for _ in range(6):
            changed = bytearray(data)
            for _ in range(rng.choice((1, 3, 30))):
                changed[rng.randrange(min(len(data), rng.choice((64, len(data)))))] = rng.randrange(256)
            (root / relative).write_bytes(changed)
            lines(root, task)
        (root / relative).write_bytes(data)
        FOUND.append(6)


def test_that_was_more_than_three_hundred():
    if len(FOUND) < 4 * len(TASKS):
        pytest.skip("only when the whole file runs")
    assert sum(FOUND) >= 300
