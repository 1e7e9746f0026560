"""Notebook 12: would we know if the tasks helped each other?"""

import numpy as np

from crab_mini.metrics import bootstrap_interval

from ..exercise import exercise

PARTNERS = "crab_mini.evaluation.generate:partners"  # the one line that knows where they are chosen


@exercise("12", lives="crab_mini.metrics.bootstrap:bootstrap_interval", points=3, replaces=False)
def paired_interval(a, b, draws, seed):
    """Is model a better than model b? Scores of the SAME n rows, (n,) each -> (low, high) of the
    mean difference a - b.

    The percentile bootstrap, 95 %: draw n rows with replacement, the same rows of a and of b,
    `draws` times; the 2.5th and the 97.5th percentile of the differences of means. seed: of numpy's
    generator.
    """
    raise NotImplementedError


@paired_interval.answered_by
def _(a, b, draws, seed):
    return bootstrap_interval(np.asarray(a) - np.asarray(b), np.mean, 0.95, draws, seed)


def interval(trial, a, b, draws: int = 800, seed: int = 0) -> np.ndarray:
    """The answer's (low, high)."""
    found = trial.call(a, b, draws, seed)
    trial.expect(
        isinstance(found, (tuple, list, np.ndarray)) and len(found) == 2,
        "(low, high)",
        repr(type(found)),
    )
    return np.array([float(v) for v in found])


@paired_interval.requires(
    "low comes first, a - b is positive where a is better", "the order of the two and the sign"
)
def _(trial):
    a = np.array([1.0, 1.0, 0.9, 1.0])
    low, high = interval(trial, a, a - 0.5)
    trial.expect(low <= high and low > 0, "0 < low <= high", f"({low:.3f}, {high:.3f})")


@paired_interval.requires(
    "rows that differ by the same amount leave no doubt", "the SAME rows of a and b in each draw"
)
def _(trial):
    a = trial.numbers.random(20)
    trial.equal(interval(trial, a, a - 0.25), np.array([0.25, 0.25]), 1e-6)


@paired_interval.requires(
    "rows are drawn with replacement", "drawing all rows once gives the same mean each time"
)
def _(trial):
    a, b = (trial.numbers.random(30) < 0.5).astype(float), np.zeros(30)
    low, high = interval(trial, a, b)
    trial.expect(high - low > 0.1, "an interval wider than 0.1", f"width {high - low:.4f}")


@paired_interval.requires(
    "95 %: as wide as the package's", "percentiles 2.5 and 97.5, n rows a draw, two-sided"
)
def _(trial):
    for n in (40, 200):
        a, b = trial.numbers.random(n), trial.numbers.random(n)
        found, wanted = (
            interval(trial, a, b, 1000, 1),
            np.array(trial.exercise.original()(a, b, 2000, 2)),
        )
        trial.equal(found, wanted, 0.12 * (wanted[1] - wanted[0]))


@paired_interval.requires(
    "the seed decides, and only it", "np.random.default_rng(seed), made inside"
)
def _(trial):
    a, b = trial.numbers.random(10), trial.numbers.random(10)
    first = trial.run(a, b, 50, 3)
    trial.equal(np.array(trial.run(a, b, 50, 3)), np.array(first), 1e-12)
    trial.expect(
        tuple(trial.run(a, b, 50, 4)) != tuple(first),
        "another interval for another seed",
        "the same",
    )


@exercise("12", lives=PARTNERS, points=2, replaces=False)
def partner(k, rows):
    """Whose sound stands in for row k's in the shuffle test: rows are dicts {"task", "clip",
    "names"} -> a place in rows.

    A row of the same task and of ANOTHER clip; if there is one that shares no name with row k, such
    a one, because an exchange of one dog's bark for another's would show nothing. ValueError where
    the task has no other clip.
    """
    raise NotImplementedError


def rows_of(*texts: str) -> list[dict]:
    """`ave 1 dog,bell` -> a row."""
    return [
        dict(task=task, clip=clip, names=set(names.split(",")))
        for task, clip, names in map(str.split, texts)
    ]


def chosen(trial, k: int, *texts: str) -> dict:
    """The row that the answer chooses."""
    rows = rows_of(*texts)
    found = trial.call(k, rows)
    trial.expect(
        isinstance(found, (int, np.integer))
        and not isinstance(found, bool)
        and 0 <= found < len(rows),
        f"a place from 0 to {len(rows) - 1}",
        repr(found)[:60],
    )
    return rows[int(found)]


@partner.requires("it is a row of the same task", "the prompt must still fit")
def _(trial):
    for k in (0, 1):
        found = chosen(trial, k, "ave 1 dog", "ave 2 bell", "avvp 3 drum", "avvp 4 bird")
        trial.expect(found["task"] == "ave", "a row of ave", f"one of {found['task']}")
    found = chosen(trial, 0, "ave 1 dog", "avvp 2 bell", "ave 3 drum")
    trial.expect(found["task"] == "ave", "a row of ave", f"one of {found['task']}")


@partner.requires("it is of another clip", "several rows may be of one clip")
def _(trial):
    for k, texts in (
        (0, ("ave 1 dog", "ave 2 bell")),
        (0, ("ave 1 dog", "ave 1 bell", "ave 2 bell")),
        (2, ("ave 2 dog", "ave 1 drum", "ave 1 bell")),
    ):
        found = chosen(trial, k, *texts)
        own = texts[k].split()[1]
        trial.expect(found["clip"] != own, f"a clip other than {own}", "the same clip")


@partner.requires("it shares no name, where there is such a one", "look on beyond the next clip")
def _(trial):
    for k, texts in (
        (0, ("ave 1 dog", "ave 2 dog", "ave 3 bell")),
        (1, ("ave 3 bell", "ave 1 dog,drum", "ave 2 drum")),
        (2, ("ave 1 bell", "ave 2 dog,bird", "ave 3 dog", "ave 4 dog")),
    ):
        found = chosen(trial, k, *texts)
        shared = found["names"] & set(texts[k].split()[2].split(","))
        trial.expect(not shared, "no name in common", f"{', '.join(shared)} in both")


@partner.requires("a clip that shares a name is better than none", "fall back on any other clip")
def _(trial):
    found = chosen(trial, 0, "ave 1 dog", "ave 1 bell", "ave 2 dog")
    trial.expect(found["clip"] == "2", "the only other clip", "none")


@partner.requires(
    "without another clip there is a ValueError", "say so instead of giving the row itself"
)
def _(trial):
    try:
        found = trial.call(0, rows_of("ave 1 dog", "ave 1 bell", "avvp 2 drum"))
    except ValueError:
        return
    trial.expect(False, "ValueError", repr(found)[:60])
