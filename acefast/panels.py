"""Weights as the CPU's engines read them, so that no call has to bring them there: see csrc/cpu/packing.h.

A weight [N, K] is then [N / 32, K / 2, 32, 2]: for two k at a time those of 32 rows side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from acefast.backends import why_unavailable
from acefast.checks import check_contiguous, check_shape
from acefast.cpu.extension import K_STEP, address, extension, is_bf16, threads
from acefast.mapped import Mappings

COLUMNS = 32  # rows of a weight side by side


def to_panels(weight: Tensor) -> Tensor:
    """[N, K] in panels, contiguous; N has to be a multiple of 32 and K of 2."""
    N, K = weight.shape
    if is_bf16(weight) and weight.is_contiguous() and K % K_STEP == 0 and not why_unavailable("cpu"):
        panels = weight.new_empty(N // COLUMNS, K // 2, COLUMNS, 2)
        extension().to_panels(address(weight), N, K, address(panels), threads())
        return panels
    return weight.reshape(N // COLUMNS, COLUMNS, K // 2, 2).transpose(1, 2).contiguous()


def from_panels(panels: Tensor) -> Tensor:
    """``to_panels`` undone: [N, K], contiguous."""
    return panels.transpose(1, 2).reshape(rows_of(panels), 2 * panels.shape[1])


def check_products(op: str, weight: Tensor, products: int, K: int, inputs: str = "Cin") -> int:
    """N of a weight [N, ``products`` * K], or of its panels; ValueError unless it is such and contiguous.

    ``inputs``: what K is called in the message.
    """
    K *= products
    if weight.dim() == 4:
        form = f"[Cout / {COLUMNS}, {products} * {inputs} / 2, {COLUMNS}, 2]"
        check_shape(op, "weight", weight, (None, K // 2, COLUMNS, 2), form)
    else:
        check_shape(op, "weight", weight, (None, K), f"[Cout, {products} * {inputs}]")
    check_contiguous(op, "weight", weight)
    return rows_of(weight)


def products_of(weight: Tensor, products: int) -> Tensor:
    """[products, N, K] of what ``check_products`` takes: a weight for each product."""
    flat = from_panels(weight) if weight.dim() == 4 else weight
    return flat.unflatten(1, (products, -1)).transpose(0, 1)


def rows_of(weight: Tensor) -> int:
    """N of a weight [N, K], or of its panels."""
    return len(weight) if weight.dim() == 2 else COLUMNS * len(weight)


def some_rows(weight: Tensor, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last`` of [N, K], or of its panels, panels too where both are multiples of 32."""
    if weight.dim() == 2:
        return weight[first:last]
    if first % COLUMNS or last % COLUMNS:
        return from_panels(weight)[first:last]
    return weight[first // COLUMNS : last // COLUMNS]


@torch.no_grad()
def hold_panels(module: nn.Module, files: Iterable[Path] = ()) -> None:
    """Bring the weights in panels that a layer's class names in ``in_panels``, where their sizes and dtype allow it.

    ``files``: of the checkpoint. Pages of weights that were views of these are given back at once, so that no weight
    takes memory twice.
    """
    mappings = Mappings(files)
    for layer in module.modules():
        for path in getattr(layer, "in_panels", ()):
            owner, _, name = path.rpartition(".")
            owner = layer.get_submodule(owner)
            weight = getattr(owner, name)
            if not weight.is_floating_point() or weight.dim() != 2:
                continue
            if weight.shape[0] % COLUMNS == 0 and weight.shape[1] % K_STEP == 0:
                setattr(owner, name, nn.Parameter(to_panels(weight), requires_grad=False))
                mappings.give_back(weight)
