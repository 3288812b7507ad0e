"""Timbre: spectral centroid and flatness."""

from __future__ import annotations

import numpy as np
import torch

from acefast.metrics.common import check_audio, check_rate, check_sound, magnitudes

WINDOW, HOP = 2048, 512
QUIET = 1e-6  # power, 60 dB below the loudest frame


def spectral_centroid(audio: np.ndarray, rate: float) -> float:
    """Centre of gravity of the magnitude spectrum: ``sum f |X| / sum |X|`` over all frames and both channels.

    Loud frames weigh more, so that silence and tails do not count.

    Returns: Hz, 0 to half the rate; a sine reads its frequency, white noise a quarter of the rate.
    Raises: ValueError, also for silence or fewer than 2048 samples.
    Source: Grey and Gordon 1978; Peeters et al., "The Timbre Toolbox", 2011 (magnitude scale).
    """
    rate = check_rate("spectral_centroid", rate)
    audio = check_audio("spectral_centroid", audio, WINDOW)
    check_sound("spectral_centroid", audio)
    spectrum = sum(each.double().sum((0, 1)) for each in magnitudes(audio, WINDOW, HOP, whole=True)).numpy()
    if not spectrum.any():
        raise ValueError("spectral_centroid: audio is silent but for its last samples, so it has no centroid")
    return float((spectrum * np.arange(len(spectrum))).sum() / spectrum.sum() * rate / WINDOW)


def spectral_flatness(audio: np.ndarray) -> float:
    """Geometric over arithmetic mean of the power spectrum, ``exp(mean ln |X|^2) / mean |X|^2``, averaged over frames.

    Each channel by itself; frames more than 60 dB below the loudest are left out, and
    powers are floored at 1e-10 of their frame's mean.

    Returns: 0..1; near 0 for tones, ``exp(-0.5772) = 0.561`` for white noise of any level (its spectrum is not flat
        within one frame).
    Raises: ValueError, also for silence or fewer than 2048 samples.
    Source: Johnston 1988; Peeters et al., "The Timbre Toolbox", 2011.
    """
    audio = check_audio("spectral_flatness", audio, WINDOW)
    check_sound("spectral_flatness", audio)
    means, flatness = [], []
    for each in magnitudes(audio, WINDOW, HOP, whole=True):
        power = each[..., 1:-1].double().square()  # DC and Nyquist have one degree of freedom, not two
        mean = power.mean(2)
        floored = power.clamp_min(1e-30).maximum(1e-10 * mean[..., None])
        means.append(mean)
        flatness.append(floored.log().mean(2).exp() / mean.clamp_min(1e-30))
    mean, flat = torch.cat(means, 1), torch.cat(flatness, 1)
    return float(flat[mean > QUIET * mean.max()].mean().clamp_max(1))
