"""Narration: what one sense holds, said in many wordings. The language model's pre-training and alignment read nothing
else, so the nine tasks are left to instruction tuning.

As the paper aligns each interface alone, a narration reads one sense: what is heard or seen at a second or second by
second, who is where, a named thing's place, box or mask. It never joins the senses, counts, compares, puts in order or
states a span, and it never speaks as a task does (tests/test_narration.py reads thousands and holds that).
    row = narrate(View(sample_scene(3)), np.random.default_rng(0));  row.prompt, row.answer
"""

import re
from dataclasses import dataclass

import numpy as np

from .annotate import MASK, View
from .scene import SECONDS


@dataclass(frozen=True)
class Narration:
    """One request and its answer.

    seconds: which seconds of the clip are shown. at: the second that is spoken of; None for all of them. targets: for
    each mask group of the answer the things it covers; none without masks.
    """
    prompt: str
    answer: str
    seconds: tuple[int, ...]
    at: int | None = None
    targets: tuple[tuple[int, ...], ...] = ()


MOST = 4                    # things asked for in one breath
# How often each kind is drawn: second by second takes longest to learn.
KINDS = dict(heard=1.0, seen=1.0, placed=1.5, located=1.0, boxed=1.5, boxes=0.5, masked=2.0, hearing=3.0, seeing=3.0,
             following=1.5)


def narrate(view: View, rng, kinds: dict[str, float] = KINDS) -> Narration:
    """A narration of one kind, drawn by weight; kinds that need something in the picture are drawn anew without it."""
    names, share = list(kinds), np.array(list(kinds.values()))
    while True:
        kind = names[rng.choice(len(names), p=share / share.sum())]
        row = _KINDS[kind](view, rng)
        if row is not None:
            return row


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _shown(rng, t: int) -> tuple[int, ...]:
    """The seconds that are shown to somebody who is asked about one of them: it alone, the first half, or all."""
    return _pick(rng, ((t,), tuple(range(5)), tuple(range(SECONDS))) if t < 5 else ((t,), tuple(range(SECONDS))))


def _items(rng, some, asked, lead: str, joint: str = ", ") -> tuple[str, str, tuple[int, ...], int | None]:
    """Requests about some things at some seconds, together: (prompt, answer, seconds shown, second or None for many).

    some: [(second, what is asked, what is said)]. One of them, or up to four in one breath where the whole clip is
    shown: the look-up is the same, and the clip is read once for all.
    """
    count = min(int(rng.integers(1, MOST + 1)), len(some)) if rng.random() < 0.5 else 1
    some = [some[k] for k in rng.permutation(len(some))[:count]]
    prompt = asked.format(joint.join(what for _, what, _ in some))
    answer = lead + joint.join(said for _, _, said in some) + "."
    seconds = _shown(rng, some[0][0]) if count == 1 else tuple(range(SECONDS))
    return prompt, answer, seconds, some[0][0] if count == 1 else None


def _at_seconds(view: View, rng, words, prompts, leads) -> Narration:
    """`words(t)` of one second or a few, asked for and said in one of several ways."""
    form = _pick(rng, ("at {t} {said}", "{t} {said}", "second {t} {said}"))
    lead = _pick(rng, leads)
    some = [(t, str(t), form.format(t=t, said=words(t))) for t in range(SECONDS)]
    return Narration(*_items(rng, some, _pick(rng, prompts), lead))


def _heard(view: View, rng) -> Narration:
    return _at_seconds(
        view, rng, lambda t: f"heard {view.words(view.heard(t))}",
        ("listen at {}.", "say the sounds at {}.", "tell me: heard at {}.", "ears open: second {}."),
        ("", "the sound is: ", "the sounds are: "))


def _seen(view: View, rng) -> Narration:
    return _at_seconds(
        view, rng, lambda t: f"seen {view.words(view.seen(t))}",
        ("look at {}.", "say the things the picture has at {}.", "tell me: seen at {}.",
         "eyes open: second {}."), ("", "the picture has: ", "the pictures show: "))


def _placed(view: View, rng) -> Narration:
    return _at_seconds(
        view, rng, lambda t: f"seen {view.words(view.seen(t), t)}",
        ("say the corners at {}.", "map the picture at {}.", "look at {}, places too.",
         "tell me: seen at {}, at its corner."), ("", "the picture has: ", "the pictures show: "))


def _named(view: View, rng) -> list[tuple[int, int]]:
    """(thing, second) of everything in the pictures."""
    return [(int(i), int(t)) for i, t in np.argwhere(view.visible)]


