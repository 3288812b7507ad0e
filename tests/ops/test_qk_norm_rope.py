"""qk_norm_rope against complex rotation in fp64, and the table's published values."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.qk_norm_rope import qk_norm_rope, rope_table

CPU = torch.device("cpu")
GATE = {torch.float32: 2e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
SHAPES = [(1, 1, 2, 1, 8), (2, 300, 4, 2, 128), (1, 7, 8, 2, 128)]  # one row; the models' heads; XL's ratio of heads


def inputs(B, S, heads, kv_heads, D, dtype, rng):
    qkv = torch.randn(B, S, (heads + 2 * kv_heads) * D, generator=rng).to(dtype)
    q_weight, k_weight = ((1 + 0.2 * torch.randn(D, generator=rng)).to(dtype) for _ in range(2))
    return qkv, q_weight, k_weight


def expected(x, weight, positions, theta=1e6):
    D = x.shape[-1]
    x, weight = x.double(), weight.double()
    u = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    angle = positions.double()[:, None, None] * theta ** (-torch.arange(0, D, 2).double() / D)
    turned = torch.complex(u[..., : D // 2], u[..., D // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, S, heads, kv_heads, D", SHAPES)
def test_equals_rotation_in_fp64(B, S, heads, kv_heads, D, dtype, rng):
    qkv, q_weight, k_weight = inputs(B, S, heads, kv_heads, D, dtype, rng)
    before = qkv.clone()
    q, k, v = qk_norm_rope(qkv, q_weight, k_weight, *rope_table(S, D, 1e6, CPU), heads, kv_heads)
    parts = qkv.unflatten(-1, (-1, D))
    raw_q, raw_k, raw_v = parts.split((heads, kv_heads, kv_heads), dim=2)
    gate = max(GATE[dtype], 2e-5 * (S > 100))  # the angle p * w is an fp32 product
    assert relative(q, expected(raw_q, q_weight, torch.arange(S))) <= gate
    assert relative(k, expected(raw_k, k_weight, torch.arange(S))) <= gate
    assert torch.equal(v, raw_v) and torch.equal(qkv, before) and q.dtype == k.dtype == dtype


def test_without_a_table_only_the_norm_is_taken(rng):
    """Cross-attention's keys: no queries in the packing, no rotation."""
    qkv, weight, k_weight = inputs(2, 9, 0, 2, 16, torch.float32, rng)
    q, k, v = qk_norm_rope(qkv, weight, k_weight, None, None, 0, 2)
    raw_k, raw_v = qkv.view(2, 9, 4, 16).split(2, dim=2)
    assert q.shape == (2, 9, 0, 16) and torch.equal(v, raw_v)
    assert relative(k, expected(raw_k, k_weight, torch.zeros(9))) <= 1e-6


def test_frequencies_and_angles_are_the_published_ones():
    inverse = torch.tensor([1, 0.80584222, 0.64938164, 1.24093776e-6])
    cos, sin = rope_table(6, 128, 1e6, CPU)
    torch.testing.assert_close(torch.atan2(sin[1], cos[1])[[0, 1, 2, 63]], inverse, rtol=2e-6, atol=0)
    assert float(cos[5, 1]) == pytest.approx(-0.63126093, abs=1e-6)
    assert cos.shape == (6, 64) and cos.dtype == torch.float32


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    qkv, q_weight, k_weight = inputs(1, 4, 2, 1, 8, torch.float32, rng)
    cos, sin = rope_table(5, 8, 1e6, CPU)
    with pytest.raises(ValueError, match=r"qk_norm_rope: cos must be \[S, D / 2\] = \[4, 4\], got \[5, 4\]"):
        qk_norm_rope(qkv, q_weight, k_weight, cos, sin, 2, 1)
    with pytest.raises(ValueError, match="together"):
        qk_norm_rope(qkv, q_weight, k_weight, None, sin[:4], 2, 1)
    with pytest.raises(ValueError, match="qkv must be"):
        qk_norm_rope(qkv, q_weight, k_weight, None, None, 3, 1)
