"""The DiT bundle for training: plain modules whose state dict has the official tensor names.

The same functions as ``acefast.models.v15``, written for autograd: timesteps differ within a batch, nothing is fused or
kept. ``tests/test_demo_training.py`` holds the two to each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.models.v15.config import Config
from acefast.models.v15.layers import layer_window, time_features


class RMSNorm(nn.RMSNorm):
    """In fp32, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight, self.eps)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``scaled_dot_product_attention`` with a bool mask, [B, heads, S, D].

    Written out: on a CPU with fast bf16 products a training step of the transformer takes three quarters of the time.
    """
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys; rotated where ``rope`` is given."""

    def __init__(self, width: int, heads: int, kv_heads: int, c: Config):
        super().__init__()
        D = self.head_dim = c.head_dim
        self.group = heads // kv_heads
        self.q_proj = nn.Linear(width, heads * D, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * D, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * D, bias=False)
        self.o_proj = nn.Linear(heads * D, width, bias=False)
        self.q_norm = RMSNorm(D, eps=c.rms_norm_eps)
        self.k_norm = RMSNorm(D, eps=c.rms_norm_eps)

    def forward(self, x: Tensor, y: Tensor, rope: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [B, S, W] attends to y [B, E, W] where ``mask`` (bool, broadcast to [B, heads, S, E]) is true."""
        q, k, v = (p(z).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
                   for p, z in ((self.q_proj, x), (self.k_proj, y), (self.v_proj, y)))  # fmt: skip
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = _rotated(q, rope), _rotated(k, rope)
        k, v = (z.repeat_interleave(self.group, 1) for z in (k, v))
        out = attention(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))


def rope_of(rows: int, c: Config) -> Tensor:
    """cos and sin of the angles, [2, rows, head_dim / 2]."""
    frequency = c.rope_theta ** (-torch.arange(0, c.head_dim, 2) / c.head_dim)
    angle = torch.arange(rows)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()))


def _rotated(x: Tensor, rope: Tensor) -> Tensor:
    (a, b), (cos, sin) = x.chunk(2, -1), rope
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def window_mask(rows: int, window: int | None) -> Tensor | None:
    """[rows, rows] bool, or None where all is seen."""
    if window is None or window >= rows - 1:
        return None
    i = torch.arange(rows)
    return (i[:, None] - i).abs() <= window


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, intermediate: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, intermediate, bias=False)
        self.up_proj = nn.Linear(width, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class EncoderLayer(nn.Module):
    """Pre-norm and bidirectional."""

    def __init__(self, c: Config):
        super().__init__()
        W, eps = c.encoder_hidden_size, c.rms_norm_eps
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(W, eps=eps), RMSNorm(W, eps=eps)
        self.self_attn = Attention(W, c.encoder_num_attention_heads, c.encoder_num_key_value_heads, c)
        self.mlp = MLP(W, c.encoder_intermediate_size)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None) -> Tensor:
        h = self.input_layernorm(x)
        x = x + self.self_attn(h, h, rope, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nn.Module):
    """Encoder layers and a norm, with what the parts that have one put in front of it."""

    def __init__(self, c: Config, layers: int, inp: int, tokens: dict[str, int] | None = None):
        super().__init__()
        W = c.encoder_hidden_size
        self.config = c
        self.embed_tokens = nn.Linear(inp, W)
        for name, rows in (tokens or {}).items():
            self.register_parameter(name, nn.Parameter(torch.randn(1, rows, W) * 0.02))
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(layers))
        self.norm = RMSNorm(W, eps=c.rms_norm_eps)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embedded x [B, S, W]; ``valid`` [B, S] bool marks the rows that are seen."""
        S = x.shape[1]
        rope = rope_of(S, self.config)
        for i, layer in enumerate(self.layers):
            mask = window_mask(S, layer_window(self.config, i))
            if valid is not None:
                mask = valid[:, None, None] if mask is None else valid[:, None, None] & mask
            x = layer(x, rope, mask)
        return self.norm(x)


class ConditionEncoder(nn.Module):
    """Text projector, lyric encoder and timbre encoder."""

    def __init__(self, c: Config):
        super().__init__()
        self.timbre_token = c.timbre_token
        self.text_projector = nn.Linear(c.text_hidden_dim, c.encoder_hidden_size, bias=False)
        self.lyric_encoder = Stack(c, c.num_lyric_encoder_hidden_layers, c.text_hidden_dim)
        self.timbre_encoder = Stack(
            c, c.num_timbre_encoder_hidden_layers, c.audio_acoustic_hidden_dim, {"special_token": 1}
        )

    def forward(
        self, text: Tensor, text_valid: Tensor, lyrics: Tensor, lyrics_valid: Tensor, timbre: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Conditions [B, Ll + 1 + Lt, W] and which rows are valid.

        They are not packed: cross-attention has no positions, so leaving a row out is the same as moving it away.

        Args:
            text, lyrics: states and embeddings [B, L, text width]; ``_valid``: [B, L] bool.
            timbre: reference latents [B or 1, F, D].
        """
        references = self.timbre_encoder.embed_tokens(timbre)
        if self.timbre_token:
            token = self.timbre_encoder.special_token.expand(len(timbre), -1, -1)
            references = torch.cat((token, references), 1)
        vector = self.timbre_encoder(references)[:, :1].expand(len(text), -1, -1)
        words = self.lyric_encoder(self.lyric_encoder.embed_tokens(lyrics), lyrics_valid)
        valid = torch.cat((lyrics_valid, lyrics_valid.new_ones(len(text), 1), text_valid), 1)
        return torch.cat((words, vector, self.text_projector(text)), 1), valid


class TimeEmbedding(nn.Module):
    """[B] thousandths to the embedding [B, H] and its six vectors [B, 6, H]."""

    def __init__(self, H: int):
        super().__init__()
        self.linear_1, self.linear_2, self.time_proj = nn.Linear(256, H), nn.Linear(H, H), nn.Linear(H, 6 * H)

    def forward(self, times: Tensor) -> tuple[Tensor, Tensor]:
        e = self.linear_2(F.silu(self.linear_1(time_features(times))))
        return e, self.time_proj(F.silu(e)).unflatten(-1, (6, -1))


class Layer(nn.Module):
    """Self-attention, cross-attention and MLP; the timestep modulates the first and the last."""

    def __init__(self, c: Config):
        super().__init__()
        H, eps = c.hidden_size, c.rms_norm_eps
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, H) * H**-0.5)
        for name in ("self_attn", "cross_attn"):
            self.add_module(f"{name}_norm", RMSNorm(H, eps=eps))
            self.add_module(name, Attention(H, c.num_attention_heads, c.num_key_value_heads, c))
        self.mlp_norm, self.mlp = RMSNorm(H, eps=eps), MLP(H, c.intermediate_size)

    def forward(
        self, x: Tensor, modulation: Tensor, rope: Tensor, mask: Tensor | None, conditions: Tensor, valid: Tensor
    ) -> Tensor:
        s1, k1, g1, s2, k2, g2 = (self.scale_shift_table + modulation).split(1, 1)
        h = self.self_attn_norm(x) * (1 + k1) + s1
        x = x + g1 * self.self_attn(h, h, rope, mask)
        x = x + self.cross_attn(self.cross_attn_norm(x), conditions, None, valid)
        return x + g2 * self.mlp(self.mlp_norm(x) * (1 + k2) + s2)


class Transformer(nn.Module):
    """The velocity ``noise - data``."""

    def __init__(self, c: Config):
        super().__init__()
        H, P = c.hidden_size, c.patch_size
        self.config = c
        self.proj_in = nn.ModuleDict({"1": nn.Conv1d(c.in_channels, H, P, P)})
        self.proj_out = nn.ModuleDict({"1": nn.ConvTranspose1d(H, c.audio_acoustic_hidden_dim, P, P)})
        self.time_embed, self.time_embed_r = TimeEmbedding(H), TimeEmbedding(H)
        self.condition_embedder = nn.Linear(c.encoder_hidden_size, H)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm_out = RMSNorm(H, eps=c.rms_norm_eps)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, H) * H**-0.5)

    def forward(
        self, latents: Tensor, t: Tensor, context: Tensor, conditions: Tensor, valid: Tensor, tap: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Velocity [B, T, D] of noisy latents, and the hidden states [B, S, H] behind ``tap`` layers.

        Args:
            latents: [B, T, D]; t: [B] in 0..1; context: [B, T, 2 * D], source latents and mask.
            conditions, valid: of ``ConditionEncoder``.
        """
        c, T = self.config, latents.shape[1]
        e, m = (a + b for a, b in zip(self.time_embed(1000 * t), self.time_embed_r(0 * t)))
        frames = F.pad(torch.cat((context, latents), -1), (0, 0, 0, -T % c.patch_size))
        x = self.proj_in["1"](frames.transpose(1, 2)).transpose(1, 2).float()
        conditions, valid = self.condition_embedder(conditions), valid[:, None, None]
        rope, tapped = rope_of(x.shape[1], c), x
        for i, layer in enumerate(self.layers):
            x = layer(x, m, rope, window_mask(x.shape[1], layer_window(c, i)), conditions, valid)
            tapped = x if i + 1 == tap else tapped
        shift, scale = (self.scale_shift_table + e[:, None]).split(1, 1)
        x = self.norm_out(x) * (1 + scale) + shift
        return self.proj_out["1"](x.transpose(1, 2)).transpose(1, 2)[:, :T], tapped


class AudioTokenizer(nn.Module):
    """Latents to the quantised summary of every five frames."""

    def __init__(self, c: Config):
        super().__init__()
        W, n = c.encoder_hidden_size, len(c.fsq_input_levels)
        self.config = c
        self.audio_acoustic_proj = nn.Linear(c.audio_acoustic_hidden_dim, W)
        self.attention_pooler = Stack(c, c.num_attention_pooler_hidden_layers, W, {"special_token": 1})
        self.quantizer = nn.ModuleDict({"project_in": nn.Linear(W, n), "project_out": nn.Linear(n, W)})

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D], T a multiple of five, to the quantised [B, T / 5, W] and the six numbers behind it.

        Rounding has the gradient of no rounding.
        """
        pooler, size = self.attention_pooler, self.config.pool_window_size
        groups = pooler.embed_tokens(self.audio_acoustic_proj(latents.unflatten(1, (-1, size)).flatten(0, 1)))
        groups = torch.cat((pooler.special_token.expand(len(groups), -1, -1), groups), 1)
        z = self.quantizer["project_in"](pooler(groups)[:, 0])
        last = torch.tensor(self.config.fsq_input_levels) - 1.0
        y = ((z / (1 + 1 / last)).tanh() * (1 + 1 / last)).clamp(-1, 1)
        rounded = (last * (y + 1) / 2 + 0.5).floor() * 2 / last - 1
        values = (y + (rounded - y).detach()).unflatten(0, (len(latents), -1))
        return self.quantizer["project_out"](values), values


class Detokenizer(Stack):
    """Summaries [B, N, W] to latent hints [B, 5 * N, D]."""

    def __init__(self, c: Config):
        W = c.encoder_hidden_size
        super().__init__(c, c.num_attention_pooler_hidden_layers, W, {"special_tokens": c.pool_window_size})
        self.proj_out = nn.Linear(W, c.audio_acoustic_hidden_dim)

    def hints(self, summaries: Tensor) -> Tensor:
        groups = self.embed_tokens(summaries).flatten(0, 1)[:, None] + self.special_tokens
        return self.proj_out(self(groups)).unflatten(0, (len(summaries), -1)).flatten(1, 2)


class Bundle(nn.Module):
    """All of a ``model.safetensors``, under its names."""

    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.decoder, self.encoder = Transformer(c), ConditionEncoder(c)
        self.tokenizer, self.detokenizer = AudioTokenizer(c), Detokenizer(c)
        self.null_condition_emb = nn.Parameter(torch.randn(1, 1, c.encoder_hidden_size) * 0.02)
        for name, p in self.named_parameters():
            if p.dim() > 1 and "embed" not in name and "special" not in name and "table" not in name:
                nn.init.normal_(p, std=0.02 if "null" in name else p[0].numel() ** -0.5)
        for name in ("self_attn", "mlp"):  # the layers begin as the identity and the velocity as zero
            for layer in self.decoder.layers:
                last = getattr(layer, name)
                nn.init.zeros_((last.o_proj if name == "self_attn" else last.down_proj).weight)
                nn.init.zeros_(layer.cross_attn.o_proj.weight)
        nn.init.zeros_(self.decoder.proj_out["1"].weight)
