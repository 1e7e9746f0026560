"""Scene -> clip: ten pictures, the exact mask of each thing's visible part, and ten seconds of sound. numpy and PIL.

Everything is a function of the scene alone: the same scene gives the same bytes in any process and in any order. Where
looks and sounds come from is a `Bank`: the procedural one here, or a folder of real pictures and recordings (bank.py).
The costly parts (a category's drawing, its eight seconds of sound) are made once a process; a clip turns, tints,
scales, shifts and mixes them. How to run: `render(sample_scene(0)).frames`.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from . import sounds, sprites
from .scene import CATEGORIES, RATE, SECONDS, Scene, Thing

LOUDNESS = 0.08             # rms of a sound with gain 1
FADE = RATE // 100          # samples over which a sound sets in, ends or changes its gain: 10 ms
QUIET = 0.5                 # a second of a recording below this share of its mean level is not raised to it
HUE_TURN = 25.0             # degrees of the colour circle that a hue of 1 turns


class Bank(Protocol):
    """Where looks and sounds come from. Variants are scene.TRAIN_VARIANTS and scene.TEST_VARIANTS."""
    categories: tuple[str, ...]

    def look(self, category: str, variant: int) -> Image.Image:
        """RGBA, trimmed to its alpha box."""

    def voice(self, category: str, variant: int) -> tuple[np.ndarray, float]:
        """(N,) float32, a loop at sounds.FINE samples a second with rms 1 each second; and its playing speed."""

    def background(self, seed: int, frames: int, image: int) -> np.ndarray:
        """(T,H,W,3) float32 in 0..255."""


class Procedural:
    """The world's own bank: everything drawn and synthesised."""
    categories = CATEGORIES

    def look(self, category: str, variant: int) -> Image.Image:
        return sprites.sprite(category, variant)

    def voice(self, category: str, variant: int) -> tuple[np.ndarray, float]:
        return sounds.voice(category, variant), 1.0

    def background(self, seed: int, frames: int, image: int) -> np.ndarray:
        return sprites.background(seed, frames, image)


@dataclass(frozen=True)
class Clip:
    """What a scene looks and sounds like."""
    frames: np.ndarray      # (T,H,W,3) uint8
    masks: np.ndarray       # (n,T,H,W) bool, the part of each thing that later things leave visible
    waveform: np.ndarray    # (SECONDS*RATE,) float32 within -1..1


def tinted(rgb: np.ndarray, hue: float) -> np.ndarray:
    """(...,3) float32 colours, turned around the grey axis by hue * HUE_TURN degrees."""
    turn = np.deg2rad(HUE_TURN * hue)
    along, across = (1 - np.cos(turn)) / 3, np.sin(turn) / np.sqrt(3)
    row = np.array([np.cos(turn) + along, along - across, along + across], np.float32)
    return rgb @ np.stack([np.roll(row, k) for k in range(3)], 1)


def stamp(look: Image.Image, thing: Thing, image: int) -> tuple[np.ndarray, np.ndarray]:
    """-> (h,w,3) float32 colours in 0..255 and (h,w,1) alpha in 0..1; max(h,w) = size * image pixels."""
    if thing.flip:
        look = look.transpose(Image.FLIP_LEFT_RIGHT)
    look = look.rotate(thing.angle, Image.BILINEAR, expand=True)
    box = look.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox()
    longer = max(box[2] - box[0], box[3] - box[1])
    scale = max(2, round(thing.size * image)) / longer
    size = [max(1, round((b - a) * scale)) for a, b in (box[::2], box[1::2])]
    pixels = np.asarray(look.resize(size, Image.BOX if scale < 1 else Image.BICUBIC, box), np.float32)   # (h,w,4)
    return tinted(pixels[..., :3], thing.hue), pixels[..., 3:] / 255


