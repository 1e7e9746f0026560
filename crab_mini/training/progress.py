"""What a stage tells while it trains: one line with the loss by part and the time left, and a curve on disk.

The losses shown are means over the steps since the last row of the curve, weighted by their counts. The bar runs by
progress, not by steps, so its time left is right under a wall-clock budget, too. Where nobody watches (no terminal)
it becomes a plain line every QUIET seconds.
"""

import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

from ..files import one_line, write_whole

QUIET = 20.0            # seconds between lines where stderr is no terminal
FINE = 1000             # ticks of the bar


class Curve:
    """The losses over time as JSON lines {"step", "seconds", "rate", part: mean, ...}, one file a stage."""

    def __init__(self, path: Path, step: int):
        """Opens the file to go on after `step`: rows of later steps, from a run that was killed, are dropped."""
        self.path = path
        kept = [row for row in read_curve(path) if row["step"] <= step] if step else []
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def add(self, row: dict) -> None:
        """Appends a row."""
        with one_line(self.path, "written"), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_curve(path: Path) -> list[dict]:
    """The rows of a curve; a last line that a killed run left unfinished is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Meter:
    """Mean losses by part since the last `take`."""

    def __init__(self):
        self.totals: dict[str, tuple[float, float]] = {}

    def add(self, parts: dict[str, tuple[float, float]]) -> None:
        """Takes in one step's {part: (sum, count)}."""
        for part, (value, count) in parts.items():
            before = self.totals.get(part, (0.0, 0.0))
            self.totals[part] = (before[0] + value, before[1] + count)

    def take(self) -> dict[str, float]:
        """The means so far; then starts anew."""
        means = {part: value / max(count, 1.0) for part, (value, count) in self.totals.items()}
        self.totals = {}
        return means


class Line:
    """The progress line of one stage; silent in all processes but the first."""

    def __init__(self, name: str, progress: float, shown: bool):
        self.name, self.start, self.began, self.told = name, progress, time.monotonic(), time.monotonic()
        self.quiet = shown and not sys.stderr.isatty()
        self.text = ""
        self.bar = tqdm(total=FINE, initial=round(FINE * progress), desc=name, disable=not shown or self.quiet,
                        miniters=0, mininterval=0.2,
                        bar_format="{desc} {percentage:3.0f}%|{bar:12}| {elapsed}<{remaining}{postfix}")

    def show(self, step: int, steps: int, progress: float, means: dict[str, float]) -> None:
        """Moves the line on; empty means leave the losses that it showed before."""
        if means:
            self.text = " ".join(f"{part} {mean:.3g}" for part, mean in means.items())
            self.bar.set_postfix_str(self.text, refresh=False)
        self.bar.set_description_str(f"{self.name} {step}/{steps}", refresh=False)
        self.bar.update(min(round(FINE * progress), FINE) - self.bar.n)
        now = time.monotonic()
        if self.quiet and now - self.told >= QUIET:
            self.told, gone = now, now - self.began
            left = gone / max(progress - self.start, 1e-9) * (1 - progress)
            print(f"{self.name} {step}/{steps} {progress:.0%}, {tqdm.format_interval(gone)} gone, "
                  f"{tqdm.format_interval(left)} left, {self.text}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()
