"""The residual unit of the v1.5 audio autoencoder; fifteen of them are 88 % of the decoder's FLOPs.

    y = x + b2 + W2 @ snake2(b1 + conv7_d(snake1(x)))

with a seven-tap convolution of dilation d, zero rows beyond the ends, and a 1x1 convolution; see acefast.ops.snake
and acefast.ops.conv1d for the parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_shape
from acefast.ops.conv1d import check_dtype, conv1d_reference
from acefast.ops.snake import block_elements, check_wave, snake_rows

OP = "residual_unit"
ORDER = ()  # kernels, fastest first
TAPS = 7


def residual_unit_reference(
    x: Tensor,
    alpha1: Tensor,
    inv_beta1: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    inv_beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    dilation: int,
) -> Tensor:
    """What the op means in PyTorch; every kernel is held to it.

    It runs block by block of rows, so that x is read and y written once while what lies between stays in a CPU's cache.
    A block recomputes ``6 * dilation`` rows of the first snake and nothing else. Blocks are at least 4 C rows, for the
    convolution to amortise reading its 7 C² weights.
    """
    _, L, C = x.shape
    reach = TAPS // 2 * dilation
    n = max(4 * C, block_elements(x.device) // C, 1)
    n = -(-L // max(1, -(-L // n)))  # the same number of blocks, of like sizes
    scratch = x.new_empty((1 if x.dtype == torch.float32 else 2, n + 2 * reach, C), dtype=torch.float32)
    padded = x.new_empty(1, n + 2 * reach, C)  # snake1 of a block and its neighbours, or zeros at the ends
    y = torch.empty_like(x)
    for song, y_song in zip(x, y):
        for start in range(0, L, n or 1):
            stop = min(start + n, L)
            first, last = max(start - reach, 0), min(stop + reach, L)
            block = padded[:, : stop - start + 2 * reach]
            offset = first - start + reach
            block[0, :offset] = 0
            block[0, offset + last - first :] = 0
            snake_rows(song[first:last], alpha1, inv_beta1, block[0, offset : offset + last - first], scratch)
            hidden = conv1d_reference(block, weight1, bias1, dilation=dilation)[0]
            snake_rows(hidden, alpha2, inv_beta2, hidden, scratch)
            y_block = y_song[start:stop]
            if x.dtype == torch.float32:
                torch.add(song[start:stop], bias2, out=y_block).addmm_(hidden, weight2.t())
            else:  # the product is rounded once, the sum again
                torch.add(song[start:stop], F.linear(hidden, weight2, bias2), out=y_block)
    return y


def residual_unit(
    x: Tensor,
    alpha1: Tensor,
    inv_beta1: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    inv_beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    dilation: int,
    backend: str | None = None,
) -> Tensor:
    """Refine rows with their neighbours 1, 2 and 3 dilations away.

    Args:
        x: [B, L, C], contiguous; fp32, bf16 or fp16.
        alpha1, inv_beta1, alpha2, inv_beta2: fp32 [C], as in acefast.ops.snake.
        weight1: [C, 7, C] (output, tap, input), contiguous, x's dtype; bias1: [C].
        weight2: [C, C] (output, input), contiguous, x's dtype; bias2: [C].
        dilation: rows between taps, at least 1.
        backend: "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, L, C] in x's dtype.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: OobleckResidualUnit in huggingface/diffusers autoencoder_oobleck.py.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, C]")
    check_contiguous(OP, "x", x)
    C = x.shape[2]
    for name, wave in (("alpha1", alpha1), ("inv_beta1", inv_beta1), ("alpha2", alpha2), ("inv_beta2", inv_beta2)):
        check_wave(OP, name, wave, C)
    check_shape(OP, "weight1", weight1, (C, TAPS, C), "[C, 7, C]")
    check_shape(OP, "weight2", weight2, (C, C), "[C, C]")
    for name, bias in (("bias1", bias1), ("bias2", bias2)):
        check_shape(OP, name, bias, (C,), "[C]")
        check_dtype(OP, name, bias, x)
    for name, weight in (("weight1", weight1), ("weight2", weight2)):
        check_contiguous(OP, name, weight)
        check_dtype(OP, name, weight, x)
    if dilation < 1:
        raise ValueError(f"{OP}: dilation must be at least 1, got {dilation}")
    choose_backend(OP, backend, x.device, ORDER)
    return residual_unit_reference(
        x, alpha1, inv_beta1, weight1, bias1, alpha2, inv_beta2, weight2, bias2, dilation=dilation
    )
