"""Layers of the ACE-Step 1.5 audio autoencoder, and how a checkpoint's tensors become their parameters.

Everything that depends on weights alone is done once, at load, in fp32: weight norm, the snakes' exponentials, and
the layouts that the ops ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acefast.backends import cpu_kernels_take
from acefast.ops.conv1d import Pair, conv1d
from acefast.ops.conv_transpose1d import conv_transpose1d, conv_transpose_weight
from acefast.ops.residual_unit import TAPS, residual_unit
from acefast.ops.snake import snake
from acefast.ops.spectral_conv1d import PRODUCTS, spectral_conv1d, transformed
from acefast.weights import Source, WeightTable

DILATIONS = (1, 3, 9)
UNITS_REACH = 3 * sum(DILATIONS)  # rows a side that a block's three residual units look at


def _parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class Snake(nn.Module):
    """acefast.ops.snake with its folded parameters."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = _parameter(channels, dtype=torch.float32)
        self.inv_beta = _parameter(channels, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return snake(x, self.alpha, self.inv_beta)


def then(layer: nn.Module, x: Tensor, snake: Snake) -> Tensor:
    """``snake(layer(x))``; the CPU's kernels store that and nothing before it."""
    if cpu_kernels_take(x.dtype, x.device):
        return layer(x, snake)
    return snake(layer(x))


def _last(snake: Snake | None) -> dict[str, Any]:
    """Options of an op whose result is only what ``snake`` makes of it."""
    return {} if snake is None else {"wave": (snake.alpha, snake.inv_beta), "keep": False}


def _result(results: Tensor | Pair) -> Tensor:
    return results[1] if isinstance(results, tuple) else results


class Conv(nn.Module):
    """acefast.ops.conv1d with its folded weight, [Cout, K, Cin]."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True):
        super().__init__()
        self.stride, self.padding = stride, padding
        self.weight = _parameter(cout, kernel, cin)
        self.bias = _parameter(cout) if bias else None

    def forward(self, x: Tensor, snake: Snake | None = None) -> Tensor:
        options = {"stride": self.stride, "padding": self.padding}
        return _result(conv1d(x, self.weight, self.bias, **options, **_last(snake)))


class ConvTranspose(nn.Module):
    """acefast.ops.conv_transpose1d with its folded weight, [2 * Cin, stride * Cout]."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight = _parameter(2 * cin, stride * cout)
        self.bias = _parameter(cout)

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose1d(x, self.weight, self.bias, stride=self.stride)


class ResidualUnit(nn.Module):
    """acefast.ops.residual_unit with its parameters."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.snake1, self.snake2 = Snake(channels), Snake(channels)
        self.conv1 = Conv(channels, channels, TAPS)
        self.conv2 = nn.Module()
        self.conv2.weight, self.conv2.bias = _parameter(channels, channels), _parameter(channels)

    def forward(self, x: Tensor, snake: Snake | None = None) -> Tensor:
        first = (self.snake1.alpha, self.snake1.inv_beta, self.conv1.weight, self.conv1.bias)
        second = (self.snake2.alpha, self.snake2.inv_beta, self.conv2.weight, self.conv2.bias)
        return _result(residual_unit(x, *first, *second, dilation=self.dilation, **_last(snake)))


class SpectralFilter(nn.Module):
    """The weights of acefast.ops.spectral_conv1d."""

    in_panels = ("weight",)  # see acefast.panels

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = _parameter(channels, PRODUCTS * channels), _parameter(channels)


class SpectralUnit(nn.Module):
    """The same as ``ResidualUnit``, with conv1's weight for acefast.ops.spectral_conv1d: faster on a CPU's kernels."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.snake1, self.snake2 = Snake(channels), Snake(channels)
        self.conv1 = SpectralFilter(channels)
        self.conv2 = nn.Module()
        self.conv2.weight, self.conv2.bias = _parameter(channels, channels), _parameter(channels)

    def forward(self, x: Tensor, snake: Snake | None = None) -> Tensor:
        options = {"before": (self.snake1.alpha, self.snake1.inv_beta), **_last(self.snake2)}
        _, y = spectral_conv1d(x, self.conv1.weight, self.conv1.bias, TAPS, dilation=self.dilation, **options)
        return _result(conv1d(y, self.conv2.weight[:, None], self.conv2.bias, residual=x, **_last(snake)))


def unit_kind(channels: int, spectral: bool) -> type[ResidualUnit] | type[SpectralUnit]:
    """Of units so wide; the kernel of a ``spectral`` one takes multiples of 32."""
    return SpectralUnit if spectral and channels % 32 == 0 else ResidualUnit


def _units(channels: int, spectral: bool) -> nn.ModuleList:
    return nn.ModuleList(unit_kind(channels, spectral)(channels, dilation) for dilation in DILATIONS)


class EncoderBlock(nn.Module):
    """Three residual units, then ``stride`` rows become one."""

    def __init__(self, cin: int, cout: int, stride: int, spectral: bool = False):
        super().__init__()
        self.units = _units(cin, spectral)
        self.snake1 = Snake(cin)
        self.conv1 = Conv(cin, cout, 2 * stride, stride, stride // 2)

    def forward(self, x: Tensor, snake: Snake | None = None) -> Tensor:
        for unit in self.units[:-1]:
            x = unit(x)
        return self.conv1(then(self.units[-1], x, self.snake1), snake)


class DecoderBlock(nn.Module):
    """A snake, one row becomes ``stride``, then three residual units; acefast.models.v15.vae runs them."""

    def __init__(self, cin: int, cout: int, stride: int, spectral: bool = False):
        super().__init__()
        self.stride = stride
        self.snake1 = Snake(cin)
        self.conv_t1 = ConvTranspose(cin, cout, stride)
        self.units = _units(cout, spectral)


def fold(weight_g: Tensor, weight_v: Tensor) -> Tensor:
    """Weight norm of a Conv1d, fp32, as acefast.ops.conv1d takes it: g [Cout, 1, 1], v [Cout, Cin, K]."""
    return _folded(weight_g, weight_v).transpose(1, 2).contiguous()


def fold_spectral(weight_g: Tensor, weight_v: Tensor) -> Tensor:
    """Weight norm of a Conv1d, fp32, as acefast.ops.spectral_conv1d takes it."""
    return transformed(fold(weight_g, weight_v))


def fold_pointwise(weight_g: Tensor, weight_v: Tensor) -> Tensor:
    """Weight norm of a Conv1d of one tap, fp32, [Cout, Cin]."""
    return _folded(weight_g, weight_v).squeeze(2)


def fold_transposed(weight_g: Tensor, weight_v: Tensor) -> Tensor:
    """Weight norm of a ConvTranspose1d, over its *input* channels, fp32, as acefast.ops.conv_transpose1d takes it."""
    return conv_transpose_weight(_folded(weight_g, weight_v))


def _folded(weight_g: Tensor, weight_v: Tensor) -> Tensor:
    v = weight_v.float()
    norm = torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True)
    return v * (weight_g.float() / norm.clamp_min(torch.finfo(torch.float32).tiny))  # a channel may be all zero


def _alpha(log_alpha: Tensor) -> Tensor:
    return log_alpha.float().exp().flatten()


def _inv_beta(log_beta: Tensor) -> Tensor:
    return (log_beta.float().exp().flatten() + 1e-9).reciprocal()


def snake_entries(ours: str, theirs: str) -> WeightTable:
    return {
        f"{ours}.alpha": Source((f"{theirs}.alpha",), _alpha, torch.float32),
        f"{ours}.inv_beta": Source((f"{theirs}.beta",), _inv_beta, torch.float32),
    }


def conv_entries(ours: str, theirs: str, combine: Callable[..., Tensor] = fold, bias: bool = True) -> WeightTable:
    table = {f"{ours}.weight": Source((f"{theirs}.weight_g", f"{theirs}.weight_v"), combine)}
    return table | ({f"{ours}.bias": Source((f"{theirs}.bias",))} if bias else {})


def unit_entries(ours: str, theirs: str, kind: type[nn.Module] = ResidualUnit) -> WeightTable:
    table: WeightTable = {}
    filters = fold_spectral if kind is SpectralUnit else fold
    for u in range(len(DILATIONS)):
        unit, official = f"{ours}.units.{u}", f"{theirs}.res_unit{u + 1}"
        table |= snake_entries(f"{unit}.snake1", f"{official}.snake1")
        table |= conv_entries(f"{unit}.conv1", f"{official}.conv1", filters)
        table |= snake_entries(f"{unit}.snake2", f"{official}.snake2")
        table |= conv_entries(f"{unit}.conv2", f"{official}.conv2", fold_pointwise)
    return table
