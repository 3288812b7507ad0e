"""The position embedding of ACE-Step v1: neighbouring channels are mixed, each by an angle of its own."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import paired_rope as cpu

OP = "paired_rope"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@functools.lru_cache(maxsize=32)
def paired_rope_table(length: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Cosines and sines of ``p * theta**(-2 * (d mod head_dim / 2) / head_dim)``: [length, 2, head_dim] fp32.

    Row p is of position p; column d and column d + head_dim / 2 hold the same angle.
    """
    with torch.inference_mode(False):  # the table outlives the caller's mode
        i = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
        angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / theta ** (i / head_dim))
        return torch.stack((angle.cos(), angle.sin()), 1).repeat(1, 1, 2)


def mix_pairs(x: Tensor, table: Tensor) -> Tensor:
    """``paired_rope`` of x [B, S, H, D] in x's own dtype, fp32 or fp64, unrounded; ``table`` [S, 2, D]."""
    cos, sin = table.to(x.dtype)[:, :, None].unbind(1)  # [S, 1, D] each
    even = torch.arange(x.shape[-1], device=x.device) % 2 == 0
    y = x * cos  # the partner of an even channel is the next one, of an odd channel the one before: x moved by one
    y[..., :-1].addcmul_(x[..., 1:], sin.neg().where(even, 0)[..., :-1])
    y[..., 1:].addcmul_(x[..., :-1], sin.where(~even, 0)[..., 1:])
    return y


def paired_rope_reference(x: Tensor, table: Tensor, *, out: Tensor | None = None) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    y = mix_pairs(x.to(torch.promote_types(x.dtype, torch.float32)), table[: x.shape[1]])
    return y.to(x.dtype) if out is None else out.copy_(y)


def paired_rope(x: Tensor, table: Tensor, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """``y[2i] = x[2i] cos[2i] - x[2i+1] sin[2i]`` and ``y[2i+1] = x[2i+1] cos[2i+1] + x[2i] sin[2i+1]`` per head.

    The two channels of a pair have different angles, so this is no rotation: norms change, and scores do not depend
    on the distance of two positions alone.

    Args:
        x: queries or keys, [B, S, H, D] with D even; row s is at position s. May be a view of a packed projection.
        table: cosines and sines of each position, [S or more, 2, D] fp32, whose columns d and d + D / 2 are equal, see
            ``paired_rope_table``.
        out: like x, written and returned; may be x itself. None: new memory.
        backend: "triton" (D a power of two, 8 or more), "cpu" (bf16, D a multiple of 16) or "reference"; None leaves
            the choice to acefast.backends.
    Returns:
        [B, S, H, D] in x's dtype, rounded once.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: apply_rotary_emb in ace-step/ACE-Step customer_attention_processor.py, which rounds cosines and sines to
        the model's dtype.
    """
    check_pairs(OP, table, x.shape[1], x.shape[3])
    if out is not None:
        check_shape(OP, "out", out, x.shape, "[B, S, H, D]")
        check_dtype(OP, "out", out, x.dtype)
    D = x.shape[3]
    fits = {
        "triton": D >= 8 and D & (D - 1) == 0 and table.is_contiguous() and _kernel_fits(x, x if out is None else out),
        "cpu": cpu.fits(x, table, out),
    }
    if (chosen := choose_backend(OP, backend, x.device, [name for name in ORDER if fits[name]])) != "reference":
        out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
        if chosen == "cpu":
            return cpu.paired_rope(x, table, out=out)
        from acefast.kernels.paired_rope import paired_rope as kernel

        return kernel(x, table, out=out)
    return paired_rope_reference(x, table, out=out)


def _kernel_fits(*tensors: Tensor) -> bool:
    return all(t.dtype in FLOATS and t.stride(-1) == 1 for t in tensors)


def check_pairs(op: str, table: Tensor, rows: int, head_dim: int) -> None:
    """Raise ValueError unless ``table`` is of heads of ``head_dim`` channels, an even number, and of all ``rows``."""
    if head_dim % 2:
        raise ValueError(f"{op}: channels of a head must be an even number, got {head_dim}")
    check_shape(op, "table", table[:rows], (rows, 2, head_dim), "[S or more, 2, D]")
    check_dtype(op, "table", table, torch.float32)
