"""residual_unit's Triton kernel in the interpreter, against the equation in fp64; one case in the PTX simulator too."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import BackendUnavailable, use_backend
from acefast.guarded import GUARD, guarded, whole, with_guards
from acefast.kernels.residual_unit import CONFIGS
from acefast.kernels.residual_unit import residual_unit as kernel
from acefast.ops.residual_unit import fused, residual_unit
from acefast.ops.snake import snake
from acefast.sim import interpreter
from tests.ops.simulated import simulated
from tests.ops.units import GATE, check_guards, exact, poisoned, relative, rows, weights

TILE = CONFIGS["c16", 80]["BLOCK_M"]


@pytest.fixture
def interpreted():
    with interpreter.interpreted():
        yield


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("dilation", (1, 3, 9))
@pytest.mark.parametrize("B, L", [(1, 1), (3, TILE - 1), (2, TILE), (1, TILE + 1), (2, 2 * TILE + 40)])
def test_kernel_equals_the_equation_in_fp64(interpreted, B, L, dilation, dtype, rng):
    given, wave = weights(rng, 16, dtype)
    x, activated = rows(rng, B, L, 16, dtype), rows(rng, B, L, 16, dtype)
    whole(x)[:, :GUARD] = whole(x)[:, -GUARD:] = torch.nan  # not read: the residual has no neighbours
    out = poisoned(x), poisoned(x)
    assert kernel(x, activated, *given, dilation=dilation, wave=wave, out=out) is out
    for got, want in zip(out, exact(x, activated, *given, dilation, wave)):
        assert relative(got, want) <= GATE[dtype]
    check_guards(*out)


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("C", (32, 64, 128, 256))
def test_kernel_takes_every_width(interpreted, C, dtype, rng):
    given, wave = weights(rng, C, dtype)
    x, activated = rows(rng, 1, 130, C, dtype), rows(rng, 1, 130, C, dtype)  # a tile and two rows
    out = poisoned(x), poisoned(x)
    kernel(x, activated, *given, dilation=9, wave=wave, out=out)
    for got, want in zip(out, exact(x, activated, *given, 9, wave)):
        assert relative(got, want) <= GATE[dtype]
    check_guards(*out)


def test_the_widths_it_takes_are_those_of_its_table():
    assert {C for C in range(1, 2049) if fused(C)} == {int(name[1:]) for name, _ in CONFIGS}


@pytest.mark.parametrize("L", (TILE - 1, TILE + 9, 2 * TILE))
def test_results_left_out_are_left_out_and_the_other_has_the_same_bits(interpreted, L, rng):
    given, wave = weights(rng, 16, torch.bfloat16)
    x, activated = rows(rng, 2, L, 16, torch.bfloat16), rows(rng, 2, L, 16, torch.bfloat16)
    both = poisoned(x), poisoned(x)
    kernel(x, activated, *given, dilation=3, wave=wave, out=both)
    only = poisoned(x), None
    kernel(x, activated, *given, dilation=3, wave=None, out=only)
    last = None, poisoned(x)
    kernel(x, activated, *given, dilation=3, wave=wave, out=last)
    assert torch.equal(only[0], both[0]) and torch.equal(last[1], both[1])
    check_guards(only[0], last[1])
    kernel(x, activated, *given, dilation=3, wave=wave, out=(x, poisoned(x)))  # in place
    assert torch.equal(x, both[0])
    check_guards(x)


def test_poison_beyond_a_song_and_around_it_reaches_nothing(interpreted, rng):
    """Memory before and behind the rows is NaN, songs before and behind are, and none of it is written."""
    given, wave = weights(rng, 16, torch.bfloat16)
    memory = [torch.full((3 * (GUARD + 150 + GUARD) * 16 + 512,), torch.nan).bfloat16() for _ in range(4)]
    x, activated, y, waved = (guarded(3, 150, 16, dtype=t.dtype, device=t.device, memory=t[256:-256]) for t in memory)
    clean = rows(rng, 1, 150, 16, torch.bfloat16), rows(rng, 1, 150, 16, torch.bfloat16)
    want = poisoned(clean[0]), poisoned(clean[0])
    kernel(*clean, *given, dilation=9, wave=wave, out=want)
    for t, good in zip((x, activated), clean):
        whole(t)[1] = whole(good)[0]
    kernel(x, activated, *given, dilation=9, wave=wave, out=(y, waved))
    for got, good, held in zip((y, waved), want, memory[2:]):
        assert torch.equal(got[1], good[0]) and got[0].isnan().all() and got[2].isnan().all()
        check_guards(got)
        assert held[:256].isnan().all() and held[-256:].isnan().all()


def test_a_row_has_the_same_bits_in_any_tile(interpreted, rng):
    """Of a long song and of a piece of it with its neighbours: other tiles, other places within them."""
    given, wave = weights(rng, 16, torch.bfloat16)
    x, activated = rows(rng, 1, 400, 16, torch.bfloat16), rows(rng, 1, 400, 16, torch.bfloat16)
    long = poisoned(x), poisoned(x)
    kernel(x, activated, *given, dilation=9, wave=wave, out=long)
    for first, last in ((40, 300), (111, 250), (200, 290)):
        piece = [with_guards(t[:, first:last].contiguous()) for t in (x, activated)]
        short = poisoned(piece[0]), poisoned(piece[0])
        kernel(*piece, *given, dilation=9, wave=wave, out=short)
        for a, b in zip(long, short):
            assert torch.equal(a[:, first + 27 : last - 27], b[:, 27:-27])


def arguments(x, activated, given, wave, out):
    names = ("weight1", "bias1", "alpha2", "inv_beta2", "weight2", "bias2")
    return {"x": x, "activated": activated, **dict(zip(names, given)), "dilation": 9, "wave": wave, "out": out}


def test_a_row_has_the_same_bits_in_any_tile_of_the_compiled_kernel(rng):
    given, wave = weights(rng, 16, torch.float16)
    x, activated = rows(rng, 1, 200, 16, torch.float16), rows(rng, 1, 200, 16, torch.float16)
    long = poisoned(x), poisoned(x)
    simulated(kernel, arguments(x, activated, given, wave, long))
    for got, want in zip(long, exact(x, activated, *given, 9, wave)):
        assert relative(got, want) <= GATE[torch.float16]
    check_guards(*long)
    piece = [with_guards(t[:, 51:160].contiguous()) for t in (x, activated)]  # shorter than a tile
    short = poisoned(piece[0]), poisoned(piece[0])
    simulated(kernel, arguments(*piece, given, wave, short))
    for a, b in zip(long, short):
        assert torch.equal(a[:, 51 + 27 : 160 - 27], b[:, 27:-27])


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("keep", (True, False))
def test_op_on_plain_rows_is_the_kernel_on_guarded_ones(interpreted, keep, dtype, rng):
    given, wave = weights(rng, 16, dtype)
    first = torch.rand(2, 16, generator=rng) + 0.2
    x = torch.randn(2, 140, 16, generator=rng).to(dtype)
    before = x.clone()
    activated = snake(x, *first)
    want = poisoned(x), poisoned(x)
    kernel(with_guards(x), with_guards(activated), *given, dilation=3, wave=wave, out=want)
    options = {"dilation": 3, "backend": "triton", "wave": wave, "keep": keep}
    out = torch.empty_like(x) if keep else None, torch.empty_like(x)
    for more in ({}, {"activated": activated}, {"out": out}):
        got = residual_unit(x, *first, *given, **options, **more)
        assert relative(got[1], want[1].double()) <= GATE[dtype]
        assert got[1].is_contiguous() and (got[0] is None) == (not keep)
    assert got[1] is out[1] and got[0] is out[0] and torch.equal(x, before)
    got = residual_unit(x, *first, *given, **options, activated=activated)
    assert torch.equal(got[1], want[1]) and (got[0] is None or torch.equal(got[0], want[0]))
    if keep:
        assert torch.equal(residual_unit(x, *first, *given, activated=activated, dilation=3, backend="triton"), want[0])


def test_op_on_guarded_rows_writes_where_it_is_told(interpreted, rng):
    given, wave = weights(rng, 16, torch.bfloat16)
    first = torch.rand(2, 16, generator=rng) + 0.2
    x = rows(rng, 1, 140, 16, torch.bfloat16)
    options = {"dilation": 3, "guarded": True, "backend": "triton", "wave": wave}
    want = residual_unit(x, *first, *given, **options)
    check_guards(*want)
    out = x, poisoned(x)
    got = residual_unit(x, *first, *given, **options, out=out)
    assert got[0] is x and got[1] is out[1] and torch.equal(x, want[0]) and torch.equal(got[1], want[1])
    check_guards(*got)


@pytest.mark.parametrize(
    "C, dtype, dilation",
    [(16, torch.float32, 1), (24, torch.float16, 1), (512, torch.float16, 1), (16, torch.float16, 11)],
    ids=["fp32", "C 24", "C 512", "beyond the guards"],
)
def test_what_does_not_fit_the_kernel_goes_to_the_reference_unless_it_is_named(interpreted, C, dtype, dilation, rng):
    given, _ = weights(rng, C, dtype)
    x, wave = torch.zeros(1, 3, C, dtype=dtype), torch.ones(2, C)
    with pytest.raises(BackendUnavailable, match="residual_unit: backend='triton' cannot run: it has no triton kernel"):
        residual_unit(x, *wave, *given, dilation=dilation, backend="triton")
    with use_backend("triton"):
        assert residual_unit(x, *wave, *given, dilation=dilation).shape == x.shape
