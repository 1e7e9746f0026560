"""train.py itself: stages that learn, a stop that costs nothing, two processes that are one, an overfit batch."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from crab_mini import bundle
from crab_mini.batch import collate
from crab_mini.config import StageConfig
from crab_mini.evaluation.generate import answer
from crab_mini.features.encoders import Features
from crab_mini.features.rows import Split
from crab_mini.options import STAGES
from crab_mini.stages import recipe
from crab_mini.stages.interfaces import WholeModelStage
from crab_mini.stages.rows import SequenceBatches
from crab_mini.tasks.base import TASKS
from crab_mini.training.checkpoint import load
from crab_mini.training.loop import Run, fit
from crab_mini.training.progress import read_curve
from crab_mini.world.view import STEP

HOME = Path(train.__file__).parent
NANO = ["--preset", "nano", "--precision", "fp32", "--kernel", "torch", "--lora.rank", "16", "--lora.alpha", "32",
        "--world.clips", "12", "--world.test_clips", "12", "--world.rows_per_task", "1"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """One folder for the module's runs, one thread, and train.py's environment put back afterwards."""
    folder, threads = tmp_path_factory.mktemp("train"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CRAB_KERNEL", "torch")
        yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def nano(here) -> Path:
    """A whole run of the nano preset on a handful of clips."""
    assert train.main([*NANO, "--out", "nano"]) == 0
    return here / "nano"


def test_the_losses_of_every_stage_fall(nano):
    for stage in STAGES:
        rows = read_curve(nano / f"{stage}.jsonl")
        part = {"see": "share", "hear": "loudest", "speak": "seen", "segment": "dice"}.get(stage, "text")
        values = [row[part] for row in rows if part in row]
        third = len(values) // 3
        assert third >= 3 and np.mean(values[-third:]) < 0.97 * np.mean(values[:third]), (stage, values)


def test_a_run_leaves_a_model_and_its_scores(nano):
    results = json.loads((nano / "results.json").read_text())
    assert set(results["results"]) == set(TASKS) and results["facts"]["seed"] == 0
    crab, tokenizer, facts = bundle.load(nano / "crab.pt")
    assert facts["tasks"] == list(TASKS) and crab.cfg.lora.rank == 16
    last = load(nano / "instruct.pt", "instruct")["module"]
    ours = crab.state_dict()
    assert all(torch.equal(ours[name.removeprefix("crab.")], value) for name, value in last.items())


def test_stages_of_another_version_of_the_world_are_refused(nano, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "WORLD", recipe.WORLD + 1)
    assert train.main([*NANO, "--stages", str(nano), "--out", "newer"]) == 2
    assert "text.pt: was made with another configuration (world: " in capsys.readouterr().err


def test_twenty_steps_are_ten_a_stop_and_ten(nano, monkeypatch, capsys):
    monkeypatch.setattr(train, "evaluate", lambda *_: {})
    short = [*NANO, "--stages", str(nano), "--instruct.steps", "20", "--instruct.batch", "4"]
    assert train.main([*short, "--out", "whole"]) == 0
    at = SequenceBatches.at

    def stopping(self, step):
        if step == 9:
            signal.raise_signal(signal.SIGINT)
        return at(self, step)
    with monkeypatch.context() as patch:
        patch.setattr(SequenceBatches, "at", stopping)
        assert train.main([*short, "--out", "halves"]) == 130
    assert "instruct: stopped at step 10 of 20" in capsys.readouterr().err
    assert train.main([*short, "--out", "halves", "--resume"]) == 0
    whole, halves = (load(Path(out) / "instruct.pt", "instruct")["module"] for out in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all(torch.equal(whole[name], halves[name]) for name in whole)
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_curve(Path(out) / "instruct.jsonl")]
            for out in ("whole", "halves")]
    assert len(rows[0]) == 20 and rows[0] == rows[1]


def test_two_processes_train_as_one(nano):
    """All stages, a few steps each: the same losses up to rounding, and so the same weights."""
    steps = dict.fromkeys(STAGES, 4) | {"hear": 14}     # of those the first two predict hidden patches
    quick = [*NANO, "--task", "ave,s4,avqa"] + [word for stage in STAGES for word in (
        f"--{stage}.steps={steps[stage]}", f"--{stage}.batch=6", f"--{stage}.muon_lr=0")]
    assert train.main([*quick, "--out", "one"]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", HOME / "train.py"]
    done = subprocess.run([*torchrun, *quick, "--out", "two"], env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        one, two = (read_curve(Path(out) / f"{stage}.jsonl") for out in ("one", "two"))
        assert len(one) == len(two) == steps[stage]
        for a, b in zip(one, two):
            assert a.keys() == b.keys()
            for part in a.keys() - {"seconds"}:
                assert math.isclose(a[part], b[part], rel_tol=1e-4, abs_tol=1e-4), (stage, part, a, b)
        a, b = (load(Path(out) / f"{stage}.pt", stage)["module"] for out in ("one", "two"))
        for name, value in a.items():
            torch.testing.assert_close(b[name], value, rtol=1e-2, atol=1e-3, msg=f"{stage} {name}")


class OneBatch:
    """The same rows at every step."""

    def __init__(self, batch):
        self.batch = batch

    def at(self, step):
        return self.batch

    def ids(self, step):
        return self.batch.uids


def test_an_overfit_batch_is_answered_perfectly(nano, here):
    """One row of each of the nine tasks: what was learned is what is said, and the masks and the box are there."""
    crab, tokenizer, _ = bundle.load(nano / "crab.pt")
    # So short a text stage leaves the frozen output head so small that nothing can be said with certainty.
    crab.llm.head.weight.data.mul_(6)
    data = next((here / "data").iterdir())
    rows = Split(data, "train", list(TASKS), Features(crab, CPU), tokenizer, limit=1)
    assert [row.task for row in rows.samples] == list(rows.by_task) == list(TASKS)
    batch = OneBatch(collate([rows.sequence(row) for row in rows.samples], tokenizer.pad))
    cfg = StageConfig(steps=150, lr=0.01, muon_lr=0.0, warmup=5, weight_decay=0.0)
    fit("instruct", WholeModelStage(crab), batch, cfg, {}, Run(here / "overfit"), lr_scale=lambda name: 1.0 if "lora_" in name
        else 0.5)
    for task, spec in TASKS.items():
        said, = answer(crab, tokenizer, rows, task, CPU)
        truth = spec.parse(spec.answer(said.sample.fields))
        assert said.parsed == truth, (task, said.text)
        if spec.masks:
            assert said.masks.shape == said.sample.masks.shape
            for ours, target in zip(said.masks > 0, said.sample.masks):
                assert (ours & target).sum() > 0.9 * (ours | target).sum() or not (ours.any() or target.any()), task
        if task == "avss":
            assert ((spec.painted(said) > 0) == said.sample.masks.any(0)).float().mean() > 0.97
        if task == "arig":
            # The words are the world's box to the nearest step; the row's own corners are whole pixels.
            assert np.abs(np.subtract(said.parsed, said.sample.box)).max() <= STEP / 2 + 1
