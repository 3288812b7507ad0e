"""What tests of linear_int8 share: its operands in every form, and the equation in fp64."""

from __future__ import annotations

import torch

from acefast.ops.linear_int8 import quantize_weight
from acefast.ops.quantize_rows import quantize_rows

GATE = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4, torch.float32: 2e-6}  # relative L2: one rounding
FORMS = ("plain", "bias", "swiglu", "added", "gated", "gated by step")


def given(rng, shape, N, form, dtype, device="cpu"):
    """Operands for x of ``shape``, [..., K], and N outputs, and a form's options."""
    x, weight = torch.randn(shape, generator=rng), torch.randn(N, shape[-1], generator=rng)
    bias, gates, residual = (torch.randn(size, generator=rng) for size in ((N,), (3, N), (*shape[:-1], N)))
    operands = [*quantize_rows(x), *quantize_weight(weight / shape[-1] ** 0.5)]
    operands += [bias] if form in ("bias", "swiglu", "gated") else []
    options = {"swiglu": True} if form == "swiglu" else {}
    if form in ("added", "gated", "gated by step"):
        options["residual"] = residual.to(device, dtype)
    if form == "gated":
        options["gate"] = gates[1].to(device)
    if form == "gated by step":
        options |= {"gate": gates.to(device), "step": torch.full((1,), 2, dtype=torch.int32, device=device)}
    return tuple(t.to(device) for t in operands), options


def exact(x, x_scale, weight, weight_scale, bias=None, *, swiglu=False, residual=None, gate=None, step=None):
    y = x.double() @ weight.double().T * x_scale.double()[..., None] * weight_scale.double()
    y = y if bias is None else y + bias.double()
    if swiglu:
        first, second = y.chunk(2, -1)
        return first / (1 + (-first).exp()) * second
    if gate is not None:
        y = y * (gate if step is None else gate[int(step)]).double()
    return y if residual is None else residual.double() + y


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())
