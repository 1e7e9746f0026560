"""One sample as one picture: frames, masks, box, sound with event spans, prompt, answer, prediction.

Unusual: PIL only, no plotting library. What is drawn is what the model gets (the decoded `Sample`),
not the files, so a loader's mistake is seen. Truth is green, a prediction is red; class maps have
AVSBench's colours and a legend. What there is to draw of a label or an answer is a `Drawing`
(tasks/drawing.py): this file knows no task.

    python -m crab_mini.av_uie show DIR --task ms3 --index 4 --out a.png
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..tasks.base import FRAME, TASKS
from ..tasks.class_names import AVSBENCH_CLASSES
from ..tasks.drawing import Box, Drawing, Event
from .log_mel import fbank
from .media import palette
from .resample import RATE
from .samples import Sample

WIDTH, MARGIN, GAP = 1000, 12, 6                    # pixels
LARGE = 240                                         # side of the frames that carry masks or boxes
SPECTRUM = 128                                      # height of the spectrogram, a pixel for each mel bin
TRUTH, GUESS, INK, PAPER = (30, 150, 60), (210, 50, 40), (20, 20, 20), (255, 255, 255)
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)


Colour = tuple[int, int, int]


def truth_of(sample: Sample, answer: str = "") -> Drawing:
    """What can be drawn of a sample's annotation. Files of the user's own have none."""
    task = TASKS[sample.task]
    events = task.events(sample.fields) if task.answer_field in sample.fields else []
    return Drawing(answer, sample.masks, sample.class_map, sample.box, events)


def panel(sample: Sample, prompt: str = "", answer: str = "",
          prediction: Drawing | None = None) -> Image.Image:
    """The whole picture of a sample, WIDTH pixels wide and as high as it needs.

    answer: the right one. prediction: drawn beside the truth.
    """
    classes = sample.classes or AVSBENCH_CLASSES
    truth, guess = truth_of(sample, answer), prediction or Drawing()

    # The frame in question, large: with the truth, the prediction, and all that is visible.
    frame = sample.frames[sample.target]                                            # (3,H,W)
    visible = Drawing(class_map=sample.visible)
    large = [target(title, frame, drawing, colour, classes) for title, drawing, colour in
             (("truth", truth, TRUTH), ("prediction", guess, GUESS), ("all visible", visible, INK))]

    rows = [paragraph(sample.uid, INK, 18), frames_in_a_row(sample)]
    rows.append(side_by_side([image for image in large if image is not None]))
    rows.append(sound(sample))
    rows += [spans(len(sample.seconds), title, drawing.events, colour) for title, drawing, colour in
             (("truth", truth, TRUTH), ("predicted", guess, GUESS)) if drawing.events]
    texts = (("prompt", prompt, INK), ("answer", truth.text, TRUTH),
             ("prediction", guess.text, GUESS))
    rows += [paragraph(f"{name}: {text}", colour) for name, text, colour in texts if text]
    return stack([row for row in rows if row is not None])


def scale_box(box: Box, size: int) -> Box:
    """A box of the 224x224 frame in pixels of a frame of side `size`."""
    return tuple(v * size / FRAME for v in box)


def overlay(frame: Tensor, masks: Tensor | None, colour: Colour, side: int = LARGE) -> Image.Image:
    """A frame (3,H,W) uint8 as side x side pixels, with masks (G,h,w) or a class map (h,w) on it."""
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    if masks is None:
        return image
    layer = masks.any(0) if masks.ndim == 3 else masks                              # (h, w)
    layer = Image.fromarray(layer.cpu().numpy().astype(np.uint8))
    layer = np.asarray(layer.resize((side, side), Image.Resampling.NEAREST))        # (side,side)

    # A class map has the palette's colours, masks have one. Edges cover all, the inside half.
    tint = np.broadcast_to(np.uint8(colour), (*layer.shape, 3))
    if masks.ndim == 2:
        tint = palette()[layer]
    cover = np.where(edge(layer), 255, np.where(layer > 0, 140, 0)).astype(np.uint8)
    tinted = Image.fromarray(np.ascontiguousarray(tint))
    return Image.composite(tinted, image, Image.fromarray(cover))


def edge(layer: np.ndarray, wide: int = 2) -> np.ndarray:
    """(h,w) numbers -> (h,w) bool: where a mask ends within `wide` pixels.

    A tint alone cannot be seen on things of its own colour.
    """
    padded = np.pad(layer, wide)
    moved = [np.roll(padded, step, axis)[wide:-wide, wide:-wide]
             for axis in (0, 1) for step in (-wide, wide)]
    return (layer > 0) & np.any([layer != other for other in moved], 0)


def spectrogram(sounds: Tensor) -> Image.Image:
    """Sound (T,S) -> log-mel picture, a column of pixels for each 10 ms, low notes below."""
    seconds = sounds.reshape(-1, RATE)
    mel = fbank(seconds).flatten(0, 1).T.flip(0).float().numpy()                    # (128, T·F)
    low, high = np.quantile(mel, (0.02, 0.995))
    share = ((mel - low) / max(high - low, 1e-3)).clip(0, 1) * (len(HEAT) - 1)      # place in HEAT
    below = np.minimum(share.astype(int), len(HEAT) - 2)
    rest = (share - below)[..., None]
    return Image.fromarray((HEAT[below] * (1 - rest) + HEAT[below + 1] * rest).astype(np.uint8))


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """PIL's own font, `size` pixels high."""
    return ImageFont.load_default(size)


