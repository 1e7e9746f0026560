"""The questions of the miniature MUSIC-AVQA: nine types, posed so that no answer is much more
likely than another.

A question function lists every question of its type that a scene can pose, each with its reasoning
and its answer. `avqa` draws the answer first, uniformly over the answers that the scene offers, and
then one of the questions with that answer. So the most frequent answer of a type stays rare
(tests/test_world_text.py holds how rare).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from .scene import SECONDS
from .view import QUARTERS, View, pick


@dataclass(frozen=True)
class Question:
    """One question, the words that lead to its answer, and the answer."""
    text: str
    reasoning: str
    answer: str


def counting(view: View, things_at: Callable[[int], list[int]], what: str) -> list[Question]:
    """How many different things the clip holds for one sense. what: `heard` or `seen`, the sense of
    `things_at`.
    """
    things = view.order(things_at)
    reasoning = f"{what}: {view.timeline(things_at)}. They are {view.words(things)}."
    return [Question(f"how many different objects are {what}?", reasoning, str(len(things)))]


def audio_counting(view: View) -> list[Question]:
    """How many different things are heard in the clip."""
    return counting(view, view.heard, "heard")


def visual_counting(view: View) -> list[Question]:
    """How many different things are seen in the clip."""
    return counting(view, view.seen, "seen")


def both_counting(view: View) -> list[Question]:
    """How many things are seen and heard at one second. Not near the ends of a clip, where the
    answer is mostly 0.
    """
    questions = []
    for t in range(2, SECONDS - 2):
        heard, seen = view.words(view.heard(t)), view.words(view.seen(t))
        both = view.both(t)
        questions.append(Question(
            text=f"how many objects are seen and heard at second {t}?",
            reasoning=f"at {t} heard {heard}, seen {seen}, both {view.words(both)}.",
            answer=str(len(both))))
    return questions


def if_open(questions: list[Question]) -> list[Question]:
    """The questions, if both answers, yes and no, occur among them; otherwise none."""
    return questions if len({question.answer for question in questions}) == 2 else []


def existential_sound(view: View) -> list[Question]:
    """Whether a thing that is seen at a second is heard at that second."""
    questions = []
    for i, name in enumerate(view.names):
        for t in np.flatnonzero(view.visible[i]):
            questions.append(Question(
                text=f"is the {name} in the picture making a sound at second {t}?",
                reasoning=f"at {t} heard {view.words(view.heard(t))}. {view.status(i, t)}.",
                answer="yes" if view.audible[i, t] else "no"))
    return if_open(questions)


def existential_sight(view: View) -> list[Question]:
    """Whether a thing that is heard at a second is seen at that second."""
    questions = []
    for i, name in enumerate(view.names):
        for t in np.flatnonzero(view.audible[i]):
            state, answer = ("seen", "yes") if view.visible[i, t] else ("away", "no")
            questions.append(Question(
                text=f"is the {name} that sounds at second {t} in the picture?",
                reasoning=f"at {t} seen {view.words(view.seen(t))}. {name} {state}.",
                answer=answer))
    return if_open(questions)


def visual_location(view: View) -> list[Question]:
    """In which quarter of the frame a named thing is at a second, if it is clearly in one."""
    questions = []
    for t in range(SECONDS):
        for i in view.seen(t):
            if view.clear_of_middle(i, t):
                questions.append(Question(
                    text=f"where is the {view.names[i]} at second {t}?",
                    reasoning=f"at {t} seen {view.words(view.seen(t), t)}. {view.placed(i, t)}.",
                    answer=QUARTERS[view.quarters[i, t]]))
    return questions


def both_location(view: View) -> list[Question]:
    """In which quarter of the frame the only sounding thing in the picture is at a second."""
    questions = []
    for t in range(SECONDS):
        both = view.both(t)
        if len(both) != 1 or not view.clear_of_middle(both[0], t):
            continue
        heard, seen = view.words(view.heard(t)), view.words(view.seen(t), t)
        questions.append(Question(
            text=f"where is the object that makes the sound at second {t}?",
            reasoning=f"at {t} heard {heard}, seen {seen}, both {view.words(both)}. "
                      f"{view.placed(both[0], t)}.",
            answer=QUARTERS[view.quarters[both[0], t]]))
    return questions


def loudness(view: View) -> list[Question]:
    """Which of two things is louder at a second. One of the two is the loudest thing of that
    second.
    """
    questions = []
    for t in range(SECONDS):
        heard = view.heard(t)
        for other in heard[1:]:
            # Both orders of the two names, so that the first one named is the answer half of the
            # time.
            for first, second in ((heard[0], other), (other, heard[0])):
                questions.append(Question(
                    text=f"at second {t}, which is louder, "
                         f"the {view.names[first]} or the {view.names[second]}?",
                    reasoning=f"at {t} heard {view.words(heard)}.",
                    answer=view.names[heard[0]]))
    return questions


def duration(view: View) -> list[Question]:
    """Which of two things is heard for longer. Their durations differ by two seconds or more."""
    questions = []
    total = view.audible.sum(1)                                             # (things,) seconds
    heard = np.flatnonzero(total)
    timeline = f"heard: {view.timeline(view.heard)}."
    for first in heard:
        for second in heard:
            if first == second or abs(int(total[first]) - int(total[second])) < 2:
                continue
            longer = first if total[first] > total[second] else second
            sums = " ".join(f"{view.span_words(i, view.audible[i])} is {total[i]}."
                            for i in (first, second))
            questions.append(Question(
                text=f"which is heard longer, the {view.names[first]} or the {view.names[second]}?",
                reasoning=f"{timeline} {sums}",
                answer=view.names[longer]))
    return questions


def temporal(view: View) -> list[Question]:
    """Which thing is heard first, and which begins last; only where no other thing begins in the
    same second.
    """
    heard = view.order(view.heard)
    start = view.audible.argmax(1)  # (things,) first second of sound
    starts = ", ".join(f"{view.names[i]} {start[i]}" for i in heard)
    reasoning = f"heard: {view.timeline(view.heard)}. starts {starts}."
    questions = []
    if len(heard) > 1 and start[heard[0]] < start[heard[1]]:
        first = view.names[heard[0]]
        questions.append(Question("which object is heard first?", reasoning, first))
    if len(heard) > 1 and start[heard[-1]] > start[heard[-2]]:
        last = view.names[heard[-1]]
        questions.append(Question("which object begins to sound last?", reasoning, last))
    return questions


# MUSIC-AVQA's type names, (modality, kind), and the question functions of each type.
TYPES: dict[tuple[str, str], tuple[Callable[[View], list[Question]], ...]] = {
    ("Audio", "Counting"): (audio_counting,),
    ("Visual", "Counting"): (visual_counting,),
    ("Audio-Visual", "Counting"): (both_counting,),
    ("Audio-Visual", "Existential"): (existential_sound, existential_sight),
    ("Visual", "Location"): (visual_location,),
    ("Audio-Visual", "Location"): (both_location,),
    ("Audio", "Comparative"): (loudness,),
    ("Audio-Visual", "Comparative"): (duration,),
    ("Audio-Visual", "Temporal"): (temporal,),
}
# A scene offers one count, and middle counts occur more often. These odds of keeping a question
# make counts even.
COUNT_KEEP = {"Audio": {"1": .75, "2": .55, "3": .8},
              "Visual": {"1": 1., "2": .5, "3": .6, "4": .9}}


def avqa(view: View, rng: Generator, types: Sequence[tuple[str, str]] = tuple(TYPES)) -> list[dict]:
    """AVQA: one annotation row for each of the types that the scene can pose."""
    rows = []
    for modality, kind in types:
        # All questions of one wording, grouped by their answers.
        questions = pick(rng, TYPES[modality, kind])(view)
        by_answer: dict[str, list[Question]] = {}
        for question in questions:
            by_answer.setdefault(question.answer, []).append(question)
        if not by_answer:
            continue
        # The answer is drawn before the question, so that an answer of many questions is no more
        # likely.
        answer = pick(rng, sorted(by_answer))
        if kind == "Counting" and rng.random() > COUNT_KEEP.get(modality, {}).get(answer, 1.0):
            continue
        question = pick(rng, by_answer[answer])
        label = f"Answering: {question.reasoning} So the answer is <answer> {answer} </answer>."
        rows.append(dict(type=f'["{modality}", "{kind}"]', question=question.text, answer=answer,
                         label=label))
    return rows


def one_question(view: View, rng: Generator) -> list[dict]:
    """One row of one type; types are tried in random order until the scene can pose one. Cheaper
    than all of `avqa`.
    """
    types = list(TYPES)
    for k in rng.permutation(len(types)):
        row = avqa(view, rng, (types[k],))
        if row:
            return row
    return []
