"""ACE-Step v1's mel autoencoder: 8 channels of 16 frequency rows, 10.77 frames a second, and log-mel of 8 times both.

Images are [B, time, frequency, C], see acefast.models.v1.dcae_layers. Either half has a local part, ``steps``, and the
blocks at the latents' rate, whose linear attention sums over all frames of a song: they run over the whole song, in
pieces that need bounded memory but for an image in and one out, of 64 kB a frame in fp32.

Source: AutoencoderDC in huggingface/diffusers autoencoder_dc.py, with the configuration of ACE-Step v1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acefast.models.v1 import local
from acefast.models.v1.config import DCAEConfig
from acefast.models.v1.dcae_layers import (
    PIECE,
    RES_REACH,
    Conv2d,
    Down,
    EfficientViT,
    ResBlock,
    RMSNorm,
    Up,
    conv_entries,
    norm_entries,
    res_entries,
    up_entries,
    vit_entries,
)
from acefast.models.v1.local import Rows, Step
from acefast.weights import WeightTable


class MelDecoder(nn.Module):
    """Latents to mel: ``latent`` for the whole song, then ``steps``, which are local; ``fast_filters`` for a CPU."""

    def __init__(self, config: DCAEConfig, fast_filters: bool = False):
        super().__init__()
        self.widths = config.block_out_channels[::-1]
        *layers, blocks = config.decoder_layers_per_block
        self.conv_in = Conv2d(config.latent_channels, self.widths[0])
        self.blocks = nn.ModuleList(EfficientViT(self.widths[0], config.attention_head_dim) for _ in range(blocks))
        self.levels = nn.ModuleList(
            nn.ModuleList([Up(width, fast_filters), *(ResBlock(width, fast_filters) for _ in range(count))])
            for width, count in zip(self.widths[1:], layers[::-1])
        )
        self.norm = RMSNorm(self.widths[-1])
        self.conv_out = Conv2d(self.widths[-1], config.in_channels)

    def latent(self, z: Tensor) -> Tensor:
        """What attention makes of latents.

        Args:
            z: [B, T, 16, 8] of the whole song, in the autoencoder's scale and the weights' dtype.
        Returns:
            [B, T, 16, 1024].
        """
        x = torch.cat([local.run([Step(self._in, 1)], Rows(z, 0, z.shape[1]), *p).x for p in _pieces(z)], 1)
        for block in self.blocks:
            x = block(x)
        return x

    def _in(self, z: Tensor) -> Tensor:
        return self.conv_in(z) + z.repeat_interleave(self.widths[0] // z.shape[3], 3)

    def steps(self) -> list[Step]:
        """From what ``latent`` returns to mel [B, 8 * T, 128, 2], normalised to -1..1."""
        steps = []
        for up, *blocks in self.levels:
            steps += [Step(up, 1, up=2), *(Step(block, RES_REACH) for block in blocks)]
        return [*steps, Step(self._out, 1)]

    def _out(self, x: Tensor) -> Tensor:
        return self.conv_out(self.norm(x, relu=True))

    def forward(self, z: Tensor) -> Tensor:
        """All of it at once: z as for ``latent``, the mel as of ``steps``."""
        T = z.shape[1]
        return local.run(self.steps(), Rows(self.latent(z), 0, T), 0, T << len(self.levels)).x

    @staticmethod
    def weight_table(config: DCAEConfig, fast_filters: bool = False) -> WeightTable:
        """Our parameters and the checkpoint's tensors they are made of."""
        table, deepest = conv_entries("conv_in", "dcae.decoder.conv_in"), len(config.block_out_channels) - 1
        for b in range(config.decoder_layers_per_block[-1]):
            table |= vit_entries(f"blocks.{b}", f"dcae.decoder.up_blocks.{deepest}.{b}", config.attention_head_dim)
        for i in range(deepest):  # stored with the lowest rate last
            theirs = f"dcae.decoder.up_blocks.{deepest - 1 - i}"
            table |= up_entries(f"levels.{i}.0", f"{theirs}.0", fast_filters)
            for b in range(config.decoder_layers_per_block[deepest - 1 - i]):
                table |= res_entries(f"levels.{i}.{b + 1}", f"{theirs}.{b + 1}", fast_filters)
        return table | norm_entries("norm", "dcae.decoder.norm_out") | conv_entries("conv_out", "dcae.decoder.conv_out")


class MelEncoder(nn.Module):
    """Mel to latents: ``steps``, which are local, then ``latent`` for the whole song; ``fast_filters`` for a CPU."""

    def __init__(self, config: DCAEConfig, fast_filters: bool = False):
        super().__init__()
        self.widths, self.latent_channels = config.block_out_channels, config.latent_channels
        *layers, blocks = config.encoder_layers_per_block
        self.conv_in = Conv2d(config.in_channels, self.widths[0])
        self.levels = nn.ModuleList(
            nn.ModuleList([*(ResBlock(width, fast_filters) for _ in range(count)), Down(width)])
            for width, count in zip(self.widths, layers)
        )
        self.blocks = nn.ModuleList(EfficientViT(self.widths[-1], config.attention_head_dim) for _ in range(blocks))
        self.conv_out = Conv2d(self.widths[-1], config.latent_channels)

    def steps(self) -> list[Step]:
        """From mel [B, 8 * T, 128, 2] to [B, T, 16, 1024]."""
        steps = [Step(self.conv_in, 1)]
        for *blocks, down in self.levels:
            steps += [*(Step(block, RES_REACH) for block in blocks), Step(down, 1, down=2)]
        return steps

    def latent(self, x: Tensor) -> Tensor:
        """[B, T, 16, 8], in the autoencoder's scale, of what ``steps`` make of the whole song; overwrites x."""
        for block in self.blocks:
            x = block(x)
        return torch.cat([local.run([Step(self._out, 1)], Rows(x, 0, x.shape[1]), *p).x for p in _pieces(x)], 1)

    def _out(self, x: Tensor) -> Tensor:
        return self.conv_out(x) + x.unflatten(3, (self.latent_channels, -1)).mean(4)

    def forward(self, mel: Tensor) -> Tensor:
        """Latents [B, T, 16, 8] of mel [B, 8 * T, 128, 2], normalised, in the weights' dtype."""
        steps, T = self.steps(), mel.shape[1]
        frames = T >> len(self.levels)
        made = [local.run(steps, Rows(mel, 0, T), lo, hi).x for lo, hi in local.pieces(0, frames, PIECE)]
        return self.latent(torch.cat(made, 1))

    @staticmethod
    def weight_table(config: DCAEConfig, fast_filters: bool = False) -> WeightTable:
        """Our parameters and the checkpoint's tensors they are made of."""
        table = conv_entries("conv_in", "dcae.encoder.conv_in")
        *layers, blocks = config.encoder_layers_per_block
        for i, count in enumerate(layers):
            for b in range(count):
                table |= res_entries(f"levels.{i}.{b}", f"dcae.encoder.down_blocks.{i}.{b}", fast_filters)
            table |= conv_entries(f"levels.{i}.{count}.conv", f"dcae.encoder.down_blocks.{i}.{count}.conv")
        for b in range(blocks):
            theirs = f"dcae.encoder.down_blocks.{len(layers)}.{b}"
            table |= vit_entries(f"blocks.{b}", theirs, config.attention_head_dim)
        return table | conv_entries("conv_out", "dcae.encoder.conv_out")


def _pieces(x: Tensor) -> list[tuple[int, int]]:
    return [*local.pieces(0, x.shape[1], PIECE)]
