"""1-D convolution on channels-last rows, as the v1.5 audio autoencoder uses it.

    y[t, o] = bias[o] + Σ_k Σ_c weight[o, k, c] * x[t * stride + k * dilation - padding, c]   (+ residual[t, o])

Rows beyond the ends are zero. The weight is [Cout, K, Cin]: for a kernel that is the [Cout, K * Cin] operand of an
implicit GEMM, and for oneDNN and cuDNN it is a channels-last image filter, so nobody reorders it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_shape

OP = "conv1d"
ORDER = ()  # kernels, fastest first


def conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """What the op means in PyTorch; every kernel is held to it.

    The library's convolution accumulates in fp32; at bf16 and fp16 it rounds before the residual is added.
    """
    if len(weight) <= 4 and stride == 1 and dilation == 1 and x.dtype == torch.float32 and x.device.type == "cpu":
        y = _few_outputs(x, weight, bias, padding)
    else:
        image = x.transpose(1, 2).unsqueeze(2)  # [B, Cin, 1, L], channels-last in memory
        filters = weight.transpose(1, 2).unsqueeze(2)
        y = F.conv2d(image, filters, bias, stride=(1, stride), padding=(0, padding), dilation=(1, dilation))
        y = y.squeeze(2).transpose(1, 2).contiguous()  # contiguous already, unless a size of 1 hid the layout
    return y if residual is None else y.add_(residual)


def _few_outputs(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The same for 1 to 4 output channels: one GEMM to [L, K * Cout], then K shifted sums.

    oneDNN pads the outputs of a convolution to a full vector: 7.5 ms for 128 -> 2 channels and 32,768 rows, here 0.9.
    """
    Cout, K, Cin = weight.shape
    B, L, _ = x.shape
    taps = F.linear(x, weight.transpose(0, 1).reshape(K * Cout, Cin)).view(B, L, K, Cout)
    rows = L + 2 * padding - K + 1
    y = x.new_zeros(B, rows, Cout)
    if bias is not None:
        y += bias
    for k in range(K):
        shift = k - padding  # y[t] takes x[t + shift]
        first, last = max(0, -shift), min(rows, L - shift)
        if first < last:
            y[:, first:last] += taps[:, first + shift : last + shift, k]
    return y


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Convolve rows over time, and add a residual if there is one.

    Args:
        x: [B, L, Cin], contiguous; fp32, bf16 or fp16.
        weight: [Cout, K, Cin], contiguous, x's dtype, weight norm folded.
        bias: [Cout] in x's dtype, or None.
        stride, dilation: rows, at least 1.
        padding: zero rows at each end.
        residual: [B, Lout, Cout] in x's dtype, added to the result; None for none.
        backend: "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, Lout, Cout], contiguous, Lout = (L + 2 * padding - dilation * (K - 1) - 1) // stride + 1.
    Raises:
        ValueError: a shape, dtype or layout is not as above, or no output row is left.
        BackendUnavailable: the backend named cannot take this input.
    Source: nn.Conv1d in huggingface/diffusers autoencoder_oobleck.py, there channels-first with weight norm.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, Cin]")
    check_contiguous(OP, "x", x)
    B, L, Cin = x.shape
    check_shape(OP, "weight", weight, (None, None, Cin), "[Cout, K, Cin]")
    check_contiguous(OP, "weight", weight)
    Cout, K, _ = weight.shape
    check_dtype(OP, "weight", weight, x)
    if bias is not None:
        check_shape(OP, "bias", bias, (Cout,), "[Cout]")
        check_dtype(OP, "bias", bias, x)
    if min(stride, dilation) < 1 or padding < 0:
        raise ValueError(
            f"{OP}: stride and dilation must be at least 1 and padding at least 0, "
            f"got stride={stride}, dilation={dilation}, padding={padding}"
        )
    rows = (L + 2 * padding - dilation * (K - 1) - 1) // stride + 1
    if rows < 1:
        raise ValueError(f"{OP}: x must have at least {dilation * (K - 1) + 1 - 2 * padding} rows, got L = {L}")
    if residual is not None:
        check_shape(OP, "residual", residual, (B, rows, Cout), "[B, Lout, Cout]")
        check_dtype(OP, "residual", residual, x)
    choose_backend(OP, backend, x.device, ORDER)
    return conv1d_reference(x, weight, bias, stride=stride, padding=padding, dilation=dilation, residual=residual)


def check_dtype(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise ValueError unless ``tensor`` has x's dtype."""
    if tensor.dtype != x.dtype:
        raise ValueError(f"{op}: {name} must have x's dtype, {x.dtype}, got {tensor.dtype}")
