"""Scene -> the nine tasks' annotations, each with an answer that reasons before it answers (AV-UIE, paper section 3).

Every sentence is derived from the scene's state. The reasoning is explicit and time- and place-aware: what is heard
and seen second by second, from it each span, from the spans the answer. Each task opens in its own words, so that
one task's answer is never mistaken for another's; and what belongs to a name (its place, whether it is heard) follows
it at once, every time, so that a small LLM looks it up at that very word. `ROWS[task](view, rng)` gives annotation rows
in the AV-UIE layout, without the media paths (the writer adds them); a scene that cannot pose a task gives none.
"""

import numpy as np

from .scene import SECONDS, Scene

FRAME = 224                       # AV-UIE boxes are pixels of a 224x224 frame
STEP = 7                          # coordinates are spoken in steps of this many pixels: 33 number words
PLACES = ("top-left", "top-right", "bottom-left", "bottom-right")
MASK = "<mask_start>" + "".join(f"<mask_{i}>" for i in range(6)) + "<mask_end>"


def spans(seconds) -> list[tuple[int, int]]:
    """(T,) bool -> the runs of True as [start, end), in whole seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(seconds, int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


class View:
    """A scene as its annotator sees it: who is seen (by place) and heard (loudest first) at each second.

    boxes: (n,T,4) x0 y0 x1 y1 as fractions of the frame, of what the picture really shows; without a picture the
    sprite's nominal box stands in.
    """

    def __init__(self, scene: Scene, boxes: np.ndarray | None = None):
        self.things = scene.things
        self.names = [t.category for t in scene.things]
        self.visible = np.array([t.visible for t in scene.things])            # (n,T)
        self.gain = np.array([t.gain for t in scene.things])                  # (n,T)
        self.path = np.array([t.path for t in scene.things])                  # (n,T,2)
        if boxes is None:
            half = np.array([t.size for t in scene.things])[:, None, None] / 2
            boxes = np.concatenate([self.path - half, self.path + half], -1).clip(0, 1)
        self.boxes = boxes
        self.heard_at = self.gain > 0
        self.place = (self.path[..., 0] >= 0.5) + 2 * (self.path[..., 1] >= 0.5)   # (n,T)

    def seen(self, t: int) -> list[int]:
        """Indices of the things in the picture at second t, in reading order of their places."""
        return sorted(np.flatnonzero(self.visible[:, t]), key=lambda i: (self.place[i, t], self.path[i, t, 0]))

    def heard(self, t: int) -> list[int]:
        """Indices of the things that sound at second t, loudest first."""
        return sorted(np.flatnonzero(self.heard_at[:, t]), key=lambda i: -self.gain[i, t])

    def both(self, t: int) -> list[int]:
        """Indices of the things seen and heard at second t, in reading order."""
        return [i for i in self.seen(t) if self.heard_at[i, t]]

    def words(self, things, places_at: int | None = None) -> str:
        """`dog bell`, or `dog top-left, bell top-right` with the places at a second; `nothing` for none."""
        if places_at is None:
            return " ".join(self.names[i] for i in things) or "nothing"
        return ", ".join(self.placed(i, places_at) for i in things) or "nothing"

    def placed(self, i: int, t: int) -> str:
        """`dog top-left`: where a thing is at a second."""
        return f"{self.names[i]} {PLACES[self.place[i, t]]}"

    def status(self, i: int, t: int) -> str:
        """`dog heard` or `dog silent`: whether a thing sounds at a second."""
        return f"{self.names[i]} {'heard' if self.heard_at[i, t] else 'silent'}"

    def line(self, at) -> str:
        """`0 dog starts 1 bell starts 2 3 dog stops 4 ..`: who comes and goes in one of seen / heard / both.

        All seconds are counted through, so that to read the next change from a clip is a look-up at the second just
        said (a list of the changes alone is a search: after the same training 74 % of lists second by second are
        wholly right, and 9 % of those). Each change has its second right before it, so that a span is two words to find.
        """
        before: list[int] = []
        parts: list[str] = []
        for t in range(SECONDS + 1):
            now = at(t) if t < SECONDS else []
            changes = [f"{t} {self.names[i]} starts" for i in now if i not in before]
            changes += [f"{t} {self.names[i]} stops" for i in before if i not in now]
            parts += changes or [str(t)] * (t < SECONDS)
            before = now
        return " ".join(parts)

    def box_words(self, i: int, t: int) -> str:
        """The box of a thing as AV-UIE writes it, `(x0,y0),(x1,y1)`, in steps of STEP pixels."""
        x0, y0, x1, y1 = (int(STEP * round(v * FRAME / STEP)) for v in self.boxes[i, t])
        return f"({x0},{y0}),({x1},{y1})"

    def span_words(self, i: int, seconds: np.ndarray) -> str:
        """`dog 2,6 8,9`: a thing's spans in a (T,) bool row."""
        return " ".join([self.names[i]] + [f"{a},{b}" for a, b in spans(seconds)])

    def order(self, at) -> list[int]:
        """Things of seen / heard as `line` names them: by first second, within one as they are seen or heard then."""
        found: list[int] = []
        for t in range(SECONDS):
            found += [i for i in at(t) if i not in found]
        return found


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _heard_lead(rng, line: str) -> str:
    return _pick(rng, ("heard: ", "the sounds are: ", "listening gives: ")) + line + "."


