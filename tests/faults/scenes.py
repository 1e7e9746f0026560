"""Runs that write, whole or killed at a write, and what they leave behind without their times."""

import json
import shutil
from pathlib import Path

import torch

from crab_mini.training.progress import read_curve

from . import good
from .child import Child
from .kill import dying

SIZE = dict(clips=9, test_clips=16, image=16, cap=3, workers=2)     # of a folder that is rendered


def trained(place: Path) -> list:
    """The program's name, main and command line: the last stage of a run that has the earlier ones."""
    argv = [*good.TRAIN, *good.ONE_STEP, "--out", place / "run", "--cache-features", place / "cache"]
    return ["train", good.PROGRAMS["train"], [str(word) for word in argv]]


def prepare_training(place: Path) -> None:
    """The earlier stages; the tokenizer is made anew, from the same text."""
    names = shutil.ignore_patterns("instruct*", "crab.pt", "results.json", "tokenizer*")
    shutil.copytree(good.ROOT / "run", place / "run", ignore=names)


def training_result(place: Path) -> list:
    """All that the last stage made, without the times."""
    run = place / "run"
    tensors = torch.load(run / "crab.pt", weights_only=True)["model"]
    curve = [{key: value for key, value in row.items() if key != "seconds"}
             for row in read_curve(run / "instruct.jsonl")]
    scores = json.loads((run / "results.json").read_text())["results"]
    words = [path.read_bytes() for path in sorted(run.glob("tokenizer*"))]
    return [{name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, curve, json.dumps(scores), words,
            sorted(path.name for path in run.iterdir())]


def evaluated(place: Path) -> list:
    """eval.py with every file that it writes."""
    argv = ["--ckpt", "run/crab.pt", *good.QUICK, "--task", "ave,s4", "--data", "mini", "--json", place / "s.json",
            "--predictions", place / "p.jsonl", "--show", 1, "--out", place / "shown"]
    return ["eval", good.PROGRAMS["eval"], [str(word) for word in argv]]


def evaluation_result(place: Path) -> list:
    """The files of eval.py, without the times."""
    scores = json.loads((place / "s.json").read_text())["results"]
    files = {path.name: path.read_bytes() for path in place.rglob("*.*") if path.suffix in (".jsonl", ".png")}
    return [json.dumps(scores), files, sorted(path.name for path in (place / "shown").iterdir())]


SCENES = {"train": (trained, prepare_training, training_result), "eval": (evaluated, lambda place: None,
                                                                         evaluation_result)}


def start(name: str, place: Path, die_at: int | None = None, mode: str = "before"):
    """One run of a scene in a child -> its outcome."""
    program, main, argv = SCENES[name][0](place)
    work = place / "work"
    work.mkdir(parents=True, exist_ok=True)
    main = dying(main, [place / "run", place / "cache", place / "s", place / "p", place / "shown"],
                 place / "events", die_at, mode)
    return Child(work, [(program, main, argv)], seconds=120).wait()


def killed(name: str, whole, place: Path, n: int, mode: str) -> str:
    """Kills at the n-th write, goes on, compares -> what is wrong, with the write's name."""
    events, expected = whole(name)
    where = f"{name}: killed {mode} write {n}, {events[n]}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    SCENES[name][1](place)
    first = start(name, place, n, mode)
    if first.steps and first.steps[0].status is None:
        return f"{where}: traceback {first.steps[0].error[-300:]}"
    if mode == "before" and first.steps:
        return f"{where}: was not killed"
    again = start(name, place)
    if not again.steps or again.steps[0].status != 0:
        last = again.steps[0].err[-300:] + again.steps[0].error[-300:] if again.steps else again.ended
        return f"{where}: the next run fails: {last}"
    found = SCENES[name][2](place)
    wrong = [k for k, (a, b) in enumerate(zip(found, expected)) if a != b]
    return f"{where}: the result differs in {wrong}" if wrong else ""


def rendered(place: Path) -> dict:
    """Every file of a rendered folder."""
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
