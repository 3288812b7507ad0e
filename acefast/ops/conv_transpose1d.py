"""Transposed 1-D convolution that raises the sample rate by ``s``: kernel 2s, stride s, padding s / 2.

    y[t * s + j - s / 2] += x[t] @ w[j]   for j in 0 .. 2s - 1,   then + bias;   L rows become exactly s * L

Every output row takes two input rows, so it is one GEMM without scatter or zero stuffing: with rows
``A[t] = [x[t], x[t - 1]]`` for t in 0 .. L, zero beyond the ends, and ``weight`` [2 * Cin, s * Cout] whose upper half
holds the taps 0 .. s - 1 and whose lower half s .. 2s - 1, ``A @ weight`` seen as [(L + 1) * s, Cout] is the result
after s / 2 rows are cut from both ends.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_shape
from acefast.cpu import conv_transpose1d as cpu
from acefast.cpu.conv1d import outputs
from acefast.cuda import conv_transpose1d as cuda
from acefast.guarded import check_rows, handed_over, lay, room, with_guards
from acefast.operators import operator
from acefast.ops.conv1d import Pair, check_dtype, check_results, pair
from acefast.ops.snake import Activation, activate

OP = "conv_transpose1d"
ORDER = ("triton", "cuda")


def conv_transpose_weight(weight: Tensor) -> Tensor:
    """This op's [2 * Cin, s * Cout] weight of a torch ConvTranspose1d weight, [Cin, Cout, 2s]."""
    Cin, Cout, K = weight.shape
    taps = weight.view(Cin, Cout, 2, K // 2).permute(2, 0, 3, 1)  # [half, Cin, s, Cout]
    return taps.reshape(2 * Cin, K // 2 * Cout).contiguous()


def conv_transpose1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    wave: Activation | None = None,
    keep: bool = True,
    guarded: bool = False,
    out: Tensor | Pair | None = None,
) -> Tensor | Pair:
    """What the op means in PyTorch; every kernel is held to it.

    In fp32 the two halves of the GEMM run one after the other into the same rows, which spares the copy of x that A
    is: 290-330 GFLOP/s on two AVX-512 cores where conv_transpose2d channels-last reaches 110-290. At bf16 and fp16
    that would round the first half, so A is built; the activation reads what was rounded.
    """
    B, L, Cin = x.shape
    tiled = bias.repeat(stride)  # [s * Cout]
    if x.dtype == torch.float32:
        y = x.new_empty(B, L + 1, weight.shape[1])
        y[:, L] = tiled
        for song, rows in zip(x, y):
            torch.addmm(tiled, song, weight[:Cin], out=rows[:L])
            rows[1:].addmm_(song, weight[Cin:])
    else:
        A = torch.cat([F.pad(x, (0, 0, 0, 1)), F.pad(x, (0, 0, 1, 0))], dim=-1)  # [B, L + 1, 2 * Cin]
        y = torch.addmm(tiled, A.view(B * (L + 1), 2 * Cin), weight)
    y = y.view(B, (L + 1) * stride, -1)[:, stride // 2 : stride // 2 + L * stride]
    y = y.contiguous()  # a copy only for B > 1
    if wave is None:
        return lay(y, out, guarded)
    kept, activated = pair(out)
    activated = activate(y, wave, guarded=guarded, out=activated)
    return lay(y, kept, guarded) if keep else None, activated


def _fake(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, **_) -> Tensor:
    return x.new_empty(x.shape[0], stride * x.shape[1], bias.shape[0])


@operator("(Tensor x, Tensor weight, Tensor bias, *, int stride, str? backend=None) -> Tensor", fake=_fake)
def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    wave: Activation | None = None,
    keep: bool = True,
    guarded: bool = False,
    out: Tensor | Pair | None = None,
    backend: str | None = None,
) -> Tensor | Pair:
    """Raise the rate of rows by ``stride`` with a learned kernel of 2 * stride taps, and activate for the next layer.

    Args:
        x: [B, L, Cin], contiguous, or guarded; fp32, bf16 or fp16.
        weight: [2 * Cin, stride * Cout], contiguous, x's dtype, see the module and ``conv_transpose_weight``.
        bias: [Cout] in x's dtype.
        stride: even, at least 2.
        wave: what reads the result next: alpha and inv_beta of a snake, fp32 [Cout], see acefast.ops.snake; or "silu".
        keep: False, with a wave, gives only what the snake makes of the result.
        guarded: x, out and what is returned lie between zeros, as acefast.guarded lays rows.
        out: where what is returned is written, of the same form, [B, stride * L, Cout] each; shares no memory with x.
            None: new memory.
        backend: "triton" (16 bits, Cin and Cout multiples of 16; rows that are not guarded are copied), "cuda" (of
            those, Cin and Cout multiples of 64 and stride / 2 * Cout one of 128, without silu), "cpu" (bf16, nothing
            guarded; Cin a multiple of 32 and Cout one of 16, or stride * Cout a power of two below 32) or "reference";
            None leaves the choice to acefast.backends.
    Returns:
        The result y, [B, stride * L, Cout], contiguous or guarded. With a wave the pair (y, wave(y)), of which y is
        None unless kept.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: nn.ConvTranspose1d in huggingface/diffusers autoencoder_oobleck.py, there channels-first with weight norm.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, Cin]")
    check_rows(OP, "x", x, guarded)
    if stride < 2 or stride % 2:
        raise ValueError(f"{OP}: stride must be even and at least 2, got {stride}")
    B, L, Cin = x.shape
    check_shape(OP, "bias", bias, (None,), "[Cout]")
    check_dtype(OP, "bias", bias, x)
    Cout = len(bias)
    check_shape(OP, "weight", weight, (2 * Cin, stride * Cout), "[2 * Cin, stride * Cout]")
    check_contiguous(OP, "weight", weight)
    check_dtype(OP, "weight", weight, x)
    check_results(OP, (B, stride * L, Cout), "[B, stride * L, Cout]", x, wave, keep, guarded, out)
    options = {"stride": stride, "wave": wave, "keep": keep, "guarded": guarded, "out": out}
    order = ORDER if x.dtype in cuda.NAMES and Cin % 16 == 0 and Cout % 16 == 0 and x.numel() > 0 else ()
    if not cuda.fits(weight, stride, wave):
        order = [name for name in order if name != "cuda"]
    if not guarded and cpu.fits(x, weight, bias, wave):
        order = [*order, "cpu"]
    if (chosen := choose_backend(OP, backend, x.device, order)) != "reference":
        return _launch(chosen, x, weight, bias, **options)
    return conv_transpose1d_reference(x, weight, bias, **options)


def _launch(
    chosen: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    wave: Activation | None,
    keep: bool,
    guarded: bool,
    out: Tensor | Pair | None,
) -> Tensor | Pair:
    """By a kernel; a GPU's works on guarded rows: where these are not, on copies."""
    into, asked = pair(out), (keep, wave is not None)
    shape = (len(x), stride * x.shape[1], len(bias))
    if chosen == "cpu":
        written = outputs(x, shape, asked, into)
        cpu.conv_transpose1d(x, weight, bias, stride=stride, wave=wave, out=written)
        return written[0] if wave is None else written
    if chosen == "cuda":
        kernel = cuda.conv_transpose1d
    else:
        from acefast.kernels.conv_transpose1d import conv_transpose1d as kernel

    written = room(x, shape, asked, into, guarded)
    kernel(x if guarded else with_guards(x), weight, bias, stride=stride, wave=wave, out=written)
    results = handed_over(written, into, guarded)
    return results[0] if wave is None else results
