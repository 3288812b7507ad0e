"""What is done to a waveform: the timbre reference's 30 s, level, fades, the repaint splice.

Audio is float32 numpy, [2, N], full scale +-1, at 48 kHz unless a rate is given. Every function returns a new
array, unless told to work in place.
"""

from __future__ import annotations

import math

import numpy as np

from acefast.request import RequestError

SAMPLE_RATE = 48_000
SAMPLES_PER_FRAME = 1920  # of one latent frame


def peak(audio: np.ndarray) -> float:
    """The largest absolute sample; 0 for no samples."""
    return max(float(audio.max()), -float(audio.min())) if audio.size else 0.0


def check_finite(name: str, audio: np.ndarray, way_out: str = "; only finite samples can be used") -> None:
    """Raise RequestError, with how many, where a sample is NaN or infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(audio.sum()):  # one pass; only a sum of finite samples is finite
            return
    if bad := audio.size - int(np.isfinite(audio).sum()):  # else it is the sum that overflowed
        raise RequestError(f"{name}: {bad} of {audio.size} samples are NaN or infinite{way_out}")


def is_silent(audio: np.ndarray) -> bool:
    """Whether no sample reaches 1e-6 (-120 dBFS); a silent reference is no reference (spec 6.6)."""
    return audio.size == 0 or peak(audio) < 1e-6


def reference_segments(audio: np.ndarray) -> np.ndarray:
    """The 30 s that stand for a timbre reference: 10 s from its start, from a third of it, and from its end.

    ``audio`` [2, N] at 48 kHz is repeated whole until it is at least 30 s long. Returns [2, 1440000].
    Source: spec 6.6; diffusers takes the same fixed positions, the official code draws them at random.
    """
    segment = 10 * SAMPLE_RATE
    if audio.shape[1] == 0:
        raise RequestError("reference: holds no samples; give a recording")
    audio = np.tile(audio, (1, max(1, math.ceil(3 * segment / audio.shape[1]))))
    total = audio.shape[1]
    return np.concatenate([audio[:, s : s + segment] for s in (0, total // 3, total - segment)], axis=1)


def normalise(audio: np.ndarray, peak_dbfs: float | None = -1.0) -> np.ndarray:
    """Scale ``audio`` so that its largest sample is ``peak_dbfs`` (-1 dBFS: 0.8912509); silence stays silence.

    Upstream first divides out a peak above 1, which the same scaling does; a peak below 1e-6 counts as 1e-6. None
    leaves every sample as the model made it, peaks above 1 included: only float32 wav files hold those,
    and ``write_audio`` warns when another format has to clip them.

    Raises:
        RequestError: a NaN or an infinity in ``audio``, or a level above 0 dBFS.
    Source: spec 5.7.
    """
    check_finite("audio", audio, "; the model overflowed: try dtype=torch.float32")
    if peak_dbfs is None:
        return audio.astype(np.float32)
    if not -200 <= peak_dbfs <= 0:
        raise RequestError(f"normalize: must be a peak of -200 to 0 dBFS, got {peak_dbfs!r}; None leaves the level")
    scaled = audio * np.float32(10 ** (peak_dbfs / 20) / max(peak(audio), 1e-6))
    return scaled.clip(-1, 1).astype(np.float32)  # at 0 dBFS rounding may end a hair above


def fade(
    audio: np.ndarray,
    fade_in: float = 0.0,
    fade_out: float = 0.0,
    sample_rate: int = SAMPLE_RATE,
    *,
    at: int = 0,
    total: float | None = None,
    in_place: bool = False,
) -> np.ndarray:
    """Ramp the first ``fade_in`` and the last ``fade_out`` seconds linearly from and to exactly 0.

    A fade longer than the song is cut to the song; where both overlap their gains multiply. Raises RequestError for a
    negative time.

    Args:
        at: where in its song ``audio`` begins, for a piece of one.
        total: samples of that song, infinity for one without an end.
        in_place: write into ``audio``, which is float32, and return it.
    """
    audio = audio if in_place else audio.astype(np.float32)
    total = audio.shape[1] if total is None else total
    behind = total - at - audio.shape[1]
    for name, seconds, view, a in (("fade_in", fade_in, audio, at), ("fade_out", fade_out, audio[:, ::-1], behind)):
        if not 0 <= seconds < math.inf:
            raise RequestError(f"{name}: must be 0 or more seconds, got {seconds!r}")
        n = min(round(seconds * sample_rate), total)
        if a < n:
            places = np.arange(a, min(n, a + audio.shape[1]))
            view[:, : len(places)] *= (places / max(n - 1, 1)).astype(np.float32)
    return audio


def splice(
    generated: np.ndarray,
    source: np.ndarray,
    start_sample: int,
    end_sample: int,
    crossfade_seconds: float,
    sample_rate: int = SAMPLE_RATE,
    *,
    at: int = 0,
    total: int | None = None,
) -> np.ndarray:
    """Put the original waveform back everywhere but in [start_sample, end_sample), the repainted region.

    The two are cross-faded linearly over ``crossfade_seconds`` just outside the region at either edge, so that the
    region itself is all generated; an edge at the song's own start or end has no room and no cross-fade.

    Args:
        generated: [2, N], what the model made of the whole song, or a piece of that.
        source: [2, M] at the same rate, from the same sample on; samples past N are dropped, and from M to N
            ``generated`` stays.
        start_sample, end_sample: of the whole song, clamped to 0..N.
        at, total: where the piece begins and how many samples the song has.
    Returns:
        float32 [2, N]: bit for bit ``source`` outside region and fades, ``generated`` inside the region.
    Source: spec 6.4; the fade lies on the kept side as in the official apply_repaint_waveform_splice.
    """
    n = generated.shape[1]
    total = n if total is None else total
    known = min(n, source.shape[1])
    start, end = max(0, start_sample), min(total, end_sample)
    if start >= end:
        raise RequestError(f"repaint: the region [{start_sample}, {end_sample}) is empty or outside {total} samples")
    width = round(crossfade_seconds * sample_rate)
    left, right = max(0, start - width), min(total, end + width)
    places = np.arange(at, at + known)
    rise, fall = (places - left + 1) / (start - left + 1), (right - places) / (right - end + 1)
    g = np.minimum(rise, fall).clip(0, 1).astype(np.float32)  # gain of the generated waveform
    out = generated.astype(np.float32)
    kept = source[:, :known]
    out[:, :known] = np.where(g == 1, out[:, :known], g * out[:, :known] + (1 - g) * kept)
    return out
