"""Proof of acefast.ops.snake."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_oobleck import Snake1d

from acefast.backends import BackendUnavailable
from acefast.guarded import GUARD, elements, guarded, is_guarded, whole, with_guards
from acefast.ops.snake import block_elements, snake

SHAPES = [(1, 1, 1), (2, 7, 3), (3, 1000, 128)]  # a single value; odd sizes; a real width
GATE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # relative L2


def inputs(B, L, C, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(B, L, C, generator=g)
    return x.to(dtype), torch.rand(C, generator=g) * 4 + 0.1, torch.rand(C, generator=g) * 2


def naive(x, alpha, inv_beta):
    x = x.double()
    return x + inv_beta.double() * (alpha.double() * x).sin() ** 2


def relative(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, L, C", SHAPES)
def test_matches_the_formula_in_double_precision(B, L, C, dtype):
    x, alpha, inv_beta = inputs(B, L, C, dtype)
    y = snake(x, alpha, inv_beta)
    assert y.dtype == dtype and y.is_contiguous()
    assert relative(y, naive(x, alpha, inv_beta)) <= GATE[dtype]


def test_low_precision_is_rounded_once():
    x, alpha, inv_beta = inputs(2, 50, 16, torch.bfloat16)
    assert torch.equal(snake(x, alpha, inv_beta), snake(x.float(), alpha, inv_beta).bfloat16())


def test_a_tensor_of_several_cache_blocks_is_that_of_its_rows():
    C = 64
    L = 2 * block_elements(torch.device("cpu")) // C + 3  # two blocks and a ragged one
    x, alpha, inv_beta = inputs(1, L, C)
    assert relative(snake(x, alpha, inv_beta), naive(x, alpha, inv_beta)) <= GATE[torch.float32]


def test_matches_diffusers():
    theirs = Snake1d(16).requires_grad_(False)
    g = torch.Generator().manual_seed(1)
    theirs.alpha.normal_(generator=g)
    theirs.beta.normal_(generator=g)
    x = torch.randn(2, 30, 16, generator=g)
    alpha, inv_beta = theirs.alpha.exp().flatten(), 1 / (theirs.beta.exp().flatten() + 1e-9)
    assert relative(snake(x, alpha, inv_beta), theirs(x.transpose(1, 2)).transpose(1, 2)) <= 1e-6


def test_input_is_not_modified_and_empty_is_fine():
    for dtype in GATE:
        x, alpha, inv_beta = inputs(1, 20, 4, dtype)
        before = x.clone()
        snake(x, alpha, inv_beta)
        assert torch.equal(x, before)
    assert snake(torch.empty(1, 0, 4), alpha, inv_beta).shape == (1, 0, 4)


@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_guarded_rows_and_rows_in_place_give_the_same(dtype):
    x, alpha, inv_beta = inputs(2, 20, 8, dtype)
    want, before = snake(x, alpha, inv_beta), x.clone()
    y = snake(with_guards(x), alpha, inv_beta, guarded=True)
    memory = torch.full((elements(2, 20, 8),), torch.nan, dtype=dtype)
    out = guarded(2, 20, 8, dtype=dtype, device=x.device, memory=memory)
    assert snake(with_guards(x), alpha, inv_beta, guarded=True, out=out) is out
    for t in (y, out):
        assert is_guarded(t) and torch.equal(t, want)
        assert not whole(t)[:, :GUARD].any() and not whole(t)[:, GUARD + 20 :].any()
    assert snake(x, alpha, inv_beta, out=(plain := torch.empty_like(x))) is plain and torch.equal(plain, want)
    assert torch.equal(x, before)
    assert snake(x, alpha, inv_beta, out=x) is x and torch.equal(x, want)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(4, 8)), r"snake: x must be \[B, L, C\]"),
        (dict(x=torch.ones(1, 8, 4).transpose(1, 2)), r"snake: x must be contiguous"),
        (dict(alpha=torch.ones(1, 8, 1)), r"snake: alpha must be \[C\] = \[8\], got \[1, 8, 1\]"),
        (dict(inv_beta=torch.ones(4)), r"snake: inv_beta must be \[C\] = \[8\], got \[4\]"),
        (dict(alpha=torch.ones(8).bfloat16()), r"snake: alpha must be torch.float32, got torch.bfloat16"),
        (dict(out=torch.ones(1, 4, 9)), r"snake: out must be \[B, L, C\] = \[1, 4, 8\], got \[1, 4, 9\]"),
        (dict(out=torch.ones(1, 4, 8).half()), r"snake: out must be torch.float32, got torch.float16"),
        (dict(out=torch.ones(1, 8, 4).transpose(1, 2)), r"snake: out must be contiguous"),
        (dict(guarded=True), r"snake: x must lie between guards of 32 rows"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(x=torch.ones(1, 4, 8), alpha=torch.ones(8), inv_beta=torch.ones(8)) | change
    with pytest.raises(ValueError, match=message):
        snake(**arguments)


def test_a_backend_without_a_kernel_is_refused():
    with pytest.raises(BackendUnavailable, match="snake: backend='triton' cannot run"):
        snake(torch.ones(1, 1, 8), torch.ones(8), torch.ones(8), backend="triton")
