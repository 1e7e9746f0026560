"""Looks: ten categories drawn with a pen, eight variants each. numpy and PIL only.

Each `draw_...` function draws filled shapes on a unit square, x to the right and y downwards. The
drawing is four times larger than the finished sprite; shrinking it makes the edges soft. The sprite
is then mottled, lit from the top left and given a dark rim. What varies between variants is read
from dials (dials.py), in the order of the calls.

Outlines are compact on purpose: masks are learned on a coarse grid, and a part thinner than two
pixels would never be seen. So the flute is a pan flute. Categories differ in outline first; colours
vary within a category and overlap between categories.
"""

from collections.abc import Callable
from colorsys import hsv_to_rgb
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .dials import Dials

SIDE = 128                  # pixels of a finished sprite before it is cropped
SUPERSAMPLING = 4           # the drawing is this many times larger

Colour = tuple[int, int, int, int]      # RGBA, 0..255
Point = tuple[float, float]             # x, y on the unit square

BLACK: Colour = (15, 15, 20, 255)
INK: Colour = (25, 25, 30, 255)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """HSV in 0..1 (hue wraps around) as an opaque RGBA colour."""
    red, green, blue = hsv_to_rgb(hue % 1, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue), 255


class Pen:
    """Draws filled shapes on the unit square."""

    def __init__(self):
        self.side = SIDE * SUPERSAMPLING
        self.image = Image.new("RGBA", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def pixels(self, points: list[Point]) -> list[Point]:
        """Points of the unit square in pixels of the drawing."""
        return [(self.side * x, self.side * y) for x, y in points]

    def oval(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """An ellipse around (x, y) with the radii rx and ry."""
        (left, top), (right, bottom) = self.pixels([(x - rx, y - ry), (x + rx, y + ry)])
        self.draw.ellipse((left, top, right, bottom), colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour,
            radius: float = 0.0) -> None:
        """A rectangle; its corners are rounded with `radius`."""
        (left, top), (right, bottom) = self.pixels([(x0, y0), (x1, y1)])
        self.draw.rounded_rectangle((left, top, right, bottom), radius * self.side, colour)

    def shape(self, points: list[Point], colour: Colour) -> None:
        """A polygon."""
        self.draw.polygon(self.pixels(points), colour)

    def stroke(self, points: list[Point], width: float, colour: Colour) -> None:
        """A thick line with round ends."""
        self.draw.line(self.pixels(points), colour, int(width * self.side), joint="curve")
        for x, y in (points[0], points[-1]):
            self.oval(x, y, width / 2, width / 2, colour)


def mirrored(half: list[Point]) -> list[Point]:
    """The right half of an outline, from top to bottom -> the whole outline, symmetric about x =
    0.5.
    """
    return half + [(1 - x, y) for x, y in reversed(half)]


def draw_bell(pen: Pen, dial: Dials) -> None:
    """A bell with its ring, clapper, rim and a band."""
    hue, value = dial(.09, .17), dial(.75, .98)
    shoulder, flare = dial(.15, .22), dial(.36, .42)
    body, dark = hsv(hue, .75, value), hsv(hue, .8, value * .55)
    # The ring at the top and the clapper, of which the body leaves only the ends visible.
    pen.oval(.5, .14, .11, .11, dark)
    pen.oval(.5, .88, .13, .1, dark)
    # The body, then its rim and a band.
    outline = [(.5, .14), (.5 + shoulder * .7, .19), (.5 + shoulder, .32),
               (.5 + shoulder * 1.15, .55), (.5 + flare * .8, .72), (.5 + flare, .84)]
    pen.shape(mirrored(outline), body)
    pen.box(.5 - flare, .76, .5 + flare, .86, dark, .04)
    pen.box(.5 - shoulder * 1.15, .44, .5 + shoulder * 1.15, .44 + dial(.05, .1), dark)


def draw_bird(pen: Pen, dial: Dials) -> None:
    """A bird from the side, its beak to the right."""
    hue, belly, thickness = dial(.5, .68), dial(.05, .17), dial(.2, .27)
    body, wing = hsv(hue, .7, dial(.75, .95)), hsv(hue, .85, dial(.4, .6))
    # Tail, body, belly and head.
    pen.shape([(.38, .5), (.02, dial(.3, .42)), (.04, .72), (.4, .7)], wing)
    pen.oval(.5, .58, .3, thickness, body)
    pen.oval(.56, .66, .2, thickness * .6, hsv(belly, .5, .95))
    pen.oval(.74, .38, .18, .17, body)
    # Beak, eye and wing.
    pen.shape([(.87, .29), (1., .4), (.86, .47)], hsv(.1, .95, .95))
    pen.oval(.78, .34, .055, .055, BLACK)
    pen.shape([(.62, .5), (.22, .42), (.3, dial(.62, .74))], wing)


def draw_clock(pen: Pen, dial: Dials) -> None:
    """An alarm clock with two bells, two feet and two hands."""
    hue, value = dial(0., 1.), dial(.5, .85)
    rim, face = hsv(hue, .55, value), hsv(.13, dial(.02, .15), .97)
    width = dial(.07, .12)
    # An alarm clock: two feet and two bells.
    for side in (-1, 1):
        pen.stroke([(.5 + side * .2, .7), (.5 + side * .3, .94)], .11, rim)
        pen.oval(.5 + side * .26, .14, .15, .11, hsv(hue, .4, value * .8))
    # The case, the face and the four quarter marks.
    pen.oval(.5, .54, .42, .42, rim)
    pen.oval(.5, .54, .42 - width, .42 - width, face)
    for angle in np.arange(4) * np.pi / 2:
        pen.oval(.5 + .26 * np.cos(angle), .54 + .26 * np.sin(angle), .035, .035, INK)
    # Two hands at any time.
    for angle, length, thickness in ((dial(0, 6.2), .26, .05), (dial(0, 6.2), .17, .08)):
        tip = (.5 + length * np.sin(angle), .54 - length * np.cos(angle))
        pen.stroke([(.5, .54), tip], thickness, INK)


def draw_dog(pen: Pen, dial: Dials) -> None:
    """A dog from the side, its nose to the right."""
    hue, value = dial(.03, .1), dial(.4, .85)
    coat, patch = hsv(hue, dial(.35, .7), value), hsv(hue, .6, value * .55)
    nose: Colour = (15, 12, 12, 255)
    back = dial(.4, .47)                                    # height of the back
    # Tail, legs, trunk and a patch on it.
    pen.stroke([(.14, back + .1), (.07, dial(.2, .32))], .1, coat)
    for x in (.2, .6):
        pen.box(x - .075, .6, x + .075, .95, coat, .04)
        pen.box(x + .05, .6, x + .2, .92, patch, .04)
    pen.box(.08, back, .8, .78, coat, .14)
    pen.oval(dial(.28, .5), back + .14, .12, .1, patch)
    # Head, muzzle, nose, ear and eye.
    pen.oval(.74, .32, .19, .18, coat)
    pen.box(.76, .32, .98, .48, coat, .07)
    pen.oval(.95, .36, .05, .05, nose)
    pen.oval(.6, dial(.33, .4), .09, .17, patch)
    pen.oval(.79, .27, .04, .04, nose)


def draw_drum(pen: Pen, dial: Dials) -> None:
    """A drum with two rims, a skin and a cord in zigzag."""
    hue, side = dial(-.08, .04), dial(.36, .44)
    shell, rim = hsv(hue, .85, dial(.6, .9)), hsv(dial(.1, .16), .6, .9)
    top, bottom = dial(.26, .32), dial(.72, .8)
    # The lower rim, and over it the shell.
    pen.oval(.5, bottom, side, .16, rim)
    pen.box(.5 - side, top, .5 + side, bottom, rim)
    pen.oval(.5, bottom - .08, side, .16, shell)
    pen.box(.5 - side, top, .5 + side, bottom - .08, shell)
    # The cord, up and down around the shell.
    steps = 6
    cord = [(.5 - side + 2 * side * k / steps, top + .2 if k % 2 else bottom)
            for k in range(steps + 1)]
    pen.stroke(cord, dial(.035, .055), hsv(.14, .15, .97))
    # The upper rim and the skin.
    pen.oval(.5, top, side, .17, rim)
    pen.oval(.5, top, side - .05, .125, hsv(.12, .1, dial(.85, .97)))


def draw_emergency_car(pen: Pen, dial: Dials) -> None:
    """An ambulance with two lamps, a stripe and a cross."""
    roof, front = dial(.24, .3), dial(.72, .82)
    body, stripe = hsv(.0, dial(0, .06), dial(.88, .98)), hsv(dial(-.03, .03), .85, .85)
    glass, lamp = hsv(.55, .5, .45), dial(.58, .66)
    # The two lamps, the body and the window.
    pen.box(.3, roof - .14, .45, roof + .02, hsv(lamp, .9, 1.), .04)
    pen.box(.45, roof - .14, .6, roof + .02, hsv(0., .95, 1.), .04)
    pen.shape([(.02, roof), (front, roof), (.97, .52), (.98, .78), (.02, .78)], body)
    pen.shape([(.62, roof + .06), (front - .02, roof + .06), (.88, .52), (.62, .52)], glass)
    # The stripe and the cross.
    pen.box(.02, .56, .98, .56 + dial(.08, .12), stripe)
    pen.box(.26, .32, .36, .54, stripe)
    pen.box(.2, .385, .42, .475, stripe)
    # The wheels.
    for x in (.24, .76):
        pen.oval(x, .79, .135, .135, (25, 25, 28, 255))
        pen.oval(x, .79, .06, .06, (190, 190, 195, 255))


def draw_flute(pen: Pen, dial: Dials) -> None:
    """A pan flute: five tubes held together by a band."""
    hue, value = dial(.2, .36), dial(.55, .8)
    tubes, shortest = 5, dial(.42, .55)
    # Tubes from the longest to the shortest, light and dark in turn, each with its opening.
    for k in range(tubes):
        length = .9 + (shortest - .9) * k / (tubes - 1)
        x = .05 + .18 * k
        pen.box(x, .06, x + .17, .06 + length, hsv(hue, .5, value * (.8 if k % 2 else 1.)), .06)
        pen.oval(x + .085, .1, .06, .045, (25, 25, 20, 255))
    # The band that holds them together.
    band = dial(.24, .32)
    pen.box(.04, band, .95, band + .11, hsv(dial(.0, .08), .8, .5))


def draw_guitar(pen: Pen, dial: Dials) -> None:
    """A guitar, its neck to the upper right."""
    hue, value, waist = dial(.07, .12), dial(.8, 1.), dial(.19, .24)
    wood, dark = hsv(hue, dial(.6, .85), value), hsv(hue, .7, .28)
    # Neck and head.
    pen.stroke([(.5, .5), (.88, .12)], .11, dark)
    pen.stroke([(.86, .14), (.93, .07)], .14, hsv(hue, .5, .45))
    # The body: lower bout, waist and upper bout.
    for x, y, radius in ((.3, .7, dial(.27, .3)), (.44, .56, waist), (.53, .47, dial(.19, .22))):
        pen.oval(x, y, radius, radius, wood)
    # Sound hole, bridge and strings.
    pen.oval(.42, .58, .105, .105, dark)
    pen.stroke([(.16, .7), (.3, .84)], .06, dark)
    pen.stroke([(.26, .74), (.86, .14)], .035, hsv(.12, .2, .95))


def draw_tractor(pen: Pen, dial: Dials) -> None:
    """A tractor with a cab and a large rear wheel."""
    hue = dial(.28, .42)
    metal, rubber = hsv(hue, .8, dial(.5, .8)), (30, 28, 30, 255)
    hub, rear = hsv(dial(.1, .17), .85, .95), dial(.27, .31)
    # Exhaust pipe and bonnet.
    pen.box(.76, .12, .85, .48, (70, 70, 75, 255), .02)
    pen.box(.4, .4, .96, .72, metal, .05)
    # The cab: roof, window and two posts.
    pen.box(.1, .08, .52, .16, metal, .03)
    pen.box(.14, .14, .48, .6, hsv(.55, .25, dial(.8, .95)))
    pen.box(.42, .14, .5, .6, metal)
    pen.box(.12, .14, .2, .6, metal)
    # The headlight, then the large rear wheel and the small front wheel.
    pen.box(.88, .46, .98, .56, hsv(.15, .6, 1.), .02)
    for x, radius in ((.3, rear), (.8, dial(.16, .2))):
        pen.oval(x, .97 - radius, radius, radius, rubber)
        pen.oval(x, .97 - radius, radius * .5, radius * .5, hub)


def draw_violin(pen: Pen, dial: Dials) -> None:
    """A violin that stands upright, with its bridge and two f-holes."""
    hue, value = dial(-.02, .05), dial(.4, .62)
    wood, black = hsv(hue, .85, value), (20, 16, 16, 255)
    upper, lower, waist = dial(.2, .24), dial(.27, .31), dial(.14, .18)
    # Neck and scroll, then the body.
    pen.stroke([(.5, .07), (.5, .4)], .1, black)
    pen.oval(.5, .07, .09, .07, wood)
    pen.oval(.5, .48, upper, .17, wood)
    pen.oval(.5, .78, lower, .2, wood)
    pen.box(.5 - waist, .45, .5 + waist, .8, wood)
    # Fingerboard, tailpiece, the two f-holes and the bridge.
    pen.stroke([(.5, .1), (.5, .66)], .08, black)
    pen.shape([(.43, .82), (.57, .82), (.54, .97), (.46, .97)], black)
    for side in (-1, 1):
        pen.stroke([(.5 + side * .13, .6), (.5 + side * .16, .76)], .045, black)
    pen.stroke([(.4, .72), (.6, .72)], .05, hsv(.11, .4, .95))


DRAWINGS: dict[str, Callable[[Pen, Dials], None]] = {
    "bell": draw_bell, "bird": draw_bird, "clock": draw_clock, "dog": draw_dog, "drum": draw_drum,
    "emergency-car": draw_emergency_car, "flute": draw_flute, "guitar": draw_guitar,
    "tractor": draw_tractor, "violin": draw_violin}


def shaded(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A drawing as a sprite: shrunk to SIDE × SIDE, mottled, lit, rimmed, and cropped to what is
    not transparent.
    """
    drawing = drawing.resize((SIDE, SIDE), Image.BOX)
    alpha = drawing.getchannel("A")
    # Light falls from the top left; grain varies it a little from place to place.
    grain = Image.fromarray(rng.uniform(-1, 1, (24, 24)).astype(np.float32))
    grain = grain.resize((SIDE, SIDE), Image.BICUBIC)
    light = np.linspace(1.12, .86, SIDE)
    light = (light[:, None] + light[None]) / 2 + 0.10 * np.asarray(grain)                  # (H,W)
    # The minimum of alpha over 5 × 5 pixels is low near the outline: that makes the rim dark.
    inner = np.asarray(alpha.filter(ImageFilter.MinFilter(5)), np.float32) / 255
    light = light * (0.45 + 0.55 * inner)
    rgb = np.asarray(drawing.convert("RGB"), np.float32) * light[..., None]                # (H,W,3)
    rgba = np.dstack([rgb.clip(0, 255).astype(np.uint8), np.asarray(alpha)])
    return Image.fromarray(rgba).crop(alpha.getbbox())


@lru_cache(maxsize=None)
def sprite(category: str, variant: int) -> Image.Image:
    """The picture of a category's variant: RGBA, cropped to what is not transparent, longer side
    near SIDE pixels.
    """
    pen, dial = Pen(), Dials("look " + category, variant)
    DRAWINGS[category](pen, dial)
    return shaded(pen.image, dial.rng)
