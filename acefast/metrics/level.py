"""Level: programme loudness, true peak, clipping."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from acefast.metrics.common import check_audio, check_rate

# The analogue filters behind BS.1770's tables for 48 kHz: with them any rate has the same frequency response.
SHELF_HZ, SHELF_Q, SHELF_DB, SHELF_SLOPE = 1681.974450955533, 0.7071752369554196, 3.999843853973347, 0.4996667741545416
HIGHPASS_HZ, HIGHPASS_Q = 38.13547087602444, 0.5003270373238773
PIECE, TAIL = 1 << 19, 1 << 15  # samples; after a TAIL the high pass has decayed by more than 300 dB up to 96 kHz
ABSOLUTE_GATE, RELATIVE_GATE, OFFSET = -70.0, -10.0, -0.691  # LUFS, LU, LU
OVERSAMPLING, TAPS = 4, 48


def k_weighting(rate: float) -> tuple[np.ndarray, np.ndarray]:
    """BS.1770's two filters: numerators [2, 3] and denominators [2, 3], shelf first, in powers of z^-1."""
    tan = math.tan(math.pi * SHELF_HZ / rate)
    high = 10 ** (SHELF_DB / 20)
    band = high**SHELF_SLOPE
    a0 = 1 + tan / SHELF_Q + tan**2
    shelf_b = [high + band * tan / SHELF_Q + tan**2, 2 * (tan**2 - high), high - band * tan / SHELF_Q + tan**2]
    shelf_a = [a0, 2 * (tan**2 - 1), 1 - tan / SHELF_Q + tan**2]
    low = math.tan(math.pi * HIGHPASS_HZ / rate)
    low_a = np.array([1 + low / HIGHPASS_Q + low**2, 2 * (low**2 - 1), 1 - low / HIGHPASS_Q + low**2])
    at_48k = math.tan(math.pi * HIGHPASS_HZ / 48_000)  # the table's numerator is 1, -2, 1: 0.04 dB above unity
    low_b = np.array([1.0, -2.0, 1.0]) * (1 + at_48k / HIGHPASS_Q + at_48k**2) / low_a[0]
    return np.stack([np.array(shelf_b) / a0, low_b]), np.stack([np.array(shelf_a) / a0, low_a / low_a[0]])


def _weighted(audio: np.ndarray, rate: float) -> np.ndarray:
    """``audio`` through both filters, float64: products of spectra, each piece with the TAIL that rings into it."""
    b, a = k_weighting(rate)
    z = np.exp(-2j * np.pi * np.arange((PIECE + TAIL) // 2 + 1) / (PIECE + TAIL))
    response = np.prod([np.polyval(n[::-1], z) / np.polyval(d[::-1], z) for n, d in zip(b, a)], axis=0)
    padded = np.pad(audio, ((0, 0), (TAIL, 0)))
    out = np.empty(audio.shape)
    for start in range(0, audio.shape[1], PIECE):
        piece = padded[:, start : start + PIECE + TAIL].astype(np.float64)  # of float32 numpy's FFT stays in float32
        piece = np.fft.irfft(np.fft.rfft(piece, PIECE + TAIL) * response)
        out[:, start : start + PIECE] = piece[:, TAIL : TAIL + audio.shape[1] - start]
    return out


def loudness(audio: np.ndarray, rate: float) -> float:
    """Integrated programme loudness: ``-0.691 + 10 log10(sum of the channels' mean squares)``, K-weighted and gated.

    The mean is over 0.4 s blocks, every 0.1 s, that are above -70 LUFS and within 10 LU of the mean of those; an
    incomplete block at the end is left out.

    Returns: LUFS (= LKFS). A 997 Hz sine at 0 dBFS in one channel reads -3.01, in both 0; -inf where every block is
        below -70. Streaming services play near -14, this project's songs are normalised by peak instead.
    Raises: ValueError, also for less than 0.4 s.
    Source: ITU-R BS.1770-4, annex 1; other rates than 48 kHz through the analogue filters its tables came from.
    """
    rate = check_rate("loudness", rate)
    hop = round(rate / 10)
    audio = check_audio("loudness", audio, 4 * hop)
    steps = audio.shape[1] // hop
    weighted = _weighted(audio, rate)[:, : steps * hop]
    energy = (weighted.reshape(len(audio), steps, hop) ** 2).mean(2).sum(0)
    blocks = np.convolve(energy, np.full(4, 0.25), "valid")
    blocks = blocks[blocks > 10 ** ((ABSOLUTE_GATE - OFFSET) / 10)]
    if not blocks.size:
        return -math.inf
    blocks = blocks[blocks > blocks.mean() * 10 ** (RELATIVE_GATE / 10)]
    return OFFSET + 10 * math.log10(blocks.mean())


def true_peak(audio: np.ndarray) -> float:
    """The largest magnitude between the samples too: ``20 log10 max |x|`` of the waveform oversampled 4 times.

    Returns: dBTP, never below the sample peak; above 0 a converter may clip; -inf for silence. For tones
        below 0.4 of the rate at most 0.45 dB low, where a peak falls halfway between two oversampled points.
    Raises: ValueError.
    Source: ITU-R BS.1770-4, annex 2, with a Kaiser-windowed sinc of 48 taps a phase.
    """
    audio = check_audio("true_peak", audio)
    taps = torch.arange(TAPS, dtype=torch.float64) - (TAPS // 2 - 1)
    offsets = torch.arange(1, OVERSAMPLING, dtype=torch.float64)[:, None] / OVERSAMPLING - taps
    span = (offsets / (TAPS / 2)).square().clamp_max(1)
    beta = torch.tensor(8.0, dtype=torch.float64)
    kernel = (torch.sinc(offsets) * torch.i0(beta * (1 - span).sqrt()) / torch.i0(beta)).float()[:, None]
    peak = float(np.abs(audio).max())
    padded = torch.nn.functional.pad(torch.from_numpy(audio), (TAPS, TAPS))[:, None]
    for start in range(0, padded.shape[2] - TAPS + 1, PIECE):
        between = torch.nn.functional.conv1d(padded[..., start : start + PIECE + TAPS - 1], kernel)
        peak = max(peak, float(between.abs().max()))
    return 20 * math.log10(peak) if peak > 0 else -math.inf


class Clipping(NamedTuple):
    """``share`` of all samples at full scale (0..1), ``runs`` of three or more in a row, the ``longest`` run."""

    share: float
    runs: int
    longest: int


def clipping(audio: np.ndarray, full_scale: float | None = 1.0) -> Clipping:
    """Samples with ``|x| >= full_scale``, less one 16-bit step, and how many stand in a row in one channel.

    A flat top is a run; a clean peak touches full scale with one or two samples. None takes the audio's own largest
    sample (to the bit, save for float32's rounding): it finds tops cut before the level was brought down.

    Returns: Clipping; silence has none.
    Raises: ValueError, also for a full scale that is not above 0.
    Source: the definition.
    """
    audio = check_audio("clipping", audio)
    if full_scale is not None and not full_scale > 0:
        raise ValueError(f"clipping: full_scale must be above 0 or None, got {full_scale}")
    peak = float(np.abs(audio).max())
    level = peak * (1 - 1e-6) if full_scale is None else full_scale * (1 - 2**-15)
    if peak == 0 or peak < level:
        return Clipping(0.0, 0, 0)
    hot = np.pad(np.abs(audio) >= level, ((0, 0), (1, 1))).astype(np.int8).ravel()  # the padding parts the channels
    edges = np.diff(hot)
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return Clipping(float(lengths.sum() / audio.size), int((lengths >= 3).sum()), int(lengths.max()))
