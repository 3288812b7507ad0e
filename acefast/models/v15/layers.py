"""What the transformers of ACE-Step 1.5 are built from: linear layers, attention, feed-forward, the encoder layer.

Weights that meet the same input are stored stacked (q|k|v, gate|up); the tables beside the classes say from which
official tensors, for the loader.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.models.v15.buffers import NO_BUFFERS, Buffers
from acefast.models.v15.config import Config
from acefast.models.v15.products import add_weight, product, product_swiglu, product_table
from acefast.ops.cross_attention import cross_attention
from acefast.ops.linear import linear
from acefast.ops.qk_norm_rope import qk_norm_rope, rope_table
from acefast.ops.residual_norm import residual_norm
from acefast.ops.self_attention import self_attention
from acefast.panels import rows_of, some_rows
from acefast.weights import Source, WeightTable

TIME_FEATURES = 256
WIDENED = 256  # rows of a weight that a CPU makes fp32 at a time: 2 MB, which its caches hold


def parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """An empty weight that wants no gradient."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


class SelfAttention(nn.Module):
    """Grouped-query self-attention with normed and rotated queries and keys."""

    in_panels = "qkv", "o"  # on a CPU's kernels, see acefast.panels

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, eps: float, int8: bool = False):
        super().__init__()
        self.heads, self.kv_heads, self.eps = heads, kv_heads, eps
        add_weight(self, "qkv", (heads + 2 * kv_heads) * head_dim, width, int8)
        add_weight(self, "o", width, heads * head_dim, int8)
        self.q_norm = parameter(head_dim)
        self.k_norm = parameter(head_dim)

    @staticmethod
    def weight_table(ours: str, official: str, int8: bool = False) -> WeightTable:
        return {
            **product_table(f"{ours}.qkv", tuple(f"{official}.{n}_proj.weight" for n in "qkv"), int8),
            **product_table(f"{ours}.o", (f"{official}.o_proj.weight",), int8),
            f"{ours}.q_norm": Source((f"{official}.q_norm.weight",)),
            f"{ours}.k_norm": Source((f"{official}.k_norm.weight",)),
        }

    def forward(
        self,
        h: Tensor,
        rope: tuple[Tensor, Tensor],
        window: int | None = None,
        lengths: Tensor | None = None,
        pad_rows: bool = False,
        buffers: Buffers = NO_BUFFERS,
    ) -> Tensor:
        """[B, S, width] -> [B, S, width]; ``rope`` is ``rope_table(S, ...)``, the rest as in ``self_attention``."""
        qkv, heads = product(h, self.qkv, self.qkv_scale, out=buffers.qkv), (self.heads, self.kv_heads)
        q, k, v = qk_norm_rope(qkv, self.q_norm, self.k_norm, *rope, *heads, eps=self.eps, out=buffers.qkv)
        attended = self_attention(q, k, v, window, lengths, pad_rows=pad_rows, out=buffers.attended)
        return product(attended, self.o, self.o_scale, out=buffers.y)

    def first_row(self, h: Tensor, rope: tuple[Tensor, Tensor], window: int | None = None) -> Tensor:
        """``forward(h, rope, window)[:, :1]`` without the other rows' queries and outputs, [B, 1, width].

        Not for 8-bit weights, which no encoder has.
        """
        if window is not None:
            h, rope = h[:, : window + 1], tuple(t[: window + 1] for t in rope)
        split = self.heads * self.q_norm.shape[0]
        kv = linear(h, some_rows(self.qkv, split, rows_of(self.qkv)))
        _, k, v = qk_norm_rope(kv, self.q_norm, self.k_norm, *rope, 0, self.kv_heads, eps=self.eps)
        q = linear(h[:, :1], some_rows(self.qkv, 0, split))  # not rotated at position 0: a query of cross-attention
        return linear(cross_attention(q, self.q_norm, k.transpose(1, 2), v.transpose(1, 2), eps=self.eps), self.o)


class MLP(nn.Module):
    """SwiGLU feed-forward block without biases."""

    in_panels = "gate_up", "down"  # on a CPU's kernels

    def __init__(self, width: int, intermediate: int, int8: bool = False):
        super().__init__()
        add_weight(self, "gate_up", 2 * intermediate, width, int8)
        add_weight(self, "down", width, intermediate, int8)

    @staticmethod
    def weight_table(ours: str, official: str, int8: bool = False) -> WeightTable:
        return {
            **product_table(f"{ours}.gate_up", (f"{official}.gate_proj.weight", f"{official}.up_proj.weight"), int8),
            **product_table(f"{ours}.down", (f"{official}.down_proj.weight",), int8),
        }

    def forward(self, h: Tensor, buffers: Buffers = NO_BUFFERS) -> Tensor:
        """[..., width] -> [..., width]."""
        hidden = product_swiglu(h, self.gate_up, self.gate_up_scale, out=buffers.hidden)
        return product(hidden, self.down, self.down_scale, out=buffers.y)


class EncoderLayer(nn.Module):
    """Weights of one pre-norm layer; ``Encoder`` runs it, since each norm also closes the sublayer before."""

    def __init__(self, c: Config):
        super().__init__()
        self.attention_norm = parameter(c.encoder_hidden_size)
        self.attention = SelfAttention(
            c.encoder_hidden_size,
            c.encoder_num_attention_heads,
            c.encoder_num_key_value_heads,
            c.head_dim,
            c.rms_norm_eps,
        )
        self.mlp_norm = parameter(c.encoder_hidden_size)
        self.mlp = MLP(c.encoder_hidden_size, c.encoder_intermediate_size)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            f"{ours}.attention_norm": Source((f"{official}.input_layernorm.weight",)),
            f"{ours}.mlp_norm": Source((f"{official}.post_attention_layernorm.weight",)),
            **SelfAttention.weight_table(f"{ours}.attention", f"{official}.self_attn"),
            **MLP.weight_table(f"{ours}.mlp", f"{official}.mlp"),
        }


