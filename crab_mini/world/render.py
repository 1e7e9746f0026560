"""Scene -> clip: ten frames, the exact mask of the visible part of each thing, ten seconds of
sound. numpy and PIL.

A clip is a function of its scene alone: the same scene gives the same bytes in every process and in
any order. Looks and sounds come from a `Bank`: the procedural one here, or a folder of real
pictures and recordings (bank.py). Drawing a category and synthesising its sound is slow, so each is
done once in a process. A clip only turns, colours, scales, shifts and mixes the results.

    clip = render(sample_scene(0))
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from . import backgrounds, sounds, sprites, synthesis
from .scene import CATEGORIES, RATE, SECONDS, Scene, Thing

LOUDNESS = 0.08             # root mean square of a sound with gain 1
FADE = RATE // 100          # samples (10 ms) in which a sound begins, ends or changes its gain
# a second of a recording that is below this share of its mean level is not raised to it
MIN_LEVEL = 0.5
HUE_TURN = 25.0             # degrees of the colour circle that a hue of 1 turns


class Bank(Protocol):
    """Where looks and sounds come from. Variants are scene.TRAIN_VARIANTS and scene.TEST_VARIANTS.
    """
    categories: tuple[str, ...]

    def look(self, category: str, variant: int) -> Image.Image:
        """RGBA, cropped to the part that is not transparent."""

    def voice(self, category: str, variant: int) -> tuple[np.ndarray, float]:
        """A loop (S,) float32 at synthesis.FINE samples a second, and its playing speed.

        The root mean square of the loop is 1 in each second.
        """

    def background(self, seed: int, frames: int, image: int) -> np.ndarray:
        """(T,H,W,3) float32 in 0..255, with H = W = image."""


class Procedural:
    """The world's own bank: everything is drawn and synthesised."""
    categories = CATEGORIES

    def look(self, category: str, variant: int) -> Image.Image:
        return sprites.sprite(category, variant)

    def voice(self, category: str, variant: int) -> tuple[np.ndarray, float]:
        return sounds.voice(category, variant), 1.0

    def background(self, seed: int, frames: int, image: int) -> np.ndarray:
        return backgrounds.background(seed, frames, image)


PROCEDURAL = Procedural()


@dataclass(frozen=True)
class Clip:
    """What a scene looks and sounds like."""
    frames: np.ndarray      # (T,H,W,3) uint8
    masks: np.ndarray       # (things,T,H,W) bool, the part of each thing that no later thing hides
    waveform: np.ndarray    # (S,) float32 in -1..1, S = SECONDS * RATE


# ---- pictures

def tinted(rgb: np.ndarray, hue: float) -> np.ndarray:
    """Colours (...,3) float32, rotated around the grey axis of the RGB cube by hue * HUE_TURN
    degrees.
    """
    turn = np.deg2rad(HUE_TURN * hue)
    # Rodrigues' rotation matrix for the axis (1,1,1); each of its rows is the one above, shifted by
    # one place.
    along, across = (1 - np.cos(turn)) / 3, np.sin(turn) / np.sqrt(3)
    row = np.array([np.cos(turn) + along, along - across, along + across], np.float32)
    return rgb @ np.stack([np.roll(row, k) for k in range(3)], 1)


def stamp(look: Image.Image, thing: Thing, image: int) -> tuple[np.ndarray, np.ndarray]:
    """A thing, ready to be painted: its colours and its alpha.

    Colours are (height,width,3) float32 in 0..255, alpha is (height,width,1) in 0..1. The longer of
    height and width is thing.size * image pixels.
    """
    # Flip and turn the large master picture, then scale once.
    if thing.flip:
        look = look.transpose(Image.FLIP_LEFT_RIGHT)
    look = look.rotate(thing.angle, Image.BILINEAR, expand=True)
    # The size counts what is opaque, so that the mask has exactly the size that the scene asks for.
    box = look.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox()
    longer = max(box[2] - box[0], box[3] - box[1])
    scale = max(2, round(thing.size * image)) / longer
    size = [max(1, round((high - low) * scale)) for low, high in (box[::2], box[1::2])]
    resized = look.resize(size, Image.BOX if scale < 1 else Image.BICUBIC, box)
    pixels = np.asarray(resized, np.float32)                                # (height,width,4)
    return tinted(pixels[..., :3], thing.hue), pixels[..., 3:] / 255