def _located(view: View, rng) -> Narration | None:
    some = [(t, f"{view.names[i]} {t}", view.placed(i, t)) for i, t in _named(view, rng)]
    prompt = _pick(rng, ("place: {}.", "say the corner: {}.", "point at {}."))
    return Narration(*_items(rng, some, prompt, _pick(rng, ("", "the ", "seen ")))) if some else None


def _boxed(view: View, rng) -> Narration | None:
    form = _pick(rng, ("{placed}, {box}", "{name}, {box}"))
    some = [(t, f"{view.names[i]} {t}",
             form.format(placed=view.placed(i, t), name=view.names[i], box=view.box_words(i, t)))
            for i, t in _named(view, rng)]
    prompt = _pick(rng, ("box: {}.", "draw the box around {}.", "frame {}."))
    return Narration(*_items(rng, some, prompt, _pick(rng, ("", "the box: ", "the ")))) if some else None


def _boxes(view: View, rng) -> Narration | None:
    """Everybody in the picture with place and box."""
    t = int(rng.integers(SECONDS))
    if not view.seen(t):
        return None
    said = ", ".join(f"{view.placed(i, t)} {view.box_words(i, t)}" for i in view.seen(t))
    return Narration(_pick(rng, (f"boxes at {t}.", f"draw boxes around everything at {t}.")),
                     _pick(rng, (f"the picture has {said}.", f"boxes: {said}.")), _shown(rng, t), t)


def _masked(view: View, rng) -> Narration | None:
    """A mask of a named thing, one of several named things, or one for each."""
    t = int(rng.integers(SECONDS))
    seen = view.seen(t)
    if not seen:
        return None
    some = [seen[k] for k in sorted(rng.permutation(len(seen))[:int(rng.integers(1, len(seen) + 1))])]
    names = " ".join(view.names[i] for i in some)
    if len(some) > 1 and rng.random() < 0.5:
        prompt = _pick(rng, (f"cut out {names} at {t}, one by one.", f"paint {names} one by one, second {t}."))
        lead = _pick(rng, ("", "one by one: ", "the picture has "))
        return Narration(prompt, lead + ", ".join(f"{view.names[i]} {MASK}" for i in some) + ".", _shown(rng, t), t,
                         tuple((i,) for i in some))
    prompt = _pick(rng, (f"cut out {names} at {t}.", f"paint {names}, second {t}."))
    said = _pick(rng, (names, f"the {names}", f"this is {names}", f"seen {names}"))
    return Narration(prompt, f"{said} {MASK}.", _shown(rng, t), t, (tuple(some),))


def _through(view: View, rng, at, prompts, leads) -> Narration:
    """One sense second by second: who is there, or also who comes and goes; the seconds as words or in brackets."""
    asked, said = "second by second", " ".join(f"{t} {view.words(at(t))}" for t in range(SECONDS))
    if rng.random() < 0.6:
        asked, said = "second by second, coming, going", view.line(at)
    if rng.random() < 0.4:
        asked, said = f"by the clock, {asked}", re.sub(r"(\d+)", r"(\1)", said)
    return Narration(_pick(rng, prompts).format(asked), f"{_pick(rng, leads)}{said}.", tuple(range(SECONDS)))


def _hearing(view: View, rng) -> Narration:
    return _through(view, rng, view.heard, ("listen on, {}.", "write down the sounds, {}.", "keep your ears open, {}."),
                    ("heard: ", "the sounds are: ", "listening gives: "))


def _seeing(view: View, rng) -> Narration:
    return _through(view, rng, view.seen, ("look on, {}.", "write down the pictures, {}.", "keep your eyes open, {}."),
                    ("seen: ", "the pictures show: ", "looking gives: "))


def _following(view: View, rng) -> Narration:
    """One named thing through the clip, by one sense."""
    i = int(rng.integers(len(view.names)))
    name = view.names[i]
    if rng.random() < 0.5:
        prompt = _pick(rng, (f"follow the {name} by ear.", f"hear {name}, second by second."))
        words = ["heard" if there else "nothing" for there in view.heard_at[i]]
    else:
        prompt = _pick(rng, (f"follow the {name} by eye.", f"watch {name}, second by second."))
        words = ["seen" if there else "away" for there in view.visible[i]]
        if rng.random() < 0.5:
            words = [view.placed(i, t).split()[1] if there else "away" for t, there in enumerate(view.visible[i])]
    said = " ".join(f"{t} {word}" for t, word in enumerate(words))
    return Narration(prompt, _pick(rng, (f"{name}: {said}.", f"the {name}: {said}.")), tuple(range(SECONDS)))


_KINDS = dict(heard=_heard, seen=_seen, placed=_placed, located=_located, boxed=_boxed, boxes=_boxes, masked=_masked,
              hearing=_hearing, seeing=_seeing, following=_following)
