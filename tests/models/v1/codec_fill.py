"""Tiny codecs with random weights, the same everywhere: ours, and the tensors under the checkpoint's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from acefast.models.v1.config import DCAEConfig, VocoderConfig
from acefast.ops.philox import philox_normal
from acefast.weights import WeightTable

DCAE = DCAEConfig(attention_head_dim=8, block_out_channels=(8, 16, 32, 64))
VOCODER = VocoderConfig(
    depths=(1, 1, 2, 1),
    dims=(16, 24, 32, 48),
    upsample_initial_channel=256,
)
# The same in fewer stages: what is tested on many frames.
SHORT = dataclasses.replace(
    VOCODER, upsample_initial_channel=64, upsample_rates=(4, 4, 4, 8), upsample_kernel_sizes=(8, 8, 8, 16)
)


def normal(seed: int, *shape: int) -> Tensor:
    """Numbers that do not depend on the machine."""
    return philox_normal([seed], shape)[0]


def scaled(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Tensors that keep activations near 1: weights by fan-in, norms near 1, small biases."""
    tensors = {}
    for i, (name, shape) in enumerate(shapes.items()):
        x = normal(seed + i, *shape)
        if "norm" in name or name.endswith((".0.1.weight", "gamma")) or (len(shape) == 1 and name.endswith("weight")):
            x = (0.0 if name.endswith("bias") else 1.0) + 0.2 * x
        elif name.endswith("weight_g"):
            x = (0.3 if "convs2" in name else 2.0 if ".ups." in name else 1.4) * (1 + 0.1 * x)
        elif name.endswith("bias"):
            x = 0.2 * x
        elif not name.endswith("weight_v"):
            x = x / x[0].numel() ** 0.5
        tensors[name] = x
    return tensors


def fill(module: nn.Module, table: WeightTable, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32):
    """``module``, built on "meta", with its weights by ``table``."""
    state = module.state_dict()
    assert table.keys() == state.keys(), sorted(table.keys() ^ state.keys())
    for name, source in table.items():
        parts = [tensors[n] for n in source.names]
        tensor = source.combine(*parts) if source.combine else parts[0]
        assert tensor.shape == state[name].shape, name
        state[name] = tensor.to(source.dtype or dtype).contiguous()
    module.load_state_dict(state, assign=True)
    return module.eval()


def relative(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance, in fp64."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def diffusers_dcae(config: DCAEConfig, tensors: Mapping[str, Tensor] | None = None):
    """Diffusers' AutoencoderDC in ACE-Step v1's structure; ``tensors`` as ``dcae.encoder...``."""
    from diffusers import AutoencoderDC

    kinds = ["ResBlock"] * 3 + ["EfficientViTBlock"]
    sides = {}
    for side in ("encoder", "decoder"):
        sides[f"{side}_block_types"] = kinds
        sides[f"{side}_block_out_channels"] = config.block_out_channels
        sides[f"{side}_layers_per_block"] = getattr(config, f"{side}_layers_per_block")
        sides[f"{side}_qkv_multiscales"] = ((), (), (5,), (5,))
    model = AutoencoderDC(
        in_channels=config.in_channels,
        latent_channels=config.latent_channels,
        attention_head_dim=config.attention_head_dim,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        **sides,
    )
    if tensors is not None:
        model.load_state_dict({name.removeprefix("dcae."): x for name, x in tensors.items()})
    return model.eval().requires_grad_(False)


def dcae_tensors(config: DCAEConfig, seed: int = 1000) -> dict[str, Tensor]:
    """Every tensor of the autoencoder, by its name in a checkpoint's index."""
    shapes = {f"dcae.{k}": tuple(v.shape) for k, v in diffusers_dcae(config).state_dict().items()}
    return scaled(shapes, seed)


def values(config) -> dict:
    """A config as keyword arguments."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def vocoder_shapes(config: VocoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the vocoder, by its name in a checkpoint's index."""
    shapes: dict[str, tuple[int, ...]] = {}

    def both(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def normed(name: str, *shape: int, bias: int) -> None:
        shapes[f"{name}.bias"], shapes[f"{name}.weight_g"], shapes[f"{name}.weight_v"] = (
            (bias,),
            (shape[0], 1, 1),
            shape,
        )

    backbone, head, dims = "vocoder.backbone", "vocoder.head", config.dims
    both(f"{backbone}.channel_layers.0.0", dims[0], config.input_channels, 7)
    both(f"{backbone}.channel_layers.0.1", dims[0])
    for i, (a, b) in enumerate(pairwise(dims), 1):
        both(f"{backbone}.channel_layers.{i}.0", a)
        both(f"{backbone}.channel_layers.{i}.1", b, a, 1)
    for s, (count, C) in enumerate(zip(config.depths, dims)):
        for b in range(count):
            block = f"{backbone}.stages.{s}.{b}"
            shapes[f"{block}.gamma"] = (C,)
            both(f"{block}.dwconv", C, 1, 7)
            both(f"{block}.norm", C)
            both(f"{block}.pwconv1", 4 * C, C)
            both(f"{block}.pwconv2", C, 4 * C)
    both(f"{backbone}.norm", dims[-1])
    width = config.upsample_initial_channel
    normed(f"{head}.conv_pre", width, dims[-1], config.pre_conv_kernel_size, bias=width)
    for i, kernel in enumerate(config.upsample_kernel_sizes):
        width //= 2
        normed(f"{head}.ups.{i}", 2 * width, width, kernel, bias=width)
        for j, k in enumerate(config.resblock_kernel_sizes):
            name = f"{head}.resblocks.{i * len(config.resblock_kernel_sizes) + j}"
            for convs in ("convs1", "convs2"):
                for d in range(len(config.resblock_dilations)):
                    normed(f"{name}.{convs}.{d}", width, width, k, bias=width)
    normed(f"{head}.conv_post", 1, width, config.post_conv_kernel_size, bias=1)
    return shapes


def vocoder_tensors(config: VocoderConfig, seed: int = 2000) -> dict[str, Tensor]:
    """All of them, filled."""
    return scaled(vocoder_shapes(config), seed)


def latents(T: int = 3, B: int = 1) -> Tensor:
    """[B, T, 128] in the model's scale."""
    return normal(31, B, T, 128)


def mel(M: int = 6, B: int = 2) -> Tensor:
    """[B, M, 128], normalised."""
    return normal(32, B, M, 128).clamp(-1.5, 1.5)


def sound(N: int = 3 * 4096 + 1000) -> Tensor:
    """[2, N], noise that grows from silence."""
    return normal(33, 2, N) * torch.linspace(0, 0.3, N)


def padded(audio: Tensor) -> Tensor:
    """With zeros up to a whole latent frame."""
    return torch.nn.functional.pad(audio, (0, -audio.shape[1] % 4096))
