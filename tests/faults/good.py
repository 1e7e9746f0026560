"""The good inputs that the cases corrupt: made once a process, in a folder that is then only read.

    mini/       clips of the world: masters, ave and s4 (four clips)
    nine/       tests/small_av_uie.py: one sample of each task
    run/        a nano model of one step a stage: stage files, crab.pt
    stopped/    the same with an `instruct` that stands at step 1 of 2
    own/        a recording and pictures for eval.py
    weights/    published weights in miniature
    outside/    good files that no data set may reach
"""

import contextlib
import os
import shutil
from pathlib import Path
from unittest import mock

import torch

import eval as eval_program
import train as train_program
from crab_mini.evaluation import generate
from crab_mini.options import STAGES
from crab_mini.tokenizer import Tokenizer
from crab_mini.training import checkpoint
from crab_mini.world import write as writing

from .. import small_av_uie as small
from .. import small_weights

QUICK = ["--precision", "fp32", "--device", "cpu", "--kernel", "torch"]
STEPS = [word for stage in STAGES[:-1] for word in (f"--{stage}.steps", "1")]
TRAIN = ["--preset", "nano", "--task", "ave", "--data", "mini", *QUICK, *STEPS]
ONE_STEP, TWO_STEPS = ["--instruct.steps", "1"], ["--instruct.steps", "2"]


ROOT = Path()           # the folder of all good inputs; `make` sets it


def make(root: Path) -> None:
    """All of the good inputs under `root`, which becomes the working folder. Says nothing."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        make_all(root)


def make_all(root: Path) -> None:
    """`make`, with what the programs say."""
    global ROOT
    ROOT = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    os.chdir(root)
    torch.set_num_threads(1)
    generate.limit_of = lambda *_: 6        # tokens of an answer: the model is random, its words are not read
    small_world(root / "mini")
    small.build(root / "nine")
    small.build(root / "outside")
    own_files(root / "own")
    weights = root / "weights"
    small_weights.clip(weights / "clip")
    small_weights.beats(weights / "beats")
    small_weights.words(weights / "words.model")
    vocab = Tokenizer.load(weights / "words.model").known
    small_weights.llama(weights / "llama", vocab)
    train(root)


def small_world(mini: Path) -> None:
    """A rendered data folder with few clips and with two of the tasks."""
    poses = {task: writing.POSE[task] for task in ("ave", "s4")}
    with mock.patch.object(writing, "POSE", poses), mock.patch.object(writing, "FRAME_TASKS", ("s4",) * 3):
        writing.write(mini, 2, 2, 64, seed=2, cap=2, workers=1)    # this seed's clips pose both


def own_files(own: Path) -> None:
    """A recording in each format, a folder of pictures, a film strip."""
    for suffix in ("wav", "flac", "ogg", "mp3"):
        small.tone(own / f"a.{suffix}", 3)
    for suffix in ("jpg", "png", "webp", "bmp"):
        small.picture(own / f"a.{suffix}")
    for second in range(3):
        small.picture(own / "frames" / f"{second}.jpg", 20 * second)
    small.strip(own / "strip.png", 3)


def train(root: Path) -> None:
    """The models, from `mini`, and what they do with good inputs."""
    assert train_program.main([*TRAIN, "--out", "run", *ONE_STEP]) == 0
    shutil.copytree("run", "stopped")
    stop(Path("stopped"))
    shutil.copytree("stopped", "resumed")
    assert train_program.main([*TRAIN, "--out", "resumed", "--resume", *TWO_STEPS]) == 0
    # A run that has only its first stage: the next one opens the world's masters.
    shutil.copytree("run", "text", ignore=lambda folder, names: [
        name for name in names if not name.startswith(("text", "tokenizer"))])
    with open("answer.txt", "w") as file, contextlib.redirect_stdout(file):
        assert eval_program.main(["--ckpt", "run/crab.pt", *QUICK, "--frames", "own/frames", "--audio", "own/a.wav",
                                  "--task", "ask", "--question", "what is heard first?"]) == 0


def stop(run: Path) -> None:
    """Makes of a finished `instruct` of one step one that was stopped at that step of two."""
    path = run / "instruct.pt"
    content = torch.load(path, weights_only=True)
    content["done"] = False
    content["config"]["stage"]["steps"] = 2
    del content["program"], content["version"]
    checkpoint.save(path, content.pop("kind"), content.pop("config"), **content)
    (run / "crab.pt").unlink()


def check_program(argv: list[str]) -> int:
    """`python -m crab_mini.av_uie check`."""
    from crab_mini.av_uie.__main__ import main
    return main(["check", *argv])


PROGRAMS = {"check": check_program, "train": train_program.main, "eval": eval_program.main}
