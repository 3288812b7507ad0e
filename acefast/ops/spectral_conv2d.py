"""3x3 convolution of channels-last images by Fourier transforms of 8x8 pixels: 142 products for 64 results, not 576.

Along one axis eight results y[t] = Σ_k w[k] d[t + k] are a circular convolution of the pixels d[1] to d[8] and, as
that takes d[8] for d[0] and d[1] for d[9], one product more at either end:

    V = (d[0] - d[8], d[9] - d[1], Σ_n d[n + 1] exp(-2πi f n / 8))       f, n = 0..7
    W = (w[0], w[2], 1/8 Σ_k w[k] exp(2πi f (k - 1) / 8))
    y[t] = (t = 0) VW0 + (t = 7) VW1 + Σ_f VWf exp(2πi f t / 8)            VWk = Σ_c V[k, c] * W[k, c]

Along both axes V and W are ten times ten numbers. Of real pixels 16 of them are real, those that are one of (first,
last, f = 0, f = 4) along either axis, and the others are 42 complex ones, each there with its conjugate. The product of
such a one is made of three real ones, (a + ib)(c + id) = c(a + b) - b(c + d) + i (c(a + b) + a(d - c)), so that all is
142 matrix products [tiles, Cin] @ [Cin, Cout], 2.22 a result (F(2x2, 3x3) of Winograd's takes 4).

``transformed`` makes W, once, at load: 16 times the filter's size. In fp32 the result is as near to the exact one as a
direct sum's, to 1e-6. The kernel in bf16, which rounds a + b, a, b, W and the result, is 1.77 times as far from it
(measured, relative L2 against fp64, normal numbers). What is not finite reaches all results of a tile.

The reference says the same by two matrices over the pixels of a tile: ``analysis`` [142, 100], which makes a + b too,
and ``synthesis`` [64, 142].
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape
from acefast.cpu import spectral_conv2d as cpu
from acefast.cpu.conv1d import fits
from acefast.panels import check_products, products_of

OP = "spectral_conv2d"
ORDER = ("cpu",)
POINTS = 8
SIDE = POINTS + 2
PRODUCTS = 142
NUMBERS = 1 << 22  # of V that the reference takes at a time: 16 MB, as W is to be read once for each time

REAL, COMPLEX = (0, 1, 2, 2 + POINTS // 2), (3, 4, 5)  # of an axis' ten; of frequencies f and 8 - f the first
ALL = (*REAL, 3, 9, 4, 8, 5, 7)


def _axis() -> tuple[Tensor, Tensor, Tensor]:
    """Of one axis: V of pixels, [10, 10], W of taps, [10, 3], and results of their products, [10, 8]."""
    angle = 2 * math.pi / POINTS * torch.arange(POINTS, dtype=torch.float64)
    turn = torch.polar(torch.ones(POINTS, POINTS, dtype=torch.float64), angle[:, None] * torch.arange(POINTS))
    analysis, filters, synthesis = (torch.zeros(SIDE, size, dtype=turn.dtype) for size in (SIDE, 3, POINTS))
    analysis[0, 0] = analysis[1, -1] = 1
    analysis[0, POINTS] = analysis[1, 1] = -1
    filters[0, 0] = filters[1, 2] = synthesis[0, 0] = synthesis[1, -1] = 1
    analysis[2:, 1:-1], synthesis[2:] = turn.conj(), turn
    filters[2:] = turn[:, [-1, 0, 1]] / POINTS
    return analysis, filters, synthesis


@functools.cache
def tables(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Analysis [142, 100], the taps' own [142, 9], which have the 1/64, and synthesis [64, 142]."""
    analysis, filters, synthesis = [], [], []
    for p, q in [(p, q) for p in REAL for q in (*REAL, *COMPLEX)] + [(p, q) for p in COMPLEX for q in ALL]:
        v, w, y = (torch.outer(table[p], table[q]).flatten() for table in _axis())
        if p in REAL and q in REAL:
            analysis.append(v.real), filters.append(w.real), synthesis.append(y.real)
        else:
            cos, sin = 2 * y.real, 2 * y.imag  # of it and its conjugate
            analysis += [v.real + v.imag, v.real, v.imag]
            filters += [w.real, w.imag - w.real, w.real + w.imag]
            synthesis += [cos - sin, -sin, -cos]
    return torch.stack(analysis).to(dtype), torch.stack(filters).to(dtype), torch.stack(synthesis, 1).to(dtype)


