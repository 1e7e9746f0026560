"""What a stage shows while it trains: a line with its losses and the time left, a curve on disk.

The losses are means over the steps since the last row of the curve, weighted by their counts. The
bar moves with progress, not with steps, so that its time left is right under a wall-clock budget,
too. Where stderr is no terminal a plain line every QUIET seconds takes the place of the bar.
"""

import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

from ..files import one_line, write_whole

QUIET = 20.0            # seconds between lines where stderr is no terminal
TICKS = 1000            # of the bar


class Curve:
    """The losses over time as JSON lines {"step", "seconds", "rate", part: mean, ...}.

    One file a stage. "rate" is the factor of the learning rates.
    """

    def __init__(self, path: Path, step: int):
        """Opens the file to go on after `step`. Later rows, of a killed run, are dropped."""
        self.path = path
        kept = [row for row in read_curve(path) if row["step"] <= step] if step else []
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def add(self, row: dict) -> None:
        """Appends a row."""
        with one_line(self.path, "written"), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_curve(path: Path) -> list[dict]:
    """The rows of a curve, up to the first that is none: a killed run leaves half a line."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            break
        rows.append(row)
    return rows


def add_losses(totals: dict[str, tuple[float, float]],
               losses: dict[str, tuple[float, float]]) -> None:
    """Adds each part's sum and count to `totals`, in place."""
    for part, (value, count) in losses.items():
        total, number = totals.get(part, (0.0, 0.0))
        totals[part] = (total + value, number + count)


class LossMeter:
    """Mean losses by part since the last `take`."""

    def __init__(self):
        self.totals: dict[str, tuple[float, float]] = {}

    def add(self, losses: dict[str, tuple[float, float]]) -> None:
        """Takes in one step's {part: (sum, count)}."""
        add_losses(self.totals, losses)

    def take(self) -> dict[str, float]:
        """The means so far; then starts anew."""
        means = {part: value / max(count, 1.0) for part, (value, count) in self.totals.items()}
        self.totals = {}
        return means


class ProgressLine:
    """The progress line of one stage; silent in all processes but the first."""

    def __init__(self, name: str, progress: float, shown: bool):
        """progress: of the stage (0 to 1) when this run began. shown: whether to print at all."""
        self.name, self.first_progress = name, progress
        self.started, self.printed_at = time.monotonic(), time.monotonic()
        self.losses = ""
        self.plain = shown and not sys.stderr.isatty()
        self.bar = tqdm(
            total=TICKS, initial=round(TICKS * progress), desc=name,
            disable=not shown or self.plain, miniters=0, mininterval=0.2,
            bar_format="{desc} {percentage:3.0f}%|{bar:12}| {elapsed}<{remaining}{postfix}")

    def show(self, step: int, steps: int, progress: float, means: dict[str, float]) -> None:
        """Moves the line on; empty means leave the losses that it showed before."""
        if means:
            self.losses = " ".join(f"{part} {mean:.3g}" for part, mean in means.items())
            self.bar.set_postfix_str(self.losses, refresh=False)
        self.bar.set_description_str(f"{self.name} {step}/{steps}", refresh=False)
        self.bar.update(min(round(TICKS * progress), TICKS) - self.bar.n)
        now = time.monotonic()
        if self.plain and now - self.printed_at >= QUIET:
            self.printed_at = now
            self.print_plain_line(f"{step}/{steps}", progress, now - self.started)

    def print_plain_line(self, steps: str, progress: float, gone: float) -> None:
        """The line without a terminal. The time left assumes the pace since this run began."""
        pace = gone / max(progress - self.first_progress, 1e-9)
        left = pace * (1 - progress)
        print(f"{self.name} {steps} {progress:.0%}, {tqdm.format_interval(gone)} gone, "
              f"{tqdm.format_interval(left)} left, {self.losses}", file=sys.stderr, flush=True)

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
