"""The audio autoencoder (Oobleck) for training: plain modules whose state dict has the official tensor names.

Activations are [B, C, L] here. Weight norm is kept as ``weight_g`` and ``weight_v``, snake's parameters as logarithms,
so that writing a checkpoint renames nothing; ``acefast.models.v15.vae`` folds both when it loads one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.models.v15.config import VAEConfig

DILATIONS = (1, 3, 9)


class Snake(nn.Module):
    """``x + sin(exp(alpha) * x)**2 / (exp(beta) + 1e-9)``, alpha and beta [1, C, 1]."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return _Snake.apply(x, self.alpha.exp(), 1 / (self.beta.exp() + 1e-9))


class _Snake(torch.autograd.Function):
    """``x + r * sin(a * x)**2``; keeps x alone for the way back, which autograd would keep four tensors for."""

    @staticmethod
    def forward(ctx, x: Tensor, a: Tensor, r: Tensor) -> Tensor:
        ctx.save_for_backward(x, a, r)
        return torch.addcmul(x, (x * a).sin_().square_(), r)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a, r = ctx.saved_tensors
        sine = (x * (2 * a)).sin_()  # the derivative of sin(u)**2 is sin(2 * u)
        square = (x * a).sin_().square_()
        by_r = square.mul_(grad).sum((0, 2), keepdim=True)
        sine.mul_(grad)
        by_a = r * torch.mul(sine, x, out=square).sum((0, 2), keepdim=True)
        return torch.addcmul(grad, sine.mul_(a), r), by_a, by_r


class Conv(nn.Module):
    """A weight-normed convolution; ``transposed`` ones have their input first, and their norm is over the rest."""

    def __init__(
        self, inp: int, out: int, kernel: int, *, stride: int = 1, padding: int = 0, dilation: int = 1,
        bias: bool = True, transposed: bool = False, gain: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.stride, self.padding, self.dilation, self.transposed = stride, padding, dilation, transposed
        shape = (inp, out, kernel) if transposed else (out, inp, kernel)
        fan = 2 * inp if transposed else inp * kernel  # two taps of a transposed kernel meet in each output
        self.weight_v = nn.Parameter(torch.randn(shape) * gain * fan**-0.5)
        self.weight_g = nn.Parameter(self.weight_v.detach().flatten(1).norm(dim=1)[:, None, None])
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = torch._weight_norm(self.weight_v, self.weight_g, 0)
        if self.transposed:
            return F.conv_transpose1d(x, weight, self.bias, self.stride, self.padding)
        return F.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class ResidualUnit(nn.Module):
    """``x + conv1(snake(conv7(snake(x))))``; it begins near the identity."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.snake1, self.snake2 = Snake(channels), Snake(channels)
        self.conv1 = Conv(channels, channels, 7, padding=3 * dilation, dilation=dilation)
        self.conv2 = Conv(channels, channels, 1, gain=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class Block(nn.Module):
    """Three residual units and a change of rate: downwards behind them, upwards before them."""

    def __init__(self, inp: int, out: int, stride: int, up: bool):
        super().__init__()
        self.up = up
        self.snake1 = Snake(inp)
        change = Conv(inp, out, 2 * stride, stride=stride, padding=(stride + 1) // 2, transposed=up)
        self.add_module("conv_t1" if up else "conv1", change)
        for i, dilation in enumerate(DILATIONS):
            self.add_module(f"res_unit{i + 1}", ResidualUnit(out if up else inp, dilation))

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = self.conv_t1(self.snake1(x))
        x = self.res_unit3(self.res_unit2(self.res_unit1(x)))
        return x if self.up else self.conv1(self.snake1(x))


class Coder(nn.Module):
    """Encoder or decoder: a convolution, the blocks, a snake, a convolution."""

    def __init__(self, widths: list[int], strides: tuple[int, ...], inp: int, out: int, up: bool):
        super().__init__()
        self.conv1 = Conv(inp, widths[0], 7, padding=3)
        self.block = nn.ModuleList(Block(*sizes, up) for sizes in zip(widths, widths[1:], strides))
        self.snake1 = Snake(widths[-1])
        kernel = 7 if up else 3
        self.conv2 = Conv(widths[-1], out, kernel, padding=kernel // 2, bias=not up, gain=0.3 if up else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


class VAE(nn.Module):
    """48 kHz stereo to latents and back."""

    def __init__(self, v: VAEConfig):
        super().__init__()
        self.config, D = v, v.decoder_input_channels
        widths = [v.encoder_hidden_size * m for m in (1, *v.channel_multiples)]
        self.encoder = Coder(widths, v.downsampling_ratios, v.audio_channels, 2 * D, up=False)
        widths = [v.decoder_channels * m for m in (1, *v.channel_multiples)][::-1]
        self.decoder = Coder(widths, v.downsampling_ratios[::-1], D, v.audio_channels, up=True)
        nn.init.constant_(self.encoder.conv2.bias[D:], -4.0)  # little noise on the latents until they say something

    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2, N] to the posterior's mean and standard deviation, [B, T, D] each."""
        mean, scale = self.encoder(audio).transpose(1, 2).chunk(2, dim=-1)
        return mean, F.softplus(scale) + 1e-4

    def decode(self, latents: Tensor) -> Tensor:
        """[B, T, D] to [B, 2, hop * T]."""
        return self.decoder(latents.transpose(1, 2))

    @torch.no_grad()
    def rescale(self, scales: Tensor) -> None:
        """Divide latent channel c by ``scales[c]`` and let the decoder undo it: the same audio, other latents.

        The diffusion model wants latents of about unit size and the format has no place for a factor. The posterior's
        standard deviation, which only ``posterior="sample"`` uses, is rescaled to first order.
        """
        D = len(scales)
        out, inp = self.encoder.conv2, self.decoder.conv1
        out.weight_g[:D] /= scales[:, None, None]
        out.bias[:D] /= scales
        out.bias[D:] -= scales.log()  # softplus is nearly exp where deviations are small
        weight = torch._weight_norm(inp.weight_v, inp.weight_g, 0) * scales[None, :, None]
        inp.weight_v.copy_(weight)
        inp.weight_g.copy_(weight.flatten(1).norm(dim=1)[:, None, None])