def transformed(weight: Tensor) -> Tensor:
    """[Cout, 142 * Cin], in fp32, of a filter [Cout, 3, 3, Cin]."""
    of_taps = torch.einsum("mk,oki->omi", tables(torch.float32)[1], weight.flatten(1, 2).float())
    return of_taps.flatten(1).contiguous()


def spectral_conv2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it. Some rows of tiles at a time."""
    B, T, W, C = x.shape
    filters = products_of(weight, PRODUCTS).float().mT
    N = filters.shape[2]
    if not x.numel():
        return x.new_zeros(B, T, W, N)
    analysis, _, synthesis = tables(torch.float32)
    down, across = -(-T // POINTS), -(-W // POINTS)
    padded = F.pad(x, (0, 0, 1, 1 + POINTS * across - W, 1, 1 + POINTS * down - T))
    tiles = padded.unfold(1, SIDE, POINTS).unfold(2, SIDE, POINTS)  # [B, down, across, C, 10, 10]
    y = x.new_empty(B, down, POINTS, across, POINTS, N)
    rows = max(1, NUMBERS // (PRODUCTS * B * across * C))
    for lo in range(0, down, rows):
        hi = min(lo + rows, down)
        pixels = tiles[:, lo:hi].permute(4, 5, 0, 1, 2, 3).reshape(SIDE**2, -1).float()
        made = torch.bmm((analysis @ pixels).view(PRODUCTS, -1, C), filters)
        results = (synthesis @ made.flatten(1)).view(POINTS, POINTS, B, hi - lo, across, N)
        if bias is not None:
            results += bias.float()
        results = F.silu(results, inplace=True) if silu else results
        y[:, lo:hi] = results.permute(2, 3, 0, 4, 1, 5)
    return y.view(B, POINTS * down, POINTS * across, N)[:, :T, :W].contiguous()


def spectral_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False, backend: str | None = None
) -> Tensor:
    """Convolve images with 3x3 taps, of which ``weight`` is the transform; zeros lie beyond the ends.

    Args:
        x: [B, T, F, Cin], contiguous; fp32, bf16 or fp16.
        weight: [Cout, 142 * Cin], contiguous, in x's dtype: ``transformed`` of the filter [Cout, 3, 3, Cin]; or
            acefast.panels of that, which the kernel reads as they are.
        bias: [Cout] in x's dtype; None for none.
        silu: whether the result is activated.
        backend: "cpu" (bf16, Cin a multiple of 32) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, T, F, Cout], contiguous, in x's dtype, rounded once.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: ResBlock's convolutions in huggingface/diffusers autoencoder_dc.py, there direct ones.
    """
    check_shape(OP, "x", x, (None, None, None, None), "[B, T, F, Cin]")
    B, T, W, C = x.shape
    check_contiguous(OP, "x", x)
    N = check_products(OP, weight, PRODUCTS, C)
    check_dtype(OP, "weight", weight, x.dtype)
    if bias is not None:
        check_shape(OP, "bias", bias, (N,), "[Cout]")
        check_dtype(OP, "bias", bias, x.dtype)
    if choose_backend(OP, backend, x.device, ORDER if fits(x, weight, bias) else ()) == "cpu":
        out = x.new_empty(B, T, W, N)
        cpu.spectral_conv2d(x, weight, bias, silu=silu, out=out)
        return out
    return spectral_conv2d_reference(x, weight, bias, silu=silu)
