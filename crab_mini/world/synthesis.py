"""Tools for synthesised sounds: a loop to place them on, tones, noise bands, envelopes, and
levelling. numpy only.

A voice is a loop of LOOP seconds at FINE samples a second, twice the world's rate, so that it can
be played a little faster or slower by linear interpolation. Short sounds are placed around the loop
and continue over its end, so it has no audible seam. `levelled` finishes a loop: each second of it
is equally loud, so that a thing's gain is its loudness.
"""

import numpy as np

from .scene import RATE

FINE = 2 * RATE             # samples a second of a voice
LOOP = 8                    # seconds of a voice
# Hz; no higher frequency, so that a voice played 1.1 times faster stays below RATE / 2.
TOP = 7200.0
LOWEST = 30.0               # Hz; no lower frequency
CREST = 5.0  # largest peak of a finished voice, as a multiple of its root mean square


class Ring:
    """A loop of LOOP seconds. wave: (LOOP * FINE,) float64."""

    def __init__(self):
        self.wave = np.zeros(LOOP * FINE)

    def add(self, time: float, sound: np.ndarray, gain: float = 1.0) -> None:
        """Adds a sound, at most LOOP seconds long, from a time in seconds on. What exceeds the end
        continues at 0.
        """
        start = int(time * FINE) % len(self.wave)
        before_end = min(len(sound), len(self.wave) - start)
        self.wave[start:start + before_end] += gain * sound[:before_end]
        self.wave[:len(sound) - before_end] += gain * sound[before_end:]


def event_times(rate: float, rng: np.random.Generator, jitter: float = 0.0) -> np.ndarray:
    """Times in seconds of about `rate` events a second, evenly spaced around the loop, each moved
    by up to `jitter` of the distance between two.
    """
    count = round(rate * LOOP)
    return (np.arange(count) + rng.uniform(-jitter, jitter, count)) * LOOP / count % LOOP


def sample_times(length: float) -> np.ndarray:
    """The time in seconds of each sample of a sound of `length` seconds."""
    return np.arange(int(length * FINE)) / FINE


def decay(rate: float, t: np.ndarray) -> np.ndarray:
    """exp(-rate * t): a sound that fades; rate is in 1/s."""
    return np.exp(-rate * t)


def swell(length: float, rise: float, fall: float) -> np.ndarray:
    """An envelope that rises within `rise` seconds and falls within the last `fall` of its `length`
    seconds.
    """
    t = sample_times(length)
    return np.minimum(np.minimum(t / rise, (length - t) / fall), 1).clip(0) ** 1.5


def tone(frequency: np.ndarray, partials) -> np.ndarray:
    """A sum of harmonics. frequency: Hz at each sample. partials: amplitudes of the 1st, 2nd, ...
    harmonic.

    Harmonics above TOP are left out.
    """
    phase = 2 * np.pi * np.cumsum(frequency) / FINE
    highest = frequency.max()
    return sum(amplitude * np.sin((k + 1) * phase) for k, amplitude in enumerate(partials)
               if amplitude and (k + 1) * highest < TOP)


def band(noise: np.ndarray, low: float, high: float) -> np.ndarray:
    """A sound limited to the frequencies from low to high, in Hz, with gentle edges."""
    spectrum = np.fft.rfft(noise)
    f = np.fft.rfftfreq(len(noise), 1 / FINE)
    spectrum = spectrum / (1 + (f / high) ** 8) / (1 + (low / np.maximum(f, 1)) ** 8)
    return np.fft.irfft(spectrum, len(noise))


def pluck(frequency: float, length: float, damping: float, rng: np.random.Generator) -> np.ndarray:
    """A plucked string by the Karplus-Strong algorithm: noise that circulates in a delay line and
    is averaged.

    frequency in Hz, length in seconds; damping: amplitude of a period as a share of that of the
    period before.
    """
    samples = int(round(FINE / frequency))                                  # of one period
    period, periods = rng.uniform(-1, 1, samples), []
    for _ in range(int(length * FINE / samples) + 1):
        periods.append(period)
        period = damping * (.5 * period + .25 * np.roll(period, 1) + .25 * np.roll(period, -1))
    sound = np.concatenate(periods)[:int(length * FINE)]
    fade = np.minimum((length - sample_times(length)) / .05, 1)             # ends without a click
    return sound * fade


def levelled(wave: np.ndarray, top: float = TOP) -> np.ndarray:
    """A loop, finished: no frequency above top (Hz), root mean square 1 in each second, no peak
    above CREST.

    wave: (S,) at FINE samples a second. Returns (S,) float32. A passage that is more than 20 dB
    quieter than the whole is raised by 20 dB at most.
    """
    f = np.fft.rfftfreq(len(wave), 1 / FINE)
    wave = np.fft.irfft(np.fft.rfft(wave) * (f > LOWEST) * (f < top), len(wave))
    # Levelling, limiting and filtering disturb each other; after four rounds all three hold well
    # enough.
    for _ in range(4):
        # The mean power of the second around each sample; the loop continues at its start.
        energy = np.cumsum(np.concatenate([wave, wave[:FINE]]) ** 2)
        power = np.roll((energy[FINE:] - energy[:-FINE]) / FINE, FINE // 2)
        wave = wave / np.sqrt(np.maximum(power, power.mean() / 100))
        # Limiting adds overtones; the filter removes those above top.
        if np.abs(wave).max() > CREST:
            limited = CREST * np.tanh(wave / CREST)
            wave = np.fft.irfft(np.fft.rfft(limited) * (f < top), len(wave))
    return wave.clip(-CREST, CREST).astype(np.float32)
