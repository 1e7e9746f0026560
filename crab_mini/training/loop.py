"""The training loop of every stage: `fit` trains a module on batches and leaves a checkpoint.

    fit("text", module, batches, cfg.text, {"llm": asdict(cfg.llm)}, Run(out, device, resume=True))

leaves out/text.pt (what the stage trained, and all that it takes to go on) and out/text.jsonl (its
losses over time). A stage whose checkpoint is finished is not trained again. The loop knows neither
model nor data. It needs

    module.losses(batch) -> {part: (sum, count)}      the loss is the sum of the parts' means
    batches.at(step)     -> batch                     a pure function of the step
    batches.ids(step)    -> names of its samples      for error messages

`Trainer.train_step` is the place to begin. Unusual: since a batch follows from its step, the step
is also the position in the data, and a stage that was stopped goes on bit for bit. That holds on
the CPU, and without a wall-clock budget, whose clock steers the learning rate.
Threads: torch's default, one per core. `OMP_NUM_THREADS` changes it, and rounding with it.
"""

import dataclasses
import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import StageConfig
from ..errors import CheckpointError, Interrupted, NonFiniteLoss
from .checkpoint import (
    differences,
    fingerprint,
    load,
    load_trained_tensors,
    plain,
    save,
    trained_tensors,
)
from .device import to_device
from .distributed import Processes
from .optimizer import Optimizer, parameter_groups, schedule
from .progress import Curve, LossMeter, ProgressLine, add_losses
from .rng import rng_state, seed_all, set_rng_state
from .schema import DICT, DICTS, GENERATORS, SECONDS, TENSORS, WHOLE, YES_OR_NO, expect
from .signals import catch_stop_signals

SAVE_SECONDS = 120.0        # between checkpoints while a stage runs
CURVE_ROWS = 200            # of a stage's curve, about
NAMED_IDS = 8               # sample ids that an error message lists
# The fields of a stage's checkpoint; then those that only an unfinished stage needs.
FIELDS = {"module": TENSORS, "step": WHOLE, "seconds": SECONDS, "done": YES_OR_NO}
TO_GO_ON = {"optimizer": DICTS, "rng": GENERATORS}


@dataclass(frozen=True)
class Run:
    """What the stages of one run share."""
    out: Path                               # folder of checkpoints and curves
    device: torch.device = torch.device("cpu")
    seed: int = 0
    precision: str = "fp32"                 # "bf16": autocast, on CPU and GPU
    resume: bool = False                    # go on with a stage that was stopped
    processes: Processes = Processes()

    def say(self, text: str) -> None:
        """Prints a line, in the first process only."""
        if self.processes.first:
            print(text, flush=True)


def fit(name: str, module: nn.Module, batches, cfg: StageConfig, depends: dict, run: Run,
        max_minutes: float | None = None, lr_scale=None,
        made_with: dict[str, str] | None = None) -> str:
    """Trains what requires a gradient in `module`, or takes it from a finished checkpoint.

    depends: the configuration that the result depends on, and the fingerprints of earlier stages.
    max_minutes: the stage also ends, its learning rate run out, after so long. lr_scale: see
    `parameter_groups`. made_with: what decides about rounding, such as the kernel: a resumed stage
    says what has changed. Returns the stage's fingerprint. Raises CheckpointError, NonFiniteLoss
    and Interrupted.
    """
    path = Path(run.out) / f"{name}.pt"
    stage = dataclasses.asdict(cfg)
    del stage["minutes"]        # an estimate, which changes nothing that is learned
    config = plain(dict(depends, stage=stage, seed=run.seed, precision=run.precision,
                        max_minutes=max_minutes))
    module.to(run.device).train()

    # A finished stage is taken from its checkpoint; its batches are never asked for.
    saved = load(path, name, config, FIELDS) if path.exists() else None
    if saved:
        check_position(path, saved, cfg, max_minutes)
    if saved and saved["done"]:
        load_trained_tensors(module.eval(), saved["module"], path)
        run.say(f"{name}: taken from {path} (made in {saved['step']} steps, "
                f"{saved['seconds'] / 60:.1f} min)")
        return fingerprint(config)

    # Activations close to zero become denormal numbers, with which CPUs compute ten times slower.
    torch.set_flush_denormal(True)

    # The caller's random numbers are left alone, so that a skipped stage changes nothing later.
    devices = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices), catch_stop_signals(run.processes) as stop:
        seed_all(run.seed, name, run.processes.rank)
        optimizer = Optimizer(parameter_groups(module, cfg, lr_scale))
        trainer = Trainer(path, config, module, optimizer, batches, cfg, run, stop, made_with)
        if saved and run.resume:
            trainer.restore(saved)
            trainer.say_what_changed(saved)
        elif saved:
            run.say(f"{name}: starts anew and replaces {path} of step {saved['step']} "
                    "(--resume would go on with it)")
        trainer.train()
    module.eval()
    return fingerprint(config)


