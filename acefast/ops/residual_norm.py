"""Residual add, RMSNorm and modulation: the seam between any two sublayers of every transformer here."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_shape

OP = "residual_norm"
ORDER: tuple[str, ...] = ()  # no kernels yet


def residual_norm_reference(
    x: Tensor,
    weight: Tensor,
    y: Tensor | None = None,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    dtype = dtype or x.dtype
    if y is not None:
        x32 = x.float() + y.float() if gate is None else torch.addcmul(x.float(), y.float(), gate.float())
        x = x32.to(x.dtype)
    x32 = x.float()  # rounded first: whoever reads x' later sees the norm that was taken here
    mean_square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    h = x32 * mean_square.add_(eps).rsqrt_()
    factor = weight.float() if scale is None else weight.float() * (1 + scale.float())
    h = h.mul_(factor) if shift is None else torch.addcmul(shift.float(), h, factor, out=h)
    return x, h.to(dtype)


def residual_norm(
    x: Tensor,
    weight: Tensor,
    y: Tensor | None = None,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``x' = x + gate * y`` and ``h = x' * rsqrt(mean(x'**2) + eps) * weight * (1 + scale) + shift``.

    Args:
        x: residual stream, [B, S, H].
        weight: [H], the norm's learned weight.
        y: output of the sublayer before, [B, S, H]; None adds nothing and returns ``x`` itself.
        gate: [H] factor of ``y``; None stands for 1.
        scale, shift: [H], the modulation of this timestep; None stands for 0.
        dtype: of ``h``; None is x's. They differ where a residual stream is kept in fp32.
        backend: "reference"; None leaves the choice to acefast.backends.
    Returns:
        (x', h), each [B, S, H]: x' in x's dtype, h in ``dtype``, each rounded once; the mean is over the rounded x'.
    Raises:
        ValueError: a shape is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: AceStepTransformerBlock.forward in huggingface/diffusers ace_step_transformer.py, which rounds after every
        operation.
    """
    B, S, H = x.shape
    if y is not None:
        check_shape(OP, "y", y, (B, S, H), "[B, S, H]")
    for name, vector in (("weight", weight), ("gate", gate), ("scale", scale), ("shift", shift)):
        if vector is not None:
            check_shape(OP, name, vector, (H,), "[H]")
    if gate is not None and y is None:
        raise ValueError(f"{OP}: gate needs y to act on, got y=None")
    choose_backend(OP, backend, x.device, ORDER)
    return residual_norm_reference(x, weight, y, gate, scale, shift, eps=eps, dtype=dtype)
