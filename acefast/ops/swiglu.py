"""SwiGLU: the gated activation of every feed-forward block here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend

OP = "swiglu"
ORDER: tuple[str, ...] = ()  # no kernels yet


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate.float()).mul_(up).to(gate_up.dtype)


def swiglu(gate_up: Tensor, *, backend: str | None = None) -> Tensor:
    """``silu(gate) * up`` with ``silu(z) = z / (1 + exp(-z))``.

    Args:
        gate_up: [..., 2 * I]: the gate's I channels, then the other I.
        backend: "reference"; None leaves the choice to acefast.backends.
    Returns:
        [..., I] in gate_up's dtype, rounded once.
    Raises:
        ValueError: the last size is odd.
        BackendUnavailable: the backend named cannot take this input.
    Source: AceStepMLP in huggingface/diffusers ace_step_transformer.py, which rounds the activation and the product.
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(f"{OP}: gate_up must be [..., 2 * I], got {list(gate_up.shape)}")
    choose_backend(OP, backend, gate_up.device, ORDER)
    return swiglu_reference(gate_up)
