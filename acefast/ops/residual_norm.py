"""Residual add, RMSNorm and modulation: the seam between any two sublayers of every transformer here."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import residual_norm as cpu

OP = "residual_norm"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 8192  # a row of more does not stay in the registers of a Triton program


def residual_norm_reference(
    x: Tensor,
    weight: Tensor | None,
    y: Tensor | None = None,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    step: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    out: tuple[Tensor | None, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor]:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    dtype = dtype or x.dtype
    if step is not None:
        gate, scale, shift = (None if t is None else t.index_select(0, step)[0] for t in (gate, scale, shift))
    if y is not None:
        x32 = x.float() + y.float() if gate is None else torch.addcmul(x.float(), y.float(), gate.float())
        x = x32.to(x.dtype)
    x32 = x.float()  # rounded first: whoever reads x' later sees the norm that was taken here
    mean_square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    h = x32 * mean_square.add_(eps).rsqrt_()
    factor = None if weight is None else weight.float()
    if scale is not None:
        factor = 1 + scale.float() if factor is None else factor * (1 + scale.float())
    if factor is not None:
        h = h.mul_(factor) if shift is None else torch.addcmul(shift.float(), h, factor, out=h)
    elif shift is not None:
        h = h.add_(shift.float())
    if out is None:
        return x, h.to(dtype)
    if y is not None:
        x = None if out[0] is None else out[0].copy_(x)
    return x, out[1].copy_(h)


def residual_norm(
    x: Tensor,
    weight: Tensor | None,
    y: Tensor | None = None,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    step: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    out: tuple[Tensor | None, Tensor] | None = None,
    backend: str | None = None,
) -> tuple[Tensor | None, Tensor]:
    """``x' = x + gate * y`` and ``h = x' * rsqrt(mean(x'**2) + eps) * weight * (1 + scale) + shift``.

    Args:
        x: residual stream, [B, S, H].
        weight: [H], the norm's learned weight; None stands for 1.
        y: output of the sublayer before, [B, S, H]; None adds nothing and returns ``x`` itself.
        gate: [H] factor of ``y``; None stands for 1.
        scale, shift: [H], the modulation of this timestep; None stands for 0.
        step: int32 [1] on x's device: gate, scale and shift are then tables, [steps, H], of which row ``step[0]`` is
            used, so that a captured step finds its own.
        dtype: of ``h``; None is x's. They differ where a residual stream is kept in fp32.
        out: where (x', h) are written and what is returned. x' may be ``x`` itself: in place; None there does not
            store it. With y None there is no x' to write.
        backend: "triton", "cpu" (x, y, weight and results bf16, H a multiple of 16) or "reference"; None leaves the
            choice to acefast.backends.
    Returns:
        (x', h), each [B, S, H]: x' in x's dtype, h in ``dtype``, each rounded once; the mean is over the rounded x'.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: AceStepTransformerBlock.forward in huggingface/diffusers ace_step_transformer.py, which rounds after every
        operation; without a weight LinearTransformerBlock in ace-step/ACE-Step models/attention.py.
    """
    B, S, H = x.shape
    if y is not None:
        check_shape(OP, "y", y, (B, S, H), "[B, S, H]")
    if weight is not None:
        check_shape(OP, "weight", weight, (H,), "[H]")
    for name, vector in (("gate", gate), ("scale", scale), ("shift", shift)):
        if vector is not None and step is None:
            check_shape(OP, name, vector, (H,), "[H]")
        elif vector is not None:
            check_shape(OP, name, vector, (None, H), "[steps, H]")
    if gate is not None and y is None:
        raise ValueError(f"{OP}: gate needs y to act on, got y=None")
    if step is not None:
        check_shape(OP, "step", step, (1,), "[1]")
        check_dtype(OP, "step", step, torch.int32)
    if out is not None:
        check_shape(OP, "out[1]", out[1], (B, S, H), "[B, S, H]")
        check_dtype(OP, "out[1]", out[1], dtype or out[1].dtype)
        if y is not None and out[0] is not None:
            check_shape(OP, "out[0]", out[0], (B, S, H), "[B, S, H]")
            check_dtype(OP, "out[0]", out[0], x.dtype)
    takes = {
        "triton": _kernel_fits(x, weight, y, gate, scale, shift, *(out or ())),
        "cpu": cpu.fits(x, weight, y, *(out or ())) and dtype in (None, x.dtype),
    }
    chosen = choose_backend(OP, backend, x.device, [name for name in ORDER if takes[name]])
    if chosen != "reference":
        if chosen == "cpu":
            kernel = cpu.residual_norm
        else:
            from acefast.kernels.residual_norm import residual_norm as kernel

        if out is None:
            new = None if y is None else torch.empty_like(x, memory_format=torch.contiguous_format)
            out = new, torch.empty(B, S, H, dtype=dtype or x.dtype, device=x.device)
        return kernel(x, weight, y, gate, scale, shift, step=step, eps=eps, out=out)
    return residual_norm_reference(x, weight, y, gate, scale, shift, step=step, eps=eps, dtype=dtype, out=out)


def _kernel_fits(x: Tensor, *others: Tensor | None) -> bool:
    tensors = [x, *(t for t in others if t is not None)]
    return 0 < x.shape[-1] <= WIDEST and all(t.dtype in FLOATS and t.stride(-1) == 1 for t in tensors)
