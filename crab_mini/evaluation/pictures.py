"""Answers as pictures: a panel beside the truth (`eval.py --show`), masks as files of their own."""

import io
from pathlib import Path

import torch.nn.functional as F
from PIL import Image

from ..av_uie.draw import panel
from ..av_uie.samples import Sample
from ..files import write_whole
from ..tasks.base import TASKS
from ..tasks.class_names import class_meant
from ..tasks.score import Answer


def picture_of(sample: Sample, answer: Answer, truth: str = "") -> Image.Image:
    """A decoded sample with its prompt, what is true and what the model answered."""
    task = TASKS[sample.task]
    return panel(sample, task.prompt(sample.fields), truth, task.picture(answer))


def save(image: Image.Image, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
    return path


def masks_of(answer: Answer, size: tuple[int, int] | None) -> dict[str, Image.Image]:
    """{file name: mask, white on black} of each mask group of an answer.

    size: (width, height) of the frame that the masks belong to; None: they stay as they are.
    """
    named, task, classes = {}, answer.sample.task, answer.sample.classes
    for number, (words, logits) in enumerate(zip(answer.parsed or [], answer.masks)):
        if size is not None:
            logits = F.interpolate(logits[None, None], size[::-1], mode="bilinear",
                                   align_corners=False)[0, 0]                           # (H,W)
        suffix = f"_{number}" if number else ""
        if TASKS[task].by_class:
            meant = class_meant(words, classes)
            suffix = f"_{number}_{classes[meant] if meant else 'unknown'}"
        named[f"{task}_mask{suffix}.png"] = Image.fromarray((255 * (logits > 0).byte()).numpy())
    return named
