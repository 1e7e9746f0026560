"""A scene is the whole truth about a clip: who is where, when seen, when heard, how loud. Everything derives from it."""

from dataclasses import dataclass

SECONDS = 10                # a clip's length; one frame a second
RATE = 16000                # waveform samples a second

# Ten of AVSBench's 71 class names, each with its own look and its own sound.
CATEGORIES = ("bell", "bird", "clock", "dog", "drum", "emergency-car", "flute", "guitar", "tractor", "violin")


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
