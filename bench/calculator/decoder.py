"""Work of the latent decoder (Oobleck): the fused plan's 28 launches a tile, and plain PyTorch's."""

from __future__ import annotations

import math

from acefast.models.v15.config import VAEConfig
from bench.calculator.work import FP32, HALF, Kernel, elementwise, matmul

DILATIONS = (1, 3, 9)
FUSED = 256  # channels up to which a residual unit is one launch
HALO = 9  # frames a side that a kept frame's audio depends on
TILE, EAGER_TILE, EAGER_HALO = 1024, 512, 64


def levels(vae: VAEConfig) -> list[tuple[int, int, int]]:
    """Input channels, output channels and stride of each block, from the latents on."""
    widths = [vae.decoder_channels * m for m in (1, *vae.channel_multiples)][::-1]
    return list(zip(widths, widths[1:], vae.downsampling_ratios[::-1]))


def halo(vae: VAEConfig) -> float:
    """Frames a side that the decoder sees: 3 rows of the first and last convolution, and what the blocks need."""
    rate, reach = 1.0, 3.0
    for _, _, stride in levels(vae):
        reach += 1.0 / rate  # a transposed convolution sees one row more on either side
        rate *= stride
        reach += sum(3 * d for d in DILATIONS) / rate
    return reach + 3.0 / rate


def fused(vae: VAEConfig, frames: int, batch: int) -> list[Kernel]:
    t, first = frames * batch, levels(vae)[0][0]
    latent, channels = vae.decoder_input_channels, vae.audio_channels
    kernels = [_conv("vae ends", "first convolution", 7, latent, first, t)]
    for wide, narrow, stride in levels(vae):
        product = matmul("vae transposed", f"transposed {wide}->{narrow} x{stride}", t, stride * narrow, 2 * wide)
        product.act = (t * wide + t * stride * narrow) * HALF
        product.kind = "convolution"
        kernels.append(product)
        t *= stride
        for d in DILATIONS:
            if narrow <= FUSED:
                kernels.append(_conv("vae units", f"residual unit C={narrow} d={d}", 8, narrow, narrow, t))
                continue
            second = matmul("vae units", f"1x1 + residual C={narrow}", t, narrow, narrow)
            second.act = 4 * t * narrow * HALF
            kernels += [_conv("vae units", f"convolution C={narrow} d={d}", 7, narrow, narrow, t), second]
    wide = levels(vae)[-1][1]
    last = Kernel("vae ends", "last convolution", "convolution", 2.0 * 7 * wide * channels * t, fp32=True)
    last.act = t * (wide * HALF + channels * FP32)
    return [*kernels, last]


def finish(vae: VAEConfig, frames: int, batch: int) -> list[Kernel]:
    """Samples brought to their level and format."""
    return [elementwise("vae ends", "PCM", frames * batch * vae.hop * vae.audio_channels * 2 * FP32)]


def eager(vae: VAEConfig, frames: int, batch: int) -> list[Kernel]:
    t, first = frames * batch, levels(vae)[0][0]
    kernels = _eager_conv("vae ends", 7, vae.decoder_input_channels, first, t, t)
    for wide, narrow, stride in levels(vae):
        kernels += _eager_snake(wide, t) + _eager_conv("vae transposed", 2, wide, narrow, t, t * stride, stride)
        t *= stride
        for _ in DILATIONS:
            for taps in (7, 1):
                kernels += _eager_snake(narrow, t) + _eager_conv("vae units", taps, narrow, narrow, t, t)
            kernels.append(elementwise("vae layout", "residual", narrow * t * 3 * HALF))
    wide = levels(vae)[-1][1]
    kernels += _eager_snake(wide, t) + _eager_conv("vae ends", 7, wide, vae.audio_channels, t, t)
    return [*kernels, elementwise("vae ends", "float, abs, max, scale", t * vae.audio_channels * 40, launches=10)]


def decoded(frames: int, tile: int = TILE, halo: int = HALO) -> tuple[int, int]:
    """Frames that are decoded where tiles drop their overlap, and tiles; the last tile may be shorter."""
    if frames <= tile:
        return frames, 1
    kept, tiles = tile - 2 * halo, math.ceil(frames / (tile - 2 * halo))
    spans = ((i * kept, min((i + 1) * kept, frames)) for i in range(tiles))
    return sum(min(frames, high + halo) - max(0, low - halo) for low, high in spans), tiles


def _conv(topic: str, name: str, taps: int, wide: int, narrow: int, rows: int) -> Kernel:
    weights = taps * wide * narrow
    return Kernel(topic, name, "convolution", 2.0 * weights * rows, rows * (wide + narrow) * HALF, weights * HALF)


def _eager_conv(topic: str, taps: int, wide: int, narrow: int, rows: int, out: int, stride: int = 1) -> list[Kernel]:
    """Weight norm, a layout change each way for half of the shapes, the convolution, its bias."""
    weights = taps * stride * wide * narrow
    act = (wide * rows + narrow * out) * HALF
    return [
        elementwise(topic, "weight norm", weights * 4 * HALF),
        elementwise("vae layout", "to channels last", wide * rows * HALF),
        Kernel(topic, "convolution", "convolution", 2.0 * weights * rows, act, weights * HALF),
        elementwise("vae layout", "to channels first", narrow * out * HALF),
        elementwise("vae layout", "bias", narrow * out * 2 * HALF),
    ]


def _eager_snake(width: int, rows: int) -> list[Kernel]:
    parts = [elementwise("vae snake", "snake part", width * rows * passes * HALF) for passes in (2, 2, 2, 2, 3)]
    return [*parts, elementwise("vae snake", "snake parameters", width * 16, launches=4)]
