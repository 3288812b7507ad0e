"""Log-mel spectrograms as ACE-Step v1's autoencoder takes them: 44.1 kHz, 2048 points every 512 samples, 128 bands.

    magnitude = sqrt(re ** 2 + im ** 2 + 1e-6) of the frames under a periodic Hann window
    log_mel   = ln(max(magnitude @ filterbank, 1e-5))
    normalised = (log_mel + 11) / 7 - 1, which takes -11..3 to -1..1; nothing is clamped

The signal is reflected at both ends, so that frame t lies around the samples 512 * t to 512 * t + 511.

Source: LogMelSpectrogram in ace-step/ACE-Step music_log_mel.py; the bands are Slaney's, in scale and in area.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.checks import check_shape
from acefast.models.v1.config import MEL_HOP, MELS, RATE

POINTS = 2048
LOWEST, HIGHEST = 40.0, 16_000.0  # Hz
MEL_SCALE, MEL_SHIFT = 7.0, -4.0  # log_mel = 7 * normalised - 4
PAD = (POINTS - MEL_HOP) // 2  # samples reflected at either end
PIECE = 1024  # frames that are transformed at a time: 8 MB a channel

# Slaney's scale: linear up to 1 kHz, 15 mel, then 27 mel for each factor of 6.4
_BEND, _BEND_MEL, _STEP = 1000.0, 15.0, 27.0 / math.log(6.4)


def hz_to_mel(hz: float) -> float:
    """Slaney's mel of a frequency."""
    return 3 * hz / 200 if hz < _BEND else _BEND_MEL + _STEP * math.log(hz / _BEND)


def mel_to_hz(mel: Tensor) -> Tensor:
    """The inverse of ``hz_to_mel``."""
    return torch.where(mel < _BEND_MEL, mel * 200 / 3, _BEND * ((mel - _BEND_MEL) / _STEP).exp())


@functools.cache
def filterbank() -> Tensor:
    """[1025, 128] fp32: triangles between 130 frequencies evenly spaced in mel, each of the same area."""
    edges = mel_to_hz(torch.linspace(hz_to_mel(LOWEST), hz_to_mel(HIGHEST), MELS + 2, dtype=torch.float64))
    bins = torch.linspace(0, RATE / 2, POINTS // 2 + 1, dtype=torch.float64)[:, None]
    low, top, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (top - low), (high - bins) / (high - top)
    return (torch.minimum(rising, falling).clamp_min(0) * (2 / (high - low))).float()


def log_mel(audio: Tensor) -> Tensor:
    """The log-mel spectrogram of each channel.

    Args:
        audio: [C, N] at 44.1 kHz, N a multiple of 512 and more than 768; computed in fp32 on its device.
    Returns:
        [C, N / 512, 128] fp32, from -11.5 up.
    Raises:
        ValueError: the shape is not as above.
    """
    check_shape("log_mel", "audio", audio, (None, None), "[C, N]")
    N = audio.shape[1]
    if N % MEL_HOP or N <= PAD:
        raise ValueError(f"log_mel: N must be a multiple of {MEL_HOP} and more than {PAD}, got {N}; pad with zeros")
    signal = F.pad(audio.float(), (PAD, PAD), mode="reflect")
    window = torch.hann_window(POINTS, device=audio.device)
    bands, made = filterbank().to(audio.device), []
    for lo in range(0, N // MEL_HOP, PIECE):
        hi = min(lo + PIECE, N // MEL_HOP)
        part = signal[:, lo * MEL_HOP : (hi - 1) * MEL_HOP + POINTS]
        spectrum = torch.stft(part, POINTS, MEL_HOP, window=window, center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)  # [C, 1025, frames]
        made.append(((power + 1e-6).sqrt_().transpose(1, 2) @ bands).clamp_min_(1e-5).log_())
    return torch.cat(made, 1)


def normalised(mel: Tensor) -> Tensor:
    """Log-mel as the autoencoder takes it."""
    return (mel - MEL_SHIFT) / MEL_SCALE
