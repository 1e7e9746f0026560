"""Cases of models: crab.pt, the stage files of a run, and published weights."""

import io
import json
import random
import shutil
import sys
from pathlib import Path

import torch

from crab_mini.config import ConfigError
from crab_mini.errors import CheckpointError, WeightsError
from crab_mini.options import arguments
from crab_mini.pretrained import options as published

from . import good, mutate
from .data import Case, program
from .own import ask

# Values that no number of a configuration may have.
IMPOSSIBLE = (None, True, -1, 0, 65, 10 ** 5, 10 ** 9, 10 ** 30, 0.5, float("nan"), float("inf"), "x", [], [1], [9, 9],
              {}, [10 ** 6, 10 ** 6])
STAGES = ("text", "see", "hear", "speak", "segment", "align")


def rewritten(path: Path, content) -> None:
    """Saved again, with intact checksums."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())


def plain(value):
    """The dicts and lists of a content, with each tensor as a leaf."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def other_tensor(tensor: torch.Tensor, rng: random.Random) -> tuple[str, object]:
    """A tensor that is wrong in kind, in shape or in place."""
    made = {
        "a wrong shape": lambda: torch.zeros((*tensor.shape, 2)),
        "no elements": lambda: torch.zeros(0),
        "integers": lambda: tensor.to(torch.int64),
        "complex": lambda: tensor.to(torch.complex64),
        "sparse": lambda: tensor.to_sparse(),
        "a giant without memory": lambda: torch.zeros(1).expand(2 ** 20, 2 ** 10),
        "on no device": lambda: torch.empty(tensor.shape, device="meta"),
        "a string": lambda: "tensor",
        "nothing": lambda: None,
    }
    name = rng.choice(sorted(made))
    return name, made[name]()


def damaged_content(content: dict, rng: random.Random, sections: tuple) -> str:
    """Changes one thing inside a checkpoint that is intact as a file. sections: where to."""
    section = rng.choice(sections)
    if section in ("model", "module"):
        state = content[section]
        name = rng.choice(sorted(state))
        if rng.random() < 0.2:
            del state[name]
            return f"{section}.{name} missing"
        what, state[name] = other_tensor(state[name], rng)
        return f"{section}.{name}: {what}"
    if section == "keys":
        name = rng.choice(sorted(content))
        if rng.random() < 0.5:
            del content[name]
            return f"{name} missing"
        # A step that could be one, and a time, say nothing wrong.
        content[name] = rng.choice([value for value in mutate.VALUES[:24] if value not in (0, 1)])
        return f"{name} = {content[name]!r:.40}"
    if section == "tokenizer":
        words = bytes(content["tokenizer"].numpy())
        what, words = mutate.corrupted(words, rng)
        content["tokenizer"] = torch.frombuffer(bytearray(words or b"\0"), dtype=torch.uint8)
        return f"tokenizer: {what}"
    what, content[section] = mutate.changed(plain(content[section]), rng, IMPOSSIBLE)
    return f"{section}: {what}"


def crab(rng: random.Random, folder: Path) -> Case:
    """crab.pt: its bytes, or its content with intact checksums."""
    path = folder / "crab.pt"
    shutil.copyfile(good.ROOT / "run" / "crab.pt", path)
    refused, draw = False, rng.random()
    if draw < 0.1:
        what, refused = mutate.displaced(path, rng, good.ROOT / "run" / "text.pt"), True
    elif draw < 0.35:
        what, data = mutate.corrupted(path.read_bytes(), rng)
        path.write_bytes(data)
    else:
        content = torch.load(path, weights_only=True)
        what = damaged_content(content, rng, ("model", "config", "config", "config", "keys", "tokenizer", "facts"))
        rewritten(path, content)
    name, main, argv = ask(good.ROOT / "own", "frames", "a.wav")
    argv = [str(path) if word == "run/crab.pt" else word for word in argv]
    return Case(what, [(name, main, argv)], ("crab.pt",), lambda: same_answer(folder), refused)


def same_answer(folder: Path) -> str:
    """Whether the answer is the good model's."""
    answer = (folder / "out.0").read_text()
    return "" if answer == (good.ROOT / "answer.txt").read_text() else f"another answer: {answer[-200:]!r}"