def progress_of(step: int, seconds: float, steps: int, max_minutes: float | None) -> float:
    """How much of a stage is over (0 to 1), in steps or in time, whichever is further."""
    return max(step / max(steps, 1), seconds / (60 * max_minutes) if max_minutes else 0.0)


def check_position(path: Path, saved: dict, cfg: StageConfig, max_minutes: float | None) -> None:
    """CheckpointError where a checkpoint says a step, a time and an end that cannot be together."""
    step, over = saved["step"], progress_of(saved["step"], saved["seconds"], cfg.steps, max_minutes)
    if step > max(cfg.steps, 1):
        raise CheckpointError(f"{path}: step: expected at most {cfg.steps}, found {step}")
    if saved["done"] != (over >= 1):
        raise CheckpointError(f"{path}: done: expected {over >= 1} at step {step} of {cfg.steps}, "
                              f"found {saved['done']}")


class ProcessReport(NamedTuple):
    """What one process tells the others at each step."""
    losses: dict[str, tuple[float, float]]  # part -> its sum and its count in this process
    ids: list[str]                          # of its samples, if a loss is not finite
    stop: bool                              # whether a signal asked it to stop
    seconds: float                          # of training; the first process's clock counts


class Trainer:
    """One stage while it trains: module, optimizer, position and clock.

    All processes agree on the step, on the seconds and on when to stop.
    """

    def __init__(self, path: Path, config: dict, module: nn.Module, optimizer: Optimizer, batches,
                 cfg: StageConfig, run: Run, stop: threading.Event,
                 made_with: dict[str, str] | None = None):
        """path, config: of the checkpoint. stop: set when a signal asks for the end. made_with:
        see `fit`.
        """
        self.path, self.name, self.config = path, path.stem, config
        self.module, self.optimizer, self.batches = module, optimizer, batches
        self.cfg, self.run, self.stop = cfg, run, stop
        self.made_with = {"threads": str(torch.get_num_threads()), "torch": str(torch.__version__),
                          "processes": str(run.processes.world_size)} | (made_with or {})
        self.step = 0               # optimizer steps so far
        self.seconds = 0.0          # of training so far, with those before a resume
        self.started = math.nan     # on the clock, as if all seconds had been without a break
        self.lr_factor = 0.0        # of the last step
        self.stopping = False       # whether any process was asked to stop

    @property
    def progress(self) -> float:
        """How much of the stage is over (0 to 1), in steps or in time, whichever is further."""
        return progress_of(self.step, self.seconds, self.cfg.steps, self.config["max_minutes"])

    def train_step(self) -> dict[str, tuple[float, float]]:
        """One optimizer step on the whole batch -> {part: (sum, count)} over all processes."""
        run, optimizer = self.run, self.optimizer
        batch = to_device(self.batches.at(self.step), run.device)

        # Forward. A part of the loss is a sum and a count: among several processes only the count
        # of the whole batch makes a mean of it. Weights stay in float32; autocast casts copies.
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            losses = self.module.losses(batch)

        # Agree on the counts, on the clock and on whether to stop. A loss that is not finite ends
        # the stage here, before it reaches any weight.
        totals = self.agree(losses)
        loss = sum(value / max(totals[part][1], 1.0) for part, (value, _) in losses.items())

        # Backward. All processes have divided by the same counts: gradients only have to be added.
        optimizer.zero_grad()
        loss.backward()
        run.processes.add_gradients(optimizer.parameters)

        # Clip. A rare steep batch must not undo many steps; the norm also shows a broken gradient.
        grad_norm = nn.utils.clip_grad_norm_(optimizer.parameters, self.cfg.clip)
        if not math.isfinite(grad_norm):
            what = f"the gradient of {self.first_broken_gradient()} is not finite"
            raise NonFiniteLoss(self.broken(what, self.batches.ids(self.step)))

        # Schedule: warm up, stay, and fall to zero when the steps or the minutes run out.
        self.lr_factor = schedule(self.step, self.progress, self.cfg.warmup)

        # Step.
        optimizer.step(self.lr_factor)
        self.step += 1
        return totals

    def train(self) -> None:
        """Steps until the stage is over; reports and saves now and then."""
        first, steps = self.run.processes.first, self.cfg.steps
        curve = Curve(self.path.with_suffix(".jsonl"), self.step) if first else None
        meter = LossMeter()
        every = max(1, steps // CURVE_ROWS)

        # The first batch is made before the clock starts: reading clips is no training.
        if self.progress < 1:
            self.batches.at(self.step)
            self.run.processes.gather(None)
            self.started = time.monotonic() - self.seconds
        saved_at = self.seconds

        with ProgressLine(self.name, self.progress, first) as line:
            while self.progress < 1:
                meter.add(self.train_step())
                means = self.record(curve, meter) if self.step % every == 0 else {}
                line.show(self.step, steps, self.progress, means)
                if self.progress >= 1:
                    break

                # A checkpoint now and then, and before a stop that a signal asked for.
                if self.stopping or self.seconds - saved_at > SAVE_SECONDS:
                    self.record(curve, meter)
                    self.save()
                    saved_at = self.seconds
                if self.stopping:
                    raise Interrupted(f"{self.name}: stopped at step {self.step} of {steps}, saved "
                                      f"in {self.path}; the same command with --resume goes on "
                                      "from there")
            self.record(curve, meter)
            self.save(done=True)

        # Who asked during the last step gets a whole stage, but no next one.
        if any(self.run.processes.gather(self.stop.is_set())):
            raise Interrupted(f"{self.name}: finished, saved in {self.path}; the same command goes "
                              "on with the next stage")

    def record(self, curve: Curve | None, meter: LossMeter) -> dict[str, float]:
        """The mean losses since the last call, written as a row of the curve."""
        means = meter.take()
        if curve and means:
            row = {"step": self.step, "seconds": round(self.seconds, 2), "rate": self.lr_factor}
            curve.add(row | means)
        return means

    def agree(self, losses: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[float, float]]:
        """Sums and counts over all processes; sets the common clock and whether to stop.

        Raises NonFiniteLoss in every process if the loss of any is not finite.
        """
        # Each process tells its own losses, and its samples' names if something is wrong with them.
        mine = {part: (float(value.detach()), float(count))
                for part, (value, count) in losses.items()}
        finite = all(math.isfinite(value) for value, _ in mine.values())
        reports = self.run.processes.gather(ProcessReport(
            losses=mine,
            ids=[] if finite else self.batches.ids(self.step),
            stop=self.stop.is_set(),
            seconds=time.monotonic() - self.started))

        # Now all have the same reports, and draw the same conclusions from them.
        totals: dict[str, tuple[float, float]] = {}
        for report in reports:
            add_losses(totals, report.losses)
        for part, (value, _) in totals.items():
            if not math.isfinite(value):
                ids = [name for report in reports for name in report.ids]
                raise NonFiniteLoss(self.broken(f"the loss '{part}' is {value}", ids))
        self.seconds = reports[0].seconds
        self.stopping = any(report.stop for report in reports)
        return totals

    def first_broken_gradient(self) -> str:
        """The first parameter whose gradient is not finite. (Clipping cannot have mended it.)

        Where each is finite their norm is not: it is the sum of their squares that overflows.
        """
        broken = (name for name, p in zip(self.optimizer.names, self.optimizer.parameters)
                  if p.grad is not None and not p.grad.isfinite().all())
        return next(broken, "all parameters together")

    def broken(self, what: str, ids: list[str]) -> str:
        """The line of a NonFiniteLoss: the step, what is broken, the samples, what can be used."""
        shown = ", ".join(map(str, ids[:NAMED_IDS]))
        if len(ids) > NAMED_IDS:
            shown += f" and {len(ids) - NAMED_IDS} more"
        kept = "no checkpoint was written before"
        if self.path.exists():
            kept = f"{self.path} is the last good checkpoint"
        return f"{self.name}: step {self.step}: {what}, samples {shown}; {kept}"

    def save(self, done: bool = False) -> None:
        """The first process writes the checkpoint. All wait for it, and fail if it failed.

        The step is also the position of the schedule and of the data.
        """
        processes, failure = self.run.processes, None
        rng = processes.gather(rng_state(self.run.device))
        if processes.first:
            try:
                save(self.path, self.name, self.config, module=trained_tensors(self.module),
                     optimizer=self.optimizer.state_dict(), rng=rng, step=self.step,
                     seconds=self.seconds, done=done, made_with=self.made_with)
            except CheckpointError as error:
                failure = str(error)
        failure = processes.gather(failure)[0]
        if failure:
            raise CheckpointError(failure)

    def restore(self, saved: dict) -> None:
        """Goes back to where a checkpoint was written; CheckpointError if it does not fit."""
        expect(self.path, saved, TO_GO_ON)
        load_trained_tensors(self.module, saved["module"], self.path)
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: the optimizer's state does not fit: {error}") from error
        self.step, self.seconds = saved["step"], saved["seconds"]

        # A process that was not there when the checkpoint was written keeps the seed it has.
        rank = self.run.processes.rank
        if rank < len(saved["rng"]):
            try:
                set_rng_state(saved["rng"][rank], self.run.device)
            except (RuntimeError, TypeError) as error:
                raise CheckpointError(f"{self.path}: rng: expected the random numbers' states, "
                                      "found others") from error

    def say_what_changed(self, saved: dict) -> None:
        """One line where the resumed stage computes with something else than before."""
        before = saved.get("made_with", {})
        expect(self.path, {"made_with": before}, {"made_with": DICT})
        changed = differences(before, self.made_with) if before else ""
        if changed:
            self.run.say(f"{self.name}: goes on with another rounding than before ({changed}): the "
                         "last digits may differ from those of a run that was not stopped")


def made_with(path: Path, name: str) -> dict:
    """What a stopped stage was computed with, see `fit`; nothing where there is no such stage."""
    saved = load(path, name, fields=FIELDS) if path.exists() else {"done": True}
    found = {} if saved["done"] else saved.get("made_with", {})
    return found if isinstance(found, dict) else {}
