"""The text encoder, transformers' Qwen3Model, with its layers on acefast's ops where the CPU's kernels are in force.

    x += attention(q, k, v) @ Wo.T       q, k, v = norm(x) @ (Wq, Wk, Wv).T, q and k normed and rotated; causal
    x += swiglu(norm(x)) @ Wdown.T

Weights, their names and everything else are transformers': other devices, other dtypes, masks, caches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from acefast.backends import cpu_kernels_take
from acefast.ops.linear import add_linear, linear
from acefast.ops.linear_swiglu import linear_swiglu
from acefast.ops.qk_norm_rope import qk_norm_rope
from acefast.ops.residual_norm import residual_norm
from acefast.ops.self_attention import self_attention


class Layer(Qwen3DecoderLayer):
    """A layer of transformers', and the same on our ops."""

    def __init__(self, config: Qwen3Config, index: int) -> None:
        super().__init__(config, index)
        self.heads, self.eps = (config.num_attention_heads, config.num_key_value_heads), config.rms_norm_eps

    def forward(self, x: Tensor, *others: Any, rope: tuple[Tensor, Tensor] | None = None, **named: Any) -> Any:
        """[B, S, H] in place on our ops where ``rope`` is given, (cos, sin) [S, D / 2]; else as transformers does."""
        if rope is None:
            return super().forward(x, *others, **named)
        attention, mlp = self.self_attn, self.mlp
        _, h = residual_norm(x, self.input_layernorm.weight, eps=self.eps)
        weights = [layer.weight for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
        rows = [len(weight) for weight in weights]
        qkv = x.new_empty(*x.shape[:2], sum(rows))
        for weight, part in zip(weights, qkv.split(rows, -1)):  # each a view of the file: stacked they would be a copy
            linear(h, weight, out=part)
        norms = attention.q_norm.weight, attention.k_norm.weight
        q, k, v = qk_norm_rope(qkv, *norms, *rope, *self.heads, eps=self.eps, out=qkv)
        add_linear(x, self_attention(q, k, v, causal=True), attention.o_proj.weight)
        _, h = residual_norm(x, self.post_attention_layernorm.weight, eps=self.eps)
        add_linear(x, linear_swiglu(h, mlp.gate_proj.weight, mlp.up_proj.weight), mlp.down_proj.weight)
        return x


class TextEncoder(Qwen3Model):
    """See the module."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        use_cache: bool | None = None,
        **options: Any,
    ) -> Any:
        """As transformers has it."""
        masks = attention_mask.values() if isinstance(attention_mask, dict) else [attention_mask]  # by kind of layer
        plain = use_cache is False and not options and input_ids is not None and all(mask is None for mask in masks)
        if plain and self._kernels_in_force():
            return BaseModelOutputWithPast(last_hidden_state=self.on_our_ops(input_ids))
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **options)

    def on_our_ops(self, ids: Tensor) -> Tensor:
        """Ids [B, S] to the last states [B, S, H]."""
        x = self.embed_tokens(ids)
        positions = torch.arange(ids.shape[1], device=x.device)[None]
        rope = [t[0].chunk(2, -1)[0] for t in self.rotary_emb(x.new_empty(0, dtype=torch.float32), positions)]
        for layer in self.layers:
            x = layer(x, rope=rope)
        return residual_norm(x, self.norm.weight, eps=self.config.rms_norm_eps)[1]

    def _kernels_in_force(self) -> bool:
        """Whether these are the layers above, and the CPU's kernels take them."""
        c, weight = self.config, self.norm.weight
        same = c.hidden_act == "silu" and not c.attention_bias and set(c.layer_types) == {"full_attention"}
        return same and cpu_kernels_take(weight.dtype, weight.device)
