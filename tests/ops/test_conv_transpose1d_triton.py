"""The kernel of conv_transpose1d: in the interpreter against fp64, and what it computes wherever a row lies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acefast.backends import BackendUnavailable, use_backend
from acefast.guarded import GUARD, elements, guarded, is_guarded, whole, with_guards
from acefast.ops.conv_transpose1d import conv_transpose1d, conv_transpose_weight

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.kernels.conv_transpose1d import conv_transpose1d as kernel
from acefast.kernels.conv_transpose1d import shape_class
from acefast.sim.interpreter import check_written, interpreted
from tests.ops.simulated import simulated

GATE = {torch.float16: 4e-4, torch.bfloat16: 3e-3}  # relative L2 against fp64: one rounding
# B, L, Cin, Cout, stride: one row; a row tile and its neighbours; two tiles and a part; more tiles than a group has.
SIZES = [
    *((1, rows, 16, 16, 2) for rows in (1, 63, 64, 65)),
    *((2, 150, 48, 32, 2), (3, 9, 32, 16, 10), (2, 290, 16, 16, 2)),
    *((1, rows, 64, 64, 4) for rows in (127, 129)),  # "half": column tiles of two channels' width
    *((1, 128, 64, 256, 2), (2, 131, 64, 64, 8)),  # "wide"
]


def inputs(B, L, Cin, Cout, stride, dtype):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g) for s in ((B, L, Cin), (Cin, Cout, 2 * stride), (Cout,)))
    wave = torch.rand(Cout, generator=g) + 0.5, torch.rand(Cout, generator=g)
    weight = conv_transpose_weight(weight / (2 * Cin) ** 0.5)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), wave


def exact(x, weight, bias, wave, stride):
    """The equation in fp64, and the snake of it."""
    x = x.double()
    halves = torch.cat([F.pad(x, (0, 0, 0, 1)), F.pad(x, (0, 0, 1, 0))], -1) @ weight.double()
    y = halves.view(len(x), -1, len(bias))[:, stride // 2 : stride // 2 + stride * x.shape[1]] + bias.double()
    return y, y + wave[1].double() * (wave[0].double() * y).sin().square()


def error(got, want):
    return float((got.double() - want).norm() / want.norm())


def between_nans(rows, edge=0.0):
    """Guarded rows in memory that is NaN but for them and their guards, which hold ``edge``."""
    B, L, C = rows.shape
    memory = torch.full((elements(B, L, C) + 96 * C,), torch.nan).to(rows.dtype)
    around = memory[48 * C : -48 * C].view(B, -1, C)
    around.fill_(edge)
    laid = guarded(B, L, C, dtype=rows.dtype, device=rows.device, memory=around.view(-1))
    return memory, laid.copy_(rows)


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, L, Cin, Cout, stride", SIZES)
def test_equals_the_equation_in_fp64_and_keeps_to_its_rows(B, L, Cin, Cout, stride, dtype):
    x, weight, bias, wave = inputs(B, L, Cin, Cout, stride, dtype)
    source, x_in = between_nans(x)
    before, nan = source.clone(), torch.full((B, stride * L, Cout), torch.nan).to(dtype)
    memory, out = zip(*(between_nans(nan, torch.nan) for _ in range(2)))
    with interpreted():
        got = conv_transpose1d(x_in, weight, bias, stride=stride, wave=wave, guarded=True, out=out, backend="triton")
    for m, o, g, want in zip(memory, out, got, exact(x, weight, bias, wave, stride)):
        assert g is o and error(o, want) <= GATE[dtype]
        edges = whole(o)[:, :GUARD], whole(o)[:, -GUARD:]
        assert all((edge == 0).all() for edge in edges)
        whole(o).fill_(torch.nan)
        assert m.isnan().all()
    torch.testing.assert_close(source, before, rtol=0, atol=0, equal_nan=True)


# Cin, Cout, stride: the vocoder's classes, a level of its own and narrower ones of the others.
SILU = {"silu": (64, 128, 2), "c64": (128, 64, 2), "c32": (64, 32, 2), "narrow": (32, 16, 2)}


@pytest.mark.parametrize("layer, dtype", list(zip(SILU, 2 * list(GATE))))
def test_silu_stands_in_the_snakes_place(layer, dtype):
    Cin, Cout, stride = SILU[layer]
    assert shape_class(Cin, Cout, stride, True) == layer
    x, weight, bias, wave = inputs(2, 133, Cin, Cout, stride, dtype)
    want, _ = exact(x, weight, bias, wave, stride)
    with interpreted():
        y, activated = conv_transpose1d(x, weight, bias, stride=stride, wave="silu", backend="triton")
    assert error(y, want) <= GATE[dtype] and error(activated, want * want.sigmoid()) <= GATE[dtype]


@pytest.mark.parametrize("laid", (True, False), ids=("guarded", "contiguous"))
@pytest.mark.parametrize("results", [(True, False), (False, True), (True, True)], ids=("y", "snake", "both"))
@pytest.mark.parametrize("given", (True, False), ids=("out", "new"))
def test_gives_what_is_asked_for_where_it_is_asked_for(laid, results, given):
    x, weight, bias, wave = inputs(2, 9, 16, 16, 4, torch.float16)
    options = dict(stride=4, wave=wave if results[1] else None, keep=results[0], guarded=laid, backend="triton")
    with interpreted():
        memory = (guarded(2, 36, 16, dtype=x.dtype, device=x.device) if laid else x.new_empty(2, 36, 16) for _ in "yw")
        pair = tuple(m if wanted else None for m, wanted in zip(memory, results))
        out = (pair if results[1] else pair[0]) if given else None
        got = conv_transpose1d(with_guards(x) if laid else x, weight, bias, **options, out=out)
    got = got if results[1] else (got, None)
    for have, there, wanted, want in zip(got, pair, results, exact(x, weight, bias, wave, 4)):
        assert (have is not None) == wanted
        if wanted:
            check_written("result", have)
            assert have is there or not given
            assert is_guarded(have) if laid else have.is_contiguous()
            assert error(have, want) <= GATE[torch.float16]


def test_both_results_are_rounded_once():
    """The snake is of the sums, not of what was rounded for y; a reference rounds twice."""
    x, weight, bias, wave = inputs(1, 200, 32, 32, 4, torch.bfloat16)
    with interpreted():
        ours = conv_transpose1d(x, weight, bias, stride=4, wave=wave, backend="triton")
    theirs = conv_transpose1d(x, weight, bias, stride=4, wave=wave, backend="reference")
    want = exact(x, weight, bias, wave, 4)
    for value, right in zip(ours, want):
        assert error(value, right) <= 1.02 * error(right.bfloat16(), right)
    assert error(ours[1], want[1]) < 0.9 * error(theirs[1], want[1])


def piece(x, first, end):
    return with_guards(x[:, first:end])


@pytest.mark.parametrize("Cin, Cout, stride", [(16, 16, 2), (64, 64, 4), (64, 256, 2)], ids=str)
def test_a_row_has_the_same_bits_wherever_it_lies(Cin, Cout, stride):
    """In another song of the batch, in another tile and place of it, with another length."""
    x, weight, bias, wave = inputs(2, 170, Cin, Cout, stride, torch.bfloat16)

    def run(rows):
        return conv_transpose1d(rows, weight, bias, stride=stride, wave=wave, guarded=True, backend="triton")

    with interpreted():
        whole_song, tile = run(with_guards(x)), run(piece(x, 37, 140))
    for a, b in zip(whole_song, tile):
        assert torch.equal(a[:, stride * 38 : stride * 139], b[:, stride : stride * 102])


def test_compiled_ptx_gives_a_row_the_same_bits_wherever_it_lies():
    x, weight, bias, wave = inputs(1, 90, 16, 16, 2, torch.float16)

    def run(rows):
        out = tuple(guarded(1, 2 * rows.shape[1], 16, dtype=rows.dtype, device=rows.device) for _ in "yw")
        simulated(kernel, dict(x=rows, weight=weight, bias=bias, stride=2, wave=wave, out=out))
        return out

    for a, b, want in zip(run(piece(x, 0, 70)), run(piece(x, 29, 90)), exact(x, weight, bias, wave, 2)):
        assert torch.equal(a[:, 2 * 30 : 2 * 69], b[:, 2 : 2 * 40])
        assert error(a[:, : 2 * 69], want[:, : 2 * 69]) <= GATE[torch.float16]


def test_the_configuration_goes_by_widths_and_stride():
    for Cin, Cout, stride, want in (
        *((2048, 1024, 10, "wide"), (1024, 512, 6, "wide"), (512, 256, 4, "wide"), (256, 128, 4, "wide")),
        *((128, 128, 2, "half"), (64, 64, 4, "half"), (96, 128, 2, "narrow"), (32, 16, 4, "narrow")),
    ):
        assert shape_class(Cin, Cout, stride) == want


def test_what_does_not_fit_the_kernel_goes_to_the_reference_unless_it_is_named():
    ones = torch.ones
    for x, weight, bias in (
        (ones(1, 3, 16), ones(32, 64), ones(16)),  # fp32
        (ones(1, 3, 8).half(), ones(16, 64).half(), ones(16).half()),
        (ones(1, 3, 16).half(), ones(32, 32).half(), ones(8).half()),
        (ones(1, 0, 16).half(), ones(32, 64).half(), ones(16).half()),
    ):
        with interpreted():
            with pytest.raises(BackendUnavailable, match="conv_transpose1d: backend='triton' cannot run: it has no"):
                conv_transpose1d(x, weight, bias, stride=4, backend="triton")
            with use_backend("triton"):
                assert conv_transpose1d(x, weight, bias, stride=4).shape == (1, 4 * x.shape[1], len(bias))
