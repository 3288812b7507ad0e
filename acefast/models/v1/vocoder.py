"""ACE-Step v1's vocoder (ADaMoSHiFiGANV1): log-mel to 512 samples a frame at 44.1 kHz, ConvNeXt and then HiFi-GAN.

Rows are [B, L, C] contiguous, and every layer looks at a few of them only: ``steps`` is the whole network. A song's
two channels are two songs to it.

Source: ADaMoSHiFiGANV1 in ace-step/ACE-Step music_vocoder.py, there channels-first with weight norm.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.backends import kernels_take
from acefast.guarded import with_guards
from acefast.models.v1 import local
from acefast.models.v1.config import VocoderConfig
from acefast.models.v1.dcae_layers import on_kernels, parameter
from acefast.models.v1.local import Rows, Step
from acefast.models.v1.mel import MEL_SCALE, MEL_SHIFT
from acefast.models.v15.vae_layers import fold, fold_spectral, fold_transposed
from acefast.ops.conv1d import conv1d
from acefast.ops.conv_transpose1d import conv_transpose1d
from acefast.ops.depthwise_norm import depthwise_norm
from acefast.ops.linear import linear
from acefast.ops.spectral_conv1d import PRODUCTS, spectral_conv1d
from acefast.weights import Source, WeightTable

EPS = 1e-6  # of the layer norms
KERNEL = 7  # of the ConvNeXt blocks and the stem


class Conv(nn.Module):
    """acefast.ops.conv1d of as many rows as it is given, with its folded weight, [Cout, K, Cin]."""

    def __init__(self, cin: int, cout: int, kernel: int, dilation: int = 1):
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.weight, self.bias = parameter(cout, kernel, cin), parameter(cout)

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1) // 2

    def forward(self, x: Tensor, **options: Any) -> Any:
        return conv1d(x, self.weight, self.bias, padding=self.reach, dilation=self.dilation, **options)


class SpectralConv(nn.Module):
    """The same as ``Conv`` by acefast.ops.spectral_conv1d, with its weight, [Cout, 49 * Cin]: faster on a CPU."""

    in_panels = ("weight",)  # on a CPU's kernels, see acefast.panels

    def __init__(self, cin: int, cout: int, kernel: int, dilation: int = 1):
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.weight, self.bias = parameter(cout, PRODUCTS * cin), parameter(cout)
        self.reach = dilation * (kernel - 1) // 2

    def forward(self, x: Tensor, guarded: bool = False, **options: Any) -> Any:
        """Rows that are ``guarded``, as a GPU's kernels want them, never come here."""
        return spectral_conv1d(x, self.weight, self.bias, self.kernel, dilation=self.dilation, **options)


def convolution(cin: int, cout: int, kernel: int, spectral: bool) -> type[Conv] | type[SpectralConv]:
    """What a convolution of this size is fastest by. *Measured* on one core of a CPU with AVX-512 BF16, in bf16: by
    Fourier transforms 4 times as fast for 13 taps and 256 channels or more, 2 times for 32; for 3 taps 1.3 and 0.8.
    """
    return SpectralConv if spectral and min(cin, cout) * kernel >= 32 * 7 else Conv


class ConvTranspose(nn.Module):
    """acefast.ops.conv_transpose1d with its folded weight, [2 * Cin, stride * Cout]."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight, self.bias = parameter(2 * cin, stride * cout), parameter(cout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result and SiLU of it."""
        return conv_transpose1d(x, self.weight, self.bias, stride=self.stride, wave="silu")


