"""A scene is the whole truth about a clip: who is where, when seen, when heard, how loud. Everything derives from it.

`sample_scene(seed)` draws one; nothing is rendered here, so tens of thousands of scenes cost seconds (the language
model is pre-trained on their text alone). Draws are independent of each other on purpose: a category says nothing
about a place, a place nothing about a time, and being seen nothing about being heard.
"""

from dataclasses import dataclass

import numpy as np

SECONDS = 10                # a clip's length; one frame a second
RATE = 16000                # waveform samples a second

# Ten of AVSBench's 71 class names, each with its own look and its own sound.
CATEGORIES = ("bell", "bird", "clock", "dog", "drum", "emergency-car", "flute", "guitar", "tractor", "violin")
TRAIN_VARIANTS, TEST_VARIANTS = (0, 1, 2, 3, 4, 5), (6, 7)
WORLD = 4                   # goes up when a seed draws, or a label says, something else: older folders are refused
TEST_SEED = 1 << 40         # scene seeds from here on belong to the test set
SEED_STRIDE = 10_000_000    # scenes from one data set's seed to the next one's
MAX_SEED = TEST_SEED // SEED_STRIDE - 1             # of a data set: its training scenes stay below TEST_SEED
# Loudness of the loudest thing, the second, ...: with the jitter below some 2.5 dB apart; of five things, which are
# rare, the last two are alike.
LEVELS = (1.0, 0.65, 0.42, 0.27)


@dataclass(frozen=True)
class Thing:
    """One source. Tuples have one entry a second; coordinates are fractions of the frame, y downwards."""
    category: str
    variant: int                        # which look and sound of its category; training and test use disjoint ones
    size: float                         # longer side of the sprite's box, as a fraction of the frame
    path: tuple[tuple[float, float], ...]   # (x, y) of the box's centre at each second
    visible: tuple[bool, ...]
    gain: tuple[float, ...]             # linear loudness per second, 0 = silent
    angle: float = 0.0                  # degrees
    flip: bool = False
    hue: float = 0.0                    # -1 .. 1, small colour jitter
    pitch: float = 1.0                  # factor around the variant's own pitch


@dataclass(frozen=True)
class Scene:
    """A clip: `things` are painted back to front; a thing that is never visible sounds from off screen."""
    seed: int
    things: tuple[Thing, ...]
    background: int                     # seed of the texture
    noise: float                        # rms of the background noise


def _span(rng, shortest: int, longest: int) -> np.ndarray:
    """(T,) bool, one contiguous run of `shortest` to `longest` seconds at a uniformly drawn place."""
    length = rng.integers(shortest, longest + 1)
    start = rng.integers(0, SECONDS - length + 1)
    seconds = np.arange(SECONDS)
    return (seconds >= start) & (seconds < start + length)


def _paths(rng, sizes: list[float]) -> list[np.ndarray]:
    """One (T,2) path for each size: from one quarter of the frame to another, never closer than .34 to each other."""
    while True:
        start, end = rng.permutation(4)[:len(sizes)], rng.permutation(4)[:len(sizes)]
        end = np.where(rng.random(len(sizes)) < 0.6, start, end)      # most stay in their quarter and drift
        paths = []
        for a, b, size in zip(start, end, sizes):
            corners = np.array([[a % 2, a // 2], [b % 2, b // 2]]) * 0.5 + 0.25
            corners += rng.uniform(-0.08, 0.08, (2, 2))
            corners = corners.clip(size / 2, 1 - size / 2)
            paths.append(corners[0] + np.linspace(0, 1, SECONDS)[:, None] * (corners[1] - corners[0]))
        apart = [np.linalg.norm(p - q, axis=1).min() > 0.34 for i, p in enumerate(paths) for q in paths[:i]]
        if all(apart):
            return paths


def sample_scene(seed: int, categories: tuple[str, ...] = CATEGORIES) -> Scene:
    """The scene of one seed: one to four things in the picture, at times one more that is only heard."""
    rng = np.random.default_rng(seed)
    variants = TEST_VARIANTS if seed >= TEST_SEED else TRAIN_VARIANTS
    on_screen = int(rng.choice(4, p=(.15, .35, .3, .2))) + 1
    count = on_screen + int(rng.random() < 0.35)
    names = [categories[i] for i in rng.permutation(len(categories))[:count]]
    sizes = [float(s) for s in rng.uniform(0.34, 0.46, on_screen)]
    paths = _paths(rng, sizes)
    while True:                                        # at most three sounds at a time, at least one in all
        sounding = [_span(rng, 2, 8) if i >= on_screen or rng.random() < 0.6 else np.zeros(SECONDS, bool)
                    for i in range(count)]
        sounding = [s | _span(rng, 1, 3) if s.any() and rng.random() < 0.12 else s for s in sounding]
        if np.any(sounding) and np.sum(sounding, axis=0).max() <= 3:
            break
    level = rng.permutation(len(LEVELS))[:count] if count <= len(LEVELS) else rng.permutation(count) % len(LEVELS)
    level = np.argsort(np.argsort(level))              # the loudest present has level 1.0
    things = []
    for i, name in enumerate(names):
        shown = i < on_screen
        visible = np.zeros(SECONDS, bool)
        if shown:
            visible[:] = True
            if rng.random() < 0.6:
                visible = _span(rng, 3, 8)
        gain = LEVELS[min(int(level[i]), len(LEVELS) - 1)] * rng.uniform(0.93, 1.07)
        things.append(Thing(
            category=name, variant=int(rng.choice(variants)), size=sizes[i] if shown else 0.0,
            path=tuple(map(tuple, paths[i].tolist())) if shown else ((0.5, 0.5),) * SECONDS,
            visible=tuple(visible.tolist()), gain=tuple((sounding[i] * gain).tolist()),
            angle=float(rng.uniform(-20, 20)), flip=bool(rng.random() < 0.5), hue=float(rng.uniform(-1, 1)),
            pitch=float(rng.uniform(0.94, 1.06))))
    return Scene(seed, tuple(things), int(rng.integers(1 << 31)), float(rng.uniform(0.002, 0.01)))
