"""Rhythm: tempo, beat strength, density of onsets.

Onset envelopes: both channels' mean power in 128 mel bands (2048-point Hann windows every 256 samples) in dB down to
-60 below the loudest cell; what each cell gained over two frames, losses as 0, summed into 8 envelopes of 16
neighbouring bands. Their autocorrelation A is the sum of the eight's, less their means, divided by its value at lag 0
and corrected for the shorter overlap at long lags: kick, snare and hats each repeat in their own envelope, and a loud
one does not hide another.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acefast.metrics.common import check_audio, check_rate, check_sound, magnitudes
from acefast.picture import MELS, WINDOW, mel_filters

HOP = 256
FLOOR = 1e-6
ENVELOPES = 8
COMB = (0.5, 1, 2, 4)  # beats: a tempo is right if its half beat, beat, half bar and bar repeat
USUAL_BPM, OCTAVES = 120.0, 0.9  # the preference among equals: least octave errors on loops of 70 to 160 bpm
GRID = 0.001  # ratio between neighbouring tempi tried
SMOOTHING = np.exp(-((np.arange(-4, 5) / 1.5) ** 2) / 2)  # 8 ms: swing and human timing blur the peaks
SMOOTHING /= SMOOTHING.sum()
DRONE = 0.5  # dB, over 16 bands: below it there is only a drone's ripple, which scaled up would look like a rhythm
ONSET = 6.0  # dB; the power of noise in a band that wide ripples by less than 4


class Tempo(NamedTuple):
    """A measured tempo.

    Attributes:
        bpm: beats per minute.
        confidence: mean of A half a beat, a beat, two and four beats later, 0..1: drum loops and metronomes read
            0.25 to 0.7 (their half beats hold other drums, or none), noise below 0.05.
        half, double: the same mean for half and twice the tempo; None where the audio is too short to tell.
        others: (bpm, confidence) of the next best tempi, at most four.
    """

    bpm: float
    confidence: float
    half: float | None
    double: float | None
    others: tuple[tuple[float, float], ...]

    def octave_of(self, bpm: float, tolerance: float = 0.03) -> float | None:
        """1, 0.5 or 2 where this tempo is ``bpm`` times that, within ``tolerance`` (a ratio); None otherwise."""
        for octave in (1.0, 0.5, 2.0):
            if abs(self.bpm / (octave * bpm) - 1) <= tolerance:
                return octave
        return None


def onset_envelopes(audio: np.ndarray, rate: float) -> Tensor:
    """[F, 8] in dB, ``rate / 256`` a second, as the module says; only frames that the audio fills."""
    filters = mel_filters(rate)
    mel = torch.cat([each.square().mean(0) @ filters for each in magnitudes(audio, WINDOW, HOP, whole=True)])
    decibels = 10 * torch.log10((mel / mel.max().clamp_min(1e-20)).clamp_min(FLOOR))
    rise = (decibels[2:] - decibels[:-2]).clamp_min(0)
    return rise.unflatten(1, (ENVELOPES, MELS // ENVELOPES)).sum(2)


def _autocorrelation(audio: np.ndarray, rate: float) -> np.ndarray | None:
    """A for lags of 0 to two thirds of the audio's length; None where nothing begins in it."""
    envelopes = onset_envelopes(audio, rate).double()
    envelopes = envelopes - envelopes.mean(0)
    if envelopes.std() < DRONE:
        return None
    n = len(envelopes)
    size = 1 << (2 * n - 1).bit_length()
    power = torch.fft.rfft(envelopes, n=size, dim=0).abs().square().sum(1)
    lags = 2 * n // 3 + 1
    a = torch.fft.irfft(power, n=size)[:lags] * (n / (n - torch.arange(lags)))
    return (a / a[0]).numpy()


def _checked(measure: str, audio: np.ndarray, rate: float, low: float, high: float, beats: float) -> np.ndarray:
    """``audio`` if it lasts ``beats`` at ``low`` bpm."""
    rate = check_rate(measure, rate)
    if not 20 <= low < high <= 400:
        raise ValueError(f"{measure}: need 20 <= low < high <= 400 bpm, got low={low} and high={high}")
    audio = check_audio(measure, audio, math.ceil(beats * 60 / low * rate))
    check_sound(measure, audio)
    return audio


def _comb(a: np.ndarray, lag: np.ndarray | float) -> np.ndarray:
    """Mean of A at half, one, two and four times ``lag`` frames."""
    return np.mean([np.interp(beats * np.asarray(lag), np.arange(len(a)), a) for beats in COMB], axis=0)


def _refined(a: np.ndarray, lag: float, least: float) -> float:
    """``lag`` by the parabola through A's peak at 1, 2, 4, ... times ``lag``: the farthest that is above ``least``."""
    beats = 1
    while beats * lag + 5 < len(a):
        start = round(beats * lag) - 3
        peak = start + int(a[start : start + 7].argmax())
        before, top, after = a[peak - 1 : peak + 2]
        if top > least and before < top > after:
            lag = (peak + (before - after) / (2 * (before - 2 * top + after))) / beats
        beats *= 2
    return lag


