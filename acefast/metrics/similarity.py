"""Similarity of a song's bars to each other, and of its stretches to those of other clips."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from acefast.metrics.common import check_audio, check_rate, check_sound, magnitudes
from acefast.metrics.rhythm import tempo
from acefast.picture import MELS, WINDOW, mel_filters

BANDS = 32  # neighbouring mel bands in fours
HOP = 1024
FLOOR_DB = -60.0
SLOTS = 16  # per beat
CHROMA_WINDOW, CHROMA_HOP = 8192, 2048
CHROMA_HZ = (110.0, 2093.0)  # semitones are wider than a bin of the FFT, and fundamentals outweigh overtones
EVENT = 1.0  # dB rms over a stretch: what varies less is a drone, and no drone is a copy of another
STRETCH = 3.0  # seconds compared at a time


def mel_embedding(audio: np.ndarray, rate: float, hop: int = HOP) -> np.ndarray:
    """What ``originality`` compares: a mel spectrogram of 32 bands in dB, 0 the loudest cell, down to -60.

    Both channels' mean power in 2048-point Hann windows that start every ``hop`` samples, the 128 bands of
    acefast/picture.py averaged in fours. Computing it once spares doing so for each song: 6 kB per second of audio at
    48 kHz.

    Returns: float32 [32, F].
    Raises: ValueError, also for silence or fewer than 2048 samples.
    """
    rate = check_rate("mel_embedding", rate)
    audio = check_audio("mel_embedding", audio, WINDOW)
    check_sound("mel_embedding", audio)
    filters = mel_filters(rate)
    mel = torch.cat([each.square().mean(0) @ filters for each in magnitudes(audio, WINDOW, hop, whole=True)])
    mel = mel.unflatten(1, (BANDS, MELS // BANDS)).mean(2)
    return (10 * torch.log10((mel / mel.max().clamp_min(1e-30)).clamp_min(10 ** (FLOOR_DB / 10)))).T.numpy()


def _chroma(audio: np.ndarray, rate: float) -> np.ndarray:
    """Mean magnitude in each of the 12 pitch classes, [12, F], C first at A = 440 Hz."""
    hz = np.arange(CHROMA_WINDOW // 2 + 1) * rate / CHROMA_WINDOW
    inside = (hz >= CHROMA_HZ[0]) & (hz <= CHROMA_HZ[1])
    pitch = np.round(69 + 12 * np.log2(np.maximum(hz, 1) / 440)).astype(int) % 12
    classes = torch.from_numpy(((pitch[:, None] == np.arange(12)) & inside[:, None]).astype(np.float32))
    classes /= classes.sum(0)  # noise is even
    return torch.cat([each.mean(0) @ classes for each in magnitudes(audio, CHROMA_WINDOW, CHROMA_HOP)]).T.numpy()


class SelfSimilarity(NamedTuple):
    """``matrix`` float64 [bars, bars], cosines; ``neighbours``: the mean of bars one apart; ``best``: each bar's mean
    with the bar that is most like it; ``bpm``: the tempo that the bars were cut by."""

    matrix: np.ndarray
    neighbours: float
    best: float
    bpm: float


def self_similarity(
    audio: np.ndarray, rate: float, bpm: float | None = None, *, beats: int = 4, feature: str = "mel"
) -> SelfSimilarity:
    """How alike the bars are: cosines between them, cut every ``beats * 60 / bpm`` s from the start.

    ``feature="mel"`` compares rhythm and sound: 32 mel bands in dB, 16 means a beat, less each band's mean over the
    song. ``feature="chroma"`` compares harmony: 12 pitch classes a beat, less their mean in that beat.

    Args:
        bpm: None measures it (``tempo``); a bar that is wrong by more than 1 % smears what repeats.
    Returns: SelfSimilarity; -1..1: 1 for bars that repeat to the dot, near 0 for bars of noise. Bars in which nothing
        varies (a drone) count as alike: 1.
    Raises: ValueError, also for silence, fewer than two whole bars, or an unknown feature.
    Source: Foote, "Visualizing music and audio using self-similarity", 1999, on bars.
    """
    rate = check_rate("self_similarity", rate)
    audio = check_audio("self_similarity", audio)
    check_sound("self_similarity", audio)
    if feature not in ("mel", "chroma"):
        raise ValueError(f"self_similarity: feature must be 'mel' or 'chroma', got {feature!r}")
    if bpm is None:
        bpm = tempo(audio, rate).bpm
    if not (bpm > 0 and beats >= 1):
        raise ValueError(f"self_similarity: bpm and beats must be above 0, got bpm={bpm} and beats={beats}")
    bar = beats * 60 / bpm * rate
    bars = math.floor(audio.shape[1] / bar + 1e-6)
    if bars < 2:
        raise ValueError(f"self_similarity: needs two bars of {bar / rate:.2f} s, got {audio.shape[1] / rate:.2f} s")
    hop = HOP // 4 if feature == "mel" else CHROMA_HOP
    frames = mel_embedding(audio, rate, hop) if feature == "mel" else _chroma(audio, rate)
    if feature == "mel":  # as if centred: frame f on sample f * hop
        frames = np.pad(frames, ((0, 0), (WINDOW // 2 // hop,) * 2), mode="edge")
    cells = beats * (SLOTS if feature == "mel" else 1)
    # Means over slots of any length: differences of the running sum, read between its points. Frame f covers the hop
    # around sample f * hop.
    running = np.concatenate([np.zeros((len(frames), 1)), np.cumsum(frames, axis=1, dtype=np.float64)], axis=1)
    edges = np.arange(bars * cells + 1) * bar / cells / hop + 0.5
    means = np.diff([np.interp(edges, np.arange(running.shape[1]), row) for row in running], axis=1)
    means /= bar / cells / hop
    means -= means.mean(1 if feature == "mel" else 0, keepdims=True)
    vectors = means.reshape(len(frames), bars, cells).transpose(1, 0, 2).reshape(bars, -1)
    norms = np.linalg.norm(vectors, axis=1)
    least = 0.1 * math.sqrt(vectors.shape[1]) if feature == "mel" else 1e-6 * np.abs(frames).max()
    still = norms < least
    unit = np.where(still[:, None], 0, vectors / np.maximum(norms, 1e-30)[:, None])
    matrix = np.where(still[:, None] & still, 1.0, np.clip(unit @ unit.T, -1, 1))
    others = np.where(np.eye(bars, dtype=bool), -np.inf, matrix)
    return SelfSimilarity(matrix, float(np.diagonal(matrix, 1).mean()), float(others.max(1).mean()), float(bpm))


class Originality(NamedTuple):
    """``distance`` to the nearest clip, its index ``clip``, and where both stretches begin, in seconds."""

    distance: float
    clip: int
    at: float
    clip_at: float


def _stretches(mel: np.ndarray, frames: int, step: int) -> tuple[torch.Tensor, np.ndarray]:
    """Unit vectors [S, 32 * frames] of the stretches that vary, less each band's mean, and where they begin."""
    starts = np.arange(0, mel.shape[1] - frames + 1, step)
    cut = torch.from_numpy(np.ascontiguousarray(mel)).unfold(1, frames, step).transpose(0, 1)
    cut = (cut - cut.mean(2, keepdim=True)).flatten(1)
    norms = cut.norm(dim=1)
    vary = norms > EVENT * math.sqrt(cut.shape[1])
    return cut[vary] / norms[vary, None], starts[vary.numpy()]


