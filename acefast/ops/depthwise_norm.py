"""How every block of v1's vocoder backbone begins: a depthwise convolution over time, then LayerNorm over channels.

    u[t, c] = conv_bias[c] + Σ_k conv_weight[k, c] * x[t + k - K // 2, c]
    y[t]    = (u[t] - mean(u[t])) * rsqrt(var(u[t]) + eps) * weight + bias

Rows beyond the ends are zero, the variance is the biased one. What follows in a block are two products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape
from acefast.cpu import depthwise_norm as cpu

OP = "depthwise_norm"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 1024  # channels that stay in the registers of a Triton program


def depthwise_norm_reference(
    x: Tensor, conv_weight: Tensor, conv_bias: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-6
) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it.

    As a channels-last image of one row: oneDNN takes 0.5 ms for two songs of 1024 rows and 512 channels where its
    conv1d takes 50 (measured, one core).
    """
    if not x.numel():
        return torch.empty_like(x)
    K, C = conv_weight.shape
    conv_weight, conv_bias, weight, bias = (t.float() for t in (conv_weight, conv_bias, weight, bias))
    image, filters = x.float().mT.unsqueeze(2), conv_weight.T.reshape(C, 1, 1, K)
    u = F.conv2d(image, filters, conv_bias, padding=(0, K // 2), groups=C).squeeze(2).mT
    return F.layer_norm(u, (C,), weight, bias, eps).to(x.dtype)


def depthwise_norm(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mix each channel with its neighbours in time, then norm each row over its channels.

    Args:
        x: [B, L, C]; fp32, bf16 or fp16.
        conv_weight: [K, C], K odd, contiguous: a tap's channels side by side, nn.Conv1d's ``weight[:, 0].T``.
        conv_bias: [C] of the convolution.
        weight, bias: [C] of the norm. These four are of x's dtype or fp32.
        eps: added to the variance.
        out: [B, L, C] in x's dtype, written and returned; shares no memory with x. None: new memory.
        backend: "triton" (rows of neighbouring channels, C up to 1024), "cpu" (of those, all bf16, C any multiple of
            16) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        y, [B, L, C] in x's dtype, rounded once.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: ConvNeXtBlock of music_vocoder.py in ace-step/ACE-Step, which rounds and transposes in between.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, C]")
    B, L, C = x.shape
    check_shape(OP, "conv_weight", conv_weight, (None, C), "[K, C]")
    check_contiguous(OP, "conv_weight", conv_weight)
    if len(conv_weight) % 2 == 0:
        raise ValueError(f"{OP}: conv_weight must have an odd number of taps, got {len(conv_weight)}")
    for name, vector in (("conv_bias", conv_bias), ("weight", weight), ("bias", bias)):
        check_shape(OP, name, vector, (C,), "[C]")
    for name, vector in (("conv_weight", conv_weight), ("conv_bias", conv_bias), ("weight", weight), ("bias", bias)):
        if vector.dtype != torch.float32:
            check_dtype(OP, name, vector, x.dtype)
    if out is not None:
        check_shape(OP, "out", out, (B, L, C), "[B, L, C]")
        check_dtype(OP, "out", out, x.dtype)
    given = x, conv_weight, conv_bias, weight, bias
    neighbours = all(t is None or t.stride(-1) == 1 for t in (x, out))
    fits = {"triton": 0 < C <= WIDEST and x.dtype in FLOATS and neighbours, "cpu": cpu.fits(*given, out=out)}
    chosen = choose_backend(OP, backend, x.device, [name for name in ORDER if fits[name]])
    if chosen == "reference":
        y = depthwise_norm_reference(*given, eps=eps)
        return y if out is None else out.copy_(y)
    out = x.new_empty(B, L, C) if out is None else out
    if chosen == "cpu":
        return cpu.depthwise_norm(*given, eps=eps, out=out)
    from acefast.kernels.depthwise_norm import depthwise_norm as kernel

    return kernel(*given, eps=eps, out=out) if x.numel() else out
