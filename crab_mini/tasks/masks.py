"""The segmentation tasks: S4, MS3 and Ref-AVS answer with one mask, AVSS with one for each class.

    The dog makes the sound <mask_start><mask_0> ... <mask_5><mask_end>.

Unusual about the scores: an answer without readable mask tokens gets what the worst possible mask
would get, also where the right mask is empty (S = 1) and in AVSS, where an empty map would be right
about the background. The baseline is *all visible objects*: what a model reaches that sees all and
does not listen. Only the miniature knows it. Masks are compared at the model's resolution.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import metrics
from ..errors import DataError
from .base import MASK_GROUP, PICTURE, Task
from .class_names import class_meant, class_number
from .drawing import Drawing
from .fields import CLIP_SECONDS
from .score import Answer, Score, listed_names, measure

OUTSIDE, INSIDE = -10.0, 10.0       # logits of pixels that are surely outside and inside a mask
CHUNK = 64                          # masks that are compared at a time: thresholds take memory
NAMED = 40                          # characters before a mask group that an error repeats


def in_chunks(metric: Callable, *masks: list[Tensor]) -> np.ndarray:
    """metric((N,H,W), ...) -> (N,...), a few masks at a time."""
    starts = range(0, len(masks[0]), CHUNK)
    return np.concatenate([metric(*(torch.stack(m[k:k + CHUNK]) for m in masks)) for k in starts])


def visible_maps(answers: list[Answer]) -> list[Tensor] | None:
    """Class maps (H,W) of all that is visible, where the data set knows it for every sample."""
    maps = [a.sample.visible for a in answers]
    return None if any(m is None for m in maps) else maps


class MaskTask(Task):
    """One mask of the frame in question."""
    identity = ("uid", "frame_idx")
    fields = {"vid": "id", "uid": "id", "a_obj": "text", "frame_idx": "second", **PICTURE,
              "label_content": "text"}
    masks = True
    second_field = "frame_idx"      # the key with the second of the frame in question
    mask_folder = "labels_semantic"

    def check_meaning(self, fields: dict, place: str) -> None:
        """The frame lies inside the clip."""
        second = fields[self.second_field]
        if second >= CLIP_SECONDS:
            raise DataError(place, self.second_field,
                            f"expected a frame from 0 to {CLIP_SECONDS - 1}, found {second}")

    def mask_path(self, fields: dict, image: Path, place: str) -> Path:
        """The first that exists of labels_semantic/ and labels_rgb/, beside frames/."""
        clip, second = self.clip_and_second(fields, image, place)
        paths = [clip / folder / f"{second}.png" for folder in ("labels_semantic", "labels_rgb")]
        usual = clip / self.mask_folder / f"{second}.png"
        return next((path for path in paths if path.exists()), usual)

    def clip_and_second(self, fields: dict, image: Path, place: str) -> tuple[Path, str]:
        """The clip's folder and the picture's name; DataError unless that is the second."""
        if image.parent.name != "frames" or not image.stem.isdecimal():
            raise DataError(place, "image_path",
                            f"'{fields['image_path']}': expected .../frames/NUMBER.jpg")
        key = self.second_field
        if int(image.stem) != fields[key]:
            raise DataError(place, key, f"says frame {fields[key]}, but image_path names frame "
                                        f"{int(image.stem)}")
        return image.parent.parent, image.stem

    def bare(self, fields: dict) -> str:
        return MASK_GROUP

    def parse(self, text: str) -> list[str] | None:
        """The words before each group of mask tokens."""
        # The tokenizer sets tags off by blanks; annotations do not.
        group = MASK_GROUP.replace("><", "> <") if "> <" in text else MASK_GROUP
        return [words.strip(" ,.") for words in text.split(group)[:-1]] or None

    def names(self, fields: dict) -> set[str]:
        return listed_names(fields["a_obj"])

    def truth(self, fields: dict) -> str:
        return fields["a_obj"]

    def picture(self, answer: Answer) -> Drawing:
        """The union of the answer's masks."""
        masks = torch.zeros(1, *answer.sample.masks.shape[-2:], dtype=torch.bool)
        if answer.parsed:
            masks = answer.masks.amax(0, keepdim=True) > 0
        return Drawing(answer.text, masks=masks)

    def score(self, answers: list[Answer], vocabulary: list[str]) -> list[Score]:
        """mIoU and F over masks that are not empty; the null score S over those that are."""
        read = np.array([a.parsed is not None for a in answers])
        target = [a.sample.masks.amax(0) for a in answers]                  # N times (H,W)
        null = np.array([not t.any() for t in target])
        ours = [torch.full(t.shape, OUTSIDE) if a.parsed is None else a.masks.amax(0)
                for a, t in zip(answers, target)]

        # The yardsticks: the whole frame, and everything that is visible.
        whole = [torch.full(t.shape, INSIDE) for t in target]
        visible = visible_maps(answers)
        seen = visible and [torch.where(m > 0, INSIDE, OUTSIDE) for m in visible]
        names = dict(baseline_name="all visible objects", chance_name="the whole frame")

        def iou(masks):
            return masks and np.where(null, np.nan, in_chunks(metrics.mask_iou, masks, target))

        def f(masks):
            return masks and in_chunks(metrics.f_curve, masks, target)

        def s(masks):
            return masks and np.where(null, in_chunks(metrics.null_score, masks), np.nan)

        at_half = in_chunks(metrics.f_measure_at_half, ours, target)
        scores = []
        if not null.all():
            scores.append(measure("mIoU", iou(ours) * np.where(read, 1, 0), np.mean, iou(seen),
                                  chance=iou(whole), **names))
            curves = f(ours) * np.where(read, 1, 0)[:, None]
            scores.append(measure("F", curves, metrics.max_f, f(seen), chance=f(whole),
                                  each=at_half * read, **names))
        if null.any():
            scores.append(measure("S (empty masks)", np.where(null & ~read, 1.0, s(ours)), np.mean,
                                  s(seen), chance=s(whole), lower=True, **names))
        return scores