def originality(
    audio: np.ndarray, rate: float, clips: Iterable[np.ndarray], *, seconds: float = STRETCH
) -> Originality:
    """Distance to the nearest clip: 1 less the greatest correlation of any stretch with any stretch of any clip.

    Stretches are ``seconds`` of ``mel_embedding``, less each band's mean over the stretch, so that level and tone
    control do not hide a copy; the song's begin every 0.25 s, a clip's at every frame (21 ms at 48 kHz).

    Args:
        clips: training clips, as audio [2, N] at ``rate`` or as their ``mel_embedding`` [32, F] (at the same rate).
    Returns: Originality; distance 0..1 (above 1 only for opposites). 0 is a verbatim copy, below 0.02 one that is
        shifted or at another level, below 0.1 one under noise 20 dB below; noise against music reads 0.9. Beats of one
        drum kit are near each other by nature (0.2 to 0.3 at one tempo, 0.8 at another): judge by what the clips read
        against each other.
    Raises: ValueError, also for silence, no clips, a clip or song shorter than ``seconds`` and a window, or a song
        (or all clips) in which nothing varies.
    Source: nearest-neighbour copy detection as in Somepalli et al., "Diffusion Art or Digital Forgery?", 2023, on mel.
    """
    rate = check_rate("originality", rate)
    frames = round(seconds * rate / HOP)
    if frames < 8:
        raise ValueError(f"originality: seconds must be at least {8 * HOP / rate:.2f}, got {seconds}")
    audio = check_audio("originality", audio, frames * HOP + WINDOW)
    song, starts = _stretches(mel_embedding(audio, rate), frames, max(1, round(0.25 * rate / HOP)))
    if not len(song):
        raise ValueError("originality: nothing varies in audio, so no clip can be told to be near it")
    best, index = None, -1
    for index, clip in enumerate(clips):
        if not (isinstance(clip, np.ndarray) and clip.ndim == 2 and clip.shape[0] == BANDS):
            clip = check_audio("originality", clip, frames * HOP + WINDOW, f"clip {index}")
            clip = mel_embedding(clip, rate)
        if clip.shape[1] < frames:
            raise ValueError(f"originality: clip {index} needs at least {frames} frames, got {clip.shape[1]}")
        other, clip_starts = _stretches(clip, frames, 1)
        if not len(other):
            continue
        correlation = song @ other.T
        where = int(correlation.argmax())
        distance = max(0.0, 1 - float(correlation.flatten()[where]))
        if best is None or distance < best.distance:
            at, clip_at = starts[where // len(other)], clip_starts[where % len(other)]
            best = Originality(distance, index, float(at * HOP / rate), float(clip_at * HOP / rate))
    if best is None:
        raise ValueError("originality: " + ("nothing varies in any clip" if index >= 0 else "clips is empty"))
    return best
