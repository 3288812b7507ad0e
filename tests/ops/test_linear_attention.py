"""linear_attention against the quadratic sum in fp64; its Triton kernels are in test_linear_attention_triton.py."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.linear_attention import linear_attention
from acefast.ops.paired_rope import paired_rope, paired_rope_table

GATE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}  # relative L2


def table_of(rows, D):
    return paired_rope_table(rows, D, 1e4, torch.device("cpu"))


def inputs(B, S, heads, D, dtype, rng):
    return torch.randn(B, S, 3 * heads * D, generator=rng).to(dtype), table_of(S, D), heads


def expected(qkv, table, heads, lengths=None):
    """All weights of all rows, [S, S] for each head, in fp64."""
    q, k, v = qkv.double().unflatten(-1, (3, heads, -1)).unbind(2)
    q, k = (paired_rope(t, table).relu() for t in (q, k))
    want = torch.zeros(*qkv.shape[:2], heads, q.shape[-1], dtype=torch.float64)
    for b in range(len(qkv)):
        n = qkv.shape[1] if lengths is None else int(lengths[b])
        weights = torch.einsum("ihd,jhd->hij", q[b, :n], k[b, :n])
        weights = weights / (weights.sum(2, keepdim=True) + 1e-15)
        want[b, :n] = torch.einsum("hij,jhd->ihd", weights, v[b, :n])
    return want.flatten(2)


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, S, heads, D", [(1, 1, 1, 16), (2, 40, 3, 6), (3, 300, 2, 16), (1, 70, 2, 128)])
def test_equals_the_quadratic_sum(B, S, heads, D, dtype, rng):
    given = inputs(B, S, heads, D, dtype, rng)
    before = given[0].clone()
    got = linear_attention(*given)
    assert got.dtype == dtype and torch.equal(given[0], before)
    assert relative(got, expected(*given)) <= GATE[dtype]


def test_rows_behind_a_song_count_for_nothing_and_come_out_as_zeros(rng):
    qkv, *rest = inputs(3, 50, 2, 16, torch.float32, rng)
    lengths = torch.tensor([50, 31, 0], dtype=torch.int32)
    for b, n in enumerate(lengths):
        qkv[b, n:] = torch.nan
    got = linear_attention(qkv, *rest, lengths)
    assert relative(got, expected(qkv, *rest, lengths)) <= 1e-6
    assert not got[1, 31:].any() and not got[2].any()


def test_a_song_does_not_depend_on_its_neighbours_or_on_its_padding(rng):
    qkv, _, heads = inputs(2, 60, 2, 16, torch.float32, rng)
    lengths = torch.tensor([33, 60])
    both = linear_attention(qkv, table_of(60, 16), heads, lengths)
    alone = linear_attention(qkv[:1, :33], table_of(60, 16), heads)
    assert relative(both[:1, :33], alone.double()) <= 1e-6


def test_a_positive_factor_of_the_queries_cancels(rng):
    """So upstream's weak queries (ERG) change nothing in self-attention."""
    qkv, *rest = inputs(1, 40, 2, 16, torch.float32, rng)
    weak = qkv.clone()
    weak[..., :32] *= 0.01
    assert relative(linear_attention(weak, *rest), linear_attention(qkv, *rest).double()) <= 1e-6


def test_without_any_weight_a_row_is_zero(rng):
    qkv, *rest = inputs(1, 20, 1, 16, torch.float32, rng)
    qkv[..., :16] = 0
    assert not linear_attention(qkv, *rest).any()


def test_out_and_strided_rows(rng):
    qkv, *rest = inputs(2, 30, 2, 16, torch.float32, rng)
    want = linear_attention(qkv, *rest)
    wide, memory = torch.full((2, 33, 100), torch.nan), torch.full((2, 32, 40), torch.nan)
    packed, out = wide[:, 1:31, 2:98], memory[:, :30, 4:36]
    packed.copy_(qkv)
    assert linear_attention(packed, *rest, out=out) is out and relative(out, want.double()) <= 1e-6
    out.fill_(torch.nan)
    assert memory.isnan().all()


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    qkv, table, heads = inputs(2, 20, 2, 16, torch.float32, rng)
    with pytest.raises(ValueError, match=r"qkv must be \[B, S, 3 \* heads \* D\] with heads = 5, got \[2, 20, 96\]"):
        linear_attention(qkv, table, 5)
    with pytest.raises(ValueError, match=r"table must be \[S or more, 2, D\] = \[20, 2, 16\], got \[19, 2, 16\]"):
        linear_attention(qkv, table[:19], heads)
    with pytest.raises(ValueError, match=r"lengths must be \[B\] = \[2\], got \[3\]"):
        linear_attention(qkv, table, heads, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"out must be \[B, S, heads \* D\] = \[2, 20, 32\], got \[2, 20, 96\]"):
        linear_attention(qkv, table, heads, out=qkv)
    with pytest.raises(ValueError, match=r"out must be torch.float32, got torch.float16"):
        linear_attention(qkv, table, heads, out=qkv[..., :32].half())
    with pytest.raises(BackendUnavailable, match="linear_attention: backend='cuda' cannot run"):
        linear_attention(qkv, table, heads, backend="cuda")
