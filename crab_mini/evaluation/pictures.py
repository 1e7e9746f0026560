"""What a model said, as pictures: a panel beside the truth (`eval.py --show`), masks as files of their own."""

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from ..av_uie.draw import Prediction, panel
from ..av_uie.rows import Sample
from ..files import write_whole
from ..tasks.base import TASKS
from ..tasks.class_names import class_meant
from .mask_scoring import class_map
from .score import Answer


def prediction_of(answer: Answer) -> Prediction:
    """What can be drawn of an answer."""
    task, read = answer.row.task, answer.parsed
    said = Prediction(answer.text)
    if task == "avss":
        said.masks = class_map(answer)
    elif TASKS[task].masks:
        none = torch.zeros(1, *answer.row.masks.shape[-2:], dtype=torch.bool)
        said.masks = answer.masks.amax(0, keepdim=True) > 0 if read else none
    elif task == "arig":
        said.box = read
    elif task == "ave" and read:
        said.events = [read]
    elif task == "avvp" and read:
        said.events = [(f"{sense} {name}", start, end) for sense, kind in (("see", "visual"), ("hear", "audio"))
                       for name, start, end in read[kind]]
    return said


def picture_of(sample: Sample, answer: Answer, truth: str = "") -> Image.Image:
    """A sample with its prompt, what is true and what the model said."""
    prompt = TASKS[sample.task].prompt(sample.row)
    return panel(sample, prompt, truth, prediction_of(answer), answer.row.classes)


def save(image: Image.Image, path: Path) -> Path:
    """Writes a PNG, whole or not at all."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
    return path


def masks_of(answer: Answer, size: tuple[int, int] | None) -> dict[str, Image.Image]:
    """{file name: mask, white on black} of each group of an answer; size: (width, height) of the frame it belongs to."""
    named, task, classes = {}, answer.row.task, answer.row.classes
    for number, (words, logits) in enumerate(zip(answer.parsed or [], answer.masks)):
        if size is not None:
            logits = F.interpolate(logits[None, None], size[::-1], mode="bilinear", align_corners=False)[0, 0]
        meant = class_meant(words, classes)
        name = f"_{number}_{classes[meant] if meant else 'unknown'}" if task == "avss" else f"_{number}" * (number > 0)
        named[f"{task}_mask{name}.png"] = Image.fromarray((255 * (logits > 0).byte()).numpy())
    return named
