"""SwiGLU: the gated activation of every feed-forward block here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape, is_rows

OP = "swiglu"
ORDER = ("triton",)


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate.float()).mul_(up).to(gate_up.dtype)


def swiglu(gate_up: Tensor, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """``silu(gate) * up`` with ``silu(z) = z / (1 + exp(-z))``.

    Args:
        gate_up: [..., 2 * I]: the gate's I channels, then the other I.
        out: [..., I] of gate_up's dtype, written and returned; shares no memory with gate_up. None: new memory.
        backend: "triton" (rows of neighbouring channels at one distance) or "reference"; None leaves the choice to
            acefast.backends.
    Returns:
        [..., I] in gate_up's dtype, rounded once.
    Raises:
        ValueError: the last size is odd, or ``out`` has another shape or dtype.
        BackendUnavailable: the backend named cannot take this input.
    Source: AceStepMLP in huggingface/diffusers ace_step_transformer.py, which rounds the activation and the product.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"{OP}: gate_up must be [..., 2 * I], got {list(gate_up.shape)}")
    shape = (*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    if out is not None:
        check_shape(OP, "out", out, shape, "[..., I]")
        check_dtype(OP, "out", out, gate_up.dtype)
    order = ORDER if is_rows(gate_up) and (out is None or is_rows(out)) else ()
    if choose_backend(OP, backend, gate_up.device, order) == "triton":
        from acefast.kernels.swiglu import swiglu as kernel

        return kernel(gate_up, out=gate_up.new_empty(shape) if out is None else out)
    found = swiglu_reference(gate_up)
    return found if out is None else out.copy_(found)