def blank(height: int, width: int = WIDTH - 2 * MARGIN) -> Image.Image:
    """An empty piece of the page."""
    return Image.new("RGB", (width, height), PAPER)


def stack(rows: list[Image.Image]) -> Image.Image:
    """The page: the rows below each other, with a margin around all."""
    page = Image.new("RGB", (WIDTH, 2 * MARGIN + sum(row.height + GAP for row in rows)), PAPER)
    top = MARGIN
    for row in rows:
        page.paste(row, (MARGIN, top))
        top += row.height + GAP
    return page


def side_by_side(images: list[Image.Image]) -> Image.Image | None:
    """The pictures beside each other, as one; None for no picture."""
    if not images:
        return None
    row, left = blank(max(image.height for image in images)), 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return row


def paragraph(text: str, colour: Colour, size: int = 14) -> Image.Image:
    """A paragraph, broken between words where the page ends."""
    font, lines = font_of(size), [""]
    for word in text.replace("><", "> <").split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(joined) > WIDTH - 2 * MARGIN:
            lines.append(word)
        else:
            lines[-1] = joined
    image = blank((size + 4) * len(lines))
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((0, number * (size + 4)), line, colour, font)
    return image


def frames_in_a_row(sample: Sample) -> Image.Image:
    """All frames in a row with their seconds; the one in question has a frame of its own."""
    count = len(sample.seconds)
    side = min(LARGE // 2, (WIDTH - 2 * MARGIN) // count - GAP)
    row = blank(side + 18)
    draw = ImageDraw.Draw(row)
    for place, second in enumerate(sample.seconds):
        left = place * (side + GAP)
        row.paste(overlay(sample.frames[place], None, INK, side), (left, 18))
        draw.text((left, 0), f"second {second}" if side > 60 else f"{second}", INK, font_of(13))
        if place == sample.target and (sample.masks is not None or sample.box is not None):
            draw.rectangle((left, 18, left + side - 1, 17 + side), outline=TRUTH, width=3)
    return row


def target(title: str, frame: Tensor, drawing: Drawing, colour: Colour,
           classes: tuple[str, ...] = AVSBENCH_CLASSES) -> Image.Image | None:
    """A frame (3,H,W), large, with masks or a class map and a box; None without any of them."""
    layer = drawing.masks if drawing.class_map is None else drawing.class_map
    if layer is None and drawing.box is None:
        return None
    image = blank(LARGE + 18, LARGE)
    image.paste(overlay(frame, layer, colour), (0, 18))
    draw = ImageDraw.Draw(image)
    draw.text((0, 0), title, colour, font_of(13))
    if drawing.box is not None:
        x0, y0, x1, y1 = scale_box(drawing.box, LARGE)
        corners = (min(x0, x1), 18 + min(y0, y1), max(x0, x1), 18 + max(y0, y1))
        draw.rectangle(corners, outline=colour, width=3)
    if drawing.class_map is not None:
        legend(draw, drawing.class_map, classes)
    return image


def legend(draw: ImageDraw.ImageDraw, numbers: Tensor, classes: tuple[str, ...]) -> None:
    """The names of the classes in a map, in their colours, in the lower left corner."""
    found = [number for number in torch.unique(numbers).tolist() if number > 0]
    for line, number in enumerate(reversed(found)):
        name = classes[number] if number < len(classes) else str(number)
        colour = tuple(palette()[number].tolist())
        draw.text((4, LARGE + 16 - 16 * (line + 1)), name, colour, font_of(13), stroke_width=2,
                  stroke_fill=PAPER)


def sound(sample: Sample) -> Image.Image:
    """The spectrogram over the width of the page, a line before each piece, and its second."""
    width = WIDTH - 2 * MARGIN
    row = blank(SPECTRUM + 18)
    picture = spectrogram(sample.sounds)
    row.paste(picture.resize((width, SPECTRUM), Image.Resampling.BILINEAR), (0, 0))
    draw = ImageDraw.Draw(row)
    for place, second in enumerate(sample.seconds):
        left = place * width // len(sample.seconds)
        draw.line((left, 0, left, SPECTRUM), fill=(150, 150, 150))
        draw.text((left + 2, SPECTRUM + 1), f"{second} s", INK, font_of(13))
    return row


def spans(seconds: int, title: str, events: list[Event], colour: Colour) -> Image.Image:
    """A bar for each event under the spectrogram, on its time axis of `seconds` seconds."""
    names = list(dict.fromkeys(name for name, _, _ in events))
    width = WIDTH - 2 * MARGIN
    step = width / seconds                                                          # pixels
    row = blank(18 * len(names))
    draw = ImageDraw.Draw(row)
    light = tuple(180 + c // 4 for c in colour)
    for name, start, end in events:
        top = 18 * names.index(name)
        left, right = (min(second * step, width - 1) for second in (start, end))
        draw.rectangle((left, top + 1, max(left, right - 1), top + 15), fill=light, outline=colour)

    # Each name stands once, where its first bar begins.
    for line, name in enumerate(names):
        start = min(begin for label, begin, _ in events if label == name)
        left = min(start * step + 4, width - font_of(12).getlength(f"{name} ({title})"))
        draw.text((left, 18 * line + 1), f"{name} ({title})", INK, font_of(12))
    return row
