"""A scene is the complete description of a clip: which things, where, seen when, heard when, and
how loud.

`sample_scene(seed)` draws one. Pictures, sound, masks and sentences all follow from it. Nothing is
rendered here, so tens of thousands of scenes take seconds; the LLM is pre-trained on their text
alone.

The draws are independent on purpose. A category tells nothing about a place, a place nothing about
a time, and being seen nothing about being heard. Otherwise a model could guess answers
(tests/test_world_text.py).
"""

from dataclasses import dataclass

import numpy as np

SECONDS = 10                # length of a clip; it has one frame a second
RATE = 16000                # waveform samples a second

# Ten of AVSBench's 71 class names. Each has a look (sprites.py) and a sound (sounds.py).
CATEGORIES = ("bell", "bird", "clock", "dog", "drum", "emergency-car", "flute", "guitar", "tractor",
              "violin")
TRAIN_VARIANTS, TEST_VARIANTS = (0, 1, 2, 3, 4, 5), (6, 7)
# version of the world; raised when a seed or a label changes, older data sets are refused
WORLD = 3
TEST_SEED = 1 << 40         # scene seeds from here on belong to the test set
SEED_STRIDE = 10_000_000    # scene seeds between two data sets with consecutive seeds
# Largest seed of a data set: its training scenes stay below TEST_SEED.
MAX_SEED = TEST_SEED // SEED_STRIDE - 1
# Gain of the loudest thing, the second loudest, and so on. Neighbours are about 2.5 dB apart after
# the jitter. Of five things, which are rare, the last two have the same level.
LEVELS = (1.0, 0.65, 0.42, 0.27)
MAX_SOUNDING = 3            # things that sound in the same second
MIN_DISTANCE = 0.34         # between the centres of two things in a second, as a share of the frame


@dataclass(frozen=True)
class Thing:
    """One source of sound, in the picture or off screen. Tuples have one entry a second."""
    category: str
    variant: int                        # which look and sound; training and test share none
    size: float                         # longer side of the sprite's box, as a share of the frame
    # (x, y) of the centre of the box, as shares of the frame, y downwards.
    centres: tuple[tuple[float, float], ...]
    visible: tuple[bool, ...]
    gain: tuple[float, ...]             # linear loudness; 0 is silence
    angle: float = 0.0                  # degrees, counter-clockwise
    flip: bool = False                  # left and right exchanged
    hue: float = 0.0                    # colour jitter, -1 to 1
    pitch: float = 1.0                  # factor on the pitch of the variant


@dataclass(frozen=True)
class Scene:
    """A clip. Later things are painted over earlier ones. A thing that is never visible sounds from
    off screen.
    """
    seed: int
    things: tuple[Thing, ...]
    background: int                     # seed of the background texture
    noise: float                        # root mean square of the background noise


def random_span(rng: np.random.Generator, shortest: int, longest: int) -> np.ndarray:
    """(T,) bool: one run of `shortest` to `longest` seconds. Length and start are uniform."""
    length = rng.integers(shortest, longest + 1)
    start = rng.integers(0, SECONDS - length + 1)
    seconds = np.arange(SECONDS)
    return (seconds >= start) & (seconds < start + length)