class Encoder(nn.Module):
    """A stack of bidirectional pre-norm layers and a final norm; even layers see a window, odd ones everything."""

    def __init__(self, c: Config, layers: int):
        super().__init__()
        self.config = c
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(layers))
        self.norm = parameter(c.encoder_hidden_size)

    @staticmethod
    def weight_table(ours: str, official: str, layers: int) -> WeightTable:
        table = {f"{ours}.norm": Source((f"{official}.norm.weight",))}
        for i in range(layers):
            table |= EncoderLayer.weight_table(f"{ours}.layers.{i}", f"{official}.layers.{i}")
        return table

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *, pad_rows: bool = False, first_row: bool = False
    ) -> Tensor:
        """Encode x [B, S, W] to [B, S, W].

        Args:
            x: embedded inputs.
            lengths: [B] valid rows of each item; None: all.
            pad_rows: whether padding's rows look at the valid ones too, see ``self_attention``.
            first_row: return only row 0, [B, 1, W], and leave out what the last layer computes for the others;
                ``lengths`` must be None.
        """
        c, dtype = self.config, x.dtype
        rope = rope_table(x.shape[1], c.head_dim, c.rope_theta, x.device)
        x = x.to(residual_dtype(dtype))
        norm = functools.partial(residual_norm, eps=c.rms_norm_eps, dtype=dtype)
        y = None
        for i, layer in enumerate(self.layers):
            window = layer_window(c, i)
            x, h = norm(x, layer.attention_norm, y)
            if first_row and i == len(self.layers) - 1:
                y = layer.attention.first_row(h, rope, window)
                x = x[:, :1]
            else:
                y = layer.attention(h, rope, window, lengths, pad_rows)
            x, h = norm(x, layer.mlp_norm, y)
            y = layer.mlp(h)
        return norm(x, self.norm, y)[1]


def layer_window(c: Config, index: int) -> int | None:
    """Window of layer ``index`` of any stack here: even layers slide, odd layers see everything."""
    return c.sliding_window if index % 2 == 0 else None


def residual_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of a residual stream: the model's, but fp32 where that is fp16, whose range the activations leave."""
    return torch.float32 if dtype == torch.float16 else dtype


def linear_table(ours: str, official: str, *, bias: bool = True, dtype: torch.dtype | None = None) -> WeightTable:
    """``ours.weight`` and ``ours.bias`` from the official tensors of those names."""
    parts: Sequence[str] = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{p}": Source((f"{official}.{p}",), dtype=dtype) for p in parts}


class Linear(nn.Module):
    """A linear layer's weights; calling it is ``linear``."""

    def __init__(self, inp: int, out: int, bias: bool = True, dtype: torch.dtype | None = None):
        super().__init__()
        self.weight = parameter(out, inp, dtype=dtype)
        self.bias = parameter(out, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inp] -> [..., out]."""
        return linear(x, self.weight, self.bias)


def model_time(t: float, dtype: torch.dtype, upstream: bool = False) -> float:
    """What the sinusoids are fed: ``1000 * t``; with ``upstream``, t and the product are rounded to ``dtype``."""
    time = torch.tensor(t, dtype=dtype if upstream else torch.float32)
    return float(time * 1000)


def time_features(times: Tensor) -> Tensor:
    """``[cos(tau * w_k), sin(tau * w_k)]``, ``w_k = 10000**(-k / 128)``: [N] -> [N, 256], fp32."""
    half = TIME_FEATURES // 2
    k = torch.arange(half, dtype=torch.float32, device=times.device)
    angle = times.float()[:, None] * torch.exp(-math.log(10_000) * k / half)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def fp32_linear(x: Tensor, layer: Linear) -> Tensor:
    """``layer`` of a few fp32 rows in fp32, whatever its weights are: [N, inp] -> [N, out].

    Measured on one core of a Zen 4, 8 rows through a 2B ``TimeEmbedding``: 80 ms with whole weights made fp32, 17 so.
    """
    rows = WIDENED if x.device.type == "cpu" else len(layer.weight)
    parts = zip(layer.weight.split(rows), layer.bias.split(rows))
    return torch.cat([F.linear(x, weight.float(), bias.float()) for weight, bias in parts], dim=1)


class TimeEmbedding(nn.Module):
    """Sinusoids, two linear layers and the projection to six vectors; computed in fp32, a few rows per song."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = Linear(TIME_FEATURES, width)
        self.linear_2 = Linear(width, width)
        self.project = Linear(width, 6 * width)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        return {
            **linear_table(f"{ours}.linear_1", f"{official}.linear_1"),
            **linear_table(f"{ours}.linear_2", f"{official}.linear_2"),
            **linear_table(f"{ours}.project", f"{official}.time_proj"),
        }

    def forward(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """[N] thousandths -> the embedding [N, H] and its six vectors [N, 6, H], fp32."""
        x = time_features(times)
        for i, layer in enumerate((self.linear_1, self.linear_2, self.project)):
            embedding, x = x, fp32_linear(F.silu(x) if i else x, layer)
        return embedding, x.view(len(times), 6, -1)
