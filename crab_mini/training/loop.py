"""The training loop of every stage: `fit` runs a module's losses over a stream of batches and leaves a checkpoint.

A stage is a module with `losses(batch) -> {part: (sum, count)}` and batches with `at(step)` and `ids(step)`. Each part
is divided by its count over the whole global batch, and the parts are added. Since a batch is a pure function of its
step, the step is the data position, and a stage that was stopped goes on bit for bit (on the CPU; not under a
wall-clock budget, where time steers the learning rate).
    fit("text", module, batches, cfg.text, {"llm": asdict(cfg.llm)}, Run(out, device, seed=0, resume=True))
leaves out/text.pt (what this stage trained, and all it takes to go on) and out/text.jsonl (the curve). A finished
stage is taken from there. Threads: torch's default, one per core; `OMP_NUM_THREADS` changes it (and rounding with it).
"""

import contextlib
import dataclasses
import math
import signal
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import StageConfig
from ..errors import CheckpointError, Interrupted, NonFiniteLoss
from .checkpoint import fingerprint, load, plain, save
from .distributed import Processes
from .optimizer import Optimizer, parameter_groups, schedule
from .progress import Curve, Line, Meter

SAVE_SECONDS = 120.0        # between checkpoints while a stage runs
ROWS = 200                  # of a stage's curve, about
NAMED_IDS = 8               # sample ids that a message lists


@dataclass(frozen=True)
class Run:
    """What the stages of one run share."""
    out: Path                               # folder of checkpoints and curves
    device: torch.device = torch.device("cpu")
    seed: int = 0
    precision: str = "fp32"                 # "bf16": autocast, on CPU and GPU
    resume: bool = False                    # go on with a stage that was stopped
    processes: Processes = Processes()


class Report(NamedTuple):
    """What one process tells the others at each step."""
    parts: dict[str, tuple[float, float]]
    ids: list[str]                          # of its samples, if a loss is not finite
    asked: bool                             # to stop
    seconds: float                          # its clock; the first process's counts


def seed_all(*names) -> None:
    """Seeds torch on all devices from numbers and names: seed_all(0, "text", rank). Everything else draws from
    generators of its own."""
    torch.manual_seed(zlib.crc32("/".join(map(str, names)).encode()))


def fit(name: str, module: nn.Module, batches, cfg: StageConfig, depends: dict, run: Run,
        max_minutes: float | None = None, rate=None) -> str:
    """Trains what requires a gradient in `module`, or takes it from a finished checkpoint -> the stage's fingerprint.

    depends: the configuration that the stage's result depends on, with the fingerprints of the stages before it.
    max_minutes: the stage also ends, its learning rate run out, when it has trained for so long. rate: see
    parameter_groups. Raises CheckpointError, NonFiniteLoss, Interrupted.
    """
    path = Path(run.out) / f"{name}.pt"
    stage = dataclasses.asdict(cfg)
    del stage["minutes"]        # an estimate, which changes nothing that is learned
    config = plain(dict(depends, stage=stage, seed=run.seed, precision=run.precision, max_minutes=max_minutes))
    module.to(run.device).train()
    saved = load(path, name, config) if path.exists() else None
    if saved and saved["done"]:
        _put(module.eval(), saved["module"], path)
        _say(run, f"{name}: taken from {path} (made in {saved['step']} steps, {saved['seconds'] / 60:.1f} min)")
        return fingerprint(config)

    torch.set_flush_denormal(True)      # dying activations would otherwise slow CPU arithmetic down tenfold
    devices = [run.device] if run.device.type == "cuda" else []
    # The caller's random numbers are left alone, so that a stage that is skipped changes nothing for the next.
    with torch.random.fork_rng(devices), _stop_signals(run.processes) as stop:
        seed_all(run.seed, name, run.processes.rank)
        optimizer = Optimizer(parameter_groups(module, cfg, rate))
        loop = Loop(path, config, module, optimizer, batches, cfg, run, stop)
        if saved and run.resume:
            loop.restore(saved)
        elif saved:
            _say(run, f"{name}: starts anew and replaces {path} of step {saved['step']} (--resume would go on with it)")
        _train(loop)
    module.eval()
    return fingerprint(config)


