"""What the measures share: their argument checks, and magnitudes of short-time spectra in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

GROUP = 1 << 22  # spectrum cells at once: 16 MB of float32
MINIMUM_RATE = 8000


def check_rate(measure: str, rate: float) -> float:
    """``rate`` in Hz as a float; ValueError unless it is a number of at least 8000."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise ValueError(f"{measure}: rate must be a number of Hz, got {type(rate).__name__}")
    if not MINIMUM_RATE <= rate < float("inf"):
        raise ValueError(f"{measure}: rate must be at least {MINIMUM_RATE} Hz and finite, got {rate}")
    return float(rate)


def check_audio(measure: str, audio: np.ndarray, minimum: int = 1, name: str = "audio") -> np.ndarray:
    """``audio`` as float32 [C, N], C of 1 or 2; ValueError where it is not that, or shorter than ``minimum``."""
    if not isinstance(audio, np.ndarray) or audio.dtype.kind != "f":
        got = f"numpy {audio.dtype}" if isinstance(audio, np.ndarray) else type(audio).__name__
        raise ValueError(f"{measure}: {name} must be a float numpy array [2, N], full scale +-1, got {got}")
    if audio.ndim != 2 or audio.shape[0] not in (1, 2):
        hint = "; transpose it" if audio.ndim == 2 and audio.shape[1] in (1, 2) else ""
        raise ValueError(f"{measure}: {name} must be [2, N] (or [1, N]), got {list(audio.shape)}{hint}")
    if audio.shape[1] < minimum:
        raise ValueError(f"{measure}: {name} needs at least {minimum} samples at this rate, got {audio.shape[1]}")
    bad = audio.size - int(np.isfinite(audio).sum())
    if bad:
        raise ValueError(f"{measure}: {name} has {bad} of {audio.size} samples NaN or infinite")
    return np.array(audio, dtype=np.float32, order="C")  # a copy: torch warns of arrays that cannot be written


def check_pair(measure: str, reference: np.ndarray, estimate: np.ndarray, minimum: int = 1) -> tuple:
    """Both as float32 of one shape; ValueError where they are not, or where the reference is silent."""
    reference = check_audio(measure, reference, minimum, "reference")
    estimate = check_audio(measure, estimate, minimum, "estimate")
    if reference.shape != estimate.shape:
        raise ValueError(
            f"{measure}: reference and estimate must have one shape, got {list(reference.shape)} and "
            f"{list(estimate.shape)}"
        )
    check_sound(measure, reference, "reference")
    return reference, estimate


def check_sound(measure: str, audio: np.ndarray, name: str = "audio") -> None:
    """ValueError where no sample differs from 0: the measure has no meaning there."""
    if not audio.any():
        raise ValueError(f"{measure}: {name} is silent, of which this cannot be measured")


def magnitudes(audio: np.ndarray, window: int, hop: int, *, whole: bool = False) -> Iterator[Tensor]:
    """Magnitudes of Hann-windowed FFTs, [C, F, window // 2 + 1] for some frames F at a time, in order.

    Frame f is centred on sample ``f * hop``, with zeros beyond the ends, or starts there if ``whole``: then there are
    only frames that the audio fills, whose spectra show no click where it starts. A full-scale sine on a bin reads 1.
    """
    hann = torch.hann_window(window)
    hann = hann / (hann.sum() / 2)
    padded = torch.nn.functional.pad(torch.from_numpy(audio), (0, 0) if whole else (window // 2, window // 2))
    frames = padded.unfold(-1, window, hop)  # [C, F, window], a view
    group = max(1, GROUP // (frames.shape[0] * window))
    for start in range(0, frames.shape[1], group):
        yield torch.fft.rfft(frames[:, start : start + group] * hann).abs()
