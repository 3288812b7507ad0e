"""The v1.5 audio decoder's last convolution: 128 channels to the two of the audio, which leave in fp32 planes.

    y[o, t] = Σ_k Σ_c weight[o, k, c] * x[t + k - 3, c]

Rows beyond the ends are zero. A tile's rows go to their place in the song's planes, and the largest |y| of each group
of rows is noted on the way, so that nobody reads the audio again to find its peak.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape
from acefast.guarded import check_rows, with_guards
from acefast.ops.conv1d import conv1d_reference

OP = "audio_conv1d"
ORDER = ("triton",)  # kernels, fastest first
TAPS = 7
SLOT_ROWS = 250  # rows of one peak: what a program of the kernel gives, 256 less the reach of the taps


def peak_slots(rows: int) -> int:
    """Peaks of a song of so many rows."""
    return -(-rows // SLOT_ROWS)


def audio_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    *,
    place: Tensor | None = None,
    out: Tensor | None = None,
    peaks: Tensor | None = None,
    guarded: bool = False,
) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it. Nothing is read back to the host."""
    L = x.shape[1]
    y = conv1d_reference(x.float().contiguous(), weight.float(), None, padding=TAPS // 2).transpose(1, 2)
    if place is None:
        place = torch.tensor([0, L, 0], dtype=torch.int32, device=x.device)
    out = torch.empty_like(y, memory_format=torch.contiguous_format) if out is None else out
    if not L:
        return out
    N, (first, end, sample) = out.shape[2], place
    rows, shift = torch.arange(L, device=x.device), sample - first  # row t becomes this sample more
    stored = (rows >= first) & (rows < end) & (rows + shift >= 0) & (rows + shift < N)
    source = torch.arange(N, device=x.device) - shift  # the row of each sample
    there, source = (source >= 0) & (source < L), source.clamp(0, L - 1)
    out.copy_(torch.where(there & stored[source], y[:, :, source], out))
    if peaks is not None:
        largest = torch.where(stored, y.abs().amax(1), 0.0)
        largest = F.pad(largest, (0, peak_slots(L) * SLOT_ROWS - L)).unflatten(1, (-1, SLOT_ROWS))
        torch.maximum(peaks, largest.amax(2), out=peaks)  # NaN is the largest
    return out


def audio_conv1d(
    x: Tensor,
    weight: Tensor,
    *,
    place: Tensor | None = None,
    out: Tensor | None = None,
    peaks: Tensor | None = None,
    guarded: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Convolve rows to audio, write the samples to their place in a song, and note their peaks.

    Args:
        x: [B, L, C], contiguous, or guarded; fp32, bf16 or fp16.
        weight: [channels, 7, C], contiguous, x's dtype, weight norm folded.
        place: int32 [3] on x's device: first row to store, the row after the last, and the sample of ``out`` where
            the first goes. Rows and samples that there are not are left out. None: all rows, from sample 0 on. On the
            device, so that one captured launch serves every tile.
        out: fp32 [B, channels, N], neighbours in memory along N; the other samples stay. None, without a ``place``
            only: new memory, N = L.
        peaks: fp32 [B, peak_slots(L)], contiguous; each becomes the larger of what it is and the |y| stored of its
            SLOT_ROWS rows. NaN is larger than anything, and stays. Zeros to begin with.
        guarded: x lies between zeros, as acefast.guarded lays rows.
        backend: "triton" (16 bits, C a multiple of 16, up to 4 channels) or "reference"; None leaves the choice to
            acefast.backends.
    Returns:
        ``out``.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: Decoder.conv2 in huggingface/diffusers autoencoder_oobleck.py, there channels-first with weight norm.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, C]")
    check_rows(OP, "x", x, guarded)
    B, L, C = x.shape
    check_shape(OP, "weight", weight, (None, TAPS, C), "[channels, 7, C]")
    check_contiguous(OP, "weight", weight)
    check_dtype(OP, "weight", weight, x.dtype)
    channels = len(weight)
    if place is not None:
        check_shape(OP, "place", place, (3,), "[3]")
        check_dtype(OP, "place", place, torch.int32)
        if out is None:
            raise ValueError(f"{OP}: place needs out, the song that it is a place in")
    if out is not None:
        check_shape(OP, "out", out, (B, channels, None if place is not None else L), "[B, channels, N]")
        check_dtype(OP, "out", out, torch.float32)
        if out.stride(2) != 1:
            raise ValueError(f"{OP}: out must have its samples side by side, got strides {tuple(out.stride())}")
    if peaks is not None:
        check_shape(OP, "peaks", peaks, (B, peak_slots(L)), "[B, peak_slots(L)]")
        check_dtype(OP, "peaks", peaks, torch.float32)
        check_contiguous(OP, "peaks", peaks)
    fits = x.dtype in (torch.bfloat16, torch.float16) and C % 16 == 0 and channels <= 4 and x.numel() > 0
    if choose_backend(OP, backend, x.device, ORDER if fits else ()) == "triton":
        from acefast.kernels.audio_conv1d import audio_conv1d as kernel

        out = x.new_empty(B, channels, L, dtype=torch.float32) if out is None else out
        kernel(x if guarded else with_guards(x), weight, place=place, out=out, peaks=peaks)
        return out
    return audio_conv1d_reference(x, weight, place=place, out=out, peaks=peaks, guarded=guarded)
