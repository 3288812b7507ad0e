"""The last pass over a song: its peak to a level, full scale at most, as float32 or as 16-bit PCM.

    y = clamp(x * fp32(level / max(peak, 1e-6)), -1, 1)        peak = max |x| of the song

The quotient is fp64, rounded once: the values are those of ``acefast.waveform.normalise`` bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape

OP = "pcm"
ORDER = ("triton",)

QUIETEST = 1e-6  # a smaller peak counts as this, so that silence stays silence
PARTS = 512  # pieces of a song whose peaks are found side by side


def pcm_reference(
    audio: Tensor,
    levels: Tensor,
    *,
    peaks: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """What the op means in PyTorch, at audio's precision; every kernel gives its bits. Reads the peaks on the host."""
    found = audio if peaks is None else peaks
    tops = torch.maximum(found.flatten(1).amax(1), -found.flatten(1).amin(1))  # of NaN NaN
    if out is None:
        out = torch.empty_like(audio, dtype=audio.dtype if dtype == torch.float32 else dtype)
    for song, y, level, top in zip(audio, out, levels.tolist(), tops.tolist()):
        if not math.isfinite(top):
            y.zero_() if dtype == torch.int16 else y.copy_(song)
            continue
        factor = level / max(top, QUIETEST)
        if dtype == torch.int16:
            y.copy_((song * factor).clamp_(-1, 1).mul_(2**15).round_().clamp_(max=2**15 - 1))
        else:
            torch.mul(song, factor, out=y).clamp_(-1, 1)
    return out


def pcm(
    audio: Tensor,
    levels: Tensor,
    *,
    peaks: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    scratch: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Scale each song to its level, and convert it.

    Of a song whose peak is NaN or infinite nothing can be made: float32 is left as it is, for whoever counts what is
    wrong with it; int16 is silence.

    Args:
        audio: [B, channels, N] fp32, contiguous.
        levels: fp64 [B], on the CPU or with audio: the largest sample that each song shall have, 0 to 1 (-1 dBFS:
            10 ** (-1 / 20)).
        peaks: fp32 [B, n], contiguous: numbers of which the largest absolute one is the song's peak, as
            ``audio_conv1d`` finds them; NaN where a sample is NaN. None: looked for.
        dtype: torch.float32, or torch.int16: y * 2**15 to the nearest, ties to even, at most 2**15 - 1.
        out: audio's shape in ``dtype``, contiguous, written and returned; may be ``audio``. None: new memory.
        scratch: fp32 [B, PARTS], overwritten; None allocates. The reference takes none.
        backend: "triton" or "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, channels, N] in ``dtype``.
    Raises:
        ValueError: a shape, dtype or layout is not as above, or there are no samples.
        BackendUnavailable: the backend named cannot run.
    Source: spec 5.7, as acefast.waveform.normalise.
    """
    B = audio.shape[0]
    check_shape(OP, "audio", audio, (None, None, None), "[B, channels, N]")
    check_dtype(OP, "audio", audio, torch.float32)
    check_shape(OP, "levels", levels, (B,), "[B]")
    check_dtype(OP, "levels", levels, torch.float64)
    if dtype not in (torch.float32, torch.int16):
        raise ValueError(f"{OP}: dtype must be torch.float32 or torch.int16, got {dtype}")
    checked = [("audio", audio), ("levels", levels)]
    if peaks is not None:
        check_shape(OP, "peaks", peaks, (B, None), "[B, n]")
        check_dtype(OP, "peaks", peaks, torch.float32)
        checked.append(("peaks", peaks))
    if out is not None:
        check_shape(OP, "out", out, tuple(audio.shape), "audio's shape")
        check_dtype(OP, "out", out, dtype)
        checked.append(("out", out))
    if scratch is not None:
        check_shape(OP, "scratch", scratch, (B, PARTS), "[B, PARTS]")
        check_dtype(OP, "scratch", scratch, torch.float32)
        checked.append(("scratch", scratch))
    for name, tensor in checked:
        check_contiguous(OP, name, tensor)
    if not audio.numel() or (peaks is not None and not peaks.numel()):
        raise ValueError(f"{OP}: audio and peaks must not be empty")
    if choose_backend(OP, backend, audio.device, ORDER) == "triton":
        from acefast.kernels.pcm import pcm as kernel

        out = torch.empty_like(audio, dtype=dtype) if out is None else out
        scratch = audio.new_empty(B, PARTS) if scratch is None else scratch
        return kernel(audio, levels.to(audio.device), peaks=peaks, out=out, scratch=scratch)
    return pcm_reference(audio, levels, peaks=peaks, dtype=dtype, out=out)
