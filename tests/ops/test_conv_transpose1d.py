"""Proof of acefast.ops.conv_transpose1d."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from acefast.backends import BackendUnavailable
from acefast.guarded import GUARD, elements, guarded, is_guarded, whole, with_guards
from acefast.ops.conv_transpose1d import conv_transpose1d, conv_transpose_weight
from acefast.ops.snake import snake

GATE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # relative L2
SHAPES = [(1, 1, 1, 1, 2), (2, 7, 3, 5, 4), (3, 50, 16, 8, 6), (1, 33, 16, 8, 10)]  # one row; odd; a batch; widest


def inputs(B, L, Cin, Cout, stride, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g) for s in ((B, L, Cin), (Cin, Cout, 2 * stride), (Cout,)))
    return x.to(dtype), (weight / (2 * Cin) ** 0.5).to(dtype), bias.to(dtype)


def naive(x, weight, bias, stride):
    """Scatter every input row over its 2 * stride output rows, in fp64; weight as in torch, [Cin, Cout, 2 * stride]."""
    x, weight = x.double(), weight.double()
    B, L, _ = x.shape
    y = bias.double().repeat(B, stride * L, 1)
    for t in range(L):
        for j in range(2 * stride):
            if 0 <= (row := t * stride + j - stride // 2) < stride * L:
                y[:, row] += x[:, t] @ weight[:, :, j]
    return y


def relative(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, L, Cin, Cout, stride", SHAPES)
def test_matches_the_formula_in_double_precision(B, L, Cin, Cout, stride, dtype):
    x, weight, bias = inputs(B, L, Cin, Cout, stride, dtype)
    y = conv_transpose1d(x, conv_transpose_weight(weight), bias, stride=stride)
    assert y.dtype == dtype and y.is_contiguous() and y.shape == (B, stride * L, Cout)
    assert relative(y, naive(x, weight, bias, stride)) <= GATE[dtype]


@pytest.mark.parametrize("stride", (2, 4, 6, 10))
def test_matches_torch(stride):
    x, weight, bias = inputs(2, 20, 8, 4, stride)
    theirs = F.conv_transpose1d(x.transpose(1, 2), weight, bias, stride=stride, padding=stride // 2)
    ours = conv_transpose1d(x, conv_transpose_weight(weight), bias, stride=stride)
    assert relative(ours, theirs.transpose(1, 2)) <= 1e-6


def test_bf16_is_rounded_once():
    x, weight, bias = inputs(1, 200, 32, 16, 4, torch.bfloat16)
    y = conv_transpose1d(x, conv_transpose_weight(weight), bias, stride=4)
    exact = naive(x, weight, bias, 4)
    assert relative(y, exact) <= 1.02 * relative(exact.bfloat16(), exact)


def test_songs_of_a_batch_do_not_meet_and_no_input_is_modified():
    for dtype in GATE:
        x, weight, bias = inputs(3, 10, 8, 4, 4, dtype)
        weight = conv_transpose_weight(weight)
        before = [t.clone() for t in (x, weight, bias)]
        y = conv_transpose1d(x, weight, bias, stride=4)
        assert all(torch.equal(a, b) for a, b in zip(before, (x, weight, bias)))
        x[[0, 2]] = torch.nan
        assert relative(conv_transpose1d(x, weight, bias, stride=4)[1], y[1]) <= GATE[dtype]


def poisoned(shape, dtype, laid):
    """Rows of NaN, guards included where there are any."""
    memory = torch.full((elements(*shape),), torch.nan, dtype=dtype)
    return (
        guarded(*shape, dtype=dtype, device=memory.device, memory=memory)
        if laid
        else memory[: math.prod(shape)].view(shape)
    )


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("keep", (True, False))
@pytest.mark.parametrize("laid", (True, False), ids=("guarded", "contiguous"))
@pytest.mark.parametrize("silu", (True, False), ids=("silu", "snake"))
def test_the_next_activation_is_a_second_result(silu, keep, laid, dtype):
    """Of new memory and of memory given, whose guards hold what was there before."""
    B, L, stride = 2, 9, 4
    x, weight, bias = inputs(B, L, 16, 8, stride, dtype)
    weight, wave = conv_transpose_weight(weight), (torch.rand(8) + 0.5, torch.rand(8))
    wave = "silu" if silu else wave
    y = conv_transpose1d(x, weight, bias, stride=stride)
    into = [poisoned(y.shape, dtype, laid) for _ in range(2)]
    into = (into[0] if keep else None, into[1])
    options = dict(stride=stride, wave=wave, keep=keep, guarded=laid)
    for out in (None, into):
        got = conv_transpose1d(with_guards(x) if laid else x, weight, bias, **options, out=out)
        assert out is None or all(a is b for a, b in zip(got, out))
        assert (got[0] is not None) == keep
        for have, want in zip(got, (y, F.silu(y) if silu else snake(y, *wave))):
            if have is not None:
                assert torch.equal(have, want) and (is_guarded(have) if laid else have.is_contiguous())
                assert not laid or ((whole(have)[:, :GUARD] == 0).all() and (whole(have)[:, -GUARD:] == 0).all())


@pytest.mark.parametrize("laid", (True, False), ids=("guarded", "contiguous"))
def test_one_result_goes_where_it_is_told(laid):
    x, weight, bias = inputs(2, 9, 16, 8, 2)
    weight = conv_transpose_weight(weight)
    y = conv_transpose1d(x, weight, bias, stride=2)
    out = poisoned(y.shape, y.dtype, laid)
    x = with_guards(x) if laid else x
    assert conv_transpose1d(x, weight, bias, stride=2, guarded=laid, out=out) is out and torch.equal(out, y)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(3, 8)), r"conv_transpose1d: x must be \[B, L, Cin\]"),
        (dict(x=torch.ones(1, 8, 3).transpose(1, 2)), r"conv_transpose1d: x must be contiguous"),
        (dict(stride=3), r"conv_transpose1d: stride must be even and at least 2, got 3"),
        (dict(stride=0), r"conv_transpose1d: stride must be even and at least 2, got 0"),
        (dict(weight=torch.ones(8, 20)), r"weight must be \[2 \* Cin, stride \* Cout\] = \[16, 20\], got \[8, 20\]"),
        (dict(weight=torch.ones(20, 16).T), r"conv_transpose1d: weight must be contiguous"),
        (dict(weight=torch.ones(16, 20).bfloat16()), r"conv_transpose1d: weight must have x's dtype"),
        (dict(guarded=True), r"conv_transpose1d: x must lie between guards"),
        (dict(keep=False), r"conv_transpose1d: keep=False needs a wave"),
        (dict(wave="relu"), r"conv_transpose1d: wave must be alpha and inv_beta of a snake, or 'silu', got 'relu'"),
        (dict(wave=(torch.ones(5), torch.ones(4))), r"conv_transpose1d: wave\[1\] must be \[C\] = \[5\], got \[4\]"),
        (dict(out=torch.ones(1, 12, 4)), r"out must be \[B, stride \* L, Cout\] = \[1, 12, 5\], got \[1, 12, 4\]"),
        (dict(out=torch.ones(1, 12, 5).half()), r"conv_transpose1d: out must have x's dtype"),
        (dict(bias=torch.ones(1, 5)), r"conv_transpose1d: bias must be \[Cout\]"),
        (dict(bias=torch.ones(5).bfloat16()), r"conv_transpose1d: bias must have x's dtype"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(x=torch.ones(1, 3, 8), weight=torch.ones(16, 20), bias=torch.ones(5), stride=4) | change
    with pytest.raises(ValueError, match=message):
        conv_transpose1d(**arguments)


def test_a_backend_without_a_kernel_is_refused():
    with pytest.raises(BackendUnavailable, match="conv_transpose1d: backend='triton' cannot run"):
        conv_transpose1d(torch.ones(1, 3, 8), torch.ones(16, 20), torch.ones(5), stride=4, backend="triton")