def pictures(scene: Scene, image: int, bank: Bank) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T,H,W,3) uint8 and masks (things,T,H,W) bool of a scene, H = W = image."""
    canvas = bank.background(scene.background, SECONDS, image)              # (T,H,W,3)
    masks = np.zeros((len(scene.things), SECONDS, image, image), bool)
    for i, thing in enumerate(scene.things):
        if not any(thing.visible):
            continue
        colour, alpha = stamp(bank.look(thing.category, thing.variant), thing, image)
        height, width = alpha.shape[:2]
        for t in np.flatnonzero(thing.visible):
            # Where the stamp lies in the frame, and which part of it is inside the frame.
            x, y = thing.centres[t]
            left, top = round(x * image - width / 2), round(y * image - height / 2)
            rows = slice(max(top, 0), max(min(top + height, image), 0))
            columns = slice(max(left, 0), max(min(left + width, image), 0))
            part = (slice(rows.start - top, rows.stop - top),
                    slice(columns.start - left, columns.stop - left))
            # Blend the colours into the frame, in place.
            region = canvas[t, rows, columns]
            region += alpha[part] * (colour[part] - region)
            # A pixel belongs to this thing if it is mostly opaque; then it belongs to no earlier
            # thing.
            solid = alpha[part][..., 0] > 0.5
            masks[:i, t, rows, columns] &= ~solid
            masks[i, t, rows, columns] = solid
    frames = (canvas + 0.5).clip(0, 255).astype(np.uint8)
    return frames, masks


# ---- sound

def envelope(gain: np.ndarray) -> np.ndarray:
    """Gains (T,) -> (S,) float32. Each change is a ramp of FADE samples that lies in the louder of
    the two seconds.
    """
    samples = np.repeat(gain.astype(np.float32), RATE)
    edges = np.concatenate([[0], gain, [0]])
    for t, (before, after) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        # In the louder second, so that a silent second is silent from its first sample to its last.
        start = t * RATE if after > before else t * RATE - FADE
        if after != before:
            samples[start:start + FADE] = np.linspace(before, after, FADE, dtype=np.float32)
    return samples


def looped(ring: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """(count,) samples of a loop, read from position `start` on, `step` positions apart, linearly
    interpolated.
    """
    position = start + step * np.arange(count)
    left = position.astype(np.int64)
    share = (position - left).astype(np.float32)
    low = ring.take(left, mode="wrap")
    return low + share * (ring.take(left + 1, mode="wrap") - low)


def noise(seed: int, rms: float) -> np.ndarray:
    """(S,) float32 noise with the root mean square `rms`, weaker towards high frequencies.

    It is the sum of four independent noises of variance 1 that hold each value for 1, 4, 16 and 64
    samples.
    """
    rng = np.random.default_rng([seed, 2])
    count = SECONDS * RATE
    total = rng.standard_normal(count, np.float32)
    for held in (4, 16, 64):
        total.reshape(-1, held)[:] += rng.standard_normal((count // held, 1), np.float32)
    return total * np.float32(rms / 2)                      # the sum's standard deviation is 2


def sound(scene: Scene, bank: Bank) -> np.ndarray:
    """(S,) float32 in -1..1: the sounds of all things, over background noise."""
    mix = noise(scene.seed, scene.noise)
    for i, thing in enumerate(scene.things):
        sounding = np.flatnonzero(thing.gain)                               # seconds
        if not len(sounding):
            continue
        first, end = sounding[0], sounding[-1] + 1
        # Read the voice from a random place of its loop, from the first sounding second to the
        # last.
        ring, speed = bank.voice(thing.category, thing.variant)
        start = np.random.default_rng([scene.seed, 3, i]).uniform(0, len(ring))
        step = speed * thing.pitch * synthesis.FINE / RATE
        wave = looped(ring, start, step, (end - first) * RATE)
        # Level each second, so that its gain is its loudness. A pause in a recording stays quiet.
        level = np.sqrt((wave.reshape(-1, RATE) ** 2).mean(1)).clip(MIN_LEVEL)  # (seconds,), near 1
        gain = np.array(thing.gain, float)
        gain[first:end] *= LOUDNESS / level
        samples = slice(first * RATE, end * RATE)
        mix[samples] += wave * envelope(gain)[samples]
    peak = np.abs(mix).max()
    return mix if peak <= 1 else mix / peak  # no sampled scene is that loud; a hand-made one may be


def render(scene: Scene, image: int = 64, bank: Bank = PROCEDURAL) -> Clip:
    """Renders a scene in frames of image × image pixels."""
    frames, masks = pictures(scene, image, bank)
    return Clip(frames, masks, sound(scene, bank))
