"""A seed -> one corrupted input; its outcome -> what is wrong with it."""

import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import data, models, own
from .child import Child, Outcome
from .data import Case

# Kind -> (its generator, how many of a hundred cases are of it).
KINDS: dict[str, tuple[Callable, int]] = {
    "media": (data.media, 18), "annotations": (data.annotations, 22), "lists": (data.places_of_lists, 4),
    "classes": (data.class_names, 4), "masters": (data.masters, 14), "crab": (models.crab, 12),
    "stage": (models.stage, 4), "weights": (models.weights, 9), "own files": (own.files, 6),
    "signals": (own.signals, 3), "bombs": (own.bombs, 1), "words": (own.words, 2), "outputs": (own.outputs, 1),
}
COUNT = 1000                    # cases of the slow run: seeds 0 to COUNT - 1
BAR = re.compile(r"[\w ]+: +\d+%\|[^\r\n|]*\|[^\r\n\]]*\]")       # tqdm's
LONGEST = 2000                  # characters of a refusal
MEMORY = 1024                   # MB that one case may take beyond the parent's
RERUN = "python -m tests.faults.fuzz --seed"
# Lines beside the result that are no errors; the last three are printed by libmpg123 itself, inside libsndfile.
NOTICES = ("left out", "leaves out", "pictures: ", "predictions: ", "Note: ", "Warning: Xing",
           "src/libmpg123")


def kind_of(seed: int) -> str:
    """The kind of a seed's case: of each hundred seeds the same number."""
    rest = seed % 100 * 37 % 100            # spread, so that any sixty hold all kinds
    for kind, (_, share) in KINDS.items():
        rest -= share
        if rest < 0:
            return kind
    raise LookupError(seed)


def case_of(seed: int, folder: Path) -> Case:
    """The case of a seed, written under `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return KINDS[kind_of(seed)][0](random.Random(f"case {seed}"), folder)


def said(text: str) -> list[str]:
    """The lines of an output, without progress bars and empty lines."""
    return [line.strip() for line in re.split("[\r\n]+", BAR.sub("", text)) if line.strip()]


def wrong_refusal(step, case: Case) -> str:
    """What is wrong with a program that refused: it must say why, in one line that names the file."""
    if step.program == "check":
        lines = [line for line in said(step.out) if "samples complete" not in line and "not in this folder" not in line]
        if step.status != 1 or len(lines) < 2 and not said(step.err):
            return f"check ended with {step.status} and named nothing"
    else:
        lines = [line for line in said(step.err) if not any(notice in line for notice in NOTICES)]
        if step.status != 2:
            return f"{step.program} ended with status {step.status}: {step.err[-200:]!r}"
        if len(lines) != 1:
            return f"{step.program} said {len(lines)} lines: {' / '.join(lines)[:400]}"
    if not any(name in line for name in case.names for line in lines):
        return f"{step.program} names none of {', '.join(case.names)}: {' / '.join(lines)[:300]}"
    longest = max(lines, key=len, default="")
    if len(longest) > LONGEST or not longest.isprintable():
        return f"{step.program}'s line is long or not printable: {longest[:200]!r}"
    return ""


def judge(case: Case, outcome: Outcome) -> str:
    """What is wrong with an outcome in one line; "" for a right one."""
    if outcome.ended:
        return outcome.ended
    for step in outcome.steps:
        if step.status is None:
            return f"{step.program}: traceback: {said(step.error)[-1][:200]} (from {where(step.error)})"
        if step.status and (wrong := wrong_refusal(step, case)):
            return wrong
    verdicts = {step.program: bool(step.status) for step in outcome.steps}
    if len(set(verdicts.values())) > 1:
        reasons = [said(s.err + s.out)[-1][:200] for s in outcome.steps if s.status]
        return f"the programs disagree, refused by {[name for name, no in verdicts.items() if no]}: {reasons}"
    if case.refused and not any(verdicts.values()):
        return "accepted, must be refused"
    return outcome.wrong


def where(error: str) -> str:
    """The last line of the project's own code in a traceback."""
    lines = [line for line in error.splitlines() if line.strip().startswith("File") and "crab_mini" in line]
    parts = lines[-1].split('"')[1].split("/")[-2:] + lines[-1].split(", ")[1:] if lines else ["elsewhere"]
    return " ".join(parts)


def run(seeds: list[int], folder: Path, at_once: int = 2) -> Iterator[tuple[int, str, Case, Outcome]]:
    """(seed, what is wrong, case, outcome) of each seed, as they end; `at_once` of them run at a time."""
    waiting, running = list(seeds), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            seed = waiting.pop(0)
            place = folder / f"case_{seed}"
            case = case_of(seed, place)
            running[seed] = case, Child(place, case.programs, case.right)
        for seed, (case, child) in list(running.items()):
            outcome = child.poll()
            if outcome is not None:
                del running[seed]
                yield seed, judge(case, outcome), case, outcome
                shutil.rmtree(folder / f"case_{seed}", ignore_errors=True)
        time.sleep(0.002)
