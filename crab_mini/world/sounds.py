"""Sounds: ten categories synthesised, eight variants each. numpy only.

A voice is a ring of eight seconds at twice the world's rate: events (plucks, barks, ticks, ...) are laid around it, so
it loops without a seam, can be entered anywhere, and can be played a little faster or slower by linear interpolation.
Every voice is low-passed below the world's Nyquist frequency, levelled so that each second of it is equally loud (a
second's gain then IS its loudness), and limited so that a mix of three cannot clip.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .dials import Dials
from .scene import RATE

FINE = 2 * RATE             # samples a second of a voice
LOOP = 8                    # seconds of a voice
TOP = 7200.0                # Hz; nothing above, so that a pitch factor of 1.1 stays below RATE / 2
CREST = 5.0                 # peak over rms of a finished voice


class Ring:
    """Eight seconds bent to a circle; `add` lays a short sound on it, over the end if need be."""

    def __init__(self):
        self.wave = np.zeros(LOOP * FINE)

    def add(self, at: float, sound: np.ndarray, gain: float = 1.0) -> None:
        """Adds `sound` (at most one lap) from second `at` on."""
        start = int(at * FINE) % len(self.wave)
        first = min(len(sound), len(self.wave) - start)
        self.wave[start:start + first] += gain * sound[:first]
        self.wave[:len(sound) - first] += gain * sound[first:]


def _beats(rate: float, rng, jitter: float = 0.0) -> np.ndarray:
    """Times of about `rate` events a second that fit the ring evenly, each moved by up to `jitter` of a beat."""
    count = round(rate * LOOP)
    return (np.arange(count) + rng.uniform(-jitter, jitter, count)) * LOOP / count % LOOP


def _seconds(length: float) -> np.ndarray:
    return np.arange(int(length * FINE)) / FINE


def _swell(length: float, rise: float, fall: float) -> np.ndarray:
    """An envelope that rises and falls smoothly, for a tone of `length` seconds."""
    t = _seconds(length)
    return np.minimum(np.minimum(t / rise, (length - t) / fall), 1).clip(0) ** 1.5


def _tone(frequency: np.ndarray, partials) -> np.ndarray:
    """Sum of harmonics of a frequency in Hz (per sample); partials: amplitudes of the 1st, 2nd, ... harmonic."""
    phase = 2 * np.pi * np.cumsum(frequency) / FINE
    top = frequency.max()
    return sum(a * np.sin((k + 1) * phase) for k, a in enumerate(partials) if a and (k + 1) * top < TOP)


def _band(noise: np.ndarray, low: float, high: float) -> np.ndarray:
    """Keeps the frequencies of a sound between low and high, in Hz, with soft shoulders."""
    spectrum = np.fft.rfft(noise)
    f = np.fft.rfftfreq(len(noise), 1 / FINE)
    return np.fft.irfft(spectrum / (1 + (f / high) ** 8) / (1 + (low / np.maximum(f, 1)) ** 8), len(noise))


def _bell(ring: Ring, dial: Dials) -> None:
    pitch, rate, decay = dial(620, 980), dial(2.1, 3.1), dial(2.2, 3.6)
    t = _seconds(1.6)
    ratios, weights = (0.5, 1., 1.19, 1.5, 2., 2.51, 3.01, 4.17), (.35, 1., .7, .4, .8, .5, .35, .25)
    strike = sum(w * np.sin(2 * np.pi * pitch * r * t) * np.exp(-decay * (0.6 + 0.5 * r) * t)
                 for r, w in zip(ratios, weights) if pitch * r < TOP)
    strike *= np.minimum(t / .003, 1) * np.minimum((1.6 - t) / .1, 1)
    for at in _beats(rate, dial.rng, .05):
        ring.add(at, strike, dial.rng.uniform(.85, 1.1))


def _bird(ring: Ring, dial: Dials) -> None:
    low, width, rate, length = dial(2500, 3400), dial(1300, 2200), dial(5., 8.), dial(.06, .1)
    up = dial(0, 1) > .5
    for k, at in enumerate(_beats(rate, dial.rng, .12)):
        glide = np.linspace(0, 1, len(_seconds(length)))
        glide = (glide if up else 1 - glide) if k % 3 else 4 * glide * (1 - glide)
        ring.add(at, _tone(low + width * glide, (1., .12)) * _swell(length, .012, .02), dial.rng.uniform(.8, 1.1))


def _clock(ring: Ring, dial: Dials) -> None:
    pitch, drop, rate, decay = dial(1700, 2500), dial(.72, .85), dial(4., 6.), dial(70, 110)
    t = _seconds(.09)
    for k, at in enumerate(_beats(2 * round(rate / 2 * LOOP) / LOOP, dial.rng)):
        f = pitch * (drop if k % 2 else 1.)
        click = dial.rng.standard_normal(len(t)) * np.exp(-400 * t)
        wood = np.sin(2 * np.pi * f * t) + .9 * np.sin(2 * np.pi * 2.31 * f * t)
        ring.add(at, wood * np.exp(-decay * t) * np.minimum(t / .0005, 1) + .5 * click)


def _dog(ring: Ring, dial: Dials) -> None:
    pitch, rate, length, formant = dial(260, 420), dial(2.6, 3.6), dial(.13, .19), dial(750, 1150)
    for at in _beats(rate, dial.rng, .08):
        arc = np.sin(np.pi * np.linspace(.1, 1, len(_seconds(length))))
        f = pitch * (0.8 + 0.5 * arc)
        harmonics = [np.exp(-((k * pitch - formant) / 650) ** 2) + .03 for k in range(1, 18)]
        rough = _band(dial.rng.standard_normal(len(f)), 500, 2500) * 3
        ring.add(at, (_tone(f, harmonics) + .35 * rough) * _swell(length, .012, .07), dial.rng.uniform(.8, 1.1))


def _drum(ring: Ring, dial: Dials) -> None:
    low, rate, snap = dial(60, 105), dial(3.6, 5.4), dial(.25, .5)
    t = _seconds(.22)
    boom = np.sin(2 * np.pi * np.cumsum(low * (1 + 1.6 * np.exp(-30 * t))) / FINE) * np.exp(-14 * t)
    rim = np.minimum(t / .001, 1) * np.minimum((.22 - t) / .02, 1)
    for k, at in enumerate(_beats(rate, dial.rng, .03)):
        skin = _band(dial.rng.standard_normal(len(t)), 180, 2200) * np.exp(-38 * t) * 2
        ring.add(at, (boom * (1. if k % 2 else .7) + snap * skin * (.5 if k % 2 else 1.)) * rim)


def _emergency_car(ring: Ring, dial: Dials) -> None:
    low, high, wails = dial(520, 700), dial(1150, 1500), round(dial(9, 20))
    t = _seconds(LOOP)
    sweep = .5 - .5 * np.cos(2 * np.pi * wails * t / LOOP)
    frequency = low * (high / low) ** sweep
    frequency *= np.round(frequency.mean() * LOOP) / (frequency.mean() * LOOP)      # whole cycles: no seam
    ring.add(0, _tone(frequency, (1., dial(.05, .2), .45, .05, .22)))


def _flute(ring: Ring, dial: Dials) -> None:
    pitch, rate, breath, second = dial(480, 680), dial(1.9, 2.8), dial(.1, .2), dial(.08, .2)
    for at in _beats(rate, dial.rng, .05):
        f = pitch * 2 ** (dial.rng.choice((0, 2, 4, 5, 7)) / 12)
        length = 1.04 / rate
        t = _seconds(length)
        air = _band(dial.rng.standard_normal(len(t)), 1800, 5500) * 2
        tremble = 1 + .12 * np.sin(2 * np.pi * 5 * t)
        ring.add(at, (_tone(np.full(len(t), f), (1., second, .03)) * tremble + breath * air) * _swell(length, .06, .07))


def _pluck(frequency: float, length: float, damping: float, rng) -> np.ndarray:
    """Karplus-Strong: a burst of noise runs round a delay line and is averaged at each lap, one lap at a time."""
    period = int(round(FINE / frequency))
    lap, laps = rng.uniform(-1, 1, period), []
    for _ in range(int(length * FINE / period) + 1):
        laps.append(lap)
        lap = damping * (.5 * lap + .25 * np.roll(lap, 1) + .25 * np.roll(lap, -1))
    sound = np.concatenate(laps)[:int(length * FINE)]
    return sound * np.minimum((length - _seconds(length)) / .05, 1)


def _guitar(ring: Ring, dial: Dials) -> None:
    pitch, rate, damping = dial(110, 175), dial(3.6, 5.6), dial(.985, .995)
    for at in _beats(rate, dial.rng, .04):
        f = pitch * 2 ** (dial.rng.choice((0, 4, 7, 12, 16)) / 12)
        ring.add(at, _pluck(f, .7, damping, dial.rng), dial.rng.uniform(.8, 1.1))


def _tractor(ring: Ring, dial: Dials) -> None:
    rate, body, rattle = dial(17, 27), dial(85, 140), dial(.15, .4)
    t = _seconds(.12)
    thud = np.sin(2 * np.pi * body * t) * np.exp(-28 * t) + .5 * np.sin(2 * np.pi * 2.4 * body * t) * np.exp(-45 * t)
    for k, at in enumerate(_beats(rate, dial.rng, .04)):
        puff = _band(dial.rng.standard_normal(len(t)), 60, 900) * np.exp(-40 * t)
        ring.add(at, (thud + rattle * puff) * np.minimum(t / .002, 1), (1., .75, .9, .7)[k % 4])


def _violin(ring: Ring, dial: Dials) -> None:
    pitch, rate, vibrato, bright = dial(290, 430), dial(1.5, 2.3), dial(5., 6.6), dial(.55, .85)
    for at in _beats(rate, dial.rng, .04):
        f = pitch * 2 ** (dial.rng.choice((0, 2, 4, 7, 9)) / 12)
        length = 1.1 / rate
        t = _seconds(length)
        wave = _tone(f * (1 + .012 * np.sin(2 * np.pi * vibrato * t)), [k ** -bright for k in range(1, 15)])
        ring.add(at, wave * _swell(length, .07, .07))


VOICES: dict[str, Callable[[Ring, Dials], None]] = {
    "bell": _bell, "bird": _bird, "clock": _clock, "dog": _dog, "drum": _drum, "emergency-car": _emergency_car,
    "flute": _flute, "guitar": _guitar, "tractor": _tractor, "violin": _violin}


def finish(wave: np.ndarray, top: float = TOP) -> np.ndarray:
    """A ring (N,) at FINE samples a second -> float32 without frequencies above top, rms 1 in each second, peak CREST.

    The level is followed over a sliding second; what is more than 20 dB below the whole's stays as quiet as it is.
    """
    f = np.fft.rfftfreq(len(wave), 1 / FINE)
    wave = np.fft.irfft(np.fft.rfft(wave) * (f > 30) * (f < top), len(wave))
    for _ in range(4):                                      # each step disturbs the others: settle in a few rounds
        energy = np.cumsum(np.concatenate([wave, wave[:FINE]]) ** 2)
        energy = np.roll((energy[FINE:] - energy[:-FINE]) / FINE, FINE // 2)
        wave = wave / np.sqrt(np.maximum(energy, energy.mean() / 100))
        if np.abs(wave).max() > CREST:                      # the limiter's overtones are filtered out again
            wave = np.fft.irfft(np.fft.rfft(CREST * np.tanh(wave / CREST)) * (f < top), len(wave))
    return wave.clip(-CREST, CREST).astype(np.float32)


@lru_cache(maxsize=None)
def voice(category: str, variant: int) -> np.ndarray:
    """(LOOP*FINE,) float32, rms 1: the looping sound of a category's variant."""
    ring, dial = Ring(), Dials("sound " + category, variant)
    VOICES[category](ring, dial)
    return finish(ring.wave)
