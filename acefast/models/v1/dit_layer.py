"""One block of ACE-Step v1's transformer: linear attention, cross-attention, gated convolution; frames by channels."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from acefast.backends import cpu_kernels_take
from acefast.models.v1.config import Config
from acefast.models.v15.layers import Linear, linear_table, parameter
from acefast.ops.cross_attention import cross_attention
from acefast.ops.depthwise_glu import depthwise_glu
from acefast.ops.linear import linear
from acefast.ops.linear_attention import linear_attention
from acefast.ops.paired_rope import paired_rope
from acefast.ops.residual_norm import residual_norm
from acefast.ops.self_attention import compute_dtype
from acefast.weights import Source, WeightTable, stack

LARGEST = 65504.0  # what self-attention may add, on any dtype: fp16's range


class LayerCondition(NamedTuple):
    """What one block's cross-attention reads, made once per song."""

    k: Tensor  # [rows, heads, E, D] with its positions in it
    v: Tensor  # [rows, heads, E, D]


class Evaluation(NamedTuple):
    """What the blocks have in common while one velocity is computed."""

    rows: int  # songs of all branches: conditional ones first
    rope: Tensor  # of ``paired_rope_table``, for all frames
    mask: Tensor | None  # [rows of the conditions, 1, 1, E], added to scores
    lengths: Tensor | None = None  # [rows of the conditions], the same where a CPU's kernel reads it


def stacked(ours: str, official: str, names: str) -> WeightTable:
    """Linear layers of one input as one: ``ours.weight`` and ``ours.bias`` from ``official.to_q``, ``to_k``, ..."""
    parts = ("weight", "bias")
    return {f"{ours}.{p}": Source(tuple(f"{official}.to_{n}.{p}" for n in names), stack) for p in parts}


