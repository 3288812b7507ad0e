"""In which 16 bits a GPU's kernels keep the audio autoencoder: fp16 where its activations have room in it, else bf16.

fp16 rounds eight times finer than bf16 and costs the same, but ends at 65504. So each half of the autoencoder is loaded
in fp16 and run once on a short fixed input; what it stores must stay below ``LARGEST``, which leaves a song's own
latents a factor of three.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from acefast.backends import cpu_multiplies, emulated_sm, kernels_take, use_backend
from acefast.devices import current
from acefast.models.v15 import vae
from acefast.models.v15.vae_layers import Conv, ConvTranspose, ResidualUnit, Snake
from acefast.ops.conv1d import conv1d
from acefast.ops.philox import philox_normal

LARGEST = 2e4
FRAMES = 32  # of the probe, 1.3 s

log = logging.getLogger(__name__)


def tries_fp16(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the autoencoder of a pipeline in ``dtype`` is to be stored in fp16 if its activations fit.

    On a GPU, in 16 bits, where the Triton kernels are what runs: they sum in fp32, and round when they store.
    """
    if device.type != "cuda":
        return False
    with current(device):
        return kernels_take(dtype, device)


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to load the autoencoder in when the pipeline's is ``dtype``.

    The same, except on a CPU that is slow at it (two AVX-512 cores: 280-320 GFLOP/s in fp32, 55-150 in emulated bf16)
    and does not stand in for a GPU: there it is fp32.
    """
    if device.type != "cpu" or emulated_sm() or cpu_multiplies(dtype):
        return dtype
    return torch.float32


def load_coder(load: Callable[[torch.dtype], nn.Module], dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The decoder or encoder in the dtype that suits it.

    Args:
        load: loads it, on ``device``, in the dtype that it is given.
        dtype: the pipeline's.
    """
    if not tries_fp16(dtype, device):
        return load(compute_dtype(dtype, device))
    module = load(torch.float16)
    with torch.inference_mode(), current(device):
        largest = largest_stored(module)
    name = type(module).__name__
    if largest < LARGEST:
        log.info("%s is kept in float16: it stores up to %.4g in a probe, below %g", name, largest, LARGEST)
        return module
    log.info("%s is kept in bfloat16: in float16 it stores up to %.4g in a probe, not below %g", name, largest, LARGEST)
    del module  # before the other takes memory
    return load(torch.bfloat16)


def largest_stored(module: vae.Decoder | vae.Encoder) -> float:
    """The largest absolute value that any layer stores in a run over the probe; infinite where one is not finite.

    The references run, which store all that the kernels do, and within residual units more.
    """
    found: list[Tensor] = []

    def see(_: nn.Module, __: tuple, stored: Tensor) -> None:
        found.append(stored.abs().amax().float())

    def look_into(unit: ResidualUnit, given: tuple[Tensor]) -> None:
        first = unit.snake1(given[0])  # seen, as is snake2's result, by their own hooks
        reach = unit.conv1.weight.shape[1] // 2 * unit.dilation
        stored = conv1d(first, unit.conv1.weight, unit.conv1.bias, padding=reach, dilation=unit.dilation)
        see(unit, given, stored)
        unit.snake2(stored)

    hooks = []
    for layer in module.modules():
        if isinstance(layer, (Snake, Conv, ConvTranspose, ResidualUnit)):
            hooks.append(layer.register_forward_hook(see))
        if isinstance(layer, ResidualUnit):
            hooks.append(layer.register_forward_pre_hook(look_into))
    try:
        with use_backend("reference"):
            module(_latents(module) if isinstance(module, vae.Decoder) else _sound(module))
    finally:
        for hook in hooks:
            hook.remove()
    largest = torch.stack(found).amax().item()  # of NaN NaN
    return largest if math.isfinite(largest) else math.inf


def _latents(decoder: vae.Decoder) -> Tensor:
    """[1, FRAMES, D]: standard normal."""
    return philox_normal([0], (FRAMES, decoder.latent_channels), device=decoder.conv1.weight.device)


def _sound(encoder: vae.Encoder) -> Tensor:
    """[1, channels, N]: noise clipped at full scale, then a square wave of 240 Hz, then silence."""
    samples, device = encoder.hop * FRAMES, encoder.conv1.weight.device
    sound = philox_normal([0], (encoder.channels, samples), device=device).clamp_(-1, 1)
    half, end = samples // 2, samples * 7 // 8
    sound[:, :, half:end] = 1 - 2 * (torch.arange(end - half, device=device) // 100 % 2)
    sound[:, :, end:] = 0
    return sound
