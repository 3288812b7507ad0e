"""A feed-forward block's first half: the gate's and the other linear layer, and SwiGLU of the two."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape, is_rows
from acefast.cpu import linear_swiglu as cpu
from acefast.ops.linear import linear
from acefast.ops.swiglu import swiglu, swiglu_reference
from acefast.panels import COLUMNS, rows_of

OP = "linear_swiglu"
ORDER = ("triton", "cpu")


def linear_swiglu_reference(x: Tensor, weight: Tensor, up: Tensor | None = None) -> Tensor:
    """The op in two: the library's product, rounded, then SwiGLU. A kernel rounds once, so it is the nearer to fp64."""
    return swiglu_reference(_products(x, weight, up))


def linear_swiglu(
    x: Tensor, weight: Tensor, up: Tensor | None = None, *, out: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """``silu(x @ gate.T) * (x @ up.T)`` with ``silu(z) = z / (1 + exp(-z))``.

    Args:
        x: [..., H].
        weight: [2 * I, H] of x's dtype: the gate's I rows, then the other I; with ``up`` [I, H], the gate's alone. Or
            acefast.panels of that, which "cpu" reads as they are, and "triton" does not take.
        up: [I, H] of x's dtype, the other rows where they do not lie behind the gate's; "triton" does not take it.
        out: [..., I] of x's dtype, written and returned; shares no memory with x. None: new memory.
        backend: "triton" (16 bits, H and I multiples of 16, rows of neighbours at one distance), "cpu" (bf16, H a
            multiple of 32, such rows) or "reference"; None leaves the choice to acefast.backends. Without a kernel,
            ``swiglu`` chooses for the second half.
    Returns:
        [..., I] in x's dtype.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: AceStepMLP in huggingface/diffusers ace_step_transformer.py.
    """
    H, in_panels = x.shape[-1], weight.dim() == 4
    rows = rows_of(weight) * (1 if up is None else 2)
    row = (H // 2, COLUMNS, 2) if in_panels else (H,)
    if rows % 2 or weight.shape[1:] != row:
        raise ValueError(f"{OP}: weight must be [2 * I, H] with H = {H}, got {list(weight.shape)}")
    check_dtype(OP, "weight", weight, x.dtype)
    if up is not None:
        check_shape(OP, "up", up, weight.shape, "[I, H]")
        check_dtype(OP, "up", up, x.dtype)
    shape = (*x.shape[:-1], rows // 2)
    if out is not None:
        check_shape(OP, "out", out, shape, "[..., I]")
        check_dtype(OP, "out", out, x.dtype)
    tensors = (x, weight) if out is None else (x, weight, out)
    sixteen = x.dtype in (torch.bfloat16, torch.float16) and H % 16 == 0 and rows % 32 == 0
    takes = {
        "triton": up is None and not in_panels and sixteen and all(map(is_rows, tensors)),
        "cpu": cpu.fits(x, weight, up, out),
    }
    chosen = choose_backend(OP, backend, x.device, [name for name in ORDER if takes[name]])
    if chosen != "reference":
        out = x.new_empty(shape) if out is None else out
        if chosen == "cpu":
            return cpu.linear_swiglu(x, weight, up, out=out)
        from acefast.kernels.linear_swiglu import linear_swiglu as kernel

        return kernel(x, weight, out=out)
    return swiglu(_products(x, weight, up), out=out, backend=backend)


def _products(x: Tensor, weight: Tensor, up: Tensor | None) -> Tensor:
    """Both layers' results side by side."""
    return linear(x, weight) if up is None else torch.cat((linear(x, weight), linear(x, up)), -1)