def _seen_lead(rng, line: str) -> str:
    return _pick(rng, ("seen: ", "the pictures show: ", "looking gives: ")) + line + "."


def ave(view: View, rng) -> list[dict]:
    """One event both seen and heard, in one run of seconds."""
    both = view.visible & view.heard_at
    events = np.flatnonzero(both.any(1))
    if len(events) != 1 or len(spans(both[events[0]])) != 1:
        return []
    event = int(events[0])
    start, end = spans(both[event])[0]
    if rng.random() > (end - start) / 6:                          # as many seconds of event as of background
        return []
    name = view.names[event]
    text = " ".join((
        _pick(rng, ("The event:", "Looking for the event:")),
        _heard_lead(rng, view.line(view.heard)), _seen_lead(rng, view.line(view.seen)),
        f"together: {view.line(view.both)}.",
        _pick(rng, (f"So the audible and visible event is <event> {name} </event>,",
                    f"So what is seen and heard is <event> {name} </event>,")),
        f"<range> {start},{end} </range>."))
    return [dict(event=name, start_time=start, end_time=end, label_content=text)]


def avvp(view: View, rng) -> list[dict]:
    """Every event heard and every event seen, with their spans."""
    def tags(kind, at, rows):
        return " ".join(
            f"<{kind}_event> {view.names[i]}," + ",".join(f"({a} {b})" for a, b in spans(rows[i])) + f" </{kind}_event>"
            for i in view.order(at)) or f"no {kind} event"
    heard, seen = tags("audio", view.heard, view.heard_at), tags("visual", view.seen, view.visible)
    text = " ".join((
        _pick(rng, ("Parsing.", "Parsing the clip.")),
        _heard_lead(rng, view.line(view.heard)), f"Audio: {heard}.",
        _seen_lead(rng, view.line(view.seen)), f"Visual: {seen}."))
    names = sorted({view.names[i] for rows in (view.heard_at, view.visible) for i in np.flatnonzero(rows.any(1))})
    return [dict(event=",".join(names), label_content=text)]


def avcap(view: View, rng) -> list[dict]:
    """A caption: what is seen and where it starts out, what is heard, and from which second."""
    look = ", ".join(view.placed(i, view.visible[i].argmax()) for i in view.order(view.seen))
    sound = ", ".join(f"{view.names[i]} {view.heard_at[i].argmax()}" for i in view.order(view.heard))
    caption = _pick(rng, (f"A clip with {look}. Sounds start: {sound}.",
                          f"One sees {look}. One hears from second: {sound}."))
    text = " ".join((
        _pick(rng, ("Describing.", "Describing the clip.")), _seen_lead(rng, view.line(view.seen)),
        _heard_lead(rng, view.line(view.heard)), f"<answer> {caption} </answer>"))
    return [dict(label_content=text)]


def _scene_words(view: View, rng, t: int) -> str:
    """What is heard and who is where at one second: the reasoning that opens the tasks of one frame."""
    return _pick(rng, (f"heard {view.words(view.heard(t))}, seen {view.words(view.seen(t), t)}.",
                       f"the sound is {view.words(view.heard(t))}, the picture has {view.words(view.seen(t), t)}."))


def arig(view: View, rng) -> list[dict]:
    """The box of the one thing that is seen and heard at a second; never one that a box in the middle would catch."""
    def off_centre(i, t):
        x0, y0, x1, y1 = view.boxes[i, t]
        side = 0.4
        w = min(x1, .5 + side / 2) - max(x0, .5 - side / 2)
        h = min(y1, .5 + side / 2) - max(y0, .5 - side / 2)
        inter = max(w, 0) * max(h, 0)
        return inter / ((x1 - x0) * (y1 - y0) + side ** 2 - inter) < 0.45
    options = [t for t in range(SECONDS) if len(view.both(t)) == 1 and off_centre(view.both(t)[0], t)]
    if not options:
        return []
    t = int(_pick(rng, options))
    i = view.both(t)[0]
    named = f"So the sound comes from {view.placed(i, t)}, {view.box_words(i, t)}."
    text = f"Grounding: {_scene_words(view, rng, t)} {named}"
    box = [int(round(v * FRAME)) for v in view.boxes[i, t]]
    return [dict(a_obj=view.names[i], frame_idx=t, top_left=box[:2], bottom_right=box[2:], label_content=text)]