def pictures(scene: Scene, image: int, bank: Bank) -> tuple[np.ndarray, np.ndarray]:
    """-> frames (T,H,W,3) uint8 and masks (n,T,H,W) bool."""
    canvas = bank.background(scene.background, SECONDS, image)                      # (T,H,W,3)
    masks = np.zeros((len(scene.things), SECONDS, image, image), bool)
    for i, thing in enumerate(scene.things):
        if not any(thing.visible):
            continue
        colour, alpha = stamp(bank.look(thing.category, thing.variant), thing, image)
        high, wide = alpha.shape[:2]
        for t in range(SECONDS):
            if not thing.visible[t]:
                continue
            left, top = (round(c * image - s / 2) for c, s in zip(thing.path[t], (wide, high)))
            rows = slice(max(top, 0), max(min(top + high, image), 0))
            cols = slice(max(left, 0), max(min(left + wide, image), 0))
            part = (slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left))
            region = canvas[t, rows, cols]
            region += alpha[part] * (colour[part] - region)
            solid = alpha[part][..., 0] > 0.5
            masks[:i, t, rows, cols] &= ~solid
            masks[i, t, rows, cols] = solid
    return (canvas + 0.5).clip(0, 255).astype(np.uint8), masks


def envelope(gain: np.ndarray) -> np.ndarray:
    """(T,) gains -> (SECONDS*RATE,) float32; each change is a ramp of 10 ms within the louder of the two seconds."""
    out = np.repeat(gain.astype(np.float32), RATE)
    edges = np.concatenate([[0], gain, [0]])
    for t, (before, after) in enumerate(zip(edges, edges[1:])):
        start = t * RATE if after > before else t * RATE - FADE
        if after != before:
            out[start:start + FADE] = np.linspace(before, after, FADE, dtype=np.float32)
    return out


def looped(ring: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """(count,) samples of a loop from position `start` on, `step` apart, linearly interpolated."""
    position = start + step * np.arange(count)
    left = position.astype(np.int64)
    share = (position - left).astype(np.float32)
    low = ring.take(left, mode="wrap")
    return low + share * (ring.take(left + 1, mode="wrap") - low)


def hiss(seed: int, rms: float) -> np.ndarray:
    """(SECONDS*RATE,) float32 noise of a given rms: octaves of held noise, falling towards high frequencies."""
    rng = np.random.default_rng([seed, 2])
    count = SECONDS * RATE
    out = rng.standard_normal(count, np.float32)
    for held in (4, 16, 64):
        out.reshape(-1, held)[:] += rng.standard_normal((count // held, 1), np.float32)
    return out * np.float32(rms / 2)                        # four independent parts of variance 1


def sound(scene: Scene, bank: Bank) -> np.ndarray:
    """-> (SECONDS*RATE,) float32 within -1..1: all things mixed, over background noise."""
    out = hiss(scene.seed, scene.noise)
    for i, thing in enumerate(scene.things):
        on = np.flatnonzero(thing.gain)
        if not len(on):
            continue
        ring, speed = bank.voice(thing.category, thing.variant)
        start = np.random.default_rng([scene.seed, 3, i]).uniform(0, len(ring))
        step = speed * thing.pitch * sounds.FINE / RATE
        span = slice(on[0] * RATE, (on[-1] + 1) * RATE)
        heard = looped(ring, start, step, span.stop - span.start)
        level = np.sqrt((heard.reshape(-1, RATE) ** 2).mean(1)).clip(QUIET)         # (seconds), near 1
        gain = np.array(thing.gain, float)
        gain[on[0]:on[-1] + 1] *= LOUDNESS / level
        out[span] += heard * envelope(gain)[span]
    peak = np.abs(out).max()
    return out if peak <= 1 else out / peak                 # only scenes louder than any that are sampled


def render(scene: Scene, image: int = 64, bank: Bank = Procedural()) -> Clip:
    """Renders a scene at image x image pixels; see Clip for shapes."""
    return Clip(*pictures(scene, image, bank), sound(scene, bank))
