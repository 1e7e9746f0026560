"""`python -m tests.faults.fuzz`: corrupted inputs until the time is over, or one of them again.

    python -m tests.faults.fuzz --seed 17                the case of a seed, with all that it printed
    python -m tests.faults.fuzz --minutes 60             seeds beyond those of the tests, by hand
    python -m tests.faults.fuzz --seeds 0-999 --json f   a range of seeds, and a table by kind

What a search finds is kept: its seed goes into cases/seeds.txt, with a few words, and is a test from then on.
"""

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path

from . import good
from .cases import COUNT, RERUN, kind_of, run
from .child import megabytes_of
from .known import KNOWN


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.faults.fuzz")
    made.add_argument("--seed", type=int)
    made.add_argument("--seeds", default=None, metavar="A-B,C,...")
    made.add_argument("--minutes", type=float, default=5)
    made.add_argument("--first", type=int, default=COUNT, help="the first seed of a search")
    made.add_argument("--kind", help="only cases of this kind")
    made.add_argument("--keep", type=Path, help="a folder where the case is left for a look")
    made.add_argument("--json", type=Path, help="the outcomes by kind")
    made.add_argument("--at-once", type=int, default=2)
    return made


def seeds_of(options) -> list[int]:
    """The seeds to run; a search has a million of them and ends by the clock."""
    if options.seed is not None:
        return [options.seed]
    ranges = options.seeds or f"{options.first}-{options.first + 10 ** 6}"
    seeds = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return [seed for seed in dict.fromkeys(seeds) if options.kind in (None, kind_of(seed))]


def megabytes_beyond(outcome) -> float:
    """The memory that a case took beyond what this process has."""
    return outcome.megabytes - megabytes_of("VmRSS")


def show(outcome) -> None:
    """All that a case printed."""
    for step in outcome.steps:
        print(f"---- {step.program}: status {step.status}\n{step.out[-2000:]}{step.err[-3000:]}{step.error}")


def main(argv: list[str] | None = None) -> int:
    """1 if a case failed."""
    options = parser().parse_args(argv)
    end = time.monotonic() + 60 * options.minutes if options.seed is None and not options.seeds else float("inf")
    table, bad, slowest = collections.defaultdict(collections.Counter), [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.keep.resolve() if options.keep else folder)
        print("making the good inputs", flush=True)
        good.make(root / "good")
        for seed, wrong, case, outcome in run(seeds_of(options), root / "cases", options.at_once):
            verdict = "red" if wrong else "refused" if any(s.status for s in outcome.steps) else "accepted"
            table[kind_of(seed)][verdict if seed not in KNOWN else f"known {verdict}"] += 1
            slowest.append((round(outcome.seconds, 1), seed, kind_of(seed), case.what))
            if wrong:
                bad.append([seed, kind_of(seed), case.what, wrong])
                print(f"seed {seed} ({kind_of(seed)}): {case.what}: {wrong}\n    {RERUN} {seed}", flush=True)
            if options.seed is not None:
                used = megabytes_beyond(outcome)
                print(f"{kind_of(seed)}: {case.what}: {verdict}, {outcome.seconds:.1f} s, {used:.0f} MB")
                show(outcome)
            if time.monotonic() > end:
                break
    for kind, counts in sorted(table.items()):
        print(f"{kind:12} {dict(counts)}")
    print("slowest:", *sorted(slowest)[-3:])
    if options.json:
        options.json.write_text(json.dumps({"table": table, "bad": bad}, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
