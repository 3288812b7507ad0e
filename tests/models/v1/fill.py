"""Tiny networks of v1 with the weights that upstream's had when ``tests/golden/v1`` was made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from acefast.models.v1 import names
from acefast.models.v1.config import Config
from acefast.ops.philox import philox_normal

GOLDEN = Path(__file__).parents[2] / "golden" / "v1"
# 21 blocks: those that ERG weakens, 15 to 19, and some on either side
TINY = Config(
    num_layers=21,
    num_attention_heads=2,
    attention_head_dim=16,
    speaker_embedding_dim=8,
    text_embedding_dim=24,
    lyric_encoder_vocab_size=48,
    lyric_hidden_size=64,
    lyric_heads=4,
    lyric_intermediate_size=96,
)
UMT5 = dict(vocab_size=64, d_model=24, d_kv=8, d_ff=40, num_heads=3, num_layers=12, feed_forward_proj="gated-gelu")


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, the same on every machine."""
    return philox_normal([seed], shape)[0]


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """A tensor for each name, at a scale that keeps activations near 1; all are one draw, by order of the names."""
    numbers, tensors, at = normal(seed, sum(map(math.prod, shapes.values()))), {}, 0
    for name in sorted(shapes):
        shape = shapes[name]
        x = numbers[at : at + math.prod(shape)].view(shape)
        at += x.numel()
        if "norm" in name.rsplit(".", 2)[-2] or ".out.1." in name or "early_conv_layers.1." in name:
            x = 0.2 * x + (1 if name.endswith("weight") else 0)
        elif name.endswith("weight") and "embs" not in name:
            x = x / math.prod(shape[1:]) ** 0.5
        elif not name.endswith("weight"):
            x = 0.2 * x  # biases and tables
        tensors[name] = x
    return tensors


def official_tensors(config: Config = TINY, seed: int = 1) -> dict[str, Tensor]:
    """The transformer's tensors and the condition encoder's by their names in an index."""
    return drawn(names.transformer_tensors(config) | names.condition_encoder_tensors(config), seed)


def ours(kind: type[nn.Module], config: Any, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32):
    """One of our modules, filled through its weight table."""
    with torch.device("meta"):
        module = kind(config)
    table, state = kind.weight_table(config), module.state_dict()
    assert table.keys() == state.keys()
    for name, source in table.items():
        parts = [tensors[n] for n in source.names]
        tensor = source.combine(*parts) if source.combine else parts[0]
        assert tensor.shape == state[name].shape, name
        state[name] = tensor.to(source.dtype or dtype).contiguous()
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def text_encoder(seed: int = 2) -> nn.Module:
    """A tiny ``UMT5EncoderModel`` of transformers, in eval mode."""
    from transformers import UMT5Config, UMT5EncoderModel

    model = UMT5EncoderModel(UMT5Config(**UMT5)).eval().requires_grad_(False)
    state = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    model.load_state_dict(drawn(state, seed))
    return model


def relative(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance, in fp64."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def golden(name: str) -> dict[str, Tensor]:
    """Upstream's numbers; the script beside the file says how they were made."""
    return load_file(GOLDEN / f"{name}.safetensors")


def upstream_latents(latents: Tensor) -> Tensor:
    """[B, T, 128] to upstream's [B, 8, 16, T]."""
    B, T, _ = latents.shape
    return latents.view(B, T, 16, 8).permute(0, 3, 2, 1)


def latents_of(upstream: Tensor) -> Tensor:
    """Upstream's [B, 8, 16, T] to [B, T, 128]."""
    return upstream.permute(0, 3, 2, 1).flatten(2)
