"""One layer of the diffusion transformer; the same code with memory of its own (CPU) and on static buffers (GPU)."""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor, nn

from acefast.models.v15.buffers import NO_BUFFERS, Buffers
from acefast.models.v15.config import Config
from acefast.models.v15.layers import MLP, SelfAttention, parameter
from acefast.models.v15.products import add_product, add_weight, product, product_table
from acefast.ops.cross_attention import cross_attention
from acefast.ops.linear import linear
from acefast.ops.qk_norm_rope import qk_norm_rope
from acefast.ops.residual_norm import residual_norm
from acefast.panels import rows_of, some_rows
from acefast.weights import Source, WeightTable, stack


class LayerCondition(NamedTuple):
    """What one layer's cross-attention needs of the conditions."""

    k: Tensor  # [B, kv_heads, E, D], normed
    v: Tensor  # [B, kv_heads, E, D]
    null: Tensor | None  # [2, 1, H]: zeros, then what every unconditional row gets from cross-attention


class Evaluation(NamedTuple):
    """What the layers have in common while one velocity is computed."""

    songs: int  # conditional rows B; unconditional ones lie behind them, as many
    unconditional: bool
    rope: tuple[Tensor, Tensor]  # of ``rope_table``
    tokens: Tensor | None  # [rows] valid tokens; None: all
    lengths: Tensor | None  # as in ``cross_attention``
    step: Tensor | None = None  # int32 [1]: row of all modulations, which then are [steps, ...]
    buffers: Buffers = NO_BUFFERS

    @property
    def parts(self) -> int:
        """Rows per song."""
        return 1 + self.unconditional


