"""Depthwise convolution of channels-last images, between the products of v1's mel autoencoder's attention blocks.

    y[h, w, c] = bias[c] + Σ_ij weight[i, j, c] * u[h + i - K // 2, w + j - K // 2, c]        u = x or silu(x)

and, where a gate is asked for, ``a * silu(g)`` of the halves (a, g) of y's channels; or, of groups of D neighbouring
channels, ``y[h, w, g * D + o] = Σ_i mix[g, i, o] * y[h, w, g * D + i]``. Beyond the edges u is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape
from acefast.cpu import depthwise2d as cpu

OP = "depthwise2d"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
COLUMNS = 8  # that the reference takes at a time: 4 MB of fp32 at 16 rows of 8192 channels


def depthwise2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu_input: bool = False,
    gate: bool = False,
    mix: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it.

    Some columns of an image at a time, which stay in a CPU's cache from the first pass over them to the last.
    """
    B, H, W, C = x.shape
    K = weight.shape[0]
    filters, bias = weight.float().permute(2, 0, 1).unsqueeze(1), None if bias is None else bias.float()
    out = x.new_empty(B, H, W, C // 2 if gate else C) if out is None else out
    columns = COLUMNS if x.device.type == "cpu" else max(W, 1)
    for first in range(0, W if out.numel() else 0, columns):
        low, high = max(first - K // 2, 0), min(first + columns + K // 2, W)
        u = x[:, :, low:high].float()
        u = F.silu(u) if silu_input else u
        y = F.conv2d(u.permute(0, 3, 1, 2), filters, bias, padding=K // 2, groups=C).permute(0, 2, 3, 1)
        y = y[:, :, first - low : first - low + columns]
        if gate:
            a, g = y.chunk(2, dim=-1)
            y = F.silu(g).mul_(a)
        into = out[:, :, first : first + columns]
        into.copy_(y) if mix is None else mix_into(into, y, mix.float())
    return out


def mix_into(out: Tensor, y: Tensor, mix: Tensor) -> Tensor:
    """Writes each group of channels of y [B, H, W, C] times its matrix of [C / D, D, D] to ``out``, which may be y."""
    groups = y.reshape(-1, *mix.shape[:2]).transpose(0, 1)
    out.unflatten(3, mix.shape[:2]).copy_(torch.bmm(groups, mix).transpose(0, 1).unflatten(0, y.shape[:3]))
    return out


def depthwise2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu_input: bool = False,
    gate: bool = False,
    mix: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mix each channel of an image with its neighbours above, below and beside; gate the result, or mix its channels.

    Args:
        x: [B, H, W, C], contiguous; fp32, bf16 or fp16. A channels-last image is ``image.permute(0, 2, 3, 1)``.
        weight: [K, K, C], K odd, contiguous, x's dtype: nn.Conv2d's ``weight[:, 0].permute(1, 2, 0)``.
        bias: [C] in x's dtype; None for none.
        silu_input: whether the convolution reads ``silu(x)``.
        gate: whether the second half of the channels gates the first.
        mix: [C / D, D, D], channels in by channels out, contiguous, x's dtype; without a gate. A kernel rounds before
            it, to 16 bits; beside "triton" it is the library's. None for none.
        out: like what is returned, contiguous, written and returned; shares no memory with x. None: new memory.
        backend: "triton" (what is returned has a multiple of 16 channels), "cpu" (bf16, a multiple of 32, K 3 or 5, D
            32) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, H, W, C], or with ``gate`` [B, H, W, C / 2], in x's dtype.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: GLUMBConv and SanaMultiscaleAttentionProjection in huggingface/diffusers autoencoder_dc.py, channels-first.
    """
    check_shape(OP, "x", x, (None, None, None, None), "[B, H, W, C]")
    check_contiguous(OP, "x", x)
    B, H, W, C = x.shape
    check_shape(OP, "weight", weight, (None, None, C), "[K, K, C]")
    check_contiguous(OP, "weight", weight)
    check_dtype(OP, "weight", weight, x.dtype)
    if weight.shape[0] != weight.shape[1] or weight.shape[0] % 2 == 0:
        raise ValueError(f"{OP}: weight must be [K, K, C] with an odd K, got {list(weight.shape)}")
    if bias is not None:
        check_shape(OP, "bias", bias, (C,), "[C]")
        check_dtype(OP, "bias", bias, x.dtype)
    if gate and C % 2:
        raise ValueError(f"{OP}: a gate needs an even number of channels, got {C}")
    channels = C // 2 if gate else C
    if mix is not None:
        check_contiguous(OP, "mix", mix)
        check_dtype(OP, "mix", mix, x.dtype)
        n, *sides = mix.shape
        if gate or len(sides) != 2 or sides[0] != sides[1] or n * sides[0] != C:
            raise ValueError(f"{OP}: mix must be [C / D, D, D] of C = {C}, without a gate, got {list(mix.shape)}")
    if out is not None:
        check_shape(OP, "out", out, (B, H, W, channels), "[B, H, W, channels]")
        check_contiguous(OP, "out", out)
        check_dtype(OP, "out", out, x.dtype)
    fits = {
        "triton": x.dtype in FLOATS and channels % 16 == 0 and x.numel() > 0,
        "cpu": cpu.fits(x, weight, channels, mix),
    }
    options = {"silu_input": silu_input, "gate": gate}
    if (chosen := choose_backend(OP, backend, x.device, [name for name in ORDER if fits[name]])) != "reference":
        out = x.new_empty(B, H, W, channels) if out is None else out
        if chosen == "cpu":
            return cpu.depthwise2d(x, weight, bias, **options, mix=mix, out=out)
        from acefast.kernels.depthwise2d import depthwise2d as kernel

        y = kernel(x, weight, bias, **options, out=out)
        return y if mix is None else mix_into(out, y, mix)
    return depthwise2d_reference(x, weight, bias, **options, mix=mix, out=out)
