"""Audio codes: 25 Hz latents to 5 Hz codes (tokenizer) and back to 25 Hz hints (detokenizer)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.checks import check_shape
from acefast.models.v15.config import Config
from acefast.models.v15.layers import Encoder, Linear, linear_table, parameter
from acefast.ops.fsq import fsq, fsq_values
from acefast.weights import Source, WeightTable


class AudioTokenizer(nn.Module):
    """Pools every 5 latent frames into one of 64,000 codes."""

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        W = c.encoder_hidden_size
        self.frames = Linear(c.audio_acoustic_hidden_dim, W)
        self.embed = Linear(W, W)
        self.token = parameter(1, 1, W)  # stands in front of each group; what becomes of it is the group's summary
        self.encoder = Encoder(c, c.num_attention_pooler_hidden_layers)
        self.project = Linear(W, len(c.fsq_input_levels), dtype=torch.float32)

    @staticmethod
    def weight_table(config: Config) -> WeightTable:
        pooler = "tokenizer.attention_pooler"
        return {
            "token": Source((f"{pooler}.special_token",)),
            **linear_table("frames", "tokenizer.audio_acoustic_proj"),
            **linear_table("embed", f"{pooler}.embed_tokens"),
            **Encoder.weight_table("encoder", pooler, config.num_attention_pooler_hidden_layers),
            **linear_table("project", "tokenizer.quantizer.project_in", dtype=torch.float32),
        }

    def tokenize(self, latents: Tensor, silence: Tensor) -> Tensor:
        """Codes of latents.

        Args:
            latents: [B, T, 64] at 25 Hz, any float dtype.
            silence: [F, 64], F >= 4: the silence latent; its first frames fill up the last group.
        Returns:
            [B, ceil(T / 5)] int64, 0 .. 63999.
        Raises:
            ValueError: a shape is not as above.
        """
        c = self.config
        B, T, D = latents.shape
        size, dtype = c.pool_window_size, self.token.dtype
        check_shape("tokenize", "latents", latents, (B, T, c.audio_acoustic_hidden_dim), "[B, T, C]")
        missing = -T % size
        if missing:
            check_shape("tokenize", "silence", silence, (None, D), "[F, C]")
            latents = torch.cat((latents, silence[:missing].to(latents).expand(B, -1, -1)), dim=1)
        groups = self.embed(self.frames(latents.reshape(-1, size, D).to(dtype)))  # [B * N, 5, W]
        groups = torch.cat((self.token.expand(groups.shape[0], -1, -1), groups), dim=1)
        pooled = self.encoder(groups, first_row=True)[:, 0]  # [B * N, W]
        _, codes = fsq(self.project(pooled.float()), c.fsq_input_levels)
        return codes.view(B, -1)


class AudioDetokenizer(nn.Module):
    """Expands codes to hints: latent-like frames that a cover, or the planner's song, is generated from."""

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        W = c.encoder_hidden_size
        self.project = Linear(len(c.fsq_input_levels), W, dtype=torch.float32)  # the quantizer's way out
        self.embed = Linear(W, W)
        self.tokens = parameter(1, c.pool_window_size, W)  # position within the group
        self.encoder = Encoder(c, c.num_attention_pooler_hidden_layers)
        self.frames = Linear(W, c.audio_acoustic_hidden_dim)

    @staticmethod
    def weight_table(config: Config) -> WeightTable:
        return {
            "tokens": Source(("detokenizer.special_tokens",)),
            **linear_table("project", "tokenizer.quantizer.project_out", dtype=torch.float32),
            **linear_table("embed", "detokenizer.embed_tokens"),
            **Encoder.weight_table("encoder", "detokenizer", config.num_attention_pooler_hidden_layers),
            **linear_table("frames", "detokenizer.proj_out"),
        }

    def forward(self, codes: Tensor) -> Tensor:
        """Hints of codes.

        Args:
            codes: [B, N] int64 at 5 Hz; values outside 0 .. 63999 are clamped.
        Returns:
            [B, 5 * N, 64] in the model's dtype.
        Raises:
            ValueError: a shape is not as above.
        """
        B, N = codes.shape
        check_shape("detokenize", "codes", codes, (B, N), "[B, N]")
        values = fsq_values(codes.reshape(-1), self.config.fsq_input_levels)  # [B * N, 6]
        quantized = F.linear(values, self.project.weight, self.project.bias).to(self.tokens.dtype)
        groups = self.embed(quantized)[:, None] + self.tokens  # [B * N, 5, W]
        return self.frames(self.encoder(groups)).view(B, -1, self.config.audio_acoustic_hidden_dim)
