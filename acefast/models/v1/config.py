"""Sizes of the ACE-Step v1 networks, named as in the ``config.json`` of each folder of the checkpoint.

A latent frame is 8 channels of 16 frequency rows, 4096 samples at 44.1 kHz. Here it is one row of 128 numbers, number
``row * 8 + channel``: the order in which the transformer's last layer writes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from acefast.models.v15.config import checked

RATE = 44_100  # Hz of the codec
MEL_HOP = 512  # samples of a mel frame
MELS = 128
FRAME = 4096  # samples of a latent frame: eight mel frames
ROWS = 16  # frequency rows of a latent frame
NULL_SCALE = 0.01  # of queries, where entropy-rectified guidance (ERG) weakens attention


@dataclass(frozen=True)
class Config:
    """Sizes of the transformer with its lyric encoder. The lyric encoder's, from its depth on, are in no config."""

    num_layers: int = 24
    num_attention_heads: int = 20
    attention_head_dim: int = 128
    mlp_ratio: float = 2.5
    in_channels: int = 8
    out_channels: int = 8
    patch_size: tuple[int, ...] = (16, 1)
    rope_theta: float = 1e6
    speaker_embedding_dim: int = 512
    text_embedding_dim: int = 768
    lyric_encoder_vocab_size: int = 6693
    lyric_hidden_size: int = 1024
    lyric_layers: int = 6
    lyric_heads: int = 16
    lyric_intermediate_size: int = 4096
    patch_hidden_size: int = 2048

    @property
    def hidden_size(self) -> int:
        """Width of the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_hidden_size(self) -> int:
        """Channels behind the gate of the feed-forward."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def frame_size(self) -> int:
        """Numbers of a latent frame."""
        return self.in_channels * self.patch_size[0]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Read a ``config.json`` of ``ACEStepTransformer2DModel``; raises ValueError where a value cannot be one."""
        return cls(**checked(values, {f.name: f.default for f in dataclasses.fields(cls)}))


@dataclass(frozen=True)
class DCAEConfig:
    """Sizes of the mel autoencoder, diffusers' ``AutoencoderDC``: residual blocks, at the innermost width attention."""

    in_channels: int = 2
    latent_channels: int = 8
    attention_head_dim: int = 32
    block_out_channels: tuple[int, ...] = (128, 256, 512, 1024)
    encoder_layers_per_block: tuple[int, ...] = (2, 2, 3, 3)
    decoder_layers_per_block: tuple[int, ...] = (3, 3, 3, 3)


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the vocoder, ``ADaMoSHiFiGANV1``: ConvNeXt on mel frames, then HiFi-GAN."""

    input_channels: int = 128
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (128, 256, 384, 512)
    upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11, 13)
    resblock_dilations: tuple[int, ...] = (1, 3, 5)
    upsample_initial_channel: int = 1024
    pre_conv_kernel_size: int = 13
    post_conv_kernel_size: int = 13