def tempo(audio: np.ndarray, rate: float, low: float = 60, high: float = 180) -> Tempo:
    """Tempo by autocorrelation A of the onset envelopes (see the module).

    Over a grid of tempi from ``low`` to ``high``, 0.1 % apart, the greatest of
    ``mean(A(b * 60 / bpm s), b = 1/2, 1, 2, 4) * exp(-(log2(bpm / 120) / 0.9)^2 / 2)``; then the lag is taken from the
    parabola through A's peak as many beats on (a power of two) as still repeat, which divides its error by as many.

    Returns: Tempo. On synthetic drum loops of eleven patterns, 70 to 160 bpm, straight and swung, it is within 0.1 %
        of the tempo written, its half or its double; which of these is a listener's choice too (trap's snare falls on
        every fourth beat), so ``octave_of`` compares. Steady noise gives some tempo of confidence below 0.05.
    Raises: ValueError, also for silence, for audio in which nothing begins, or shorter than six beats at ``low``.
    Source: Ellis, "Beat tracking by dynamic programming", 2007 (onset strength, form of the preference); the comb is
        this library's.
    """
    audio = _checked("tempo", audio, rate, low, high, 6)
    a = _autocorrelation(audio, rate)
    if a is None:
        raise ValueError("tempo: nothing begins in audio, so it has no tempo")
    frames = 60 * rate / HOP  # a minute's
    smooth = np.convolve(np.pad(a, 4, mode="reflect"), SMOOTHING, "valid")
    bpm = low * np.exp(np.arange(0, math.log(high / low) + GRID / 2, GRID))
    scores = _comb(smooth, frames / bpm)
    liked = scores * np.exp(-((np.log2(bpm / USUAL_BPM) / OCTAVES) ** 2) / 2)
    best = int(liked.argmax())
    peaks = 1 + np.flatnonzero((scores[1:-1] > scores[:-2]) & (scores[1:-1] >= scores[2:]) & (scores[1:-1] > 0.05))
    peaks = sorted((p for p in peaks if abs(math.log(bpm[p] / bpm[best])) > 0.03), key=lambda p: -liked[p])
    lag = _refined(a, frames / bpm[best], scores[best] / 2)

    def octave(scale: float) -> float | None:
        return float(_comb(smooth, lag * scale)) if 4 * lag * scale < len(a) else None

    others = tuple((float(bpm[p]), float(scores[p])) for p in peaks[:4])
    return Tempo(float(frames / lag), float(np.clip(_comb(smooth, lag), 0, 1)), octave(2), octave(0.5), others)


def beat_strength(audio: np.ndarray, rate: float, low: float = 60, high: float = 180) -> float:
    """The greatest autocorrelation A of the onset envelopes (see the module), between a beat at ``high`` and a bar.

    ``max A(lag)``, lags from ``60 / high`` s to four beats at ``low``, or half the audio where that is shorter.

    Returns: 0..1: 1 for a loop that repeats to the dot, 0.65 and more for drum loops in human time, near 0.05 for
        noise, 0 where nothing begins.
    Raises: ValueError, also for silence or less than four beats at ``low``.
    Source: pulse clarity in Lartillot et al., ISMIR 2008, whose "maximum of the autocorrelation" it is.
    """
    audio = _checked("beat_strength", audio, rate, low, high, 4)
    a = _autocorrelation(audio, rate)
    if a is None:
        return 0.0
    frames = 60 * rate / HOP
    first, last = math.floor(frames / high), min(math.ceil(4 * frames / low), len(a) * 3 // 4)
    return float(np.clip(a[first : last + 1].max(), 0, 1))


def onset_rate(audio: np.ndarray, rate: float, band: tuple[float, float] = (6000, 16000)) -> float:
    """Sounds that begin in a frequency band, per second; the default band is the hi-hats'.

    L is the power in the band in dB (Hann windows of about 10 ms every quarter of one, both channels' mean, down to
    -50 below the band's loudest and -60 below the whole's: the splinter of a kick is no hat). An onset is where
    ``L(t) - L(t - 21 ms)`` is at least 6 dB and the greatest within 24 ms.

    Returns: onsets per second, at most about 40; steady noise has none but its start. A snare's or a clap's
        noise counts as well as a hat.
    Raises: ValueError, also for silence, less than half a second, or a band that does not fit below half the rate.
    Source: Bello et al., "A tutorial on onset detection in music signals", 2005 (energy-based detection).
    """
    rate = check_rate("onset_rate", rate)
    audio = check_audio("onset_rate", audio, math.ceil(rate / 2))
    check_sound("onset_rate", audio)
    if not 0 <= band[0] < band[1] <= rate / 2:
        raise ValueError(f"onset_rate: band must be 0 <= low < high <= {rate / 2:g} Hz, got {tuple(band)}")
    window = 1 << round(math.log2(rate / 100))
    hz = torch.arange(window // 2 + 1) * rate / window
    inside = (hz >= band[0]) & (hz <= band[1])
    bands = [
        torch.stack([m[..., inside].square().sum(2).mean(0), m.square().sum(2).mean(0)])
        for m in magnitudes(audio, window, window // 4)
    ]
    power, whole = torch.cat(bands, dim=1)
    floor = max(1e-5 * float(power.max()), 1e-6 * float(whole.max()))
    level = 10 * torch.log10(power.clamp_min(floor) / floor)
    back, near = (round(seconds * rate / (window // 4)) for seconds in (0.021, 0.024))
    rise = level - torch.cat([level.new_zeros(back), level])[: len(level)]
    padded = torch.nn.functional.pad(rise, (near, near), value=-1.0)
    around = padded.unfold(0, 2 * near + 1, 1)
    first = (rise > around[:, :near].amax(1)) & (rise >= around[:, near:].amax(1))
    return float((first & (rise >= ONSET)).sum()) / (audio.shape[1] / rate)