def stage(rng: random.Random, folder: Path) -> Case:
    """A stage file: of a finished stage, or of one that --resume goes on with."""
    stopped = rng.random() < 0.5
    run = folder / "run"
    shutil.copytree(good.ROOT / ("stopped" if stopped else "run"), run)
    (run / "crab.pt").unlink(missing_ok=True)
    path = run / ("instruct.pt" if stopped else f"{rng.choice(STAGES)}.pt")
    refused, draw = False, rng.random()
    if draw < 0.1:
        what, refused = mutate.displaced(path, rng, good.ROOT / "run" / "text.pt"), True
        refused = refused and what != "gone" and what != "a link to nothing"
    elif draw < 0.25:
        what, data = mutate.corrupted(path.read_bytes(), rng)
        path.write_bytes(data)
    else:
        content = torch.load(path, weights_only=True)
        sections = ("keys", "keys", "module", "optimizer", "rng") if stopped else ("keys", "module", "config")
        if not stopped:
            del content["optimizer"], content["rng"]
        what = damaged_content(content, rng, sections)
        rewritten(path, content)
    more = [*good.TWO_STEPS, "--resume"] if stopped else good.ONE_STEP
    reference = "resumed" if stopped else "run"
    case = program("train", *good.TRAIN, *more, "--out", run)
    return Case(f"{path.name}: {what}", [case], (path.name,), lambda: same_model(run, reference), refused)


def same_model(run: Path, reference: str) -> str:
    """Whether training came to the model that it comes to with good files."""
    mine, theirs = (torch.load(path / "crab.pt", weights_only=True)["model"] for path in (run, good.ROOT / reference))
    names = [name for name in theirs if not torch.equal(theirs[name], mine.get(name, torch.empty(0)))]
    return f"another model, first {names[0]}" if names else ""


# ---- published weights

def weights_program(argv: list[str]) -> int:
    """What train.py does with published weights before it builds the model."""
    try:
        options, cfg = arguments("", argv)
        parts = published.load(cfg, options)[1]
        if "llm" in parts:
            published.tokenizer_of(options, parts["llm"])
        published.keys(parts)
    except (ConfigError, WeightsError, CheckpointError, ValueError, OSError) as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def weights(rng: random.Random, folder: Path) -> Case:
    """A published file of one of the parts: bytes, content, configuration, index, tokenizer."""
    root, part = folder / "weights", rng.choice(("vision", "audio", "llm"))
    shutil.copytree(good.ROOT / "weights", root)
    given = {"vision": root / "clip/pytorch_model.bin", "audio": root / "beats/BEATs.pt", "llm": root / "llama"}[part]
    argv = [f"--{part}-weights", str(given)]
    if part == "llm":
        argv += ["--tokenizer", str(root / "words.model")]
    choices = [path for path in ([given] if given.is_file() else sorted(given.iterdir()))]
    if part == "vision":
        choices.append(root / "clip/config.json")
    if part == "llm":
        choices.append(root / "words.model")
    path = rng.choice(choices)
    what, refused = corrupt_weights(path, rng)
    # A flipped bit in tensors without checksums cannot be noticed: torch.load compares none.
    names = (argv[0], *(choice.name for choice in choices))
    return Case(f"{part}: {path.name}: {what}", [("train", weights_program, argv)], names, None, refused)


def corrupt_weights(path: Path, rng: random.Random) -> tuple[str, bool]:
    """-> (what was done, whether it must be refused)."""
    draw = rng.random()
    if draw < 0.1:
        what = mutate.displaced(path, rng, good.ROOT / "run" / "text.pt")
        # A link to a file elsewhere is followed, but for the shards of an index.
        return what, what != "a link outside"
    if path.suffix == ".json" and draw < 0.7:
        what, value = mutate.changed(json.loads(path.read_text()), rng)
        path.write_bytes(mutate.dump(value))
        return what, False
    if path.suffix == ".json":
        what, data = mutate.corrupted_text(path.read_text(), rng)
    elif draw < 0.6 and path.suffix in (".bin", ".pt"):
        content = torch.load(path, weights_only=True)
        state = content["model"] if "model" in content else content
        if "cfg" in content and rng.random() < 0.5:
            what, content["cfg"] = mutate.changed(content["cfg"], rng, IMPOSSIBLE)
        else:
            name = rng.choice(sorted(state))
            what, state[name] = other_tensor(state[name], rng)
            what = f"{name}: {what}"
        rewritten(path, content)
        return what, False
    else:
        what, data = mutate.corrupted(path.read_bytes(), rng)
    path.write_bytes(data)
    return what, False