class CrossAttention(nn.Module):
    """Attention to the conditions: queries every step; keys and values once per song, so those are never of 8 bits."""

    in_panels = "q", "kv", "o"  # on a CPU's kernels, see acefast.panels

    def __init__(self, c: Config, int8: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.eps = c.num_attention_heads, c.num_key_value_heads, c.rms_norm_eps
        add_weight(self, "q", self.heads * c.head_dim, c.hidden_size, int8)
        self.kv = parameter(2 * self.kv_heads * c.head_dim, c.hidden_size)
        add_weight(self, "o", c.hidden_size, self.heads * c.head_dim, int8)
        self.q_norm = parameter(c.head_dim)
        self.k_norm = parameter(c.head_dim)

    @staticmethod
    def weight_table(ours: str, official: str, int8: bool = False) -> WeightTable:
        return {
            **product_table(f"{ours}.q", (f"{official}.q_proj.weight",), int8),
            f"{ours}.kv": Source((f"{official}.k_proj.weight", f"{official}.v_proj.weight"), stack),
            **product_table(f"{ours}.o", (f"{official}.o_proj.weight",), int8),
            f"{ours}.q_norm": Source((f"{official}.q_norm.weight",)),
            f"{ours}.k_norm": Source((f"{official}.k_norm.weight",)),
        }

    def keys_values(self, condition: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Embedded conditions [B, E, H] -> normed keys and values, each [B, kv_heads, E, D]; to ``out`` where given."""
        kv = linear(condition, self.kv)
        _, *found = qk_norm_rope(kv, self.q_norm, self.k_norm, None, None, 0, self.kv_heads, eps=self.eps)
        found = tuple(t.transpose(1, 2) for t in found)
        if out is None:
            return tuple(t.contiguous() for t in found)
        return tuple(own.copy_(t) for own, t in zip(out, found))

    def constant(self, null: Tensor) -> Tensor:
        """Output where every key is the same embedded condition [1, H]: whatever the query, its value. [H]"""
        rows = rows_of(self.kv)
        v = linear(null, some_rows(self.kv, rows // 2, rows)).view(self.kv_heads, -1)
        return product(v.repeat_interleave(self.heads // self.kv_heads, 0).view(1, -1), self.o, self.o_scale)[0]

    def forward(
        self, x: Tensor, h: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, buffers: Buffers = NO_BUFFERS
    ) -> None:
        """Add the output for h [B, S, H] to x, in place; k, v of ``keys_values``, lengths as in ``cross_attention``."""
        q = product(h, self.q, self.q_scale, out=buffers.query)
        attended = cross_attention(q, self.q_norm, k, v, lengths, eps=self.eps, out=buffers.attended)
        add_product(x, attended, self.o, self.o_scale)


class Layer(nn.Module):
    """Self-attention, cross-attention and MLP, each behind a norm; the timestep modulates the first and the last."""

    def __init__(self, c: Config, window: int | None, int8: bool = False):
        super().__init__()
        self.window = window
        self.norm = functools.partial(residual_norm, eps=c.rms_norm_eps)
        self.table = parameter(6, c.hidden_size)
        self.self_norm = parameter(c.hidden_size)
        self.self_attention = SelfAttention(
            c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.rms_norm_eps, int8
        )
        self.cross_norm = parameter(c.hidden_size)
        self.cross_attention = CrossAttention(c, int8)
        self.mlp_norm = parameter(c.hidden_size)
        self.mlp = MLP(c.hidden_size, c.intermediate_size, int8)

    @staticmethod
    def weight_table(ours: str, official: str, int8: bool = False) -> WeightTable:
        return {
            f"{ours}.table": Source((f"{official}.scale_shift_table",), lambda t: t[0]),
            f"{ours}.self_norm": Source((f"{official}.self_attn_norm.weight",)),
            f"{ours}.cross_norm": Source((f"{official}.cross_attn_norm.weight",)),
            f"{ours}.mlp_norm": Source((f"{official}.mlp_norm.weight",)),
            **SelfAttention.weight_table(f"{ours}.self_attention", f"{official}.self_attn", int8),
            **CrossAttention.weight_table(f"{ours}.cross_attention", f"{official}.cross_attn", int8),
            **MLP.weight_table(f"{ours}.mlp", f"{official}.mlp", int8),
        }

    def forward(
        self, x: Tensor, y: Tensor, gate: Tensor | None, modulation: Tensor, condition: LayerCondition, e: Evaluation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer. The residual add of self-attention and MLP is left to the next norm, across layers too.

        Args:
            x: residual stream [rows, S, H]; ``y`` and ``gate``: what still has to be added to it. Unconditional rows
                are the same as the conditional ones at first; while they are not there (rows = B) they split off here,
                after self-attention.
            modulation: [6, H] fp32, or [steps, 6, H]: shift, scale, gate of self-attention, then of the MLP.
            condition: keys and values of the conditional rows, and what unconditional ones get instead.
        Returns:
            x, y and gate for the next layer.
        """
        songs, S, H = e.songs, *x.shape[1:]
        shift, scale, gate_self, shift_mlp, scale_mlp, gate_mlp = modulation.unbind(-2)
        norm = functools.partial(self.norm, step=e.step, dtype=self.self_norm.dtype)
        buffers = e.buffers.rows(songs * e.parts)
        own = buffers if len(x) == songs * e.parts else buffers.before_split
        x, h = norm(x, self.self_norm, y, gate, scale, shift, out=own.norm)
        y = self.self_attention(h, e.rope, self.window, None if e.tokens is None else e.tokens[: len(x)], buffers=own)
        x, y = (t.view(-1, songs * S, H).expand(e.parts, -1, -1) for t in (x, y))
        out = buffers.norm_as(e.parts, songs * S)
        x, h = norm(x, self.cross_norm, y, gate_self, out=out)
        x_songs, h_songs = (t[0].view(songs, S, H) for t in (x, h))
        self.cross_attention(x_songs, h_songs, condition.k, condition.v, e.lengths, e.buffers.rows(songs))
        y = condition.null.expand(-1, songs * S, -1) if e.unconditional else None
        x, h = norm(x, self.mlp_norm, y, None, scale_mlp, shift_mlp, out=out)
        x, h = (t.view(-1, S, H) for t in (x, h))
        return x, self.mlp(h, buffers=buffers), gate_mlp
