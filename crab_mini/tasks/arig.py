"""ARIG: the box of the object that makes the sound (paper, section 3).

    ... (28,7),(84,105)         two corners in pixels of a 224x224 frame
"""

import re

import numpy as np

from .. import metrics
from ..errors import DataError
from .base import FRAME, PICTURE, Task
from .drawing import Box, Drawing
from .score import Answer, Score, listed_names, measure

CENTRE = (67, 67, 157, 157)     # the baseline: a box of 90 pixels in the middle
CANDIDATES = 500                # boxes among which the best constant one is looked for
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
CORNER = re.compile(rf"[(\[]{NUMBER},{NUMBER}[)\]]")        # as annotations write it


def is_corner(value) -> bool:
    """Whether a value of an annotation is [x, y]."""
    return isinstance(value, list) and len(value) == 2 and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= 1e6 for v in value)


class ARIG(Task):
    """Audio-referred image grounding."""
    name = "arig"
    fields = {"a_obj": "text", **PICTURE, "label_content": "text"}
    identity = ("image_path", "audio_path")
    frames = 1
    loose_pictures = True
    clips_folder = "media"

    def check_meaning(self, fields: dict, place: str) -> None:
        """There is a box, and it lies inside the frame."""
        in_keys = "top_left" in fields or "bottom_right" in fields
        key, box = "top_left" if in_keys else "label_content", self.box(fields)
        if box is None:
            raise DataError(place, key, "no box: expected two corners, [x, y] each or (x,y),(x,y) "
                                        "in the label")
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= FRAME and 0 <= y0 < y1 <= FRAME):
            raise DataError(place, key, f"box {box} is not inside a {FRAME}x{FRAME} frame, top "
                                        "left corner first")

    def box(self, fields: dict) -> Box | None:
        """From the two corner keys, or else the last two corners in the label."""
        corners = [fields.get("top_left"), fields.get("bottom_right")]
        if corners == [None, None]:
            pairs = CORNER.findall(fields["label_content"])[-2:]
            corners = [[float(x), float(y)] for x, y in pairs]
        if len(corners) != 2 or not all(map(is_corner, corners)):
            return None
        return tuple(float(v) for corner in corners for v in corner)

    def prompt(self, fields: dict) -> str:
        return "give the box of the object that makes the sound."

    def bare(self, fields: dict) -> str:
        box = self.parse(fields["label_content"]) or [round(v) for v in self.box(fields)]
        return "({},{}),({},{})".format(*box)

    def parse(self, text: str) -> tuple[int, int, int, int] | None:
        """The last two corners `(x,y)` -> (x0, y0, x1, y1)."""
        corners = re.findall(r"\(\s*(\d{1,9})\s*,\s*(\d{1,9})\s*\)", text)
        if len(corners) < 2:
            return None
        (x0, y0), (x1, y1) = [(int(x), int(y)) for x, y in corners[-2:]]
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def names(self, fields: dict) -> set[str]:
        return listed_names(fields["a_obj"])

    def truth(self, fields: dict) -> list[float]:
        return list(self.box(fields))

    def picture(self, answer: Answer) -> Drawing:
        return Drawing(answer.text, box=answer.parsed)

    def score(self, answers: list[Answer], vocabulary: list[str]) -> list[Score]:
        """cIoU (share of boxes with IoU of at least 0.5), mean IoU, AUC."""
        truth = np.array([self.box(a.sample.fields) for a in answers])                  # (N,4)
        read = np.array([a.parsed is not None for a in answers])
        iou = metrics.box_iou([a.parsed or (0, 0, 0, 0) for a in answers], truth)       # (N,)

        # The yardsticks: the same box for every sample.
        centre = metrics.box_iou([CENTRE] * len(truth), truth)
        constant = [metrics.box_iou([box] * len(truth), truth) for box in truth[:CANDIDATES]]

        def of(name: str, each) -> Score:
            best = max(map(each, constant), key=np.mean)
            return measure(name, each(iou) * read, baseline=each(centre),
                           baseline_name="centre box", chance=best,
                           chance_name="the best constant box")
        return [of("cIoU", lambda x: x >= 0.5), of("mean IoU", lambda x: x),
                of("AUC", lambda x: np.array([metrics.success_auc([v]) for v in x]))]
