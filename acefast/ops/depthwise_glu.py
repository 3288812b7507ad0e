"""The middle of ACE-Step v1's feed-forward block: a depthwise convolution over three frames, then a gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import depthwise_glu as cpu

OP = "depthwise_glu"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ROWS = 32  # that the reference takes at a time: 1.6 MB of fp32 at v1's width stay in a core's cache


def depthwise_glu_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    *,
    silu_input: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    B, S, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = weight.to(dtype)[:, None, None], bias.to(dtype)
    rows = torch.arange(S, device=x.device)
    if out is None:
        out = torch.empty(B, S, width // 2, dtype=x.dtype, device=x.device)
    for start in range(0, S, ROWS):
        low, high = max(start - 1, 0), min(start + ROWS + 1, S)  # a neighbour on either side
        part = x[:, low:high].to(dtype)
        if silu_input:
            part = F.silu(part)
        if lengths is not None:
            padded = (rows[low:high] >= lengths[:, None])[..., None]  # [B, rows, 1]
            part = part.masked_fill(padded, 0)
        y = F.conv2d(part.mT[:, :, None], weight, bias, padding=(0, 1), groups=width)[:, :, 0].mT
        a, g = y[:, start - low : start - low + ROWS].chunk(2, dim=-1)
        out[:, start : start + ROWS] = F.silu(g).mul_(a)
    return out if lengths is None else out.masked_fill_((rows >= lengths[:, None])[..., None], 0)


def depthwise_glu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    *,
    silu_input: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``a * silu(g)`` of the halves (a, g) of ``y[s, c] = bias[c] + sum_k weight[c, k] u[s + k - 1, c]``.

    u is x, or ``silu(x)``; it is zero before a song's first row and behind its last. ``silu(z) = z / (1 + exp(-z))``.

    Args:
        x: [B, S, 2F], rows of neighbouring channels.
        weight: [2F, 3], of the row before, the row itself and the row behind. The kernel reads it fastest as the
            transpose of a contiguous [3, 2F].
        bias: [2F].
        lengths: [B] int64 or int32, on x's device; rows from ``lengths[b]`` on are padding: nothing is made of them,
            whatever they hold, and they come out as zeros. None: no padding.
        silu_input: whether u is ``silu(x)``, for an x as a plain product leaves it; otherwise u is x.
        out: [B, S, F] of x's dtype, written and returned; shares no memory with x. None: new memory.
        backend: "triton", "cpu" (bf16, F a multiple of 16, a tap's weights side by side) or "reference"; None leaves
            the choice to acefast.backends.
    Returns:
        [B, S, F] in x's dtype, rounded once.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input: Triton takes floats of up to 32 bits, neighbouring
            channels, and bias and lengths contiguous.
    Source: GLUMBConv in ace-step/ACE-Step models/attention.py, which works on [B, 2F, S] and rounds after every
        operation.
    """
    B, S, width = x.shape
    if width % 2:
        raise ValueError(f"{OP}: x must be [B, S, 2F], got {list(x.shape)}")
    check_shape(OP, "weight", weight, (width, 3), "[2F, 3]")
    check_shape(OP, "bias", bias, (width,), "[2F]")
    if lengths is not None:
        check_shape(OP, "lengths", lengths, (B,), "[B]")
    if out is not None:
        check_shape(OP, "out", out, (B, S, width // 2), "[B, S, F]")
        check_dtype(OP, "out", out, x.dtype)
    takes = {"triton": _kernel_fits(x, weight, bias, lengths, out), "cpu": cpu.fits(x, weight, bias, out)}
    if (chosen := choose_backend(OP, backend, x.device, [name for name in ORDER if takes[name]])) != "reference":
        if out is None:
            out = torch.empty(B, S, width // 2, dtype=x.dtype, device=x.device)
        if chosen == "cpu":
            return cpu.depthwise_glu(x, weight, bias, lengths, silu_input=silu_input, out=out)
        from acefast.kernels.depthwise_glu import depthwise_glu as kernel

        return kernel(x, weight, bias, lengths, silu_input=silu_input, out=out)
    return depthwise_glu_reference(x, weight, bias, lengths, silu_input=silu_input, out=out)


def _kernel_fits(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None, out: Tensor | None) -> bool:
    floats = all(t.dtype in FLOATS for t in (x, weight, bias))
    rows = all(t is None or t.stride(-1) == 1 for t in (x, bias, out))
    return floats and rows and (lengths is None or lengths.is_contiguous())
