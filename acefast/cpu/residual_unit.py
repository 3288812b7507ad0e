"""Launches csrc/residual_unit_cpu.cpp."""

from __future__ import annotations

from torch import Tensor

from acefast.cpu import conv1d
from acefast.cpu.conv1d import Outputs, Wave, results
from acefast.cpu.extension import address, contiguous, extension, threads


def fits(x: Tensor, *weights: Tensor, wave: Wave | None) -> bool:
    """Whether the kernel takes this; ``weights`` are alpha1, inv_beta1, weight1, bias1, alpha2 and so on."""
    alpha1, inv_beta1, weight1, bias1, alpha2, inv_beta2, *second = weights
    snakes = contiguous(alpha1, inv_beta1, alpha2, inv_beta2)
    return snakes and conv1d.fits(x, weight1, bias1, *second, wave=wave)


def residual_unit(
    x: Tensor,
    alpha1: Tensor,
    inv_beta1: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    inv_beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    dilation: int,
    activated: Tensor | None,
    wave: Wave | None,
    out: Outputs,
) -> None:
    """Writes the results that ``out`` has; see acefast.ops.residual_unit."""
    if activated is None and any(t is not None and t.data_ptr() == x.data_ptr() for t in out):
        x = x.clone()  # a tile's neighbours are still to be read when it is written
    weights = [*map(address, (alpha1, inv_beta1, weight1, bias1, alpha2, inv_beta2, weight2))]
    to = results(slice(None), out, bias2, wave, residual=x)
    extension().residual_unit(address(x), address(activated), *x.shape, weights, dilation, to, threads())
