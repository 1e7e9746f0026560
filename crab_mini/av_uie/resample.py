"""Resampling: a waveform of any sampling rate -> 16 kHz, by a windowed-sinc low-pass filter.

With the two rates in lowest terms, `old` and `new`, output sample i lies at the input position
i · old / new. So only `new` different fractions of an input sample occur. Each has its own filter
coefficients (taps), called a phase (polyphase resampling). The outputs of one phase are a strided
convolution. Only outputs that are needed are computed, BLOCK input samples at a time: the memory
that this takes does not grow with the length.

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
BLOCK = 1 << 24         # input samples that are filtered at once, about
# Of clips as data sets hold them every bit is promised: they are filtered in one block, by torch's
# convolution. It is slow where a filter moves by more samples than it has taps.
COMMON_PHASES, COMMON_OUTPUTS = 640, 120 * RATE


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
    factor = gcd(rate, target)
    old, new = rate // factor, target // factor
    taps, first = phases(old, new)                          # (new,taps)
    # `new` outputs, one of each phase, make a period; it takes `old` input samples.
    count = -(-len(waveform) * new // old)                  # output samples
    periods = -(-count // new)
    common = periods == 1 or (new <= COMMON_PHASES and count <= COMMON_OUTPUTS)
    convolve = common or old < taps.shape[1]
    step = periods if common else max(1, BLOCK // old)      # periods of a block
    earliest, latest = min(first), max(first)
    out = torch.empty(periods, new)
    for begin in range(0, periods, step):
        end = min(begin + step, periods)
        # The block's inputs, with zeros on both sides, so that every filter finds all of its own.
        left, right = begin * old + earliest, (end - 1) * old + latest + taps.shape[1]
        zeros = (max(0, -left), max(0, right - len(waveform)))
        inputs = torch.nn.functional.pad(waveform[max(0, left):max(0, right)], zeros)
        for phase in range(min(new, count)):
            place = inputs[first[phase] - earliest:]
            out[begin:end, phase] = filtered(place, taps[phase], old, end - begin, convolve)
    return out.flatten()[:count]


def filtered(inputs: Tensor, taps: Tensor, stride: int, count: int, convolve: bool) -> Tensor:
    """`count` outputs of a filter (taps,) that moves over the inputs (S,) by `stride` samples."""
    if convolve:
        span = inputs[:(count - 1) * stride + len(taps)]
        return torch.nn.functional.conv1d(span[None, None], taps[None, None], stride=stride)[0, 0]
    windows = inputs.as_strided((count, len(taps)), (stride, 1), inputs.storage_offset())
    return windows @ taps
