"""A thousand corrupted inputs, each refused in one line or accepted with the right result.

`python -m tests.faults.fuzz --seed N` runs one of them again and shows what it printed.
"""

import os
import random
from pathlib import Path

import pytest

from .cases import COUNT, KINDS, MEMORY, RERUN, kind_of, run
from .child import Child
from .fuzz import megabytes_beyond
from .known import KNOWN

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not there")
FEW = 60                                    # cases of the fast run
SLOWEST = 20                                # seconds of one case, while other work shares the machine


def red(seeds: list[int], folder) -> list[str]:
    """A line for each case that is not as it should be, with the command that runs it again."""
    lines = []
    for seed, wrong, case, outcome in run(seeds, folder):
        used = megabytes_beyond(outcome)
        if not wrong and used > MEMORY:
            wrong = f"took {used:.0f} MB"
        if not wrong and outcome.seconds > SLOWEST:
            wrong = f"took {outcome.seconds:.0f} s"
        if bool(wrong) == (seed in KNOWN):
            continue
        wrong = wrong or f"passes, but is in the list of known failures: {KNOWN[seed]}"
        lines.append(f"{RERUN} {seed}    # {kind_of(seed)}: {case.what}: {wrong}")
    return lines


def test_every_kind_is_drawn():
    assert sum(share for _, share in KINDS.values()) == 100
    assert {kind_of(seed) for seed in few()} == set(KINDS) and COUNT >= 1000


def few() -> list[int]:
    """The seeds of the fast run: always the same, from all kinds."""
    drawn = random.Random(16).sample(range(COUNT), FEW - len(KINDS))
    first = {kind_of(seed): seed for seed in range(COUNT - 1, -1, -1)}
    return sorted({*drawn, *first.values()})


def test_some_corrupted_inputs(folder):
    assert not (lines := red(few(), folder)), "\n".join(["", *lines])


@pytest.mark.long
@pytest.mark.parametrize("first", range(0, COUNT, 100))
def test_all_corrupted_inputs(folder, first):
    lines = red(list(range(first, first + 100)), folder)
    assert not lines, "\n".join(["", *lines])


def kept() -> list[int]:
    """The seeds that searches have found (`python -m tests.faults.fuzz --minutes 60`)."""
    text = (Path(__file__).parent / "cases" / "seeds.txt").read_text()
    return [int(line.split()[0]) for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.long
def test_what_searches_have_found(folder):
    assert not (lines := red(kept(), folder)), "\n".join(["", *lines])


def test_a_hang_and_a_bomb_are_seen(tmp_path):
    def hang(argv):
        while True:
            pass

    def bomb(argv):
        return len(bytearray(4 * 2 ** 30))

    assert "hangs" in Child(tmp_path / "a", [("hang", hang, [])], seconds=0.5).wait().ended
    assert "MemoryError" in Child(tmp_path / "b", [("bomb", bomb, [])]).wait().steps[0].error