def _train(loop: "Loop") -> None:
    """Steps until the stage is over, telling and saving now and then."""
    first, meter, cfg = loop.run.processes.first, Meter(), loop.cfg
    curve = Curve(loop.path.with_suffix(".jsonl"), loop.step) if first else None
    if loop.progress < 1:
        loop.make_ready()
    every, saved_at = max(1, cfg.steps // ROWS), loop.seconds

    def tell() -> dict[str, float]:
        means = meter.take()
        if first and means:
            curve.add({"step": loop.step, "seconds": round(loop.seconds, 2), "rate": loop.factor} | means)
        return means

    with Line(loop.name, loop.progress, first) as line:
        while loop.progress < 1:
            meter.add(loop.advance())
            line.show(loop.step, cfg.steps, loop.progress, tell() if loop.step % every == 0 else {})
            if (loop.asked or loop.seconds - saved_at > SAVE_SECONDS) and loop.progress < 1:
                tell()
                loop.save()
                saved_at = loop.seconds
            if loop.asked and loop.progress < 1:
                raise Interrupted(f"{loop.name}: stopped at step {loop.step} of {cfg.steps}, saved in {loop.path}; "
                                  "the same command with --resume goes on from there")
        tell()
        loop.save(done=True)
    if any(loop.run.processes.gather(loop.stop.is_set())):       # asked in the last step: no next stage
        raise Interrupted(f"{loop.name}: finished, saved in {loop.path}; the same command goes on with the next stage")


class Loop:
    """A stage while it trains: module, optimizer, position and clock; all processes agree on each of them."""

    def __init__(self, path: Path, config: dict, module: nn.Module, optimizer: Optimizer, batches, cfg: StageConfig,
                 run: Run, stop: threading.Event):
        self.path, self.config, self.name = path, config, path.stem
        self.module, self.optimizer, self.batches, self.cfg, self.run, self.stop = (
            module, optimizer, batches, cfg, run, stop)
        self.budget = 60 * config["max_minutes"] if config["max_minutes"] else math.inf
        self.step, self.seconds, self.factor, self.asked = 0, 0.0, 0.0, False
        self.began = math.nan

    @property
    def progress(self) -> float:
        """How much of the stage is over (0 to 1), in steps or in time, whichever is further."""
        return max(self.step / max(self.cfg.steps, 1), self.seconds / self.budget)

    def make_ready(self) -> None:
        """Makes the first batch before the clock starts: reading clips and encoding them is no training."""
        self.batches.at(self.step)
        self.run.processes.gather(None)
        self.began = time.monotonic() - self.seconds

    def advance(self) -> dict[str, tuple[float, float]]:
        """One optimizer step on the global batch -> {part: (sum, count)} over it."""
        run = self.run
        batch = _move(self.batches.at(self.step), run.device)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            parts = self.module.losses(batch)
        totals = self._agree(parts)
        loss = sum(value / max(totals[part][1], 1.0) for part, (value, _) in parts.items())
        self.optimizer.zero_grad()
        loss.backward()
        run.processes.add_gradients(self.optimizer.parameters)
        norm = nn.utils.clip_grad_norm_(self.optimizer.parameters, self.cfg.clip)
        if not math.isfinite(norm):
            raise NonFiniteLoss(self._broken("the gradient of " + self._worst(), self.batches.ids(self.step)))
        self.factor = schedule(self.step, self.progress, self.cfg.warmup)
        self.optimizer.step(self.factor)
        self.step += 1
        return totals

    def _agree(self, parts: dict) -> dict[str, tuple[float, float]]:
        """Sums and counts over all processes, the common clock, and whether anyone was asked to stop."""
        mine = {part: (float(value.detach()), float(count)) for part, (value, count) in parts.items()}
        finite = all(math.isfinite(value) for value, _ in mine.values())
        reports = self.run.processes.gather(Report(
            mine, [] if finite else self.batches.ids(self.step), self.stop.is_set(), time.monotonic() - self.began))
        totals: dict[str, tuple[float, float]] = {}
        for report in reports:
            for part, (value, count) in report.parts.items():
                before = totals.get(part, (0.0, 0.0))
                totals[part] = (before[0] + value, before[1] + count)
        bad = [part for part, (value, _) in totals.items() if not math.isfinite(value)]
        if bad:
            ids = [name for report in reports for name in report.ids]
            raise NonFiniteLoss(self._broken(f"the loss '{bad[0]}' is {totals[bad[0]][0]}", ids))
        self.seconds, self.asked = reports[0].seconds, any(report.asked for report in reports)
        return totals

    def _worst(self) -> str:
        """The first parameter whose gradient is not finite (clipping has scaled it, but not mended it)."""
        return next(name for name, p in zip(self.optimizer.names, self.optimizer.parameters)
                    if p.grad is not None and not p.grad.isfinite().all())

    def _broken(self, what: str, ids: list[str]) -> str:
        shown = ", ".join(map(str, ids[:NAMED_IDS])) + (f" and {len(ids) - NAMED_IDS} more" * (len(ids) > NAMED_IDS))
        kept = f"{self.path} is the last good checkpoint" if self.path.exists() else "no checkpoint was written before"
        return f"{self.name}: step {self.step}: {what}, samples {shown}; {kept}"

    def save(self, done: bool = False) -> None:
        """The first process writes the checkpoint; all wait for it, and fail if it did. The step is also the
        schedule's and the data's position."""
        failure, rng = None, self.run.processes.gather(_rng_state(self.run.device))
        if self.run.processes.first:
            try:
                save(self.path, self.name, self.config, module=_trained(self.module), step=self.step, rng=rng,
                     optimizer=self.optimizer.state_dict(), seconds=self.seconds, done=done)
            except CheckpointError as error:
                failure = str(error)
        failure = self.run.processes.gather(failure)[0]
        if failure:
            raise CheckpointError(failure)

    def restore(self, saved: dict) -> None:
        """Takes up where a checkpoint left off. A process that was not there when it was written keeps its seed."""
        _put(self.module, saved["module"], self.path)
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise CheckpointError(f"{self.path}: the optimizer's state does not fit: {error}") from error
        self.step, self.seconds = saved["step"], saved["seconds"]
        if self.run.processes.rank < len(saved["rng"]):
            _set_rng_state(saved["rng"][self.run.processes.rank], self.run.device)


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """What a stage changes: trainable parameters, and buffers."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _put(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Writes saved tensors into the module; CheckpointError if names or shapes differ."""
    own = _trained(module)
    for name in {**own, **tensors}:
        here, there = (list(side[name].shape) if name in side else "nothing" for side in (own, tensors))
        if here != there:
            raise CheckpointError(f"{path}: {name}: expected {here}, found {there}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _move(batch, device: torch.device):
    """The batch on the device: tensors, also within tuples, lists and dataclasses; anything else stays as it is."""
    if isinstance(batch, Tensor):
        pinned = batch.pin_memory() if device.type == "cuda" and batch.device.type == "cpu" else batch
        return pinned.to(device, non_blocking=True)
    if isinstance(batch, (tuple, list)):
        return type(batch)(_move(value, device) for value in batch)
    if dataclasses.is_dataclass(batch):
        return dataclasses.replace(batch, **{f.name: _move(getattr(batch, f.name), device)
                                             for f in dataclasses.fields(batch)})
    return batch


def _say(run: Run, text: str) -> None:
    if run.processes.first:
        print(text, flush=True)


@contextlib.contextmanager
def _stop_signals(processes: Processes):
    """While it lasts, Ctrl-C and SIGTERM only set the event; a second Ctrl-C of a lone process stops at once.

    torchrun forwards a Ctrl-C that the terminal has sent already, so among several processes a second means nothing.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop              # signals belong to the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number, frame):
        stop.set()
        if processes.world == 1:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
