"""The CPU's kernel of acefast.ops.linear_attention, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.linear_attention import linear_attention
from tests.cpu.convolutions import on_threads
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_linear_attention import GATE, expected, inputs, relative

BF16 = torch.bfloat16

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


@pytest.mark.parametrize("B, S, heads, D", [(1, 1, 1, 32), (2, 40, 3, 64), (3, 300, 2, 96), (1, 70, 2, 128)])
def test_equals_the_quadratic_sum(isa, B, S, heads, D, rng):
    given = inputs(B, S, heads, D, BF16, rng)
    before = given[0].clone()
    got = linear_attention(*given, backend="cpu")
    assert got.dtype == BF16 and got.shape == (B, S, heads * D) and torch.equal(given[0], before)
    assert relative(got, expected(*given)) <= GATE[BF16]


def test_a_state_of_many_rows_keeps_its_digits(isa, rng):
    """Values of one sign, which add up: what is a mean of numbers between 1 and 2 is one, to a rounding."""
    qkv, *rest = inputs(1, 3000, 1, 32, BF16, rng)
    qkv[..., 64:] = 1 + torch.rand(3000, 32, generator=rng)
    got = linear_attention(qkv, *rest, backend="cpu")
    assert ((got - expected(qkv, *rest)).abs() <= 2**-8 * 1.05).all()


def test_rows_behind_a_song_count_for_nothing_and_come_out_as_zeros(isa, rng):
    qkv, *rest = inputs(3, 50, 2, 32, BF16, rng)
    lengths = torch.tensor([50, 31, 0], dtype=torch.int32)
    for b, n in enumerate(lengths):
        qkv[b, n:] = torch.nan
    got = linear_attention(qkv, *rest, lengths, backend="cpu")
    assert relative(got, expected(qkv, *rest, lengths)) <= GATE[BF16]
    assert not got[1, 31:].any() and not got[2].any()


def test_without_any_weight_a_row_is_zero(isa, rng):
    qkv, *rest = inputs(1, 20, 1, 32, BF16, rng)
    qkv[..., :32] = 0
    assert not linear_attention(qkv, *rest, backend="cpu").any()


def test_views_and_any_number_of_threads_give_the_same_and_nothing_else_is_touched(rng):
    qkv, table, heads = inputs(2, 45, 3, 32, BF16, rng)
    want = linear_attention(qkv, table, heads, backend="cpu")
    wide = torch.full((2, 47, 3 * 96 + 40), torch.nan, dtype=BF16)
    own = wide[:, 1:-1, 8:-32].copy_(qkv)
    memory = torch.full((2, 47, 96 + 40), torch.nan, dtype=BF16)
    out = memory[:, 1:-1, 8:-32]
    for threads in (1, 2, 3):
        with on_threads(threads):
            assert linear_attention(own, table, heads, out=out, backend="cpu") is out and torch.equal(out, want)
    out.fill_(torch.nan)
    assert memory.isnan().all()


@pytest.mark.parametrize("D, dtype", [(16, BF16), (32, torch.float32)])
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(D, dtype, rng):
    given = inputs(1, 5, 2, D, dtype, rng)
    with pytest.raises(BackendUnavailable, match="it has no cpu kernel"):
        linear_attention(*given, backend="cpu")
    assert torch.equal(linear_attention(*given), linear_attention(*given, backend="reference"))
