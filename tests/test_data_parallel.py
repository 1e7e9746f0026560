"""Two processes train as one does on the same global batch, though their slices differ in tokens and parts."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from crab_mini.config import StageConfig
from crab_mini.errors import Interrupted, NonFiniteLoss
from crab_mini.training.checkpoint import load
from crab_mini.training.distributed import Processes, connect, disconnect
from crab_mini.training.loop import Run, fit
from crab_mini.training.progress import read_curve
from crab_mini.training.rng import seed_all

CFG = StageConfig(steps=6, lr=1e-2, muon_lr=0.0, warmup=1)      # AdamW: Muon's bfloat16 would blur the comparison


class Toy(nn.Module):
    """A part for all rows, one for the few rows with masks, and a parameter that never gets a gradient."""

    def __init__(self):
        super().__init__()
        seed_all(0)
        self.body, self.text, self.mask = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 1)
        self.unused = nn.Parameter(torch.ones(3, 3))

    def losses(self, batch):
        x, tokens, masks = batch
        hidden = torch.tanh(self.body(x))
        parts = {"text": ((self.text(hidden).square().sum(1) * tokens).sum(), tokens.sum())}
        if masks.any():
            parts["mask"] = ((self.mask(hidden[masks]) - 1).square().sum(), masks.sum())
        return parts


class Batches:
    """Eight rows a step, of 1 to 9 tokens each; only the last row, which is the second process's, has a mask."""

    def __init__(self, processes, spoilt=None):
        self.processes, self.spoilt = processes, spoilt

    def at(self, step):
        rng = torch.Generator().manual_seed(step)
        x, tokens = torch.randn(8, 8, generator=rng), torch.randint(1, 10, (8,), generator=rng).float()
        if step == self.spoilt:
            x[7] = float("nan")
        rows = slice(self.processes.rank, None, self.processes.world_size)
        return x[rows], tokens[rows], (torch.arange(8) == 7)[rows]

    def ids(self, step):
        return [f"row {i}" for i in range(8)][self.processes.rank::self.processes.world_size]


def train(out, processes, spoilt=None):
    torch.set_num_threads(1)
    module = Toy()
    fit("toy", module, Batches(processes, spoilt), CFG, {}, Run(out, processes=processes))
    return module


def one_of_two(rank, port, out, errors):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2",
                      LOCAL_RANK=str(rank))
    processes, _ = connect(torch.device("cpu"))
    try:
        module = train(out / "two", processes)
        torch.save(module.state_dict(), out / f"rank{rank}.pt")
        with pytest.raises(NonFiniteLoss) as found:
            train(out / "spoilt", processes, spoilt=3)
        errors.put((rank, str(found.value)))
        # Only the second process is asked to stop: both must, at the same step.
        module = Toy()
        batches = Batches(processes)
        batches.at = asking(batches.at, rank)
        with pytest.raises(Interrupted) as found:
            fit("toy", module, batches, CFG, {}, Run(out / "stopped", processes=processes))
        errors.put((rank, str(found.value)))
        fit("toy", Toy(), Batches(processes), CFG, {}, Run(out / "stopped", resume=True, processes=processes))
    finally:
        disconnect()
    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    errors.put((rank, "threads " + " ".join(threads)))


def asking(at, rank):
    def wrapped(step):
        if step == 2 and rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return at(step)
    return wrapped


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes leave behind: a folder and their error messages."""
    out = tmp_path_factory.mktemp("parallel")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    errors = mp.get_context("spawn").SimpleQueue()
    mp.spawn(one_of_two, (port, out, errors), nprocs=2)
    messages = []
    while not errors.empty():
        messages.append(errors.get())
    return out, messages


def test_two_processes_equal_one(two):
    out, _ = two
    train(out / "one", Processes())
    alone, together = (read_curve(out / name / "toy.jsonl") for name in ("one", "two"))
    assert len(alone) == len(together) == CFG.steps
    for a, b in zip(alone, together):
        assert set(a) == set(b) and a["mask"] == pytest.approx(b["mask"], rel=1e-4)
        assert a["text"] == pytest.approx(b["text"], rel=1e-4)
    one = load(out / "one" / "toy.pt", "toy")["module"]
    for rank in (0, 1):
        mine = torch.load(out / f"rank{rank}.pt")
        for name, value in one.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)
    assert torch.equal(one["unused"], torch.ones(3, 3))        # no gradient anywhere: not even weight decay


def test_both_stop_at_a_non_finite_loss_and_name_the_other_ones_rows(two):
    _, messages = two
    found = [text for _, text in messages if "is nan" in text]
    assert len(found) == 2 and found[0] == found[1]
    assert "step 3" in found[0] and "row 7" in found[0] and "row 6" not in found[0]


def test_both_stop_when_one_is_asked_and_go_on_as_if_nothing_had_happened(two):
    out, messages = two
    assert sorted(rank for rank, text in messages if "stopped at step 3 of 6" in text) == [0, 1]
    rows = [[(r["step"], r["text"]) for r in read_curve(out / name / "toy.jsonl")] for name in ("two", "stopped")]
    assert rows[0] == rows[1]


def test_nothing_of_the_group_is_left_to_abort_the_interpreter(two):
    _, messages = two
    found = [text for _, text in messages if text.startswith("threads")]
    assert len(found) == 2 and not any("gloo" in text for text in found)


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes, device = connect(torch.device("cpu"))
    assert processes == Processes() and processes.first and device.type == "cpu" and not dist.is_initialized()
    assert processes.gather("x") == ["x"]
