"""3x3 convolution of channels-last images by Winograd's F(2x2, 3x3): 16 products for four results in place of 36.

Along one axis two results of the three taps w on the four pixels d come of four products:

    V = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)    W = (w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2)
    y = (VW0 + VW1 + VW2, VW1 - VW2 - VW3)      VWk = Σ_c V[k, c] * W[k, c]

and along both axes 2x2 results of 4 * 4 products. Where each pixel is there twice (nearest neighbour) d1 is d2, so that
three are left of the three pixels (a, b, c) = (d0, d1, d3):

    V = (a - b, b, b - c)                       W = (w0, w0 + w1 + w2, w2)
    y = (VW0 + VW1, VW1 - VW2)

``transformed`` makes W, once, at load. A kernel in 16 bits rounds V beside W and the result: its error is 1.83 times
that of a direct convolution, with pixels twice 1.24 times (measured, relative L2 against fp64, bf16, normal numbers).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape
from acefast.cpu import winograd2d as cpu

OP = "winograd2d"
ORDER = ("cpu",)
PRODUCTS = {16: False, 9: True}  # and whether each pixel is there twice
NUMBERS = 1 << 19  # of V that the reference takes at a time: 2 MB


def transformed(weight: Tensor, twice: bool = False) -> Tensor:
    """[16, Cout, Cin], or with pixels ``twice`` [9, Cout, Cin], in fp32, of a filter [Cout, 3, 3, Cin]."""
    middle = [[1.0, 1.0, 1.0]] if twice else [[0.5, 0.5, 0.5], [0.5, -0.5, 0.5]]
    table = torch.tensor([[1.0, 0.0, 0.0], *middle, [0.0, 0.0, 1.0]])
    return torch.einsum("it,jf,otfc->ijoc", table, table, weight.float()).flatten(0, 1).contiguous()


def winograd2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it. Some rows of tiles at a time, for caches."""
    B, T, W, C = x.shape
    twice, N = PRODUCTS[len(weight)], weight.shape[1]
    side, step = (3, 1) if twice else (4, 2)  # pixels of a tile, and from one to the next
    down, across = (T, W) if twice else (-(-T // 2), -(-W // 2))
    beyond = [0, 0] if twice else [W % 2, T % 2]  # an odd size has a last result of its own
    padded = F.pad(x, (0, 0, 1, 1 + beyond[0], 1, 1 + beyond[1]))
    y, filters = x.new_empty(B, 2 * down, 2 * across, N), weight.float().mT
    rows = max(1, NUMBERS // max(1, len(weight) * B * across * C))
    for lo in range(0, down if y.numel() else 0, rows):
        hi = min(lo + rows, down)
        pixels = padded[:, step * lo : step * (hi - 1) + side].float()
        v = torch.stack([v for half in _analysed(pixels, 1, twice) for v in _analysed(half, 2, twice)])
        products = torch.bmm(v.flatten(1, 3), filters).view(side, side, B, hi - lo, across, N)
        for t, half in enumerate(_synthesised(products, twice)):
            for f, result in enumerate(_synthesised(half, twice)):
                result = result if bias is None else result.add_(bias.float())
                if twice:
                    result.add_(x[:, lo:hi].unflatten(3, (N, 2))[..., f])
                y[:, 2 * lo + t : 2 * hi : 2, f::2] = F.silu(result, inplace=True) if silu else result
    return y if twice else y[:, :T, :W].contiguous()


def _analysed(x: Tensor, axis: int, twice: bool) -> tuple[Tensor, ...]:
    """V along one axis of pixels."""
    if twice:
        a, b, c = x.unfold(axis, 3, 1).unbind(-1)
        return a - b, b, b - c
    d0, d1, d2, d3 = x.unfold(axis, 4, 2).unbind(-1)
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _synthesised(m: Tensor, twice: bool) -> tuple[Tensor, Tensor]:
    """Two results of the products along the first axis."""
    if twice:
        return m[0] + m[1], m[1] - m[2]
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def winograd2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, silu: bool = False, backend: str | None = None
) -> Tensor:
    """Convolve images with 3x3 taps, zeros beyond the ends; or images with each pixel twice, plus a shortcut.

    Args:
        x: [B, T, F, Cin], contiguous; fp32, bf16 or fp16.
        weight: [16, Cout, Cin], or of pixels twice [9, Cout, 2 * Cout], contiguous, in x's dtype; see ``transformed``.
            With 9 a shortcut is added, x's pairs of channels: the first to results of even f, the second to those of
            odd f.
        bias: [Cout] in x's dtype; None for none.
        silu: whether the result is activated.
        backend: "cpu" (bf16, Cin a multiple of 32) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, T, F, Cout], or of pixels twice [B, 2 * T, 2 * F, Cout], contiguous, in x's dtype, rounded once.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: ResBlock's convolutions and DCUpBlock2d in huggingface/diffusers autoencoder_dc.py; Lavin and Gray, Fast
        Algorithms for Convolutional Neural Networks, 2015.
    """
    check_shape(OP, "x", x, (None, None, None, None), "[B, T, F, Cin]")
    check_contiguous(OP, "x", x)
    B, T, W, C = x.shape
    check_shape(OP, "weight", weight, (None, None, C), "[16 or 9, Cout, Cin]")
    check_contiguous(OP, "weight", weight)
    check_dtype(OP, "weight", weight, x.dtype)
    N = weight.shape[1]
    if len(weight) not in PRODUCTS:
        raise ValueError(f"{OP}: weight must be of 16 or 9 products, got {len(weight)}")
    twice = PRODUCTS[len(weight)]
    if twice and C != 2 * N:
        raise ValueError(f"{OP}: of 9 products weight must be [9, Cout, 2 * Cout], got {list(weight.shape)}")
    if bias is not None:
        check_shape(OP, "bias", bias, (N,), "[Cout]")
        check_dtype(OP, "bias", bias, x.dtype)
    if choose_backend(OP, backend, x.device, ORDER if cpu.fits(x, weight, bias) else ()) == "cpu":
        out = x.new_empty(B, 2 * T, 2 * W, N) if twice else x.new_empty(B, T, W, N)
        cpu.winograd2d(x, weight, bias, twice=twice, silu=silu, out=out)
        return out
    return winograd2d_reference(x, weight, bias, silu=silu)
