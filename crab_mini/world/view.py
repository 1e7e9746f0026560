"""A scene as its annotator describes it: which things are seen and heard at each second, and in
which words.

Every sentence of the world is made of the words of `View`. A fact that belongs to a name (the
thing's quarter of the frame, whether it is heard) follows that name at once, in every sentence. So
a small language model finds the fact at the very word where it needs it. Source: AV-UIE's answers
reason about time and place before they give the tagged result (paper, section 3).

    view = View(sample_scene(0))
    view.words(view.heard(3))           # `dog bell`: the things heard at second 3, loudest first
"""

from collections.abc import Callable, Iterable

import numpy as np

from ..metrics import runs
from ..tasks.base import FRAME
from .scene import SECONDS, Scene

STEP = 7                    # coordinates are multiples of so many pixels: 33 number words suffice
QUARTERS = ("top-left", "top-right", "bottom-left", "bottom-right")     # in reading order
# Nearer than this share of the frame to a middle line, a quarter is not asked for.
MIDDLE_MARGIN = 0.06


class View:
    """A scene of T = 10 seconds, as arrays with one row a thing, and as words.

    things   the scene's things
    names    their categories
    visible  (things,T) bool: the thing is in the picture
    audible  (things,T) bool: the thing sounds
    gain     (things,T) float: linear loudness; 0 is silence
    centres  (things,T,2) float: x and y of the thing's centre, as shares of the frame
    quarters (things,T) int: index into QUARTERS of the quarter that holds the centre
    boxes    (things,T,4) float: x0 y0 x1 y1, as shares of the frame
    """

    def __init__(self, scene: Scene, boxes: np.ndarray | None = None):
        """boxes: those of what the rendered picture shows. Without them the nominal sizes of the
        sprites are used.
        """
        self.things = scene.things
        self.names = [thing.category for thing in scene.things]
        self.visible = np.array([thing.visible for thing in scene.things])
        self.gain = np.array([thing.gain for thing in scene.things])
        self.centres = np.array([thing.centres for thing in scene.things])
        if boxes is None:
            sizes = np.array([thing.size for thing in scene.things])
            half = sizes[:, None, None] / 2                                # (things,1,1)
            boxes = np.concatenate([self.centres - half, self.centres + half], -1).clip(0, 1)
        self.boxes = boxes
        self.audible = self.gain > 0
        self.quarters = (self.centres[..., 0] >= 0.5) + 2 * (self.centres[..., 1] >= 0.5)

    # ---- which things: lists of indices into `things`

    def seen(self, t: int) -> list[int]:
        """The things in the picture at second t, in reading order of their quarters, then from left
        to right.
        """
        visible = np.flatnonzero(self.visible[:, t])
        return sorted(visible, key=lambda i: (self.quarters[i, t], self.centres[i, t, 0]))

    def heard(self, t: int) -> list[int]:
        """The things that sound at second t, the loudest first."""
        audible = np.flatnonzero(self.audible[:, t])
        return sorted(audible, key=lambda i: -self.gain[i, t])

    def both(self, t: int) -> list[int]:
        """The things that are seen and heard at second t, in the order of `seen`."""
        return [i for i in self.seen(t) if self.audible[i, t]]

    def order(self, things_at: Callable[[int], list[int]]) -> list[int]:
        """All things of the clip that `things_at` (seen, heard or both) names, by the second in
        which it names them first.
        """
        ordered: list[int] = []
        for t in range(SECONDS):
            ordered += [i for i in things_at(t) if i not in ordered]
        return ordered

    def clear_of_middle(self, things: int | list[int], t: int) -> bool:
        """Whether the centre of a thing (of all these things) is so far from the middle lines that
        its quarter is clear.
        """
        return np.abs(self.centres[things, t] - 0.5).min() > MIDDLE_MARGIN

    # ---- in words

    def words(self, things: Iterable[int], quarters_at: int | None = None) -> str:
        """`dog bell`; with the second `quarters_at`: `dog top-left, bell top-right`; for no things:
        `nothing`.
        """
        if quarters_at is None:
            return " ".join(self.names[i] for i in things) or "nothing"
        return ", ".join(self.placed(i, quarters_at) for i in things) or "nothing"

    def placed(self, i: int, t: int) -> str:
        """`dog top-left`: the quarter of the frame in which thing i is at second t."""
        return f"{self.names[i]} {QUARTERS[self.quarters[i, t]]}"

    def status(self, i: int, t: int) -> str:
        """`dog heard` or `dog silent`: whether thing i sounds at second t."""
        return f"{self.names[i]} {'heard' if self.audible[i, t] else 'silent'}"

    def timeline(self, things_at: Callable[[int], list[int]]) -> str:
        """`0 dog starts 1 dog bell starts 2 bell dog stops ...`: what `things_at` (seen, heard or
        both) names each second.

        `starts` and `stops` stand at the second in which they happen. So a span is two words that
        the model copies, and no sum that it has to compute.
        """
        before: list[int] = []
        parts = []
        for t in range(SECONDS + 1):
            # One second after the end nothing is present; it is written only if something stops
            # there.
            present = things_at(t) if t < SECONDS else []
            stopped = [f"{self.names[i]} stops" for i in before if i not in present]
            if t == SECONDS and not stopped:
                break
            named = [self.names[i] + ("" if i in before else " starts") for i in present]
            if not named and t < SECONDS:
                named = ["nothing"]
            parts.append(" ".join([str(t), *named, *stopped]))
            before = present
        return " ".join(parts)

    def box_words(self, i: int, t: int) -> str:
        """The box of thing i at second t as AV-UIE writes it, `(x0,y0),(x1,y1)`, in multiples of
        STEP pixels.
        """
        x0, y0, x1, y1 = (int(STEP * round(side * FRAME / STEP)) for side in self.boxes[i, t])
        return f"({x0},{y0}),({x1},{y1})"

    def span_words(self, i: int, seconds: np.ndarray) -> str:
        """`dog 2,6 8,9`: the spans of thing i. seconds: (T,) bool."""
        spans = [f"{start},{end}" for start, end in runs(seconds)]
        return " ".join([self.names[i], *spans])


def pick(rng: np.random.Generator, options):
    """One of the options, each equally likely."""
    return options[int(rng.integers(len(options)))]