def s4(view: View, rng) -> list[dict]:
    """The mask of the only thing that sounds in a second; few silent things beside it."""
    options = [t for t in range(5) if len(view.both(t)) == 1 == len(view.heard(t))
               and rng.random() < (1.0, 0.3, 0.15, 0.08)[len(view.seen(t)) - 1]]
    if not options:
        return []
    t = int(_pick(rng, options))
    i = view.both(t)[0]
    text = f"Sounding: {_scene_words(view, rng, t)} The {view.names[i]} makes the sound {MASK}."
    return [dict(a_obj=view.names[i], frame_idx=t, targets=[i], label_content=text)]


def _sounding(view: View, rng, last: int) -> tuple[int, list[int]] | None:
    """A second before `last`, and who is seen and heard then; seldom one where all that is seen also sounds."""
    options = [t for t in range(last) if view.both(t) and
               rng.random() < (0.16 if len(view.both(t)) == len(view.seen(t)) else 1.0)]
    if not options:
        return None
    t = int(_pick(rng, options))
    return t, view.both(t)


def ms3(view: View, rng) -> list[dict]:
    """One mask of all things that sound at the named second of a five-second clip."""
    found = _sounding(view, rng, 5)
    if not found:
        return []
    t, targets = found
    text = f"All sounding: {_scene_words(view, rng, t)} Sounding are {view.words(targets)} {MASK}."
    return [dict(a_obj=",".join(view.names[i] for i in targets), frame_idx=t, targets=targets, label_content=text)]


def avss(view: View, rng) -> list[dict]:
    """A class map: one group of mask tokens after each sounding category."""
    found = _sounding(view, rng, SECONDS)
    if not found:
        return []
    t, targets = found
    groups = ", ".join(f"{view.names[i]} {MASK}" for i in targets)
    text = f"Classes: {_scene_words(view, rng, t)} Map: {groups}."
    return [dict(a_obj=",".join(view.names[i] for i in targets), frame_idx=t, targets=targets, label_content=text)]


def ref_avs(view: View, rng) -> list[dict]:
    """The mask of what an expression names at a frame; an empty one when nothing fits."""
    t = int(rng.integers(SECONDS))
    seen, sounding = view.seen(t), view.both(t)
    if rng.random() > (0.0, 0.05, 0.4, 1.0, 1.0)[len(seen)]:       # mostly pictures in which one must choose
        return []
    options: list[tuple[str, int, bool]] = []                       # expression, whom it names, whether that one fits
    if len(sounding) == 1:
        options += [("the object making the sound", sounding[0], True)]
    if len(sounding) >= 2:
        options += [("the object making the loudest sound", max(sounding, key=lambda i: view.gain[i, t]), True)] * 2
    if len(seen) - len(sounding) == 1:
        options += [("the silent object", i, True) for i in seen if i not in sounding]
    for k, word in enumerate(PLACES):
        there = [i for i in seen if view.place[i, t] == k]
        margin = np.abs(view.path[there, t] - 0.5).min() > 0.06 if there else True
        if len(there) == 1 and margin:
            options += [(f"the object at the {word}", there[0], True),
                        (f"the sounding object at the {word}", there[0], there[0] in sounding)]
    options += [(f"the {view.names[i]} that is making a sound", i, i in sounding) for i in seen]
    if not options:
        return []
    wanted = rng.random() >= 0.25                                   # a quarter of the expressions fit nothing
    expression, named, fits = _pick(rng, [o for o in options if o[2] == wanted] or options)
    things = ", ".join(f"{view.placed(i, t)} {view.status(i, t).split()[1]}" for i in seen)
    text = (f"Referring: heard {view.words(view.heard(t))}. {things}. "
            f"Named is {view.status(named, t)}, so {'this' if fits else 'nothing'} {MASK}.")
    return [dict(description=expression, idx=t, targets=[named] if fits else [], output=text)]


ROWS = dict(ave=ave, avvp=avvp, avcap=avcap, arig=arig, s4=s4, ms3=ms3, avss=avss, ref_avs=ref_avs)
