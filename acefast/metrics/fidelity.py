"""How near an estimate is to its reference: sample by sample, in short-time spectra, in the long-term spectrum."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from acefast.metrics.common import check_audio, check_pair, check_rate, check_sound, magnitudes

RESOLUTIONS = (256, 512, 1024, 2048, 4096)  # samples per window; hops are a quarter of it
STFT_FLOOR = 1e-5  # -100 dB re a full-scale sine: what is below both ears' and int16's floor counts as equal
RESPONSE_WINDOW = 16384
RESPONSE_FLOOR = 1e-10  # power: -100 dB


class StftDistance(NamedTuple):
    """Means over the resolutions; ``total`` is their sum, as vocoders are trained with."""

    spectral_convergence: float
    log_magnitude: float

    @property
    def total(self) -> float:
        return self.spectral_convergence + self.log_magnitude


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)


def snr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Signal-to-noise ratio, ``10 log10(sum r^2 / sum (e - r)^2)`` over both channels.

    Returns: dB; inf for equal samples, 0 for a silent estimate; a gain error counts as noise.
    Raises: ValueError, also for a silent reference.
    Source: the definition.
    """
    reference, estimate = check_pair("snr", reference, estimate)
    r = reference.astype(np.float64)
    return _decibels((r**2).sum(), ((estimate - r) ** 2).sum())


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio, ``10 log10(|a r|^2 / |e - a r|^2)`` with ``a = <e, r> / |r|^2``.

    Each channel's mean is removed first; one gain ``a`` serves both channels, so that a wrong balance is distortion.

    Returns: dB; inf for a scaled copy, -inf where nothing of the reference is in the estimate.
    Raises: ValueError, also for a reference that is constant.
    Source: Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019.
    """
    reference, estimate = check_pair("si_sdr", reference, estimate)
    r, e = (x - x.mean(1, keepdims=True) for x in (reference.astype(np.float64), estimate.astype(np.float64)))
    power = (r**2).sum()
    if power < 1e-20 * r.size:
        raise ValueError("si_sdr: reference is constant, of which this cannot be measured")
    target = (e * r).sum() / power * r
    return _decibels((target**2).sum(), ((e - target) ** 2).sum())


def multi_resolution_stft_distance(reference: np.ndarray, estimate: np.ndarray) -> StftDistance:
    """Distance of magnitude spectra R and E, averaged over windows of 256, 512, 1024, 2048 and 4096 samples.

    ``spectral_convergence = |R - E| / |R|`` (Frobenius norms; 0 for equal, 1 for a silent estimate) and
    ``log_magnitude = mean |ln R - ln E|`` (nepers: 1 is 8.69 dB; magnitudes are floored at -100 dB re a full-scale
    sine, so that inaudible differences count nothing). Hann windows, hops of a quarter window; phase is not heard.

    Raises: ValueError, also for a silent reference or fewer than 4096 samples.
    Source: Arik et al. 2019 (both terms); Yamamoto et al., "Parallel WaveGAN", 2020 (several resolutions).
    """
    reference, estimate = check_pair("multi_resolution_stft_distance", reference, estimate, RESOLUTIONS[-1])
    convergences, logs = [], []
    for window in RESOLUTIONS:
        difference = power = log = count = 0.0
        for r, e in zip(*(magnitudes(x, window, window // 4) for x in (reference, estimate))):
            difference += float((r - e).square().sum())
            power += float(r.square().sum())
            log += float((r.clamp_min(STFT_FLOOR) / e.clamp_min(STFT_FLOOR)).log().abs().sum())
            count += r.numel()
        convergences.append(math.sqrt(difference / power))
        logs.append(log / count)
    return StftDistance(sum(convergences) / len(RESOLUTIONS), sum(logs) / len(RESOLUTIONS))


def _third_octaves(audio: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres in Hz, 50 Hz to 20 kHz as far as they fit, and the mean power of ``audio`` in each band."""
    power, frames = 0, 0
    for each in magnitudes(audio, RESPONSE_WINDOW, RESPONSE_WINDOW // 2, whole=True):
        power = power + each.double().square().sum((0, 1)).numpy()
        frames += each.shape[0] * each.shape[1]
    hz = np.arange(len(power)) * rate / RESPONSE_WINDOW
    centres = 1000 * 10 ** (np.arange(-13, 14) / 10)
    centres = centres[centres * 10**0.05 <= rate / 2]
    inside = np.abs(np.log10(np.maximum(hz, 1e-3)) - np.log10(centres)[:, None]) < 0.05
    return centres, (inside * power).sum(1) / frames


def frequency_response(reference: np.ndarray, estimate: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Gain from reference to estimate in third octaves: ``10 log10(E_b / R_b)``, E_b and R_b mean powers in band b.

    Powers are means over the whole length and both channels (Hann windows of 16384 samples, floored at -100 dB re a
    full-scale sine), so that timing and phase do not matter; the two may differ in length.

    Returns: band centres in Hz (50 Hz to 20 kHz, below half the rate), gains in dB (0: the same).
    Raises: ValueError, also for a silent reference or fewer than 16384 samples.
    Source: bands of IEC 61260-1, base ten.
    """
    rate = check_rate("frequency_response", rate)
    reference = check_audio("frequency_response", reference, RESPONSE_WINDOW, "reference")
    estimate = check_audio("frequency_response", estimate, RESPONSE_WINDOW, "estimate")
    check_sound("frequency_response", reference, "reference")
    centres, r = _third_octaves(reference, rate)
    _, e = _third_octaves(estimate, rate)
    return centres, 10 * np.log10(np.maximum(e, RESPONSE_FLOOR) / np.maximum(r, RESPONSE_FLOOR))


def log_spectral_distance(reference: np.ndarray, estimate: np.ndarray, rate: float) -> float:
    """Root mean square over the third octaves of ``frequency_response``, in dB; 0 for the same long-term spectrum.

    A gain of x dB reads x; a codec that loses its treble reads high where the STFT distance of a loud bass does not.

    Raises: ValueError, as ``frequency_response``.
    Source: Gray and Markel, "Distance measures for speech processing", 1976, on third-octave powers.
    """
    _, gains = frequency_response(reference, estimate, rate)
    return float(np.sqrt((gains**2).mean()))
