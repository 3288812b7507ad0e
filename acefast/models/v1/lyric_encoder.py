"""The lyric encoder of ACE-Step v1: a bidirectional transformer with relative positions, of Transformer-XL's kind.

Upstream calls it a Conformer; it has neither its convolution nor its second feed-forward.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.models.v1.config import NULL_SCALE, Config
from acefast.models.v15.layers import Linear, linear_table, parameter
from acefast.ops.linear import linear
from acefast.weights import Source, WeightTable, stack

WEAK_LAYERS = range(4, 6)  # where entropy-rectified guidance (ERG) scales queries by NULL_SCALE
SCORES = 1 << 21  # of all heads at a time: 8 MiB of fp32. Of n rows of L, n products in n + L are of no score


def position_table(tokens: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Sinusoids of the offsets ``tokens - 1`` down to ``1 - tokens``, [2 * tokens - 1, width] fp32.

    Columns 2m and 2m + 1 hold the sine and the cosine of ``offset * 10000**(-2m / width)``.
    """
    offsets = torch.arange(tokens - 1, -tokens, -1, dtype=torch.float32, device=device)
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    angles = offsets[:, None] * torch.exp(pairs * (-math.log(10_000) / width))
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)


class Norm(nn.Module):
    """LayerNorm's weights; calling it is ``F.layer_norm``."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = parameter(width), parameter(width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps=1e-5)


class RelativeAttention(nn.Module):
    """``softmax(((q_i + u) . k_j + (q_i + w) . p_(i - j)) / sqrt(D)) @ v``, p the projected sinusoids of an offset."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.position = parameter(width, width)
        self.content_bias = parameter(heads, width // heads)  # u
        self.position_bias = parameter(heads, width // heads)  # w
        self.o = Linear(width, width)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            **{
                f"{ours}.qkv.{part}": Source(tuple(f"{official}.linear_{n}.{part}" for n in "qkv"), stack)
                for part in ("weight", "bias")
            },
            f"{ours}.position": Source((f"{official}.linear_pos.weight",)),
            f"{ours}.content_bias": Source((f"{official}.pos_bias_u",)),
            f"{ours}.position_bias": Source((f"{official}.pos_bias_v",)),
            **linear_table(f"{ours}.o", f"{official}.linear_out"),
        }

    def forward(self, x: Tensor, table: Tensor, padded: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """[B, L, width] -> [B, L, width]; scores and weights are fp32, of a few rows at a time.

        Args:
            table: ``position_table`` of L, in x's dtype.
            padded: [B, 1, L] bool, keys that nobody sees; a row that sees none gets zeros. None: none.
            scale: of queries, before the biases.
        """
        B, L, width = x.shape
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2).float() for t in self.qkv(x).chunk(3, dim=2))
        q = q * scale if scale != 1 else q
        p = linear(table, self.position).unflatten(1, (self.heads, -1)).permute(1, 2, 0).float()  # [heads, D, 2L - 1]
        by_content, by_position = (q + b.float()[:, None] for b in (self.content_bias, self.position_bias))
        root, out = q.shape[-1] ** -0.5, torch.empty(B, L, width, dtype=x.dtype, device=x.device)
        rows = max(1, SCORES // (B * self.heads * L))
        for start in range(0, L, rows):
            stop = min(start + rows, L)
            near = torch.matmul(by_position[:, :, start:stop], p[:, :, L - stop : 2 * L - 1 - start])
            n, wide = stop - start, near.shape[-1]
            # row a of the block sees key j at offset start + a - j, which is column n - 1 - a + j: each row one further
            shifted = near.as_strided((B, self.heads, n, L), (*near.stride()[:2], wide - 1, 1), n - 1)
            scores = torch.matmul(by_content[:, :, start:stop], k.transpose(2, 3)).add_(shifted).mul_(root)
            if padded is not None:
                scores.masked_fill_(padded[:, None], -math.inf)
            weights = torch.softmax(scores, dim=-1)
            if padded is not None:
                weights.masked_fill_(padded[:, None], 0)
            out[:, start:stop] = torch.matmul(weights, v).transpose(1, 2).flatten(2)
        return self.o(out)


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm."""

    def __init__(self, c: Config):
        super().__init__()
        self.attention_norm, self.mlp_norm = Norm(c.lyric_hidden_size), Norm(c.lyric_hidden_size)
        self.attention = RelativeAttention(c.lyric_hidden_size, c.lyric_heads)
        self.up = Linear(c.lyric_hidden_size, c.lyric_intermediate_size)
        self.down = Linear(c.lyric_intermediate_size, c.lyric_hidden_size)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            **linear_table(f"{ours}.attention_norm", f"{official}.norm_mha"),
            **linear_table(f"{ours}.mlp_norm", f"{official}.norm_ff"),
            **RelativeAttention.weight_table(f"{ours}.attention", f"{official}.self_attn"),
            **linear_table(f"{ours}.up", f"{official}.feed_forward.w_1"),
            **linear_table(f"{ours}.down", f"{official}.feed_forward.w_2"),
        }

    def forward(self, x: Tensor, table: Tensor, padded: Tensor | None, scale: float) -> Tensor:
        """[B, L, W] -> [B, L, W]; see ``RelativeAttention.forward``."""
        x = x + self.attention(self.attention_norm(x), table, padded, scale)
        return x + self.down(F.silu(self.up(self.mlp_norm(x)), inplace=True))


class LyricEncoder(nn.Module):
    """Lyric tokens to states of the lyric encoder's own width."""

    def __init__(self, config: Config):
        super().__init__()
        c, W = config, config.lyric_hidden_size
        self.tokens = parameter(c.lyric_encoder_vocab_size, W)
        self.embed, self.embed_norm = Linear(W, W), Norm(W)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.lyric_layers))
        self.norm = Norm(W)

    @staticmethod
    def weight_table(ours: str, config: Config) -> WeightTable:
        official = "dit.lyric_encoder"
        table = {
            f"{ours}.tokens": Source(("dit.lyric_embs.weight",)),
            **linear_table(f"{ours}.embed", f"{official}.embed.out.0"),
            **linear_table(f"{ours}.embed_norm", f"{official}.embed.out.1"),
            **linear_table(f"{ours}.norm", f"{official}.after_norm"),
        }
        for i in range(config.lyric_layers):
            table |= Layer.weight_table(f"{ours}.layers.{i}", f"{official}.encoders.{i}")
        return table

    def forward(self, ids: Tensor, lengths: Tensor | None = None, *, weak: bool = False) -> Tensor:
        """Encode lyrics.

        Args:
            ids: [B, L] int64.
            lengths: [B], how many of each row count; None: all.
            weak: as entropy-rectified guidance has it: queries of ``WEAK_LAYERS`` are scaled by ``NULL_SCALE``, so that
                attention there is nearly even.
        Returns:
            [B, L, W] in the weights' dtype.
        """
        L, W = ids.shape[1], self.tokens.shape[1]
        padded = None
        if lengths is not None:
            padded = (torch.arange(L, device=ids.device) >= lengths[:, None])[:, None]
        x = self.embed_norm(self.embed(F.embedding(ids, self.tokens))) * math.sqrt(W)
        table = position_table(L, W, ids.device).to(x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, table, padded, NULL_SCALE if weak and i in WEAK_LAYERS else 1.0)
        return self.norm(x)
