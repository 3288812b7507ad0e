"""The diffusion transformer of ACE-Step 1.5: the velocity of noisy latents under prepared conditions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.backends import choose_backend
from acefast.checks import check_shape
from acefast.conditions import Conditions
from acefast.matmul import linear
from acefast.models.v15.buffers import NO_BUFFERS, Buffers, padded_tokens
from acefast.models.v15.config import Config
from acefast.models.v15.dit_layer import Evaluation, Layer, LayerCondition
from acefast.models.v15.layers import (
    Linear,
    TimeEmbedding,
    layer_window,
    linear_table,
    model_time,
    parameter,
    residual_dtype,
)
from acefast.ops.qk_norm_rope import rope_table
from acefast.ops.residual_norm import residual_norm
from acefast.weights import Source, WeightTable

OP = "DiT"


class Modulation(NamedTuple):
    """What a timestep does to the model, or a schedule ([steps, ...]); fp32, as it acts on all tokens alike."""

    layers: Tensor  # [layers, 6, H]: shift, scale, gate of self-attention, then of the MLP
    out: Tensor  # [2, H]: shift and scale of the last norm


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
        device = context.device
        width, channels = c.encoder_hidden_size, 2 * c.audio_acoustic_hidden_dim
        check_shape(OP, "encoder_hidden_states", encoder_hidden_states, (B, None, width), "[B, E, W]")
        check_shape(OP, "context", context, (B, T, channels), "[B, T, 2 * C]")
        E = encoder_hidden_states.shape[1]
        valid = torch.full((B,), E, device=device) if lengths is None else lengths.to(device)
        check_shape(OP, "lengths", valid, (B,), "[B]")
        longest, keep = int(valid.max()), None
        if frames is not None and bool((frames != T).any()):
            keep = torch.arange(T, device=device) < frames.to(device)[:, None]  # [B, T]
            context = context.masked_fill(~keep[..., None], 0)
        states, even = encoder_hidden_states[:, :longest], bool((valid == longest).all())
        prepared = self.derive(
            *(states, valid, context, timesteps),
            **dict(even=even, null_condition=null_condition, keep=keep, upstream_time=upstream_time),
        )
        return Conditions(encoder_hidden_states, valid, context, prepared)

    def derive(
        self,
        states: Tensor,
        valid: Tensor,
        context: Tensor,
        timesteps: Sequence[float] | None = None,
        *,
        even: bool,
        null_condition: Tensor | None = None,
        keep: Tensor | None = None,
        upstream_time: bool = False,
    ) -> dict[str, Any]:
        """What ``prepare`` computes once it has seen the lengths; reads nothing back.

        On a GPU, tokens, keys and values are padded and lengths always on the device, so that a step's launches depend
        on nothing but the padded sizes.

        Args:
            states: conditions [B, E, W], cut to the longest.
            valid: [B], how many of them count; ``even``: whether that is all E of them everywhere.
            keep: [B, T], valid frames; None: all.
        """
        c = self.config
        static = choose_backend(OP, None, context.device, ("triton",)) == "triton"
        condition = self.condition(states.to(self.norm.dtype))
        null = null_condition
        if null is not None:
            null = self.condition(null.reshape(1, c.encoder_hidden_size).to(self.norm.dtype))
        patches = self._patches(context)
        if static:
            patches = F.pad(patches, (0, 0, 0, padded_tokens(patches.shape[1]) - patches.shape[1]))
        layers = [LayerCondition.of(layer.cross_attention, condition, null) for layer in self.layers]
        times = dict(zip(timesteps, self.modulations(timesteps, upstream_time=upstream_time))) if timesteps else {}
        prepared = {
            "context": linear(patches, self.patch.weight[:, : patches.shape[-1]], self.patch.bias).to(self.residual),
            "layers": LayerCondition.cache(layers) if static else layers,
            "lengths": valid if static or not even else None,
            "frames": keep,
            "tokens": None if keep is None else -(-keep.sum(1) // c.patch_size),
            "upstream_time": upstream_time,
            "times": times,
        }
        return prepared | ({"buffers": {}} if static else {})

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
        keep = prepared["frames"]
        if keep is not None:
            latents = latents.masked_fill(~keep[..., None], 0)
        if timestep not in prepared["times"]:
            (found,) = self.modulations([timestep], upstream_time=prepared["upstream_time"])
            prepared["times"][timestep] = found
        buffers = self.static_buffers(conditions, B)
        out = self.velocity(
            self._patches(latents, buffers.patches),
            prepared,
            prepared["times"][timestep],
            self.evaluation(prepared, B, unconditional, buffers),
        )
        velocity = out.view(len(out), -1, D)[:, :T].to(torch.float32, copy=buffers.velocity is not None)
        if keep is not None:
            velocity = velocity.masked_fill(~keep.repeat(len(velocity) // len(keep), 1)[..., None], 0)
        return velocity.split(B) if unconditional else velocity

    def velocity(self, patches: Tensor, prepared: dict[str, Any], modulation: Modulation, e: Evaluation) -> Tensor:
        """The velocity of latents as tokens: [B, S, P * C] in the model's dtype -> [rows, S, P * C] in it."""
        x = prepared["context"].expand(e.songs, -1, -1)
        y = linear(patches, self.patch.weight[:, -patches.shape[-1] :], out=e.buffers.rows(e.songs).y)
        gate = None  # the first layer's norm adds both halves of the patch projection
        for i, (layer, condition) in enumerate(zip(self.layers, prepared["layers"])):
            x, y, gate = layer(x, y, gate, modulation.layers[..., i, :, :], condition, e)
        shift, scale = modulation.out.unbind(-2)
        _, h = residual_norm(
            *(x, self.norm, y, gate, scale, shift),
            step=e.step,
            eps=self.config.rms_norm_eps,
            dtype=self.norm.dtype,
            out=e.buffers.rows(len(x)).norm,
        )
        return linear(h, self.unpatch.weight, self.unpatch.bias, out=e.buffers.rows(len(x)).velocity)

    def evaluation(
        self,
        prepared: dict[str, Any],
        songs: int,
        unconditional: bool,
        buffers: Buffers = NO_BUFFERS,
        step: Tensor | None = None,
    ) -> Evaluation:
        """What ``velocity`` needs beside the latents and their modulation."""
        tokens = buffers.tokens
        if tokens is None and prepared["tokens"] is not None:
            tokens = prepared["tokens"].expand(songs).repeat(1 + unconditional)
        context = prepared["context"]
        rope = rope_table(context.shape[1], self.config.head_dim, self.config.rope_theta, context.device)
        return Evaluation(songs, unconditional, rope, tokens, prepared["lengths"], step, buffers)

    def static_buffers(self, conditions: Conditions, songs: int) -> Buffers:
        """The static memory that steps of ``songs`` latents run on, the same one each time; none on a CPU."""
        prepared = conditions.prepared
        if "buffers" not in prepared:
            return NO_BUFFERS
        if songs not in prepared["buffers"]:
            T, unconditional = conditions.context.shape[1], prepared["layers"][0].null is not None
            made = Buffers.allocate(
                self.config,
                songs,
                prepared["context"].shape[1],
                unconditional=unconditional,
                dtype=self.norm.dtype,
                residual=self.residual,
                device=self.norm.device,
            )
            tokens = prepared["tokens"]
            if tokens is None:
                tokens = torch.full((1,), -(-T // self.config.patch_size), device=self.norm.device)
            tokens = tokens.expand(songs).repeat(1 + unconditional).to(torch.int32)
            prepared["buffers"][songs] = made._replace(tokens=tokens)
        return prepared["buffers"][songs]

    @property
    def residual(self) -> torch.dtype:
        """Dtype of the residual stream."""
        return residual_dtype(self.norm.dtype)

    def modulations(self, timesteps: Sequence[float], *, upstream_time: bool = False) -> list[Modulation]:
        """The modulation of each timestep, one stack in memory; see ``prepare`` for ``upstream_time``."""
        dtype, device = self.norm.dtype, self.norm.device
        times = [model_time(t, dtype, upstream_time) for t in timesteps]
        out, layers = self.time(torch.tensor(times, device=device))
        out_r, layers_r = self._time_r
        tables = torch.stack([layer.table for layer in self.layers]).float()
        layers = (layers + layers_r)[:, None] + tables
        out = (out + out_r)[:, None] + self.table.float()
        return [Modulation(*both) for both in zip(layers, out)]

    @functools.cached_property
    def _time_r(self) -> tuple[Tensor, Tensor]:
        """What the embedding of t - r = 0 adds at every timestep: a constant of the checkpoint."""
        return self.time_r(torch.zeros(1, device=self.norm.device))

    def _patches(self, frames: Tensor, out: Tensor | None = None) -> Tensor:
        """[B, T, C] -> [B, ceil(T / P), P * C] in the model's dtype; a zero frame fills up the last token.

        ``out``: [B, S, P * C] with as many or more tokens, zeros beyond T, which stay.
        """
        B, T, C = frames.shape
        P = self.config.patch_size
        if out is not None:
            out.view(B, -1, C)[:, :T] = frames
            return out
        if T % P:
            frames = F.pad(frames, (0, 0, 0, P - T % P))
        return frames.to(self.norm.dtype).reshape(B, -1, P * C)
