"""The diffusion transformer of ACE-Step 1.5: the velocity of noisy latents under prepared conditions."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.backends import choose_backend
from acefast.checks import check_shape
from acefast.conditions import Conditions
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
from acefast.ops.linear import linear
from acefast.ops.qk_norm_rope import rope_table
from acefast.ops.residual_norm import residual_norm
from acefast.weights import Source, WeightTable

OP = "DiT"
SCHEDULES = 2  # whose modulations are kept: 59 MB each for 50 steps of 2B


class Modulation(NamedTuple):
    """What a timestep does to the model, or a schedule ([steps, ...]); fp32, as it acts on all tokens alike."""

    layers: Tensor  # [layers, 6, H]: shift, scale, gate of self-attention, then of the MLP
    out: Tensor  # [2, H]: shift and scale of the last norm


class DiT(nn.Module):
    """Velocity ``noise - data`` of noisy latents; ``int8``: by products of 8-bit integers in its layers."""

    def __init__(self, config: Config, int8: bool = False):
        super().__init__()
        c = self.config = config
        H, D, P = c.hidden_size, c.audio_acoustic_hidden_dim, c.patch_size
        self.patch = Linear(P * c.in_channels, H)  # inputs: the context of all frames of a token, then their latents
        self.condition = Linear(c.encoder_hidden_size, H)
        self.time = TimeEmbedding(H)
        self.time_r = TimeEmbedding(H)  # of t - r, which is 0 at inference
        self.layers = nn.ModuleList(Layer(c, layer_window(c, i), int8) for i in range(c.num_hidden_layers))
        self.table = parameter(2, H)
        self.norm = parameter(H)
        self.unpatch = Linear(H, P * D)
        self._schedules: OrderedDict[tuple, Modulation] = OrderedDict()
        self._constants: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def weight_table(config: Config, int8: bool = False) -> WeightTable:
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
            table |= Layer.weight_table(f"layers.{i}", f"decoder.layers.{i}", int8)
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
        """Conditions of a song, with what no step changes computed once.

        Where Triton's kernels are in force that is left to ``Step.load``, or to the first ``forward``.

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
        B, T, _ = context.shape
        width, channels = self.config.encoder_hidden_size, 2 * self.config.audio_acoustic_hidden_dim
        check_shape(OP, "encoder_hidden_states", encoder_hidden_states, (B, None, width), "[B, E, W]")
        check_shape(OP, "context", context, (B, T, channels), "[B, T, 2 * C]")
        E, device = encoder_hidden_states.shape[1], context.device
        valid = torch.full((B,), E, device=device) if lengths is None else lengths.to(device)
        check_shape(OP, "lengths", valid, (B,), "[B]")
        given = {"timesteps": timesteps, "null": null_condition, "upstream_time": upstream_time}
        given["valid_frames"] = None if frames is None else frames.to(device)
        conditions = Conditions(encoder_hidden_states, valid, context, given)
        if not self.static:
            self.derive(conditions)
        return conditions

    @property
    def static(self) -> bool:
        """Whether steps run on static memory, see ``Step``: where Triton's kernels are in force."""
        return choose_backend(OP, None, self.norm.device, ("triton",)) == "triton"

    def derive(self, conditions: Conditions) -> None:
        """Add to ``prepared`` what ``forward`` needs. The only place that reads a length back to the host."""
        given, valid, context = conditions.prepared, conditions.lengths, conditions.context
        longest, keep, frames, T = int(valid.max()), None, given["valid_frames"], context.shape[1]
        if frames is not None and bool((frames != T).any()):
            keep = torch.arange(T, device=context.device) < frames[:, None]  # [B, T]
            context = context.masked_fill(~keep[..., None], 0)
        condition = self.condition(conditions.encoder_hidden_states[:, :longest].to(self.norm.dtype))
        nulls = [None] * len(self.layers) if given["null"] is None else self.constants(given["null"])
        patches, times = self._patches(context), given["timesteps"] or ()
        scheduled = self.scheduled(times, upstream_time=given["upstream_time"]) if times else ((), ())
        conditions.prepared |= {
            "context": linear(patches, self.patch.weight[:, : patches.shape[-1]], self.patch.bias).to(self.residual),
            "layers": [
                LayerCondition(*layer.cross_attention.keys_values(condition), null)
                for layer, null in zip(self.layers, nulls)
            ],
            "lengths": None if bool((valid == longest).all()) else valid,
            "frames": keep,
            "tokens": None if keep is None else -(-keep.sum(1) // self.config.patch_size),
            "times": {t: Modulation(*both) for t, *both in zip(times, *scheduled)},
        }

    def constants(self, null_condition: Tensor) -> Tensor:
        """What every unconditional row gets from cross-attention, [layers, 2, 1, H]; zeros first. Computed once."""
        if self._constants is None or self._constants[0] is not null_condition:
            width = self.config.encoder_hidden_size
            embedded = self.condition(null_condition.reshape(1, width).to(self.norm.dtype))
            found = torch.stack([layer.cross_attention.constant(embedded) for layer in self.layers])
            self._constants = null_condition, torch.stack((torch.zeros_like(found), found), 1)[:, :, None]
        return self._constants[1]

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
        if "layers" not in conditions.prepared:
            self.derive(conditions)
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
            found = self.modulations([timestep], upstream_time=prepared["upstream_time"])
            prepared["times"][timestep] = Modulation(*(t[0] for t in found))
        tokens = prepared["tokens"]
        if tokens is not None:
            tokens = tokens.expand(B).repeat(1 + unconditional)
        patches = self._patches(latents)
        rope = rope_table(patches.shape[1], c.head_dim, c.rope_theta, patches.device)
        e = Evaluation(B, unconditional, rope, tokens, prepared["lengths"])
        out = self.velocity(patches, prepared, prepared["times"][timestep], e)
        velocity = out.view(len(out), -1, D)[:, :T].float()
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

    @property
    def residual(self) -> torch.dtype:
        """Dtype of the residual stream."""
        return residual_dtype(self.norm.dtype)

    def scheduled(self, timesteps: Sequence[float], *, upstream_time: bool = False) -> Modulation:
        """``modulations`` of a schedule; those of the last few are kept."""
        key = (*timesteps, upstream_time)
        if key not in self._schedules:
            while len(self._schedules) >= SCHEDULES:
                self._schedules.popitem(last=False)
            self._schedules[key] = self.modulations(timesteps, upstream_time=upstream_time)
        self._schedules.move_to_end(key)
        return self._schedules[key]

    def modulations(self, timesteps: Sequence[float], *, upstream_time: bool = False) -> Modulation:
        """What each timestep does, [steps, ...], computed together; see ``prepare`` for ``upstream_time``."""
        dtype, device = self.norm.dtype, self.norm.device
        times = [model_time(t, dtype, upstream_time) for t in timesteps]
        out, layers = self.time(torch.tensor(times, device=device))
        out_r, layers_r = self._time_r
        tables = torch.stack([layer.table for layer in self.layers]).float()
        return Modulation((layers + layers_r)[:, None] + tables, (out + out_r)[:, None] + self.table.float())

    def forget(self) -> None:
        """Forget what was computed from the weights: they are others now."""
        self._schedules.clear()
        self._constants = None
        self.__dict__.pop("_time_r", None)

    @functools.cached_property
    def _time_r(self) -> tuple[Tensor, Tensor]:
        """What the embedding of t - r = 0 adds at every timestep: a constant of the checkpoint."""
        return self.time_r(torch.zeros(1, device=self.norm.device))

    def _patches(self, frames: Tensor) -> Tensor:
        """[B, T, C] -> [B, ceil(T / P), P * C] in the model's dtype; a zero frame fills up the last token."""
        B, T, C = frames.shape
        P = self.config.patch_size
        if T % P:
            frames = F.pad(frames, (0, 0, 0, P - T % P))
        return frames.to(self.norm.dtype).reshape(B, -1, P * C)
