"""In which 16-bit dtype kernels keep the autoencoder: fp16, 8 times as precise as bf16, where its range suffices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from acefast.models.v15.vae import Decoder, Encoder
from acefast.models.v15.vae_tiling import kernels_take

RANGE = 2e4  # of fp16's 65504: what a song may reach beyond the probe is a factor of three
PROBE_FRAMES = 32  # 1.3 s


def load_stored(
    load: Callable[[torch.dtype], Decoder | Encoder], dtype: torch.dtype, device: torch.device
) -> Decoder | Encoder:
    """What ``load`` makes of a dtype: of fp16 if a probe stays in range, else of bf16.

    Of ``dtype`` itself, if that is fp32 or no kernels are in force.
    """
    if not kernels_take(dtype, device):
        return load(dtype)
    coder = load(torch.float16)
    return coder if largest_activation(coder) < RANGE else load(torch.bfloat16)  # infinity and NaN are not less


def largest_activation(coder: Decoder | Encoder) -> float:
    """The largest |value| that any launch of a tile stores, for latents or samples of noise; read back to the host."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        tile = coder.tile(1, PROBE_FRAMES)
        tile.memory.zero_()
        if isinstance(coder, Decoder):
            latents = torch.randn(1, PROBE_FRAMES, coder.latent_channels, generator=generator)
            tile.load(latents, torch.zeros_like(tile.place))
        else:
            tile.load(torch.rand(1, coder.channels, PROBE_FRAMES * coder.hop, generator=generator) * 2 - 1)
        return float(torch.stack([_after(launch, tile.memory) for launch in tile.launches]).max())


def _after(launch: Callable[[], object], memory: Tensor) -> Tensor:
    launch()
    return memory.abs().max()  # NaN if there is one
