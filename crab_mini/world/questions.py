"""The questions of the miniature MUSIC-AVQA: nine kinds, each posed so that no answer is more likely than another.

A kind lists every question the scene can pose with its reasoning and answer; the answer is drawn first (uniformly over
the answers that the scene offers, rare ones favoured), then one of its questions. So a type's majority stays low.
"""

from dataclasses import dataclass

import numpy as np

from .annotate import PLACES, View, _pick
from .scene import SECONDS


@dataclass(frozen=True)
class Question:
    """One question with the words that lead to its answer."""
    text: str
    reasoning: str
    answer: str


def _count(view: View, at, what: str) -> list[Question]:
    things = view.order(at)
    return [Question(f"how many different objects are {what}?",
                     f"{what}: {view.line(at)}. They are {view.words(things)}.", str(len(things)))]


def audio_counting(view: View) -> list[Question]:
    """How many different things are heard in the clip."""
    return _count(view, view.heard, "heard")


def visual_counting(view: View) -> list[Question]:
    """How many different things are seen in the clip."""
    return _count(view, view.seen, "seen")


def both_counting(view: View) -> list[Question]:
    """How many things are seen and heard at one second; not at the ends of a clip, where mostly none is."""
    return [Question(f"how many objects are seen and heard at second {t}?",
                     f"at {t} heard {view.words(view.heard(t))}, seen {view.words(view.seen(t))}, "
                     f"both {view.words(view.both(t))}.", str(len(view.both(t)))) for t in range(2, SECONDS - 2)]


def existential_sound(view: View) -> list[Question]:
    """Whether a thing that is seen at a second is heard then; only in scenes where the answer could be either."""
    return _either([Question(f"is the {name} in the picture making a sound at second {t}?",
                             f"at {t} heard {view.words(view.heard(t))}. {view.status(i, t)}.",
                             "yes" if view.heard_at[i, t] else "no")
                    for i, name in enumerate(view.names) for t in range(SECONDS) if view.visible[i, t]])


def existential_sight(view: View) -> list[Question]:
    """Whether a thing that is heard at a second is seen then; only in scenes where the answer could be either."""
    return _either([Question(f"is the {name} that sounds at second {t} in the picture?",
                             f"at {t} seen {view.words(view.seen(t))}. "
                             f"{name} {'seen' if view.visible[i, t] else 'away'}.",
                             "yes" if view.visible[i, t] else "no")
                    for i, name in enumerate(view.names) for t in range(SECONDS) if view.heard_at[i, t]])


def _either(questions: list[Question]) -> list[Question]:
    return questions if len({q.answer for q in questions}) == 2 else []


def visual_location(view: View) -> list[Question]:
    """Where a named thing is at a second."""
    return [Question(f"where is the {view.names[i]} at second {t}?",
                     f"at {t} seen {view.words(view.seen(t), t)}. {view.placed(i, t)}.", PLACES[view.place[i, t]])
            for t in range(SECONDS) for i in view.seen(t) if np.abs(view.path[i, t] - 0.5).min() > 0.06]


def both_location(view: View) -> list[Question]:
    """Where the only sounding thing in the picture is at a second."""
    return [Question(f"where is the object that makes the sound at second {t}?",
                     f"at {t} heard {view.words(view.heard(t))}, seen {view.words(view.seen(t), t)}, "
                     f"both {view.words(view.both(t))}. {view.placed(i, t)}.", PLACES[view.place[i, t]])
            for t in range(SECONDS) for i in view.both(t)
            if len(view.both(t)) == 1 and np.abs(view.path[i, t] - 0.5).min() > 0.06]


def loudness(view: View) -> list[Question]:
    """Which of two things is louder; one of them is the loudest of a second in which both are heard."""
    out = []
    for t in range(SECONDS):
        heard = view.heard(t)
        for other in heard[1:]:
            for a, b in ((heard[0], other), (other, heard[0])):
                out.append(Question(f"at second {t}, which is louder, the {view.names[a]} or the {view.names[b]}?",
                                    f"at {t} heard {view.words(heard)}.", view.names[heard[0]]))
    return out


def duration(view: View) -> list[Question]:
    """Which of two things is heard for longer."""
    out, total = [], view.heard_at.sum(1)
    heard = np.flatnonzero(total)
    line = f"heard: {view.line(view.heard)}."
    for a in heard:
        for b in heard:
            if a != b and abs(int(total[a]) - int(total[b])) >= 2:
                longer = a if total[a] > total[b] else b
                sums = " ".join(f"{view.span_words(i, view.heard_at[i])} is {total[i]}." for i in (a, b))
                out.append(Question(f"which is heard longer, the {view.names[a]} or the {view.names[b]}?",
                                    f"{line} {sums}", view.names[longer]))
    return out


def temporal(view: View) -> list[Question]:
    """Which thing is heard first, or last to begin."""
    heard = view.order(view.heard)
    start = view.heard_at.argmax(1)
    line = f"heard: {view.line(view.heard)}. starts {', '.join(f'{view.names[i]} {start[i]}' for i in heard)}."
    out = []
    if len(heard) > 1 and start[heard[0]] < start[heard[1]]:
        out.append(Question("which object is heard first?", line, view.names[heard[0]]))
    if len(heard) > 1 and start[heard[-1]] > start[heard[-2]]:
        out.append(Question("which object begins to sound last?", line, view.names[heard[-1]]))
    return out


# MUSIC-AVQA's type names, [modality, kind], and the wordings of each.
KINDS = {
    ("Audio", "Counting"): (audio_counting,), ("Visual", "Counting"): (visual_counting,),
    ("Audio-Visual", "Counting"): (both_counting,),
    ("Audio-Visual", "Existential"): (existential_sound, existential_sight),
    ("Visual", "Location"): (visual_location,), ("Audio-Visual", "Location"): (both_location,),
    ("Audio", "Comparative"): (loudness,), ("Audio-Visual", "Comparative"): (duration,),
    ("Audio-Visual", "Temporal"): (temporal,),
}
# A scene offers a count at random, and middling counts oftener: these odds of keeping one level them.
_KEEP = {"Audio": {"1": .75, "2": .55, "3": .8}, "Visual": {"1": 1., "2": .5, "3": .6, "4": .9}}


def one_question(view: View, rng) -> list[dict]:
    """A question of one kind, drawn anew until the scene can pose it: a ninth of the work of `avqa`."""
    kinds = list(KINDS)
    for k in rng.permutation(len(kinds)):
        row = avqa(view, rng, (kinds[k],))
        if row:
            return row
    return []


def avqa(view: View, rng, kinds=tuple(KINDS)) -> list[dict]:
    """One question of each kind that the scene can pose."""
    rows = []
    for modality, kind in kinds:
        pose = _pick(rng, KINDS[modality, kind])
        answers: dict[str, list[Question]] = {}
        for question in pose(view):
            answers.setdefault(question.answer, []).append(question)
        if not answers:
            continue
        answer = _pick(rng, sorted(answers))
        if kind == "Counting" and rng.random() > _KEEP.get(modality, {}).get(answer, 1.0):
            continue
        question = _pick(rng, answers[answer])
        rows.append(dict(type=f'["{modality}", "{kind}"]', question=question.text, answer=answer,
                         label=f"Answering: {question.reasoning} So the answer is <answer> {answer} </answer>."))
    return rows
