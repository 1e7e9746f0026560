"""Looks: ten categories drawn with a pen, eight variants each, and a texture behind them. numpy and PIL only.

A painter draws filled shapes on a unit square at four times the wanted size; shrinking makes the edges soft. Each
sprite is then mottled, lit from the top left and given a dark rim. Silhouettes are compact on purpose: a mask is
learned on a coarse grid, and a part thinner than two pixels would never be seen (so the flute is a pan flute).
Categories differ in outline first; colours vary within a category and overlap between them.
"""

from collections.abc import Callable
from colorsys import hsv_to_rgb
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .dials import Dials

SIDE = 128                  # pixels of a finished master sprite
SUPER = 4                   # drawn this many times larger

Colour = tuple[int, int, int, int]


def paint(hue: float, saturation: float, value: float) -> Colour:
    """HSV in 0..1 (hue wraps) -> an opaque RGBA colour."""
    return tuple(int(255 * c) for c in hsv_to_rgb(hue % 1, saturation, value)) + (255,)


class Pen:
    """Filled shapes on the unit square, y downwards."""

    def __init__(self):
        self.image = Image.new("RGBA", (SIDE * SUPER,) * 2)
        self.draw = ImageDraw.Draw(self.image)

    def _scaled(self, points):
        return [tuple(SIDE * SUPER * v for v in point) for point in points]

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """An ellipse around (x, y)."""
        self.draw.ellipse(sum(self._scaled([(x - rx, y - ry), (x + rx, y + ry)]), ()), colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, radius: float = 0.0) -> None:
        """A rectangle with rounded corners."""
        self.draw.rounded_rectangle(sum(self._scaled([(x0, y0), (x1, y1)]), ()), radius * SIDE * SUPER, colour)

    def shape(self, points, colour: Colour) -> None:
        """A polygon."""
        self.draw.polygon(self._scaled(points), colour)

    def stroke(self, points, width: float, colour: Colour) -> None:
        """A thick line with round ends."""
        self.draw.line(self._scaled(points), colour, int(width * SIDE * SUPER), joint="curve")
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, width / 2, colour)


def _mirrored(half) -> list:
    """Right half of an outline, top to bottom -> the whole outline, symmetric about x = 0.5."""
    return half + [(1 - x, y) for x, y in reversed(half)]


def _bell(pen: Pen, dial: Dials) -> None:
    hue, value, shoulder, flare = dial(.09, .17), dial(.75, .98), dial(.15, .22), dial(.36, .42)
    body, dark = paint(hue, .75, value), paint(hue, .8, value * .55)
    pen.oval(.5, .14, .11, .11, dark)
    pen.oval(.5, .88, .13, .1, dark)
    pen.shape(_mirrored([(.5, .14), (.5 + shoulder * .7, .19), (.5 + shoulder, .32), (.5 + shoulder * 1.15, .55),
                         (.5 + flare * .8, .72), (.5 + flare, .84)]), body)
    pen.box(.5 - flare, .76, .5 + flare, .86, dark, .04)
    pen.box(.5 - shoulder * 1.15, .44, .5 + shoulder * 1.15, .44 + dial(.05, .1), dark)


def _bird(pen: Pen, dial: Dials) -> None:
    hue, belly, fat = dial(.5, .68), dial(.05, .17), dial(.2, .27)
    body, wing = paint(hue, .7, dial(.75, .95)), paint(hue, .85, dial(.4, .6))
    pen.shape([(.38, .5), (.02, dial(.3, .42)), (.04, .72), (.4, .7)], wing)
    pen.oval(.5, .58, .3, fat, body)
    pen.oval(.56, .66, .2, fat * .6, paint(belly, .5, .95))
    pen.oval(.74, .38, .18, .17, body)
    pen.shape([(.87, .29), (1., .4), (.86, .47)], paint(.1, .95, .95))
    pen.oval(.78, .34, .055, .055, (15, 15, 20, 255))
    pen.shape([(.62, .5), (.22, .42), (.3, dial(.62, .74))], wing)


