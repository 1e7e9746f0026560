"""Sounds: ten categories synthesised, eight variants each. numpy only.

Each `play_...` function places short sounds (barks, ticks, strokes, ...) around a loop, with the
tools of synthesis.py. What varies between variants is read from dials (dials.py), in the order of
the calls. Lengths are in seconds, frequencies in Hz, rates in events a second.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .dials import Dials
from .synthesis import (
    FINE,
    LOOP,
    TOP,
    Ring,
    band,
    decay,
    event_times,
    levelled,
    pluck,
    sample_times,
    swell,
    tone,
)


def play_bell(ring: Ring, dial: Dials) -> None:
    """A church bell, struck two to three times a second and ringing for 1.6 s."""
    pitch, rate, fading = dial(620, 980), dial(2.1, 3.1), dial(2.2, 3.6)
    t = sample_times(1.6)
    # The partials of a church bell: no multiples of the pitch, and higher ones fade sooner.
    ratios = (0.5, 1., 1.19, 1.5, 2., 2.51, 3.01, 4.17)
    weights = (.35, 1., .7, .4, .8, .5, .35, .25)
    strike = np.zeros(len(t))
    for ratio, weight in zip(ratios, weights, strict=True):
        if pitch * ratio < TOP:
            partial = np.sin(2 * np.pi * pitch * ratio * t)
            strike += weight * partial * decay(fading * (0.6 + 0.5 * ratio), t)
    strike *= np.minimum(t / .003, 1) * np.minimum((1.6 - t) / .1, 1)
    for time in event_times(rate, dial.rng, .05):
        ring.add(time, strike, dial.rng.uniform(.85, 1.1))


def play_bird(ring: Ring, dial: Dials) -> None:
    """Chirps of a tenth of a second that glide between 2.5 and 5.6 kHz."""
    low, width = dial(2500, 3400), dial(1300, 2200)
    rate, length = dial(5., 8.), dial(.06, .1)
    rising = dial(0, 1) > .5
    for k, time in enumerate(event_times(rate, dial.rng, .12)):
        # Two of three chirps glide one way; every third goes up and down.
        glide = np.linspace(0, 1, len(sample_times(length)))
        if k % 3 == 0:
            glide = 4 * glide * (1 - glide)
        elif not rising:
            glide = 1 - glide
        chirp = tone(low + width * glide, (1., .12)) * swell(length, .012, .02)
        ring.add(time, chirp, dial.rng.uniform(.8, 1.1))


def play_clock(ring: Ring, dial: Dials) -> None:
    """Ticks and lower tocks in turn, four to six in all a second."""
    pitch, drop = dial(1700, 2500), dial(.72, .85)
    rate, fading = dial(4., 6.), dial(70, 110)
    t = sample_times(.09)
    # Ticks and tocks alternate over the end of the loop, too.
    even_rate = 2 * round(rate / 2 * LOOP) / LOOP
    for k, time in enumerate(event_times(even_rate, dial.rng)):
        frequency = pitch * (drop if k % 2 else 1.)
        click = dial.rng.standard_normal(len(t)) * decay(400, t)
        wood = np.sin(2 * np.pi * frequency * t) + .9 * np.sin(2 * np.pi * 2.31 * frequency * t)
        ring.add(time, wood * decay(fading, t) * np.minimum(t / .0005, 1) + .5 * click)


def play_dog(ring: Ring, dial: Dials) -> None:
    """Barks: a rough tone of 260 to 420 Hz that rises and falls, three times a second."""
    pitch, rate = dial(260, 420), dial(2.6, 3.6)
    length, formant = dial(.13, .19), dial(750, 1150)
    # A formant: the harmonics near this frequency are the strongest.
    harmonics = [np.exp(-((k * pitch - formant) / 650) ** 2) + .03 for k in range(1, 18)]
    for time in event_times(rate, dial.rng, .08):
        # The pitch of a bark rises and falls; noise makes it rough.
        arc = np.sin(np.pi * np.linspace(.1, 1, len(sample_times(length))))
        frequency = pitch * (0.8 + 0.5 * arc)
        rough = band(dial.rng.standard_normal(len(frequency)), 500, 2500) * 3
        bark = (tone(frequency, harmonics) + .35 * rough) * swell(length, .012, .07)
        ring.add(time, bark, dial.rng.uniform(.8, 1.1))


def play_drum(ring: Ring, dial: Dials) -> None:
    """Strokes of a low tone whose pitch falls, and a burst of noise with each."""
    low, rate, snap = dial(60, 105), dial(3.6, 5.4), dial(.25, .5)
    t = sample_times(.22)
    # A low tone whose pitch falls, and for each stroke a burst of noise.
    frequency = low * (1 + 1.6 * decay(30, t))
    boom = np.sin(2 * np.pi * np.cumsum(frequency) / FINE) * decay(14, t)
    edges = np.minimum(t / .001, 1) * np.minimum((.22 - t) / .02, 1)
    for k, time in enumerate(event_times(rate, dial.rng, .03)):
        skin = band(dial.rng.standard_normal(len(t)), 180, 2200) * decay(38, t) * 2
        boom_gain, skin_gain = (1., .5) if k % 2 else (.7, 1.)
        ring.add(time, (boom * boom_gain + snap * skin * skin_gain) * edges)


def play_emergency_car(ring: Ring, dial: Dials) -> None:
    """A siren that wails between two pitches about an octave apart, without a pause."""
    low, high, wails = dial(520, 700), dial(1150, 1500), round(dial(9, 20))
    t = sample_times(LOOP)
    # The pitch moves up and down, evenly in octaves, a whole number of times around the loop.
    sweep = .5 - .5 * np.cos(2 * np.pi * wails * t / LOOP)
    frequency = low * (high / low) ** sweep
    # Scaled to a whole number of cycles, so that the loop has no seam.
    frequency *= np.round(frequency.mean() * LOOP) / (frequency.mean() * LOOP)
    ring.add(0, tone(frequency, (1., dial(.05, .2), .45, .05, .22)))


def play_flute(ring: Ring, dial: Dials) -> None:
    """Notes of a scale with breath noise, about two a second."""
    pitch, rate = dial(480, 680), dial(1.9, 2.8)
    breath, second = dial(.1, .2), dial(.08, .2)
    length = 1.04 / rate  # each note reaches a little into the next
    for time in event_times(rate, dial.rng, .05):
        # Notes of a scale, in semitones above the pitch.
        note = pitch * 2 ** (dial.rng.choice((0, 2, 4, 5, 7)) / 12)
        t = sample_times(length)
        air = band(dial.rng.standard_normal(len(t)), 1800, 5500) * 2
        tremolo = 1 + .12 * np.sin(2 * np.pi * 5 * t)
        wave = tone(np.full(len(t), note), (1., second, .03)) * tremolo + breath * air
        ring.add(time, wave * swell(length, .06, .07))


def play_guitar(ring: Ring, dial: Dials) -> None:
    """Plucked notes of a chord, four to six a second."""
    pitch, rate, damping = dial(110, 175), dial(3.6, 5.6), dial(.985, .995)
    for time in event_times(rate, dial.rng, .04):
        # Notes of a major chord, in semitones above the pitch.
        note = pitch * 2 ** (dial.rng.choice((0, 4, 7, 12, 16)) / 12)
        ring.add(time, pluck(note, .7, damping, dial.rng), dial.rng.uniform(.8, 1.1))


def play_tractor(ring: Ring, dial: Dials) -> None:
    """The strokes of a four-cylinder engine, 17 to 27 a second."""
    rate, body, rattle = dial(17, 27), dial(85, 140), dial(.15, .4)
    t = sample_times(.12)
    # Each stroke of the engine: a low thud and a puff of noise. Four cylinders, not equally strong.
    thud = np.sin(2 * np.pi * body * t) * decay(28, t) \
        + .5 * np.sin(2 * np.pi * 2.4 * body * t) * decay(45, t)
    for k, time in enumerate(event_times(rate, dial.rng, .04)):
        puff = band(dial.rng.standard_normal(len(t)), 60, 900) * decay(40, t)
        ring.add(time, (thud + rattle * puff) * np.minimum(t / .002, 1), (1., .75, .9, .7)[k % 4])


def play_violin(ring: Ring, dial: Dials) -> None:
    """Bowed notes of a pentatonic scale with vibrato, about two a second."""
    pitch, rate = dial(290, 430), dial(1.5, 2.3)
    vibrato, brightness = dial(5., 6.6), dial(.55, .85)
    length = 1.1 / rate
    for time in event_times(rate, dial.rng, .04):
        # Notes of a pentatonic scale, with vibrato; a bowed string has all harmonics.
        note = pitch * 2 ** (dial.rng.choice((0, 2, 4, 7, 9)) / 12)
        t = sample_times(length)
        frequency = note * (1 + .012 * np.sin(2 * np.pi * vibrato * t))
        wave = tone(frequency, [k ** -brightness for k in range(1, 15)])
        ring.add(time, wave * swell(length, .07, .07))


PLAYERS: dict[str, Callable[[Ring, Dials], None]] = {
    "bell": play_bell, "bird": play_bird, "clock": play_clock, "dog": play_dog, "drum": play_drum,
    "emergency-car": play_emergency_car, "flute": play_flute, "guitar": play_guitar,
    "tractor": play_tractor, "violin": play_violin}


@lru_cache(maxsize=None)
def voice(category: str, variant: int) -> np.ndarray:
    """The looping sound of a category's variant: (LOOP * FINE,) float32, root mean square 1 in each
    second.
    """
    ring, dial = Ring(), Dials("sound " + category, variant)
    PLAYERS[category](ring, dial)
    return levelled(ring.wave)
