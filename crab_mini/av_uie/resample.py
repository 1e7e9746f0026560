"""Resampling: a waveform of any sampling rate -> 16 kHz, by a windowed-sinc low-pass filter.

With the two rates in lowest terms, `old` and `new`, output sample i lies at the input position
i · old / new. So only `new` different fractions of an input sample occur. Each has its own filter
coefficients (taps), called a phase (polyphase resampling). The outputs of one phase are a strided
convolution. Only outputs that are needed are computed.

The filter passes frequencies up to 7.2 kHz and stops those from 8 kHz on, for an output at 16 kHz.
What would fold back (aliasing) is more than 60 dB weaker; the tests measure it. Not in the paper:
official Crab uses librosa.
"""

from functools import lru_cache
from math import gcd, pi

import torch
from torch import Tensor

RATE = 16000            # samples a second of the audio encoder's input
STOP_DB = 80.0          # attenuation that the filter is designed for; the tests require 60 dB
ROLLOFF = 0.95  # centre of the transition band, as a share of the lower rate's Nyquist frequency
CHUNK = 1024            # phases that are computed at once; an odd rate has thousands


@lru_cache(maxsize=4)
def phases(old: int, new: int) -> tuple[Tensor, list[int]]:
    """The filter coefficients of all phases (new,taps), and the input position of each one's first.

    old, new: the two rates in lowest terms. taps: the length of the filter in input samples.
    """
    # Kaiser's formulas: filter length and window shape for this attenuation and transition band.
    lower = min(old, new)
    transition = (1 - ROLLOFF) * lower / old                # width, as a share of the input rate
    half = int((STOP_DB - 8) / (2.285 * 2 * pi * transition) / 2) + 1  # taps / 2
    beta = 0.1102 * (STOP_DB - 8.7)
    cutoff = ROLLOFF * lower / old  # as a share of the input's Nyquist frequency
    first = torch.div(torch.arange(new) * old, new, rounding_mode="floor") - half + 1      # (new,)
    chunks = []
    for part in torch.arange(new).split(CHUNK):
        # The distance of each coefficient from the output sample, in input samples.
        position = part.double() * old / new
        offset = first[part][:, None] + torch.arange(2 * half) - position[:, None]  # (CHUNK,taps)
        window = torch.i0(beta * (1 - (offset / half) ** 2).clamp(min=0).sqrt())
        taps = torch.sinc(cutoff * offset) * window
        # Every phase passes a constant signal unchanged.
        chunks.append((taps / taps.sum(1, keepdim=True)).float())
    return torch.cat(chunks), first.tolist()


def resample(waveform: Tensor, rate: int, target: int = RATE) -> Tensor:
    """Waveform (S,) float32 at `rate` samples a second -> (ceil(S · target / rate),) float32 at
    `target`.

    Before its beginning and after its end the waveform counts as zero.
    """
    if rate == target:
        return waveform
    common = gcd(rate, target)
    old, new = rate // common, target // common
    taps, first = phases(old, new)                          # (new,taps)
    # `new` outputs, one of each phase, make a period; it takes `old` input samples.
    count = -(-len(waveform) * new // old)                  # output samples
    periods = -(-count // new)
    # Zeros on both sides, so that every filter finds all of its inputs.
    left = -min(first)
    right = max(0, max(first) + (periods - 1) * old + taps.shape[1] - len(waveform))
    padded = torch.nn.functional.pad(waveform, (left, right))
    out = torch.empty(periods, new)
    for phase, start in enumerate(first):
        span = padded[start + left:start + left + (periods - 1) * old + taps.shape[1]]
        kernel = taps[phase, None, None]  # (1,1,taps)
        out[:, phase] = torch.nn.functional.conv1d(span[None, None], kernel, stride=old)[0, 0]
    return out.flatten()[:count]