def _clock(pen: Pen, dial: Dials) -> None:
    hue, value = dial(0., 1.), dial(.5, .85)
    rim, face, ink = paint(hue, .55, value), paint(.13, dial(.02, .15), .97), (25, 25, 30, 255)
    width = dial(.07, .12)
    for side in (-1, 1):
        pen.stroke([(.5 + side * .2, .7), (.5 + side * .3, .94)], .11, rim)
        pen.oval(.5 + side * .26, .14, .15, .11, paint(hue, .4, value * .8))
    pen.oval(.5, .54, .42, .42, rim)
    pen.oval(.5, .54, .42 - width, .42 - width, face)
    for angle in np.arange(4) * np.pi / 2:
        pen.oval(.5 + .26 * np.cos(angle), .54 + .26 * np.sin(angle), .035, .035, ink)
    for angle, length, thick in ((dial(0, 6.2), .26, .05), (dial(0, 6.2), .17, .08)):
        pen.stroke([(.5, .54), (.5 + length * np.sin(angle), .54 - length * np.cos(angle))], thick, ink)


def _dog(pen: Pen, dial: Dials) -> None:
    hue, value = dial(.03, .1), dial(.4, .85)
    coat, patch = paint(hue, dial(.35, .7), value), paint(hue, .6, value * .55)
    back = dial(.4, .47)
    pen.stroke([(.14, back + .1), (.07, dial(.2, .32))], .1, coat)
    for x in (.2, .6):
        pen.box(x - .075, .6, x + .075, .95, coat, .04)
        pen.box(x + .05, .6, x + .2, .92, patch, .04)
    pen.box(.08, back, .8, .78, coat, .14)
    pen.oval(dial(.28, .5), back + .14, .12, .1, patch)
    pen.oval(.74, .32, .19, .18, coat)
    pen.box(.76, .32, .98, .48, coat, .07)
    pen.oval(.95, .36, .05, .05, (15, 12, 12, 255))
    pen.oval(.6, dial(.33, .4), .09, .17, patch)
    pen.oval(.79, .27, .04, .04, (15, 12, 12, 255))


def _drum(pen: Pen, dial: Dials) -> None:
    hue, side = dial(-.08, .04), dial(.36, .44)
    shell, rim = paint(hue, .85, dial(.6, .9)), paint(dial(.1, .16), .6, .9)
    top, bottom = dial(.26, .32), dial(.72, .8)
    pen.oval(.5, bottom, side, .16, rim)
    pen.box(.5 - side, top, .5 + side, bottom, rim)
    pen.oval(.5, bottom - .08, side, .16, shell)
    pen.box(.5 - side, top, .5 + side, bottom - .08, shell)
    steps = 6
    zigzag = [(.5 - side + 2 * side * k / steps, top + .2 if k % 2 else bottom) for k in range(steps + 1)]
    pen.stroke(zigzag, dial(.035, .055), paint(.14, .15, .97))
    pen.oval(.5, top, side, .17, rim)
    pen.oval(.5, top, side - .05, .125, paint(.12, .1, dial(.85, .97)))


def _emergency_car(pen: Pen, dial: Dials) -> None:
    roof, front = dial(.24, .3), dial(.72, .82)
    body, stripe = paint(.0, dial(0, .06), dial(.88, .98)), paint(dial(-.03, .03), .85, .85)
    glass, lamp = paint(.55, .5, .45), dial(.58, .66)
    pen.box(.3, roof - .14, .45, roof + .02, paint(lamp, .9, 1.), .04)
    pen.box(.45, roof - .14, .6, roof + .02, paint(0., .95, 1.), .04)
    pen.shape([(.02, roof), (front, roof), (.97, .52), (.98, .78), (.02, .78)], body)
    pen.shape([(.62, roof + .06), (front - .02, roof + .06), (.88, .52), (.62, .52)], glass)
    pen.box(.02, .56, .98, .56 + dial(.08, .12), stripe)
    pen.box(.26, .32, .36, .54, stripe)
    pen.box(.2, .385, .42, .475, stripe)
    for x in (.24, .76):
        pen.oval(x, .79, .135, .135, (25, 25, 28, 255))
        pen.oval(x, .79, .06, .06, (190, 190, 195, 255))


