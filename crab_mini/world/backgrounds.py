"""Backgrounds: a muted gradient with clouds and a pattern, over which the frame moves slowly. numpy
and PIL.

    background(seed=3, frames=10, image=64)         # (T,H,W,3) float32 in 0..255
"""

import numpy as np
from PIL import Image

GRAIN = 3                   # standard deviation of the noise that each frame has of its own, of 255


def smooth_noise(rng: np.random.Generator, cells: int, side: int, channels: int = 3) -> np.ndarray:
    """(side,side,channels) float32 noise around zero, without detail finer than side / cells
    pixels.
    """
    coarse = rng.standard_normal((channels, cells + 1, cells + 1), np.float32)
    enlarged = [Image.fromarray(channel).resize((side, side), Image.BICUBIC) for channel in coarse]
    return np.stack([np.asarray(channel) for channel in enlarged], -1)


def margin(image: int) -> int:
    """Pixels by which a background is larger than the frame on each side, so that the frame can
    move over it.
    """
    return max(4, image // 8)


def drifting(field: np.ndarray, frames: int, image: int, rng: np.random.Generator) -> np.ndarray:
    """T = frames cut-outs of a background that drift along a straight line, each with its own
    grain.

    field: (H+2m,W+2m,3) with m = margin(image) and H = W = image. Returns (T,H,W,3) float32.
    """
    room = margin(image)
    heading = rng.uniform(0, 2 * np.pi)
    distance = np.linspace(-1, 1, frames) * rng.uniform(0, room - 1)        # pixels from the middle
    cuts = np.empty((frames, image, image, 3), np.float32)
    for t, far in enumerate(distance):
        top = int(room + round(far * np.sin(heading)))
        left = int(room + round(far * np.cos(heading)))
        cuts[t] = field[top:top + image, left:left + image]
    return cuts + GRAIN * rng.standard_normal(cuts.shape, np.float32)


def background(seed: int, frames: int, image: int) -> np.ndarray:
    """(T,H,W,3) float32 in 0..255, with T = frames and H = W = image: the procedural background of
    a seed.
    """
    rng = np.random.default_rng([seed, 1])
    side = image + 2 * margin(image)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    # A grey level, a colour, a gradient in a random direction, and clouds.
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (x * np.cos(angle) + y * np.sin(angle))[..., None]               # (side,side,1)
    base, tilt = rng.uniform(70, 190), rng.uniform(-25, 25, (2, 3))
    gradient = ramp * (tilt[1] * 1.5 + rng.uniform(-35, 35))
    field = base + tilt[0] + gradient + 9 * smooth_noise(rng, 4, side)
    # A pattern: stripes in a random direction, or blobs.
    if rng.random() < 0.6:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 10)
        stripes = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
        field += rng.uniform(4, 13) * stripes[..., None]
    else:
        blobs = smooth_noise(rng, int(rng.integers(6, 11)), side, 1)
        field += rng.uniform(10, 22) * np.tanh(3 * (blobs - 0.4))
    return drifting(field, frames, image, rng)
