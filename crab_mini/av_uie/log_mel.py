"""Log-mel frames as BEATs reads them (arXiv 2212.09058), computed as Kaldi does.

A frame is 25 ms of sound; a new one begins every 10 ms. Each frame becomes 128 numbers: the
logarithm of its power in 128 frequency bands. The bands are evenly spaced in mel, a scale of
perceived pitch.
"""

import math

import torch
from torch import Tensor

from ..config import MEL_BINS
from .resample import RATE

WINDOW, HOP = 400, 160      # samples: 25 ms and 10 ms
FFT = 512                   # samples of the Fourier transform: a frame and zeros after it
LOWEST = 20.0               # Hz, the lower end of the first mel band
PRE_EMPHASIS = 0.97         # this share of the sample before is subtracted from each sample
MEAN, STD = 15.41663, 6.55582       # of BEATs' training data: natural logarithm of the mel power


def mel(hertz: Tensor) -> Tensor:
    """Frequencies in Hz -> mel."""
    return 1127.0 * (1.0 + hertz / 700.0).log()


def mel_banks(device: torch.device) -> Tensor:
    """Kaldi's filters (FFT/2,MEL_BINS): triangles in mel that overlap by half and all have the
    height 1.

    The bin of the Nyquist frequency has no weight and is left out. Filter 3 lies between two bins
    and is zero.
    """
    low, high = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (LOWEST, RATE / 2))
    step = (high - low) / (MEL_BINS + 1)  # from the left end of a triangle to its peak
    left = low + torch.arange(MEL_BINS, device=device) * step  # (MEL_BINS,)
    bins = mel(RATE / FFT * torch.arange(FFT // 2, device=device))[:, None]  # (FFT/2,1)
    rise, fall = (bins - left) / step, (left + 2 * step - bins) / step
    return torch.minimum(rise, fall).clamp(min=0)


def fbank(waveform: Tensor) -> Tensor:
    """Waveform (B,S), float in [-1,1) at 16 kHz -> normalised log-mel (B,F,128), F = 1 + (S - 400)
    // 160.

    Samples after the last whole frame are ignored. The result is float32, under autocast too.
    Raises ValueError for another shape, another type, or less than one frame (25 ms).
    """
    if waveform.ndim != 2 or waveform.shape[1] < WINDOW or not waveform.is_floating_point():
        raise ValueError(f"waveform: expected float of shape (B, S) with S at least {WINDOW}, "
                         f"found {waveform.dtype} of shape {tuple(waveform.shape)}")
    device = waveform.device
    with torch.autocast(device.type, enabled=False):
        # Kaldi computes in units of 16-bit samples. The mean of each frame is removed.
        frames = (waveform.float() * 2 ** 15).unfold(1, WINDOW, HOP)  # (B,F,WINDOW)
        frames = frames - frames.mean(-1, keepdim=True)
        # Pre-emphasis raises high frequencies. The first sample of a frame counts as its own
        # predecessor.
        before = torch.cat((frames[..., :1], frames[..., :-1]), -1)
        emphasised = frames - PRE_EMPHASIS * before
        # Kaldi's Povey window: a Hann window to the power of 0.85.
        window = torch.hann_window(WINDOW, periodic=False, device=device) ** 0.85
        spectrum = torch.fft.rfft(emphasised * window, FFT)[..., :-1]  # (B,F,FFT/2)
        power = spectrum.abs().square() @ mel_banks(device)  # (B,F,MEL_BINS)
        # BEATs divides by twice the standard deviation.
        return (power.clamp(min=2 ** -23).log() - MEAN) / (2 * STD)
