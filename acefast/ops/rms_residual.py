"""RMSNorm of a branch, added to what it branched off: how every block of v1's mel autoencoder ends.

    y = x + h * rsqrt(mean(h**2) + eps) * weight + bias        over the channels, and its ReLU where that is asked for

acefast.ops.residual_norm norms the sum instead, on the way into a transformer's next sublayer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape, is_rows
from acefast.cpu import rms_residual as cpu

OP = "rms_residual"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 2048  # channels that stay in the registers of a Triton program


def rms_residual_reference(
    h: Tensor, weight: Tensor, bias: Tensor, x: Tensor | None = None, *, relu: bool = False, eps: float = 1e-5
) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    h32 = h.float()
    mean_square = torch.linalg.vector_norm(h32, dim=-1, keepdim=True).square_().div_(h.shape[-1])
    y = torch.addcmul(bias.float(), h32 * mean_square.add_(eps).rsqrt_(), weight.float())
    y = y if x is None else y.add_(x)
    return (y.relu_() if relu else y).to(h.dtype)


def rms_residual(
    h: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor | None = None,
    *,
    relu: bool = False,
    eps: float = 1e-5,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Norm rows over their channels and add them to others.

    Args:
        h: [..., C], the branch; fp32, bf16 or fp16. A channels-last image is ``image.permute(0, 2, 3, 1)``.
        weight, bias: [C], the norm's own, of any of these dtypes.
        x: [..., C] in h's dtype; None adds nothing.
        relu: whether negative results become 0.
        eps: added to the mean square.
        out: [..., C] in h's dtype, written and returned; may be ``h`` or ``x``. None: new memory.
        backend: "triton" (rows of neighbouring channels at one distance, C up to 2048), "cpu" (such rows, all bf16, C
            a multiple of 16) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        y, [..., C] in h's dtype, rounded once.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: RMSNorm, ResBlock, SanaMultiscaleLinearAttention and GLUMBConv in huggingface/diffusers
        autoencoder_dc.py, which round after the norm, the weight and the bias.
    """
    C = h.shape[-1]
    check_shape(OP, "weight", weight, (C,), "[C]")
    check_shape(OP, "bias", bias, (C,), "[C]")
    for name, rows in (("x", x), ("out", out)):
        if rows is not None:
            check_shape(OP, name, rows, h.shape, "[..., C]")
            check_dtype(OP, name, rows, h.dtype)
    rows = [t for t in (h, x, out) if t is not None]
    fits = 0 < C <= WIDEST and all(is_rows(t) for t in rows) and all(t.dtype in FLOATS for t in (h, weight, bias))
    takes = {"triton": fits, "cpu": C > 0 and cpu.fits(h, weight, bias, x, out)}
    chosen = choose_backend(OP, backend, h.device, [name for name in ORDER if takes[name]])
    if chosen != "reference":
        if chosen == "cpu":
            kernel = cpu.rms_residual
        else:
            from acefast.kernels.rms_residual import rms_residual as kernel

        out = h.new_empty(h.shape) if out is None else out
        return kernel(h, weight, bias, x, relu=relu, eps=eps, out=out) if h.numel() else out
    y = rms_residual_reference(h, weight, bias, x, relu=relu, eps=eps)
    return y if out is None else out.copy_(y)
