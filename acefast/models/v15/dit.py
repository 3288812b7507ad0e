"""The diffusion transformer of ACE-Step 1.5: the velocity of noisy latents under prepared conditions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.checks import check_shape
from acefast.conditions import Conditions
from acefast.models.v15.config import Config
from acefast.models.v15.layers import (
    MLP,
    Linear,
    SelfAttention,
    TimeEmbedding,
    layer_window,
    linear,
    linear_table,
    model_time,
    parameter,
    residual_dtype,
)
from acefast.ops.cross_attention import cross_attention
from acefast.ops.qk_norm_rope import qk_norm_rope, rope_table
from acefast.ops.residual_norm import residual_norm
from acefast.weights import Source, WeightTable, stack

OP = "DiT"


class Modulation(NamedTuple):
    """What a timestep does to the model; fp32, since these constants act on all tokens alike."""

    layers: Tensor  # [6, H]: shift, scale, gate of self-attention, then of the MLP; each layer adds its own table
    out: Tensor  # [H]: shift and scale of the last norm alike


class CrossAttention(nn.Module):
    """Attention to the conditions: queries every step, keys and values once per song."""

    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.kv_heads, self.eps = c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps
        self.q = parameter(self.heads * c.head_dim, c.hidden_size)
        self.kv = parameter(2 * self.kv_heads * c.head_dim, c.hidden_size)
        self.o = parameter(c.hidden_size, self.heads * c.head_dim)
        self.q_norm = parameter(c.head_dim)
        self.k_norm = parameter(c.head_dim)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            f"{ours}.q": Source((f"{official}.q_proj.weight",)),
            f"{ours}.kv": Source((f"{official}.k_proj.weight", f"{official}.v_proj.weight"), stack),
            f"{ours}.o": Source((f"{official}.o_proj.weight",)),
            f"{ours}.q_norm": Source((f"{official}.q_norm.weight",)),
            f"{ours}.k_norm": Source((f"{official}.k_norm.weight",)),
        }

    def keys_values(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded conditions [B, E, H] -> normed keys and values, each [B, kv_heads, E, D] contiguous."""
        kv = linear(condition, self.kv)
        _, k, v = qk_norm_rope(kv, self.q_norm, self.k_norm, None, None, 0, self.kv_heads, eps=self.eps)
        return k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()

    def constant(self, null: Tensor) -> Tensor:
        """Output where every key is the same embedded condition [1, H]: whatever the query, its value. [H]"""
        v = linear(null, self.kv[self.kv.shape[0] // 2 :]).view(self.kv_heads, -1)
        return linear(v.repeat_interleave(self.heads // self.kv_heads, 0).view(1, -1), self.o)[0]

    def forward(self, h: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        """[B, S, H] -> [B, S, H]; k, v of ``keys_values``, lengths as in ``cross_attention``."""
        return linear(cross_attention(linear(h, self.q), self.q_norm, k, v, lengths, eps=self.eps), self.o)


class LayerCondition(NamedTuple):
    """What one layer's cross-attention needs of the conditions."""

    k: Tensor  # [B, kv_heads, E, D], normed
    v: Tensor  # [B, kv_heads, E, D]
    null: Tensor | None  # [H]: output of unconditional rows

    @classmethod
    def of(cls, attention: CrossAttention, condition: Tensor, null: Tensor | None) -> LayerCondition:
        return cls(*attention.keys_values(condition), None if null is None else attention.constant(null))


class Layer(nn.Module):
    """Self-attention, cross-attention and MLP, each behind a norm; the timestep modulates the first and the last."""

    def __init__(self, c: Config, window: int | None):
        super().__init__()
        self.window = window
        self.norm = functools.partial(residual_norm, eps=c.rms_norm_eps)
        self.table = parameter(6, c.hidden_size)
        self.self_norm = parameter(c.hidden_size)
        self.self_attention = SelfAttention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rms_norm_eps
        )
        self.cross_norm = parameter(c.hidden_size)
        self.cross_attention = CrossAttention(c)
        self.mlp_norm = parameter(c.hidden_size)
        self.mlp = MLP(c.hidden_size, c.intermediate_size)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            f"{ours}.table": Source((f"{official}.scale_shift_table",), lambda t: t[0]),
            f"{ours}.self_norm": Source((f"{official}.self_attn_norm.weight",)),
            f"{ours}.cross_norm": Source((f"{official}.cross_attn_norm.weight",)),
            f"{ours}.mlp_norm": Source((f"{official}.mlp_norm.weight",)),
            **SelfAttention.weight_table(f"{ours}.self_attention", f"{official}.self_attn"),
            **CrossAttention.weight_table(f"{ours}.cross_attention", f"{official}.cross_attn"),
            **MLP.weight_table(f"{ours}.mlp", f"{official}.mlp"),
        }

    def forward(
        self,
        x: Tensor,
        y: Tensor | None,
        gate: Tensor | None,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        tokens: Tensor | None,
        condition: LayerCondition,
        lengths: Tensor | None,
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer. The residual add of each sublayer is left to the next norm, across layers too.

        Args:
            x: residual stream [R, S, H]; ``y`` and ``gate``: what the layer before still has to add to it.
            modulation: [6, H] fp32 of the timestep.
            rope: ``rope_table(S, ...)``.
            tokens: [rows] valid tokens of each song, or None.
            condition: keys and values of the conditional rows; what unconditional rows, if any, get instead.
            lengths: as in ``cross_attention``.
            rows: conditional rows. Unconditional ones, as many, lie behind them; while both are still the same
                (R = rows), they split off here, after self-attention.
        Returns:
            x, y and gate for the next layer.
        """
        shift, scale, gate_self, shift_mlp, scale_mlp, gate_mlp = modulation + self.table.float()
        norm = functools.partial(self.norm, dtype=self.self_norm.dtype)
        x, h = norm(x, self.self_norm, y, gate, scale, shift)
        y = self.self_attention(h, rope, self.window, None if tokens is None else tokens.repeat(len(x) // rows))
        x, h = norm(x, self.cross_norm, y, gate_self)
        y = self.cross_attention(h[:rows], condition.k, condition.v, lengths)
        if condition.null is not None:
            y = torch.cat((y, condition.null.expand_as(y)))
            x = torch.cat((x, x)) if len(x) == rows else x
        x, h = norm(x, self.mlp_norm, y, None, scale_mlp, shift_mlp)
        return x, self.mlp(h), gate_mlp


class DiT(nn.Module):
    """Velocity ``noise - data`` of noisy latents."""

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        H, D, P = c.hidden_size, c.audio_acoustic_hidden_dim, c.patch_size
        self.patch = Linear(P * c.in_channels, H)  # inputs: the context of all frames of a token, then their latents
        self.condition = Linear(c.encoder_hidden_size, H)
        self.time = TimeEmbedding(H)
        self.time_r = TimeEmbedding(H)  # of t - r, which is 0 at inference
        self.layers = nn.ModuleList(Layer(c, layer_window(c, i)) for i in range(c.num_hidden_layers))
        self.table = parameter(2, H)
        self.norm = parameter(H)
        self.unpatch = Linear(H, P * D)

    @staticmethod
    def weight_table(config: Config) -> WeightTable:
        context, P = 2 * config.audio_acoustic_hidden_dim, config.patch_size

        def patch(w: Tensor) -> Tensor:  # [H, C, P] -> [H, P * 128 | P * 64]: both halves frame by frame
            return torch.cat((w[:, :context].mT.flatten(1), w[:, context:].mT.flatten(1)), dim=1)

        table = {
            "patch.weight": Source(("decoder.proj_in.1.weight",), patch),
            "patch.bias": Source(("decoder.proj_in.1.bias",)),
            "unpatch.weight": Source(("decoder.proj_out.1.weight",), lambda w: w.permute(2, 1, 0).flatten(0, 1)),
            "unpatch.bias": Source(("decoder.proj_out.1.bias",), lambda b: b.repeat(P)),
            "norm": Source(("decoder.norm_out.weight",)),
            "table": Source(("decoder.scale_shift_table",), lambda t: t[0]),
            **linear_table("condition", "decoder.condition_embedder"),
            **TimeEmbedding.weight_table("time", "decoder.time_embed"),
            **TimeEmbedding.weight_table("time_r", "decoder.time_embed_r"),
        }
        for i in range(config.num_hidden_layers):
            table |= Layer.weight_table(f"layers.{i}", f"decoder.layers.{i}")
        return table

    def prepare(
        self,
        encoder_hidden_states: Tensor,
        lengths: Tensor | None,
        context: Tensor,
        timesteps: Sequence[float] | None = None,
        *,
        null_condition: Tensor | None = None,
        frames: Tensor | None = None,
        upstream_time: bool = False,
    ) -> Conditions:
        """Compute once per song what no step changes. The only place that reads a length back to the host.

        Args:
            encoder_hidden_states: packed conditions [B, E, W], valid ones first.
            lengths: [B] int64, valid conditions; None: attend to all, padding included, as upstream does.
            context: source latents and mask, [B, T, 128].
            timesteps: the schedule; its modulations are computed here, together, so that the time embeddings' weights
                are read once. ``forward`` computes any other where it meets it.
            null_condition: the condition encoder's, W numbers of any shape; needed for ``unconditional`` rows.
            frames: [B] int64, valid latent frames of each song; None: all T. Padding then changes no other frame.
            upstream_time: parity mode: t and 1000 * t are rounded to the model's dtype, as upstream rounds them.
        Returns:
            the Conditions that ``forward`` takes. B may be 1 there for latents of any batch: all rows share them.
        Raises:
            ValueError: a shape is not as above.
        """
        c = self.config
        B, T, _ = context.shape
        dtype, device = self.norm.dtype, context.device
        width, channels = c.encoder_hidden_size, 2 * c.audio_acoustic_hidden_dim
        check_shape(OP, "encoder_hidden_states", encoder_hidden_states, (B, None, width), "[B, E, W]")
        check_shape(OP, "context", context, (B, T, channels), "[B, T, 2 * C]")
        E = encoder_hidden_states.shape[1]
        valid = torch.full((B,), E, device=device) if lengths is None else lengths.to(device)
        check_shape(OP, "lengths", valid, (B,), "[B]")
        longest = int(valid.max())
        condition = self.condition(encoder_hidden_states[:, :longest].to(dtype))
        null = None if null_condition is None else self.condition(null_condition.reshape(1, width).to(dtype))
        times = dict(zip(timesteps, self.modulations(timesteps, upstream_time=upstream_time))) if timesteps else {}
        keep = None
        if frames is not None and bool((frames != T).any()):
            keep = torch.arange(T, device=device) < frames.to(device)[:, None]  # [B, T]
            context = context.masked_fill(~keep[..., None], 0)
        latent_inputs = c.patch_size * c.audio_acoustic_hidden_dim
        prepared = {
            "context": linear(self._patches(context), self.patch.weight[:, :-latent_inputs], self.patch.bias),
            "layers": [LayerCondition.of(layer.cross_attention, condition, null) for layer in self.layers],
            "lengths": None if bool((valid == longest).all()) else valid,
            "frames": keep,
            "tokens": None if keep is None else -(-keep.sum(1) // c.patch_size),
            "upstream_time": upstream_time,
            "times": times,
        }
        return Conditions(encoder_hidden_states, valid, context, prepared)

    def forward(
        self,
        latents: Tensor,
        timestep: float,
        conditions: Conditions,
        *,
        unconditional: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Velocity at ``timestep``.

        Args:
            latents: [B, T, 64], any float dtype.
            timestep: 0 (data) to 1 (noise), the same for all rows.
            conditions: of ``prepare``.
            unconditional: also return the velocity under the null condition.
        Returns:
            velocity [B, T, 64] fp32; with ``unconditional`` the pair (conditional, unconditional).
        Raises:
            ValueError: a shape is not as above, or ``unconditional`` without a null condition in ``prepare``.
        """
        c, prepared = self.config, conditions.prepared
        B, T, D = latents.shape
        batch = prepared["context"].shape[0]
        check_shape(
            OP, "latents", latents, (B if batch == 1 else batch, *conditions.context.shape[1:2], None), "[B, T, C]"
        )
        check_shape(OP, "latents", latents, (B, T, c.audio_acoustic_hidden_dim), "[B, T, C]")
        if unconditional and prepared["layers"][0].null is None:
            raise ValueError(f"{OP}: unconditional=True needs prepare(..., null_condition=...), got None there")
        keep, tokens = prepared["frames"], prepared["tokens"]
        if keep is not None:
            latents = latents.masked_fill(~keep[..., None], 0)
            tokens = tokens.expand(B)
        if timestep not in prepared["times"]:
            (found,) = self.modulations([timestep], upstream_time=prepared["upstream_time"])
            prepared["times"][timestep] = found
        modulation = prepared["times"][timestep]
        x = self._patches(latents.to(self.norm.dtype))
        x = linear(x, self.patch.weight[:, -x.shape[-1] :]).to(residual_dtype(x.dtype)) + prepared["context"]
        rope = rope_table(x.shape[1], c.head_dim, c.rope_theta, x.device)
        y = gate = None
        for layer, condition in zip(self.layers, prepared["layers"]):
            if not unconditional:
                condition = condition._replace(null=None)
            x, y, gate = layer(x, y, gate, modulation.layers, rope, tokens, condition, prepared["lengths"], B)
        shift, scale = self.table.float() + modulation.out
        _, h = residual_norm(x, self.norm, y, gate, scale, shift, eps=c.rms_norm_eps, dtype=self.norm.dtype)
        velocity = self.unpatch(h).view(len(h), -1, D)[:, :T].float()
        if keep is not None:
            velocity = velocity.masked_fill(~keep.repeat(len(h) // len(keep), 1)[..., None], 0)
        return velocity.split(B) if unconditional else velocity

    def modulations(self, timesteps: Sequence[float], *, upstream_time: bool = False) -> list[Modulation]:
        """The modulation of each timestep; see ``prepare`` for ``upstream_time``."""
        dtype, device = self.norm.dtype, self.norm.device
        times = [model_time(t, dtype, upstream_time) for t in timesteps]
        out, layers = self.time(torch.tensor(times, device=device))
        out_r, layers_r = self._time_r
        return [Modulation(*both) for both in zip(layers + layers_r, out + out_r)]

    @functools.cached_property
    def _time_r(self) -> tuple[Tensor, Tensor]:
        """What the embedding of t - r = 0 adds at every timestep: a constant of the checkpoint."""
        return self.time_r(torch.zeros(1, device=self.norm.device))

    def _patches(self, frames: Tensor) -> Tensor:
        """[B, T, C] -> [B, ceil(T / P), P * C]; a zero frame fills up the last token."""
        B, T, C = frames.shape
        P = self.config.patch_size
        if T % P:
            frames = F.pad(frames, (0, 0, 0, P - T % P))
        return frames.to(self.norm.dtype).reshape(B, -1, P * C)
