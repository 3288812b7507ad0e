"""3x3 convolution of channels-last images with each pixel twice, by Winograd's F(2x2, 3x3): 9 products for 4 results.

Along one axis two results of the three taps w on the pixels (a, b, b, c), nearest neighbours of three, come of three
products:

    V = (a - b, b, b - c)                       W = (w0, w0 + w1 + w2, w2)
    y = (VW0 + VW1, VW1 - VW2)                  VWk = Σ_c V[k, c] * W[k, c]

and along both axes the four results of a pixel of 3 * 3 products, in place of 4 * 4 of four phases of 2x2 taps.

``transformed`` makes W, once, at load. A kernel in 16 bits rounds V beside W and the result: its error is 1.24 times
that of a direct convolution (measured, relative L2 against fp64, bf16, normal numbers).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape
from acefast.cpu import winograd2d as cpu
from acefast.cpu.conv1d import fits
from acefast.panels import check_products, products_of

OP = "winograd2d"
ORDER = ("cpu",)
SIDE = 3
PRODUCTS = SIDE**2
NUMBERS = 1 << 19  # of V that the reference takes at a time: 2 MB


def transformed(weight: Tensor) -> Tensor:
    """[Cout, 9 * Cin], in fp32, of a filter [Cout, 3, 3, Cin]."""
    table = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    return torch.einsum("it,jf,otfc->oijc", table, table, weight.float()).flatten(1).contiguous()


def winograd2d_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it. Some rows of pixels at a time, for caches."""
    B, T, W, C = x.shape
    filters = products_of(weight, PRODUCTS).float().mT
    N = filters.shape[2]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    y = x.new_empty(B, 2 * T, 2 * W, N)
    rows = max(1, NUMBERS // max(1, PRODUCTS * B * W * C))
    for lo in range(0, T if y.numel() else 0, rows):
        hi = min(lo + rows, T)
        v = torch.stack([v for half in _analysed(padded[:, lo : hi + 2].float(), 1) for v in _analysed(half, 2)])
        products = torch.bmm(v.flatten(1, 3), filters).view(SIDE, SIDE, B, hi - lo, W, N)
        for t, half in enumerate(_synthesised(products)):
            for f, result in enumerate(_synthesised(half)):
                result = result if bias is None else result.add_(bias.float())
                y[:, 2 * lo + t : 2 * hi : 2, f::2] = result.add_(x[:, lo:hi].unflatten(3, (N, 2))[..., f])
    return y


def _analysed(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    """V along one axis of pixels."""
    a, b, c = x.unfold(axis, SIDE, 1).unbind(-1)
    return a - b, b, b - c


def _synthesised(m: Tensor) -> tuple[Tensor, Tensor]:
    """Two results of the products along the first axis."""
    return m[0] + m[1], m[1] - m[2]


def winograd2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Convolve images with each pixel twice along both axes with 3x3 taps, zeros beyond the ends; plus a shortcut.

    The shortcut is x's pairs of channels: the first of each to results of even f, the second to those of odd f.

    Args:
        x: [B, T, F, 2 * Cout], contiguous; fp32, bf16 or fp16.
        weight: [Cout, 9 * 2 * Cout], contiguous, in x's dtype, see ``transformed``; or acefast.panels of that, which
            the kernel reads as they are.
        bias: [Cout] in x's dtype; None for none.
        backend: "cpu" (bf16, Cout a multiple of 16) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, 2 * T, 2 * F, Cout], contiguous, in x's dtype, rounded once.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: DCUpBlock2d in huggingface/diffusers autoencoder_dc.py; Lavin and Gray, Fast Algorithms for Convolutional
        Neural Networks, 2015.
    """
    check_shape(OP, "x", x, (None, None, None, None), "[B, T, F, 2 * Cout]")
    check_contiguous(OP, "x", x)
    B, T, W, C = x.shape
    N = check_products(OP, weight, PRODUCTS, C, "2 * Cout")
    if C != 2 * N:
        raise ValueError(f"{OP}: x must have two channels for each of weight's Cout = {N}, got {C}")
    check_dtype(OP, "weight", weight, x.dtype)
    if bias is not None:
        check_shape(OP, "bias", bias, (N,), "[Cout]")
        check_dtype(OP, "bias", bias, x.dtype)
    if choose_backend(OP, backend, x.device, ORDER if fits(x, weight, bias) else ()) == "cpu":
        out = x.new_empty(B, 2 * T, 2 * W, N)
        cpu.winograd2d(x, weight, bias, out=out)
        return out
    return winograd2d_reference(x, weight, bias)