class SelfAttention(nn.Module):
    """ReLU linear attention of the frames: its cost grows with their number, not with its square."""

    in_panels = "qkv.weight", "o.weight"  # on a CPU's kernels, see acefast.panels

    def __init__(self, c: Config):
        super().__init__()
        self.heads = c.num_attention_heads
        self.qkv = Linear(c.hidden_size, 3 * c.hidden_size)
        self.o = Linear(c.hidden_size, c.hidden_size)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            **stacked(f"{ours}.qkv", official, "qkv"),
            **linear_table(f"{ours}.o", f"{official}.to_out.0"),
        }

    def forward(self, h: Tensor, rope: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        return self.o(linear_attention(self.qkv(h), rope, self.heads)).clamp_(-LARGEST, LARGEST)


class CrossAttention(nn.Module):
    """Attention of the frames to the conditions: queries every step, keys and values once per song."""

    in_panels = "q.weight", "kv.weight", "o.weight"  # on a CPU's kernels

    def __init__(self, c: Config):
        super().__init__()
        self.heads = c.num_attention_heads
        self.q = Linear(c.hidden_size, c.hidden_size)
        self.kv = Linear(c.hidden_size, 2 * c.hidden_size)
        self.o = Linear(c.hidden_size, c.hidden_size)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            **stacked(f"{ours}.q", official, "q"),
            **stacked(f"{ours}.kv", official, "kv"),
            **linear_table(f"{ours}.o", f"{official}.to_out.0"),
        }

    def keys_values(self, states: Tensor, rope: Tensor, scale: Tensor | None = None) -> LayerCondition:
        """Keys and values of condition sequences [rows, E, H].

        Args:
            scale: [rows] fp32, of the queries of a row; scores do not change where its keys have it instead.
        """
        k, v = self.kv(states).unflatten(2, (2, self.heads, -1)).unbind(2)
        k = paired_rope(k, rope)
        if scale is not None:
            k = (k.float() * scale[:, None, None, None]).to(v.dtype)
        return LayerCondition(k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous())

    def queries(self, x: Tensor, rope: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]: the residual stream as it is, without a norm."""
        q = self.q(x.to(self.q.weight.dtype)).unflatten(2, (self.heads, -1))
        return paired_rope(q, rope, out=q).flatten(2)

    def forward(self, q: Tensor, condition: LayerCondition, e: Evaluation) -> Tensor:
        """[rows, S, H] queries, written over, -> [rows, S, H]; songs that share a condition are one row of it."""
        shape, (k, v) = q.shape, condition
        q = q.view(len(k), -1, shape[2])  # [rows of the conditions, frames, H]
        if cpu_kernels_take(q.dtype, q.device):
            return self.o(cross_attention(q, None, k, v, e.lengths).view(shape))
        k, v = (t.to(compute_dtype(q)) for t in condition)
        q = q.unflatten(2, k.shape[1::2])  # [rows of the conditions, frames, heads, D]
        found = F.scaled_dot_product_attention(q.transpose(1, 2).to(k.dtype), k, v, attn_mask=e.mask)
        return self.o(q.copy_(found.transpose(1, 2)).view(shape))


class GatedConvolution(nn.Module):
    """Feed-forward with a look at the neighbouring frames: linear, SiLU, depthwise convolution of 3, gate, linear."""

    in_panels = "up.weight", "down"  # on a CPU's kernels

    def __init__(self, c: Config):
        super().__init__()
        H, M = c.hidden_size, c.mlp_hidden_size
        self.up = Linear(H, 2 * M)
        self.depth = parameter(3, 2 * M)  # a tap's channels side by side
        self.depth_bias = parameter(2 * M)
        self.down = parameter(H, M)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            f"{ours}.up.weight": Source((f"{official}.inverted_conv.conv.weight",), lambda w: w[..., 0]),
            f"{ours}.up.bias": Source((f"{official}.inverted_conv.conv.bias",)),
            f"{ours}.depth": Source((f"{official}.depth_conv.conv.weight",), lambda w: w[:, 0].t()),
            f"{ours}.depth_bias": Source((f"{official}.depth_conv.conv.bias",)),
            f"{ours}.down": Source((f"{official}.point_conv.conv.weight",), lambda w: w[..., 0]),
        }

    def forward(self, h: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        return linear(depthwise_glu(self.up(h), self.depth.t(), self.depth_bias, silu_input=True), self.down)


class Layer(nn.Module):
    """Self-attention, cross-attention and feed-forward; the timestep modulates the first and the last."""

    def __init__(self, c: Config):
        super().__init__()
        self.self_attention = SelfAttention(c)
        self.cross_attention = CrossAttention(c)
        self.mlp = GatedConvolution(c)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            **SelfAttention.weight_table(f"{ours}.self_attention", f"{official}.attn"),
            **CrossAttention.weight_table(f"{ours}.cross_attention", f"{official}.cross_attn"),
            **GatedConvolution.weight_table(f"{ours}.mlp", f"{official}.ff"),
        }

    def forward(
        self,
        x: Tensor,
        y: Tensor | None,
        gate: Tensor | None,
        modulation: Tensor,
        condition: LayerCondition,
        e: Evaluation,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One block. The residual add of its feed-forward is left to the next norm.

        Args:
            x: residual stream [B, S, H], written to; ``y`` and ``gate``: what still has to be added to it. All
                branches are the same until they meet their conditions: while ``x`` has the rows of one, they split
                off here, after self-attention.
            modulation: [6, H] fp32: shift, scale, gate of self-attention, then of the feed-forward.
        Returns:
            x, y and gate for the next block.
        """
        shift, scale, gate_self, shift_mlp, scale_mlp, gate_mlp = modulation
        dtype = self.mlp.down.dtype
        x, h = residual_norm(x, None, y, gate, scale, shift, dtype=dtype)
        x.addcmul_(self.self_attention(h, e.rope), gate_self)
        q = self.cross_attention.queries(x, e.rope)
        if len(x) < e.rows:
            x, q = (t.repeat(e.rows // len(t), 1, 1) for t in (x, q))
        y = self.cross_attention(q, condition, e)
        x, h = residual_norm(x, None, y, None, scale_mlp, shift_mlp, dtype=dtype)
        return x, self.mlp(h), gate_mlp