class S4(MaskTask):
    """AVSBench, single source: the only object that makes a sound."""
    name = "s4"
    frames = 1
    empty_masks = False
    clips_folder = "AVS/v1s"

    def prompt(self, fields: dict) -> str:
        return "segment the object that makes the sound."


class MS3(MaskTask):
    """AVSBench, multiple sources: all objects that make a sound at a second."""
    name = "ms3"
    frames = 5
    clips_folder = "AVS/v1m"
    own_options = {"second": "frame_idx"}

    def prompt(self, fields: dict) -> str:
        return f"segment all objects that make a sound at second {fields['frame_idx']}."


class RefAVS(MaskTask):
    """Ref-AVS: the object that an expression names, or none."""
    name = "ref_avs"
    fields = {"vid": "id", "uid": "id", "fid": "number", "idx": "second", "description": "text",
              **PICTURE, "output": "text"}
    identity = ("uid", "fid", "idx")
    answer_field = "output"
    clips_folder = "REFAVS/media"
    second_field = "idx"
    own_options = {"second": "idx", "expression": "description"}

    def check_meaning(self, fields: dict, place: str) -> None:
        """Nothing: the number of the frame is held against the picture's name."""

    def mask_path(self, fields: dict, image: Path, place: str) -> Path:
        """Below gt_mask/, beside media/."""
        clip, second = self.clip_and_second(fields, image, place)
        folder = clip.parent.parent / "gt_mask" / clip.name / f"fid_{fields['fid']}"
        return folder / f"{int(second):05d}.png"

    def prompt(self, fields: dict) -> str:
        return f"segment {fields['description']} at second {fields['idx']}."

    def names(self, fields: dict) -> set[str]:
        """None: the expression names the object in words of its own."""
        return set()

    def truth(self, fields: dict) -> str:
        return fields["description"]


class AVSS(MaskTask):
    """AVSBench, semantic: a class map of the objects that make a sound at a second."""
    name = "avss"
    clips_folder = "AVS/v2"
    by_class = True
    mask_folder = "labels_rgb"
    own_options = {"second": "frame_idx"}

    def prompt(self, fields: dict) -> str:
        return f"name and segment each object that makes a sound at second {fields['frame_idx']}."

    def bare(self, fields: dict) -> str:
        return ", ".join(f"{name.strip()} {MASK_GROUP}" for name in fields["a_obj"].split(","))

    def class_numbers(self, fields: dict, classes: Sequence[str], place: str = "") -> list[int]:
        """The numbers of the classes in `a_obj`, in their order; DataError for an unknown name."""
        try:
            return [class_number(name, classes) for name in fields["a_obj"].split(",")]
        except ValueError as error:
            raise DataError(place, "a_obj", str(error)) from None

    def groups(self, fields: dict, classes: Sequence[str], place: str = "") -> int:
        return len(self.class_numbers(fields, classes, place))

    def check_answer(self, fields: dict, text: str, classes: Sequence[str], place: str) -> None:
        """Also that no group follows the name of another class than its own."""
        super().check_answer(fields, text, classes, place)
        numbers = self.class_numbers(fields, classes, place)
        for words, number in zip(self.parse(text) or [], numbers):
            if class_meant(words, classes) not in (number, None):
                raise DataError(place, self.answer_field, f"expected masks in the order of a_obj, "
                                f"{fields['a_obj']}: '{classes[number]}' comes where the text says "
                                f"'{words[-NAMED:]}'")

    def painted(self, answer: Answer) -> Tensor:
        """(H,W): the classes that an answer names, painted with their masks.

        The larger logit wins where masks overlap.
        """
        size = answer.sample.masks.shape[-2:]
        numbers, best = torch.zeros(size, dtype=torch.long), torch.zeros(size)
        for words, logits in zip(answer.parsed or [], answer.masks):
            number = class_meant(words, answer.sample.classes)
            if number is not None:
                wins = logits > best
                numbers[wins], best = number, torch.where(wins, logits, best)
        return numbers

    def picture(self, answer: Answer) -> Drawing:
        return Drawing(answer.text, class_map=self.painted(answer))

    def score(self, answers: list[Answer], vocabulary: list[str]) -> list[Score]:
        """mIoU and F over classes, background included (class 0)."""
        count = len(answers[0].sample.classes)
        target = [a.sample.class_map for a in answers]

        def table(maps: list[Tensor] | None) -> np.ndarray | None:
            """IoU and F of every class in every frame: (N,2,C)."""
            def both(*pair):
                return np.stack(metrics.class_iou_f(*pair, count), 1)
            return maps and in_chunks(both, maps, target)

        ours = table([self.painted(a) for a in answers])
        base = table(visible_maps(answers))
        blind = table([torch.zeros_like(t) for t in target])

        # An unreadable answer gets 0 for every class that counts, background too.
        unread = np.array([a.parsed is None for a in answers])
        ours[unread] = np.where(np.isnan(ours[unread]), np.nan, 0.0)
        return [measure(name, ours[:, k], metrics.class_mean, None if base is None else base[:, k],
                        "all visible, true labels", blind[:, k], "background alone",
                        metrics.frame_mean(ours[:, k]))
                for k, name in enumerate(("mIoU", "F"))]