def _flute(pen: Pen, dial: Dials) -> None:
    hue, value = dial(.2, .36), dial(.55, .8)
    tubes, shortest = 5, dial(.42, .55)
    for k in range(tubes):
        length = .9 + (shortest - .9) * k / (tubes - 1)
        x = .05 + .18 * k
        pen.box(x, .06, x + .17, .06 + length, paint(hue, .5, value * (.8 if k % 2 else 1.)), .06)
        pen.oval(x + .085, .1, .06, .045, (25, 25, 20, 255))
    tie = dial(.24, .32)
    pen.box(.04, tie, .95, tie + .11, paint(dial(.0, .08), .8, .5))


def _guitar(pen: Pen, dial: Dials) -> None:
    hue, value, waist = dial(.07, .12), dial(.8, 1.), dial(.19, .24)
    wood, dark = paint(hue, dial(.6, .85), value), paint(hue, .7, .28)
    pen.stroke([(.5, .5), (.88, .12)], .11, dark)
    pen.stroke([(.86, .14), (.93, .07)], .14, paint(hue, .5, .45))
    for x, y, r in ((.3, .7, dial(.27, .3)), (.44, .56, waist), (.53, .47, dial(.19, .22))):
        pen.oval(x, y, r, r, wood)
    pen.oval(.42, .58, .105, .105, dark)
    pen.stroke([(.16, .7), (.3, .84)], .06, dark)
    pen.stroke([(.26, .74), (.86, .14)], .035, paint(.12, .2, .95))


def _tractor(pen: Pen, dial: Dials) -> None:
    hue = dial(.28, .42)
    paintwork, rubber = paint(hue, .8, dial(.5, .8)), (30, 28, 30, 255)
    hub, big = paint(dial(.1, .17), .85, .95), dial(.27, .31)
    pen.box(.76, .12, .85, .48, (70, 70, 75, 255), .02)
    pen.box(.4, .4, .96, .72, paintwork, .05)
    pen.box(.1, .08, .52, .16, paintwork, .03)
    pen.box(.14, .14, .48, .6, paint(.55, .25, dial(.8, .95)))
    pen.box(.42, .14, .5, .6, paintwork)
    pen.box(.12, .14, .2, .6, paintwork)
    pen.box(.88, .46, .98, .56, paint(.15, .6, 1.), .02)
    for x, r in ((.3, big), (.8, dial(.16, .2))):
        pen.oval(x, .97 - r, r, r, rubber)
        pen.oval(x, .97 - r, r * .5, r * .5, hub)


def _violin(pen: Pen, dial: Dials) -> None:
    hue, value = dial(-.02, .05), dial(.4, .62)
    wood, black = paint(hue, .85, value), (20, 16, 16, 255)
    upper, lower, waist = dial(.2, .24), dial(.27, .31), dial(.14, .18)
    pen.stroke([(.5, .07), (.5, .4)], .1, black)
    pen.oval(.5, .07, .09, .07, wood)
    pen.oval(.5, .48, upper, .17, wood)
    pen.oval(.5, .78, lower, .2, wood)
    pen.box(.5 - waist, .45, .5 + waist, .8, wood)
    pen.stroke([(.5, .1), (.5, .66)], .08, black)
    pen.shape([(.43, .82), (.57, .82), (.54, .97), (.46, .97)], black)
    for side in (-1, 1):
        pen.stroke([(.5 + side * .13, .6), (.5 + side * .16, .76)], .045, black)
    pen.stroke([(.4, .72), (.6, .72)], .05, paint(.11, .4, .95))


