"""Scene -> annotation rows of eight tasks, each with an answer that reasons first (AV-UIE, paper
section 3).

`ROWS[task](view, rng)` gives the rows that a scene poses for a task: a list of one dict, or an
empty list. A row has the fields of the AV-UIE layout without media paths; `write.py` adds those.
The ninth task (AVQA) is in questions.py. Everything is derived from the scene's state, in three
steps: what is seen and heard second by second; from it the spans or the places; from them the
tagged answer.

The answers of different tasks begin with different words, so that a model never mixes up two tasks.
Each sentence has several wordings. Answers that a guess would often get right are drawn less often;
the tests in tests/test_world_text.py hold what guessing reaches.

`targets` in a row of a mask task lists the indices of the things in the mask; `write.py` draws the
mask and removes the field.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from ..metrics import runs
from ..tasks.base import FRAME, MASK_GROUP
from .scene import SECONDS
from .view import QUARTERS, View, pick

AVS_SECONDS = 5             # length of a clip of S4 and MS3, as in AVSBench
GUESSED_SIDE = 0.4          # side of the best constant box, as a share of the frame
GUESSED_IOU = 0.45          # ARIG poses no box that the constant box meets with this IoU or more
# S4: the odds of keeping a picture with one, two, three or four visible things. Few silent things
# shall be in view.
S4_KEEP = (1.0, 0.3, 0.15, 0.08)
# MS3 and AVSS: the odds of keeping a second in which every visible thing sounds ("mask all" would
# be right).
ALL_SOUND_KEEP = 0.16
# Ref-AVS: the odds of keeping a picture with zero to four visible things. Mostly one has to choose
# between things.
REF_AVS_KEEP = (0.0, 0.05, 0.4, 1.0, 1.0)
REF_AVS_NULL = 0.25         # share of the expressions that fit no thing


def heard_sentence(view: View, rng: Generator) -> str:
    """What is heard, second by second, in one of three wordings."""
    opening = pick(rng, ("heard: ", "the sounds are: ", "listening gives: "))
    return opening + view.timeline(view.heard) + "."


def seen_sentence(view: View, rng: Generator) -> str:
    """What is seen, second by second, in one of three wordings."""
    opening = pick(rng, ("seen: ", "the pictures show: ", "looking gives: "))
    return opening + view.timeline(view.seen) + "."


def second_sentence(view: View, rng: Generator, t: int) -> str:
    """What is heard and seen at second t, with quarters. The tasks on one frame begin their
    reasoning with it.
    """
    heard, seen = view.words(view.heard(t)), view.words(view.seen(t), t)
    return pick(rng, (f"heard {heard}, seen {seen}.",
                      f"the sound is {heard}, the picture has {seen}."))


def ave(view: View, rng: Generator) -> list[dict]:
    """AVE: the one event that is both seen and heard, in one unbroken span."""
    both = view.visible & view.audible                                      # (things,T)
    events = np.flatnonzero(both.any(1))
    if len(events) != 1 or len(runs(both[events[0]])) != 1:
        return []
    event = int(events[0])
    (start, end), = runs(both[event])
    # Short spans are posed less often, so that a data set has as many seconds of event as of
    # background.
    if rng.random() > (end - start) / 6:
        return []
    name = view.names[event]
    # The draws have a fixed order: the opening, the two senses, the conclusion.
    opening = pick(rng, ("The event:", "Looking for the event:"))
    heard, seen = heard_sentence(view, rng), seen_sentence(view, rng)
    together = f"together: {view.timeline(view.both)}."
    conclusion = pick(rng, (
        f"So the audible and visible event is <event> {name} </event>, and the time range is",
        f"So what is seen and heard is <event> {name} </event>, and the time range is"))
    text = f"{opening} {heard} {seen} {together} {conclusion} <range> {start},{end} </range>."
    return [dict(event=name, start_time=start, end_time=end, label_content=text)]


def avvp_tags(view: View, kind: str) -> str:
    """The tags of all events of a kind, `audio` or `visual`: `<audio_event> dog,(2 6),(8 9)
    </audio_event> ...`.
    """
    if kind == "audio":
        things_at, seconds = view.heard, view.audible
    else:
        things_at, seconds = view.seen, view.visible
    tags = []
    for i in view.order(things_at):
        spans = ",".join(f"({start} {end})" for start, end in runs(seconds[i]))
        tags.append(f"<{kind}_event> {view.names[i]},{spans} </{kind}_event>")
    return " ".join(tags) or f"no {kind} event"


def avvp(view: View, rng: Generator) -> list[dict]:
    """AVVP: every event that is heard and every event that is seen, with their spans."""
    opening = pick(rng, ("Parsing.", "Parsing the clip."))
    heard, seen = heard_sentence(view, rng), seen_sentence(view, rng)
    audio, visual = avvp_tags(view, "audio"), avvp_tags(view, "visual")
    text = f"{opening} {heard} Audio: {audio}. {seen} Visual: {visual}."
    happens = view.audible.any(1) | view.visible.any(1)                     # (things,)
    names = sorted({view.names[i] for i in np.flatnonzero(happens)})
    return [dict(event=",".join(names), label_content=text)]


def avcap(view: View, rng: Generator) -> list[dict]:
    """AVCap: a caption of what is seen, where it is at first, what is heard, and from which second
    on.
    """
    look = ", ".join(view.placed(i, view.visible[i].argmax()) for i in view.order(view.seen))
    sound = ", ".join(f"{view.names[i]} {view.audible[i].argmax()}" for i in view.order(view.heard))
    caption = pick(rng, (f"A clip with {look}. Sounds start: {sound}.",
                         f"One sees {look}. One hears from second: {sound}."))
    opening = pick(rng, ("Describing.", "Describing the clip."))
    seen, heard = seen_sentence(view, rng), heard_sentence(view, rng)
    return [dict(label_content=f"{opening} {seen} {heard} <answer> {caption} </answer>")]


def guessed_iou(box: np.ndarray) -> float:
    """IoU of a box (x0 y0 x1 y1, shares of the frame) with the box in the middle that a model could
    always answer.
    """
    x0, y0, x1, y1 = box
    width = min(x1, .5 + GUESSED_SIDE / 2) - max(x0, .5 - GUESSED_SIDE / 2)
    height = min(y1, .5 + GUESSED_SIDE / 2) - max(y0, .5 - GUESSED_SIDE / 2)
    shared = max(width, 0) * max(height, 0)
    return shared / ((x1 - x0) * (y1 - y0) + GUESSED_SIDE ** 2 - shared)


def arig(view: View, rng: Generator) -> list[dict]:
    """ARIG: the box of the only thing that is seen and heard at a second, if it is not in the
    middle.
    """
    options = []
    for t in range(SECONDS):
        sounding = view.both(t)
        if len(sounding) == 1 and guessed_iou(view.boxes[sounding[0], t]) < GUESSED_IOU:
            options.append(t)
    if not options:
        return []
    t = int(pick(rng, options))
    i = view.both(t)[0]
    named = f"So the sound comes from {view.placed(i, t)}, {view.box_words(i, t)}."
    text = f"Grounding: {second_sentence(view, rng, t)} {named}"
    # The row keeps whole pixels; only the words of the answer are rounded to STEP pixels.
    box = [int(round(side * FRAME)) for side in view.boxes[i, t]]
    return [dict(a_obj=view.names[i], frame_idx=t, top_left=box[:2], bottom_right=box[2:],
                 label_content=text)]


def mask_row(view: View, t: int, targets: list[int], text: str) -> dict:
    """A row of S4, MS3 or AVSS: the frame of second t, the things in the mask and the whole answer.
    """
    names = ",".join(view.names[i] for i in targets)
    return dict(a_obj=names, frame_idx=t, targets=targets, label_content=text)


def s4(view: View, rng: Generator) -> list[dict]:
    """S4: the mask of the only thing that sounds at a second, and that thing is in the picture."""
    options = []
    for t in range(AVS_SECONDS):
        one_source = len(view.both(t)) == 1 == len(view.heard(t))
        if one_source and rng.random() < S4_KEEP[len(view.seen(t)) - 1]:
            options.append(t)
    if not options:
        return []
    t = int(pick(rng, options))
    i = view.both(t)[0]
    scene = second_sentence(view, rng, t)
    text = f"Sounding: {scene} The {view.names[i]} makes the sound {MASK_GROUP}."
    return [mask_row(view, t, [i], text)]


def sounding_second(view: View, rng: Generator, seconds: int) -> int | None:
    """A second, among the first `seconds`, at which something is seen and heard; None if there is
    none.
    """
    options = []
    for t in range(seconds):
        sounding = view.both(t)
        if not sounding:
            continue
        all_sound = len(sounding) == len(view.seen(t))
        if rng.random() < (ALL_SOUND_KEEP if all_sound else 1.0):
            options.append(t)
    return int(pick(rng, options)) if options else None


def ms3(view: View, rng: Generator) -> list[dict]:
    """MS3: one mask of all things that are seen and heard at a second of a five-second clip."""
    t = sounding_second(view, rng, AVS_SECONDS)
    if t is None:
        return []
    targets = view.both(t)
    scene = second_sentence(view, rng, t)
    text = f"All sounding: {scene} Sounding are {view.words(targets)} {MASK_GROUP}."
    return [mask_row(view, t, targets, text)]


def avss(view: View, rng: Generator) -> list[dict]:
    """AVSS: a class map, written as one group of mask tokens after each sounding category."""
    t = sounding_second(view, rng, SECONDS)
    if t is None:
        return []
    targets = view.both(t)
    groups = ", ".join(f"{view.names[i]} {MASK_GROUP}" for i in targets)
    return [mask_row(view, t, targets, f"Classes: {second_sentence(view, rng, t)} Map: {groups}.")]


def expressions(view: View, t: int) -> list[tuple[str, int, bool]]:
    """All expressions that Ref-AVS can pose at second t: (expression, the thing that it names,
    whether it fits).

    `the sounding object at the top-left` names the thing at the top left; it does not fit if that
    thing is silent.
    """
    seen, sounding = view.seen(t), view.both(t)
    options: list[tuple[str, int, bool]] = []
    if len(sounding) == 1:
        options.append(("the object making the sound", sounding[0], True))
    if len(sounding) >= 2:
        # Twice, since a scene offers it less often than the other expressions.
        loudest = max(sounding, key=lambda i: view.gain[i, t])
        options += [("the object making the loudest sound", loudest, True)] * 2
    if len(seen) - len(sounding) == 1:
        options += [("the silent object", i, True) for i in seen if i not in sounding]
    for quarter, words in enumerate(QUARTERS):
        inside = [i for i in seen if view.quarters[i, t] == quarter]
        if len(inside) == 1 and view.clear_of_middle(inside, t):
            options.append((f"the object at the {words}", inside[0], True))
            options.append((f"the sounding object at the {words}", inside[0],
                            inside[0] in sounding))
    options += [(f"the {view.names[i]} that is making a sound", i, i in sounding) for i in seen]
    return options


def ref_avs(view: View, rng: Generator) -> list[dict]:
    """Ref-AVS: the mask of what an expression names at a frame; an empty mask if the expression
    fits nothing.
    """
    t = int(rng.integers(SECONDS))
    seen = view.seen(t)
    if rng.random() > REF_AVS_KEEP[len(seen)]:
        return []
    options = expressions(view, t)
    if not options:
        return []
    # First it is drawn whether the expression fits, then the expression. If no such one exists, any
    # will do.
    wanted = rng.random() >= REF_AVS_NULL
    candidates = [option for option in options if option[2] == wanted] or options
    expression, named, fits = pick(rng, candidates)
    # The reasoning says of each visible thing whether it sounds, then concludes.
    states = ", ".join(view.status(i, t) for i in seen)
    found = "this" if fits else "nothing"
    conclusion = f"Named is {view.status(named, t)}, so {found} {MASK_GROUP}."
    text = f"Referring: {second_sentence(view, rng, t)} {states}. {conclusion}"
    return [dict(description=expression, idx=t, targets=[named] if fits else [], output=text)]


ROWS: dict[str, Callable[[View, Generator], list[dict]]] = dict(
    ave=ave, avvp=avvp, avcap=avcap, arig=arig, s4=s4, ms3=ms3, avss=avss, ref_avs=ref_avs)