class LayerNorm(nn.Module):
    """Layer norm over channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = parameter(channels), parameter(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[2],), self.weight, self.bias, EPS)


class Linear(nn.Module):
    """A linear layer, with what acefast.ops.linear does of its result."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.weight, self.bias = parameter(cout, cin), parameter(cout)

    def forward(self, x: Tensor, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        return linear(x, self.weight, self.bias, gelu=gelu, residual=residual)


class ConvNeXt(nn.Module):
    """Depthwise taps, norm, a feed-forward with GELU (the scale of its result is in its weights), and the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.depth, self.depth_bias = parameter(KERNEL, channels), parameter(channels)
        self.norm = LayerNorm(channels)
        self.up, self.down = Linear(channels, 4 * channels), Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(self._mixed(x), gelu=True), residual=x)

    def _mixed(self, x: Tensor) -> Tensor:
        """Taps and norm."""
        if on_kernels(x):
            return depthwise_norm(x, self.depth, self.depth_bias, self.norm.weight, self.norm.bias, eps=EPS)
        image = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, L], channels-last in memory
        filters = self.depth.t()[:, None, None].contiguous()
        y = F.conv2d(image, filters, self.depth_bias, padding=(0, KERNEL // 2), groups=x.shape[2])
        return self.norm(y.squeeze(2).transpose(1, 2).contiguous())


class Stack(nn.Module):
    """``x += conv2(SiLU(conv1(SiLU(x))))`` for each dilation of conv1."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], spectral: bool):
        super().__init__()
        conv = convolution(channels, channels, kernel, spectral)
        self.convs1 = nn.ModuleList(conv(channels, channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(channels, channels, kernel) for _ in dilations)
        self.reach = sum(conv.reach for conv in (*self.convs1, *self.convs2))

    def forward(self, x: Tensor, active: Tensor, guarded: bool, **last: Any) -> Any:
        """What conv2 makes of its ``last`` options in its last call; ``active`` is SiLU(x).

        ``guarded``: all lie as acefast.guarded.
        """
        for conv1, conv2 in zip(self.convs1, self.convs2):
            _, h = conv1(active, wave="silu", keep=False, guarded=guarded)
            if conv2 is not self.convs2[-1]:
                x, active = conv2(h, residual=x, wave="silu", guarded=guarded)
        return conv2(h, residual=x, guarded=guarded, **last)


class Upsample(nn.Module):
    """One row becomes ``stride``, then the mean of parallel stacks. SiLU comes before, and ends what it does."""

    def __init__(self, cin: int, stride: int, config: VocoderConfig, spectral: bool):
        super().__init__()
        self.up = ConvTranspose(cin, cin // 2, stride)
        kernels, dilations = config.resblock_kernel_sizes, config.resblock_dilations
        self.stacks = nn.ModuleList(Stack(cin // 2, kernel, dilations, spectral) for kernel in kernels)

    def step(self) -> Step:
        stride = self.up.stride
        return Step(self, max(stack.reach for stack in self.stacks) + stride // 2, up=stride)

    def forward(self, x: Tensor) -> Tensor:
        x, active = self.up(x)
        guarded = kernels_take(x.dtype, x.device) and x.shape[2] % 16 == 0
        if guarded:  # once, so that no convolution copies its rows
            x, active = with_guards(x), with_guards(active)
        share, total = 1 / len(self.stacks), None
        for stack in self.stacks[:-1]:
            total = stack(x, active, guarded, share=share, total=total, out=total)
        _, mean = self.stacks[-1](x, active, guarded, share=share, total=total, wave="silu", keep=False)
        return mean.contiguous()


class Vocoder(nn.Module):
    """The autoencoder's mel to audio; ``spectral`` chooses the weights that suit a CPU, see SpectralConv."""

    def __init__(self, config: VocoderConfig, spectral: bool = False):
        super().__init__()
        dims, width = config.dims, config.upsample_initial_channel
        self.stem, self.stem_norm = Conv(config.input_channels, dims[0], KERNEL), LayerNorm(dims[0])
        self.widen = nn.ModuleList(nn.ModuleList([LayerNorm(a), Linear(a, b)]) for a, b in pairwise(dims))
        self.stages = nn.ModuleList(
            nn.ModuleList(ConvNeXt(width) for _ in range(count)) for width, count in zip(dims, config.depths)
        )
        self.norm = LayerNorm(dims[-1])
        pre = dims[-1], width, config.pre_conv_kernel_size
        self.conv_pre = convolution(*pre, spectral)(*pre)
        self.ups = nn.ModuleList(Upsample(width >> i, s, config, spectral) for i, s in enumerate(config.upsample_rates))
        self.conv_post = Conv(width >> len(self.ups), 1, config.post_conv_kernel_size)

    def steps(self) -> list[Step]:
        """From normalised mel [B, M, 128], at whose ends the first and last frame go on, to audio [B, 512 * M, 1]."""
        steps = [Step(self._stem, KERNEL // 2)]
        for i, stage in enumerate(self.stages):
            if i:
                norm, widen = self.widen[i - 1]
                steps.append(Step(lambda x, norm=norm, widen=widen: widen(norm(x))))
            steps += [Step(block, KERNEL // 2) for block in stage]
        steps.append(Step(self._pre, self.conv_pre.reach))
        steps += [up.step() for up in self.ups]
        return [*steps, Step(lambda x: self.conv_post(x).float().tanh_(), self.conv_post.reach)]

    def _pre(self, x: Tensor) -> Tensor:
        return self.conv_pre(self.norm(x), wave="silu", keep=False)[1]

    def _stem(self, mel: Tensor) -> Tensor:
        ends = [mel[:, i : i + 1 or None].expand(-1, KERNEL // 2, -1) for i in (0, -1)]
        x = torch.cat([ends[0], mel, ends[1]], 1)
        return self.stem_norm(conv1d(x, self.stem.weight, self.stem.bias))

    def forward(self, mel: Tensor) -> Tensor:
        """All of it at once: [B, M, 128] in the weights' dtype to [B, 512 * M, 1] fp32 within +-1."""
        steps, M = self.steps(), mel.shape[1]
        total = M
        for step in steps:
            total = step.rows(total)
        return local.run(steps, Rows(mel, 0, M), 0, total).x

    @staticmethod
    def weight_table(config: VocoderConfig, spectral: bool = False) -> WeightTable:
        """Our parameters and the checkpoint's tensors they are made of."""
        backbone, head = "vocoder.backbone", "vocoder.head"
        first = f"{backbone}.channel_layers.0"
        table: WeightTable = {
            "stem.weight": Source((f"{first}.0.weight",), lambda w: _rows(w.float() * MEL_SCALE)),
            "stem.bias": Source((f"{first}.0.bias", f"{first}.0.weight"), _stem_bias),
            **_both("stem_norm", f"{first}.1"),
        }
        for i in range(1, len(config.dims)):
            theirs = f"{backbone}.channel_layers.{i}"
            table |= _both(f"widen.{i - 1}.0", f"{theirs}.0") | _both(f"widen.{i - 1}.1", f"{theirs}.1", _matrix)
        for s, count in enumerate(config.depths):
            for b in range(count):
                table |= _convnext(f"stages.{s}.{b}", f"{backbone}.stages.{s}.{b}")

        def combine(cin: int, cout: int, kernel: int) -> Callable[..., Tensor]:
            return fold_spectral if convolution(cin, cout, kernel, spectral) is SpectralConv else fold

        width, stacks = config.upsample_initial_channel, len(config.resblock_kernel_sizes)
        pre = combine(config.dims[-1], width, config.pre_conv_kernel_size)
        table |= _both("norm", f"{backbone}.norm") | _normed("conv_pre", f"{head}.conv_pre", pre)
        for i in range(len(config.upsample_rates)):
            table |= _normed(f"ups.{i}.up", f"{head}.ups.{i}", fold_transposed)
            width //= 2
            for j, kernel in enumerate(config.resblock_kernel_sizes):
                ours, theirs = f"ups.{i}.stacks.{j}", f"{head}.resblocks.{i * stacks + j}"
                for k in range(len(config.resblock_dilations)):
                    for convs in ("convs1", "convs2"):
                        names = f"{ours}.{convs}.{k}", f"{theirs}.{convs}.{k}"
                        table |= _normed(*names, combine(width, width, kernel))
        return table | _normed("conv_post", f"{head}.conv_post")


def _rows(weight: Tensor) -> Tensor:
    """[Cout, Cin, K] to [Cout, K, Cin]."""
    return weight.transpose(1, 2).contiguous()


def _matrix(weight: Tensor) -> Tensor:
    """[Cout, Cin, 1] to [Cout, Cin]."""
    return weight.squeeze(2)


def _stem_bias(bias: Tensor, weight: Tensor) -> Tensor:
    return bias.float() + MEL_SHIFT * weight.float().sum((1, 2))


def _scaled(gamma: Tensor, tensor: Tensor) -> Tensor:
    """Rows of a matrix, or a bias, times their channel's factor, in fp32."""
    return gamma.float().view(-1, *[1] * (tensor.dim() - 1)) * tensor.float()


def _both(ours: str, theirs: str, combine: Callable[[Tensor], Tensor] | None = None) -> WeightTable:
    return {f"{ours}.weight": Source((f"{theirs}.weight",), combine), f"{ours}.bias": Source((f"{theirs}.bias",))}


def _normed(ours: str, theirs: str, combine: Callable[..., Tensor] = fold) -> WeightTable:
    """A convolution with weight norm."""
    return {
        f"{ours}.weight": Source((f"{theirs}.weight_g", f"{theirs}.weight_v"), combine),
        f"{ours}.bias": Source((f"{theirs}.bias",)),
    }


def _convnext(ours: str, theirs: str) -> WeightTable:
    return {
        f"{ours}.depth": Source((f"{theirs}.dwconv.weight",), lambda w: w[:, 0].t()),
        f"{ours}.depth_bias": Source((f"{theirs}.dwconv.bias",)),
        **_both(f"{ours}.norm", f"{theirs}.norm"),
        **_both(f"{ours}.up", f"{theirs}.pwconv1"),
        f"{ours}.down.weight": Source((f"{theirs}.gamma", f"{theirs}.pwconv2.weight"), _scaled),
        f"{ours}.down.bias": Source((f"{theirs}.gamma", f"{theirs}.pwconv2.bias"), _scaled),
    }
