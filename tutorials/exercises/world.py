"""Notebook 02: the truth of a scene, second by second."""

import numpy as np

from crab_mini.metrics.events import runs

from ..exercise import exercise


@exercise("02", lives="crab_mini.metrics.events:runs", replaces=False)
def spans_of_both(seen, heard):
    """The runs of seconds in which a thing is seen AND heard: two (T,) bool arrays -> [(start,
    end)], end excluded.

    seen = 0 1 1 0, heard = 1 1 1 0 -> [(1, 3)].
    """
    raise NotImplementedError


@spans_of_both.answered_by
def _(seen, heard):
    return runs(np.asarray(seen) & np.asarray(heard))


def row(text: str) -> np.ndarray:
    """`0110` -> (T,) bool."""
    return np.array([c == "1" for c in text])


@spans_of_both.requires(
    "the end is the second after the last", "[start, end): end - start is the length"
)
def _(trial):
    trial.agree(row("010"), row("010"))
    trial.agree(row("01100"), row("01100"))


@spans_of_both.requires("only seconds of both count", "seen & heard, not seen | heard")
def _(trial):
    trial.agree(row("0110"), row("0011"))
    trial.agree(row("0100"), row("0010"))


@spans_of_both.requires(
    "a gap of one second divides a run", "a run ends wherever the next second is False"
)
def _(trial):
    trial.agree(row("0110110"), row("0110110"))


@spans_of_both.requires(
    "a run may reach the clip's first and last second", "pad with False on both sides"
)
def _(trial):
    trial.agree(row("011"), row("011"))
    trial.agree(row("1"), row("1"))
    trial.agree(row("100"), row("100"))


@spans_of_both.requires(
    "clips without any run, and random ones", "an empty list where there is none"
)
def _(trial):
    trial.agree(row("000"), row("111"))
    for length in (3, 5, 10, 10, 10, 10):
        trial.agree(trial.numbers.random(length) < 0.6, trial.numbers.random(length) < 0.7)


@exercise("02", lives="crab_mini.metrics.events:second_labels")
def second_labels(event, seconds=10):
    """(name, start, end) -> the label of each of `seconds` seconds: the name from start to end - 1,
    else "background".

    None, an answer that could not be read, is background throughout.
    """
    raise NotImplementedError


@second_labels.requires("the first second is in, the end is not", "start <= t < end")
def _(trial):
    for start, end in ((1, 2), (0, 3), (4, 10)):
        named = [label == "dog" for label in trial.call(("dog", start, end))[:10]]
        trial.equal(named, [start <= t < end for t in range(10)])


@second_labels.requires("other seconds are background", 'the label "background"')
def _(trial):
    trial.agree(("dog", 0, 9))


@second_labels.requires(
    "there is a label for each second of the clip", "`seconds` of them, whatever the event says"
)
def _(trial):
    trial.agree(("dog", 1, 2), 2)
    trial.agree(("dog", 4, 9), 6)
    trial.agree(("dog", 2, 6))


@second_labels.requires("None is background throughout", "look at None before you take it apart")
def _(trial):
    trial.agree(None, 3)


@exercise("02", lives="crab_mini.metrics.events:ave_accuracy")
def ave_accuracy(pred, target):
    """AVE's score of each clip: the share of seconds with the right label. Lists of labels (N,T)
    twice -> array (N,).

    Background is a label like any other. ValueError where the two tables differ in shape.
    """
    raise NotImplementedError


@ave_accuracy.requires(
    "one number for each clip", "the mean over a clip's seconds, not over all clips"
)
def _(trial):
    pred, target = [["dog", "bell"], ["dog", "dog"]], [["dog", "dog"], ["dog", "dog"]]
    alone = [float(np.asarray(trial.call(pred[k : k + 1], target[k : k + 1]))[0]) for k in range(2)]
    trial.equal(trial.call(pred, target), np.array(alone))


@ave_accuracy.requires("the share of seconds with the right label", "each second counts by itself")
def _(trial):
    trial.agree([["dog", "bell"]], [["dog", "dog"]])


@ave_accuracy.requires("background counts as a label", "leave no second out")
def _(trial):
    trial.agree([["background", "dog"]], [["background", "bell"]])
    trial.agree([["background"] * 10], [["background"] * 7 + ["dog"] * 3])


@ave_accuracy.requires(
    "tables of another shape are refused", "compare the shapes first; zip would cut the longer one"
)
def _(trial):
    try:
        found = trial.call([["dog", "dog"]], [["dog", "dog", "bell"]])
    except ValueError:
        return
    trial.expect(False, "ValueError", repr(found))
