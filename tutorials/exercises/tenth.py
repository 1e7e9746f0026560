"""Notebook 13: a tenth task of one's own: is anything heard that is not seen? Its truth, its parser
and its score."""

import numpy as np

from ..exercise import exercise

PAGE = (
    "crab_mini.metrics.captions:exact_match"  # whose rule for unreadable answers the score follows
)


@exercise("13", lives="crab_mini.world.annotate:View", points=2, replaces=False)
def offscreen_truth(row):
    """The tenth task's label: "yes" if in any second something is heard that is not seen in that
    second, else "no".

    row: {"seen": [set of names, one a second], "heard": [set of names, one a second]}; some rows
    carry an "answer", of which nothing is known: it may be wrong.
    """
    raise NotImplementedError


def clip(*seconds: str, **more) -> dict:
    """`dog/bell,dog`: what is seen / what is heard in one second."""
    pairs = [second.split("/") for second in seconds]
    seen, heard = ([set(filter(None, pair[side].split(","))) for pair in pairs] for side in (0, 1))
    return dict(seen=seen, heard=heard, **more)


def truth(trial, wanted: str, *seconds: str, **more) -> None:
    """The answer on one clip."""
    trial.equal(trial.call(clip(*seconds, **more)), wanted)


@offscreen_truth.requires(
    "both answers occur", "a constant answer is right half of the time and knows nothing"
)
def _(trial):
    truth(trial, "no", "dog/dog")
    truth(trial, "yes", "/dog")
    truth(trial, "no", "dog/")


@offscreen_truth.requires(
    "names are compared, not counted", "heard - seen, the difference of two sets"
)
def _(trial):
    truth(trial, "yes", "dog/bell")
    truth(trial, "no", "dog,bell/bell")


@offscreen_truth.requires(
    "seen in another second does not count", "compare second by second, not the whole clip"
)
def _(trial):
    truth(trial, "yes", "dog/", "/dog")
    truth(trial, "yes", "dog/dog", "bell/dog")


@offscreen_truth.requires(
    "every second is looked at, and every name", "any, over all seconds and names"
)
def _(trial):
    truth(trial, "yes", "dog/dog", "dog/dog", "dog/bell,dog")
    truth(trial, "yes", "/dog", "dog/dog")
    truth(trial, "no", "dog,bell/bell", "dog,bell/dog")


@offscreen_truth.requires(
    "the row's own answer is not read", "hidden rows have none, or a wrong one"
)
def _(trial):
    truth(trial, "yes", "/dog", answer="no")
    truth(trial, "no", "dog/dog", answer="yes")


@exercise("13", lives=PAGE, points=2, replaces=False)
def offscreen_score(texts, truth):
    """The tenth task's accuracy, from 0 to 1: texts (n,) as the model wrote them, truth (n,) of
    "yes" and "no".

    `.. <answer> yes </answer>` is read; whatever else the text is, it is wrong, and it counts.
    """
    raise NotImplementedError


YES, NO = "<answer> yes </answer>", "<answer> no </answer>"


@offscreen_score.requires("the share of right answers", "a number from 0 to 1")
def _(trial):
    trial.equal(trial.call([YES], ["yes"]), 1.0)
    trial.equal(trial.call([YES, NO, YES, NO], ["yes", "no", "no", "no"]), 0.75)


@offscreen_score.requires(
    "reasoning before the tag may hold the other word", "read between the tags only"
)
def _(trial):
    trial.equal(trial.call([f"no dog is seen: yes? {NO}"], ["no"]), 1.0)
    trial.equal(trial.call([f"no, not seen {YES}"], ["yes"]), 1.0)


@offscreen_score.requires(
    "an answer that cannot be read is wrong, and counts", "divide by the number of rows"
)
def _(trial):
    trial.equal(trial.call([YES, "yes"], ["yes", "yes"]), 0.5)
    trial.equal(trial.call(["", "<answer> maybe </answer>", NO], ["yes", "no", "no"]), 1 / 3)


@offscreen_score.requires(
    "no readable answer at all scores 0", "no division by the number of readable ones"
)
def _(trial):
    trial.equal(trial.call(["nothing"], ["no"]), 0.0)


@exercise("13", lives="crab_mini.metrics.captions:exact_match", replaces=False)
def usual_answer(truth):
    """The yardstick that a tenth task must beat: the accuracy of always giving the most frequent
    answer. (n,) -> 0 to 1."""
    raise NotImplementedError


@usual_answer.requires(
    "the more frequent answer counts, whichever it is", "not always the share of yes"
)
def _(trial):
    trial.equal(trial.call(["yes", "yes", "no"]), 2 / 3)
    trial.equal(trial.call(["no", "no", "no", "yes"]), 0.75)


@usual_answer.requires("one kind of answer alone scores 1", "the most frequent one is all of them")
def _(trial):
    trial.equal(trial.call(["no", "no"]), 1.0)


@usual_answer.requires("answers may be any words", "count them; there are tasks with more than two")
def _(trial):
    words = np.repeat(["dog", "bell", "bird"], [2, 5, 3]).tolist()
    trial.equal(trial.call(words), 0.5)
