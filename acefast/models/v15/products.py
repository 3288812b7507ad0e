"""The transformer's large linear layers: in the model's dtype, or as 8-bit integers (``acefast.ops.linear_int8``).

A module holds a weight under its name and, of 8 bits, a scale for each output under ``<name>_scale``, else None there.
They are made at load from the checkpoint's tensors, which are not kept; rows of activations are quantised before each
product. W8A8: weights and activations have 8 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acefast.ops.linear import add_linear, linear
from acefast.ops.linear_int8 import linear_int8, quantize_weight
from acefast.ops.linear_swiglu import linear_swiglu
from acefast.ops.quantize_rows import quantize_rows
from acefast.weights import Source, WeightTable, stack


def add_weight(owner: nn.Module, name: str, outputs: int, inputs: int, int8: bool) -> None:
    """Give a module an empty weight [outputs, inputs], and its scales."""

    def empty(*shape: int, dtype: torch.dtype | None) -> nn.Parameter:
        return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)

    setattr(owner, name, empty(outputs, inputs, dtype=torch.int8 if int8 else None))
    setattr(owner, f"{name}_scale", empty(outputs, dtype=torch.float32) if int8 else None)


def product_table(ours: str, names: tuple[str, ...], int8: bool) -> WeightTable:
    """Where a weight comes from: official tensors ``names`` above each other."""
    if not int8:
        return {ours: Source(names, stack if len(names) > 1 else None)}
    return {
        ours: Source(names, lambda *tensors: quantize_weight(stack(*tensors))[0], torch.int8),
        f"{ours}_scale": Source(names, lambda *tensors: quantize_weight(stack(*tensors))[1], torch.float32),
    }


def product(x: Tensor, weight: Tensor, scale: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    """``x @ weight.T``, see ``acefast.ops.linear``."""
    if scale is None:
        return linear(x, weight, out=out)
    return linear_int8(*quantize_rows(x), weight, scale, dtype=x.dtype, out=out)


def product_swiglu(x: Tensor, weight: Tensor, scale: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    """SwiGLU of a product, see ``acefast.ops.linear_swiglu``."""
    if scale is None:
        return linear_swiglu(x, weight, out=out)
    return linear_int8(*quantize_rows(x), weight, scale, swiglu=True, dtype=x.dtype, out=out)


def add_product(x: Tensor, y: Tensor, weight: Tensor, scale: Tensor | None) -> None:
    """``x += y @ weight.T`` in place, see ``acefast.ops.linear.add_linear``."""
    if scale is None:
        add_linear(x, y, weight)
    else:
        linear_int8(*quantize_rows(y), weight, scale, residual=x)
