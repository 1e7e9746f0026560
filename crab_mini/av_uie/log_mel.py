"""Kaldi's log-mel as BEATs reads it (arXiv 2212.09058): waveform (B,S) -> frames (B,F,128)."""

import math

import torch
from torch import Tensor

from ..config import MEL_BINS
from .resample import RATE

WINDOW, HOP, FFT = 400, 160, 512         # samples: 25 ms, 10 ms, and 400 with zeros behind them
LOWEST = 20.0                                                   # Hz, where the first mel triangle begins
MEAN, STD = 15.41663, 6.55582                                   # of BEATs' training data, in ln of the mel power


def mel_banks(device: torch.device) -> Tensor:
    """Kaldi's triangular filters (FFT/2,MEL_BINS): linear in mel, not in Hz, and not normalised by area.

    The Nyquist bin has no weight and is left out. Filter 3 lies between two bins and stays empty.
    """
    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * (1.0 + hertz / 700.0).log()

    low, high = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (LOWEST, RATE / 2))
    step = (high - low) / (MEL_BINS + 1)
    left = low + torch.arange(MEL_BINS, device=device) * step                                      # (MEL_BINS,)
    bins = mel(RATE / FFT * torch.arange(FFT // 2, device=device))[:, None]                    # (FFT/2,1)
    rise, fall = (bins - left) / step, (left + 2 * step - bins) / step
    return torch.minimum(rise, fall).clamp(min=0)


def fbank(waveform: Tensor) -> Tensor:
    """Log-mel frames as BEATs reads them: waveform (B,S) float in [-1,1) at 16 kHz -> (B,F,128), F = 1 + (S-400)//160.

    Each frame by itself: mean removed, pre-emphasis, Povey window, power spectrum, mel, ln, then (x - MEAN) / (2 STD).
    Samples after the last whole frame are dropped. Computed in fp32 under autocast too. Raises ValueError for another
    shape or less than one frame (25 ms).
    """
    if waveform.ndim != 2 or waveform.shape[1] < WINDOW or not waveform.is_floating_point():
        raise ValueError(f"waveform: expected float of shape (B, S) with S at least {WINDOW}, "
                         f"found {waveform.dtype} of shape {tuple(waveform.shape)}")
    device = waveform.device
    with torch.autocast(device.type, enabled=False):
        frames = (waveform.float() * 2 ** 15).unfold(1, WINDOW, HOP)                           # (B,F,WINDOW)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat((frames[..., :1], frames[..., :-1]), -1)                            # the first: its own
        window = torch.hann_window(WINDOW, periodic=False, device=device) ** 0.85
        spectrum = torch.fft.rfft((frames - 0.97 * before) * window, FFT)[..., :-1]            # (B,F,FFT/2)
        power = spectrum.abs().square() @ mel_banks(device)                                    # (B,F,MEL_BINS)
        return (power.clamp(min=2 ** -23).log() - MEAN) / (2 * STD)