PAINTERS: dict[str, Callable[[Pen, Dials], None]] = {
    "bell": _bell, "bird": _bird, "clock": _clock, "dog": _dog, "drum": _drum, "emergency-car": _emergency_car,
    "flute": _flute, "guitar": _guitar, "tractor": _tractor, "violin": _violin}


def _finish(image: Image.Image, rng) -> Image.Image:
    """Mottles the sprite, lights it from the top left, gives it a dark rim; -> SIDE x SIDE, box trimmed."""
    image = image.resize((SIDE, SIDE), Image.BOX)
    alpha = image.getchannel("A")
    grain = Image.fromarray(rng.uniform(-1, 1, (24, 24)).astype(np.float32)).resize((SIDE, SIDE), Image.BICUBIC)
    light = np.linspace(1.12, .86, SIDE)
    light = (light[:, None] + light[None]) / 2 + 0.10 * np.asarray(grain)                          # (H,W)
    edge = np.asarray(alpha.filter(ImageFilter.MinFilter(5)), np.float32) / 255
    light = light * (0.45 + 0.55 * edge)
    rgb = (np.asarray(image.convert("RGB"), np.float32) * light[..., None]).clip(0, 255).astype(np.uint8)
    out = Image.fromarray(np.dstack([rgb, np.asarray(alpha)]))
    return out.crop(alpha.getbbox())


@lru_cache(maxsize=None)
def sprite(category: str, variant: int) -> Image.Image:
    """The master picture of a category's variant: RGBA, trimmed to its alpha, longer side near SIDE pixels."""
    pen, dial = Pen(), Dials("look " + category, variant)
    PAINTERS[category](pen, dial)
    return _finish(pen.image, dial.rng)


def _smooth(rng, cells: int, side: int, channels: int = 3) -> np.ndarray:
    """(side,side,channels) smooth noise around zero, with `cells` cells across the picture."""
    coarse = rng.standard_normal((channels, cells + 1, cells + 1), np.float32)
    return np.stack([np.asarray(Image.fromarray(c).resize((side, side), Image.BICUBIC)) for c in coarse], -1)


def margin(image: int) -> int:
    """Pixels that a background is wider than the frame on each side, to have room to drift."""
    return max(4, image // 8)


def drifting(field: np.ndarray, frames: int, image: int, rng) -> np.ndarray:
    """(H+2m,W+2m,3) field -> (T,H,W,3) float32: the frame moves slowly over it, and each frame has its own grain."""
    room = margin(image)
    heading = rng.uniform(0, 2 * np.pi)
    reach = np.linspace(-1, 1, frames) * rng.uniform(0, room - 1)
    out = np.empty((frames, image, image, 3), np.float32)
    for t, far in enumerate(reach):
        top, left = (int(room + round(far * f(heading))) for f in (np.sin, np.cos))
        out[t] = field[top:top + image, left:left + image]
    return out + 3 * rng.standard_normal(out.shape, np.float32)


def background(seed: int, frames: int, image: int) -> np.ndarray:
    """(T,H,W,3) float32 in 0..255: a muted gradient, clouds, and stripes or blobs, drifting a little, with grain."""
    rng = np.random.default_rng([seed, 1])
    side = image + 2 * margin(image)
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (x * np.cos(angle) + y * np.sin(angle))[..., None]
    base, tilt = rng.uniform(70, 190), rng.uniform(-25, 25, (2, 3))
    field = base + tilt[0] + ramp * (tilt[1] * 1.5 + rng.uniform(-35, 35)) + 9 * _smooth(rng, 4, side)
    if rng.random() < 0.6:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(4, 10)
        stripes = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
        field += rng.uniform(4, 13) * stripes[..., None]
    else:
        blobs = _smooth(rng, int(rng.integers(6, 11)), side, 1)
        field += rng.uniform(10, 22) * np.tanh(3 * (blobs - 0.4))
    return drifting(field, frames, image, rng)
