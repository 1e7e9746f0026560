"""Any sampling rate to 16 kHz: a windowed-sinc low pass, evaluated only where an output sample is needed (polyphase).

With rates in lowest terms from : to = M : L, output n lies at input time n·M/L, so only L different fractions of an
input sample occur. Each has its own row of filter taps (a phase), and one phase's outputs are a strided product.
The pass band ends at 7.2 kHz, the stop band begins at 8 kHz (for a 16 kHz target), and the Kaiser window keeps what
would fold back more than 60 dB down (measured over a tone sweep in the tests). Not in the paper: Crab uses librosa.
"""

from functools import lru_cache
from math import gcd, pi

import torch
from torch import Tensor

RATE = 16000            # samples a second that the audio encoder hears
STOP_DB = 80.0          # design attenuation; the tests ask for 60
ROLLOFF = 0.95          # centre of the transition band, as a share of the lower rate's Nyquist frequency


@lru_cache(maxsize=4)
def phases(old: int, new: int) -> tuple[Tensor, list[int]]:
    """Filter taps (L, K) of the L phases and the input index of each phase's first tap, for one output period."""
    lower = min(old, new)
    transition = (1 - ROLLOFF) * lower / old                # full width, as a share of the input rate
    half = int((STOP_DB - 8) / (2.285 * 2 * pi * transition) / 2) + 1      # Kaiser's estimate of the length
    beta = 0.1102 * (STOP_DB - 8.7)                         # Kaiser's shape for that attenuation
    cutoff = ROLLOFF * lower / old                          # 1 = the input's Nyquist frequency
    first = torch.div(torch.arange(new) * old, new, rounding_mode="floor") - half + 1      # (L)
    rows = []
    for part in torch.arange(new).split(1024):              # an odd rate has thousands of phases
        position = part.double() * old / new                # of these outputs, in input samples
        offset = first[part][:, None] + torch.arange(2 * half) - position[:, None]         # (L', K) tap minus output
        window = torch.i0(beta * (1 - (offset / half) ** 2).clamp(min=0).sqrt())
        taps = torch.sinc(cutoff * offset) * window
        rows.append((taps / taps.sum(1, keepdim=True)).float())             # unit gain at 0 Hz in every phase
    return torch.cat(rows), first.tolist()


def resample(waveform: Tensor, rate: int, target: int = RATE) -> Tensor:
    """(S,) float32 at `rate` samples a second -> (ceil(S · target / rate),) at `target`; zeros are assumed outside."""
    if rate == target:
        return waveform
    common = gcd(rate, target)
    old, new = rate // common, target // common
    taps, first = phases(old, new)                          # (L, K)
    count = -(-len(waveform) * new // old)                  # samples out
    periods = -(-count // new)
    left = -min(first)
    right = max(0, max(first) + (periods - 1) * old + taps.shape[1] - len(waveform))
    padded = torch.nn.functional.pad(waveform, (left, right))
    out = torch.empty(periods, new)
    for phase, start in enumerate(first):
        span = padded[start + left:start + left + (periods - 1) * old + taps.shape[1]]
        out[:, phase] = torch.nn.functional.conv1d(span[None, None], taps[phase, None, None], stride=old)[0, 0]
    return out.flatten()[:count]