def random_centres(rng: np.random.Generator, sizes: list[float]) -> list[np.ndarray]:
    """The centres of things with these sizes: one (T,2) array each, on a straight line inside the
    frame.

    At most four things. Each starts in its own quarter of the frame; most drift within it, the
    others cross to another. Draws are repeated until no two centres come nearer than MIN_DISTANCE.
    """
    while True:
        # Quarters are numbered in reading order; no two things share one at the first or at the
        # last second.
        start, end = rng.permutation(4)[:len(sizes)], rng.permutation(4)[:len(sizes)]
        end = np.where(rng.random(len(sizes)) < 0.6, start, end)
        lines = []
        for first, last, size in zip(start, end, sizes, strict=True):
            # (2,2) x, y
            ends = np.array([[first % 2, first // 2], [last % 2, last // 2]]) * 0.5 + 0.25
            ends += rng.uniform(-0.08, 0.08, (2, 2))
            ends = ends.clip(size / 2, 1 - size / 2)  # the whole box stays inside the frame
            lines.append(ends[0] + np.linspace(0, 1, SECONDS)[:, None] * (ends[1] - ends[0]))
        # The smallest distance over time, for each pair of things.
        pairs = [(a, b) for i, a in enumerate(lines) for b in lines[:i]]
        nearest = [np.linalg.norm(a - b, axis=1).min() for a, b in pairs]
        if all(distance > MIN_DISTANCE for distance in nearest):
            return lines


def random_sounding(rng: np.random.Generator, count: int, on_screen: int) -> list[np.ndarray]:
    """When each of `count` things sounds: (T,) bool each. The first `on_screen` things may stay
    silent.

    Draws are repeated until something sounds and never more than MAX_SOUNDING things at once.
    """
    while True:
        sounding = []
        for i in range(count):
            # A thing off screen always sounds: otherwise it would not exist in the clip.
            heard = i >= on_screen or rng.random() < 0.6
            sounding.append(random_span(rng, 2, 8) if heard else np.zeros(SECONDS, bool))
        # Some things get a second, short span.
        for i, seconds in enumerate(sounding):
            if seconds.any() and rng.random() < 0.12:
                sounding[i] = seconds | random_span(rng, 1, 3)
        if np.any(sounding) and np.sum(sounding, axis=0).max() <= MAX_SOUNDING:
            return sounding


def random_levels(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count,) ranks of loudness in random order, 0 the loudest: indices into LEVELS, from 0
    without a gap.
    """
    if count <= len(LEVELS):
        drawn = rng.permutation(len(LEVELS))[:count]
    else:
        drawn = rng.permutation(count) % len(LEVELS)
    return np.argsort(np.argsort(drawn))


def sample_scene(seed: int, categories: tuple[str, ...] = CATEGORIES) -> Scene:
    """The scene of a seed: one to four things in the picture, and at times one more that is only
    heard.

    Seeds from TEST_SEED on give test scenes, with the variants of the test set. No category occurs
    twice in a scene.
    """
    rng = np.random.default_rng(seed)
    variants = TEST_VARIANTS if seed >= TEST_SEED else TRAIN_VARIANTS
    # Which things there are, how large, where, and when they sound. The order of the draws is part
    # of the format: another order gives another scene for the same seed.
    on_screen = int(rng.choice(4, p=(.15, .35, .3, .2))) + 1
    count = on_screen + int(rng.random() < 0.35)
    names = [categories[i] for i in rng.permutation(len(categories))[:count]]
    sizes = [float(size) for size in rng.uniform(0.34, 0.46, on_screen)]
    centres = random_centres(rng, sizes)
    sounding = random_sounding(rng, count, on_screen)
    level = random_levels(rng, count)
    things = []
    for i, name in enumerate(names):
        shown = i < on_screen
        # Two fifths of the things on screen are visible all the time, the others enter and leave.
        visible = np.full(SECONDS, shown)
        if shown and rng.random() < 0.6:
            visible = random_span(rng, 3, 8)
        gain = LEVELS[min(int(level[i]), len(LEVELS) - 1)] * rng.uniform(0.93, 1.07)
        things.append(Thing(
            category=name,
            variant=int(rng.choice(variants)),
            size=sizes[i] if shown else 0.0,
            centres=tuple(map(tuple, centres[i].tolist())) if shown else ((0.5, 0.5),) * SECONDS,
            visible=tuple(visible.tolist()),
            gain=tuple((sounding[i] * gain).tolist()),
            angle=float(rng.uniform(-20, 20)),
            flip=bool(rng.random() < 0.5),
            hue=float(rng.uniform(-1, 1)),
            pitch=float(rng.uniform(0.94, 1.06))))
    background, noise = int(rng.integers(1 << 31)), float(rng.uniform(0.002, 0.01))
    return Scene(seed, tuple(things), background, noise)
