"""The CPU's kernel of acefast.ops.conv1d, at every level of instructions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import acefast.ops.conv1d as module
from acefast.backends import BackendUnavailable
from acefast.guarded import with_guards
from acefast.ops.conv1d import conv1d, conv1d_reference
from tests.cpu.convolutions import accurate, between_sentinels, on_threads, relative, snaked, untouched, waves
from tests.cpu.isas import NAMES, at_isa, extension

extension()

# (B, L, Cin, Cout, K, stride, padding, dilation)
SHAPES = {
    "decoder's first": (1, 9, 64, 96, 7, 1, 3, 1),
    "one row": (1, 1, 32, 32, 7, 1, 3, 1),
    "dilated, ragged outputs": (2, 61, 32, 40, 7, 1, 27, 9),
    "no padding": (1, 61, 32, 24, 7, 1, 0, 9),
    "pointwise": (2, 13, 64, 32, 1, 1, 0, 1),
    "strided": (2, 43, 32, 64, 12, 6, 3, 1),
    "few outputs": (2, 375, 128, 2, 7, 1, 3, 1),
    "few outputs, two rows": (1, 2, 32, 2, 7, 1, 3, 1),
    "few outputs, dilated": (1, 300, 32, 5, 3, 1, 9, 9),
    "few outputs, strided": (1, 40, 32, 2, 4, 2, 1, 1),
    "few pointwise outputs": (1, 40, 32, 3, 1, 1, 0, 1),
    "narrow": (2, 61, 16, 16, 13, 1, 6, 1),
    "narrow, dilated, several blocks": (1, 2500, 16, 16, 11, 1, 25, 5),
    "narrow, several blocks used where they lie": (1, 5000, 8, 8, 7, 1, 3, 1),
    "narrower, fewer rows than the dilation": (1, 4, 8, 8, 3, 1, 5, 5),
    "narrow to one": (1, 2100, 8, 1, 13, 1, 6, 1),
    "narrow, an odd number of inputs": (1, 70, 5, 4, 3, 1, 0, 3),
    "narrow, pointwise, one row": (1, 1, 24, 8, 1, 1, 0, 1),
    "more padding than rows": (1, 3, 32, 2, 3, 1, 9, 1),
    "shares of rows, blocks of columns": (1, 1100, 64, 160, 5, 1, 2, 1),
    "windows of rows, columns that fill no cache": (1, 300, 1024, 64, 13, 1, 6, 1),
}


def inputs(B, L, Cin, Cout, K, rng):
    x, weight, bias = (torch.randn(s, generator=rng).bfloat16() for s in ((B, L, Cin), (Cout, K, Cin), (Cout,)))
    return x, (weight.float() / (K * Cin) ** 0.5).bfloat16(), bias


def exact(x, weight, bias, stride=1, padding=0, dilation=1):
    """In fp64."""
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return F.conv1d(x.double().mT, weight.double().mT, None if bias is None else bias.double(), **options).mT


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_formula_in_double_precision(shape, isa, rng):
    *sizes, stride, padding, dilation = shape
    x, weight, bias = inputs(*sizes, rng)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    with at_isa(isa):
        for b in (bias, None):
            y = conv1d(x, weight, b, **options, backend="cpu")
            want = exact(x, weight, b, **options)
            assert y.shape == want.shape and y.dtype == torch.bfloat16 and y.is_contiguous()
            assert accurate(y, want, conv1d_reference(x, weight, b, **options))


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("Cout", (64, 40, 16, 2))
def test_what_follows_is_done_before_the_one_rounding(Cout, isa, rng):
    x, weight, bias = inputs(2, 61, 32, Cout, 7, rng)
    residual, total = torch.randn(2, 2, 61, Cout, generator=rng).bfloat16()
    want = exact(x, weight, bias, padding=3)
    wave, options = waves(Cout, rng), {"padding": 3, "backend": "cpu"}
    with at_isa(isa):
        assert relative(conv1d(x, weight, bias, residual=residual, **options), want + residual.double()) <= 2e-3
        added = {"residual": residual, "share": 0.25, "total": total}
        want = total.double() + 0.25 * (want + residual.double())
        assert relative(conv1d(x, weight, bias, **added, **options), want) <= 2e-3
        for activation, activated in ((wave, snaked(want, *wave)), ("silu", want * want.sigmoid())):
            y, second = conv1d(x, weight, bias, **added, wave=activation, **options)
            none, alone = conv1d(x, weight, bias, **added, wave=activation, keep=False, **options)
            assert none is None and torch.equal(second, alone) and relative(y, want) <= 2e-3
            assert relative(second, activated) <= 2e-3


@pytest.mark.parametrize("Cout", (40, 16, 2))
def test_results_are_written_where_they_are_told_and_nowhere_else(Cout, rng):
    x, weight, bias = inputs(2, 61, 32, Cout, 7, rng)
    residual, wave = torch.randn(2, 61, Cout, generator=rng).bfloat16(), waves(Cout, rng)
    given = [t.clone() for t in (x, weight, bias, residual, *wave)]
    options = {"padding": 3, "residual": residual, "wave": wave, "backend": "cpu"}
    want = conv1d(x, weight, bias, **options)
    (y, around), (waved, around_waved) = between_sentinels(2, 61, Cout), between_sentinels(2, 61, Cout)
    got = conv1d(x, weight, bias, **options, out=(y, waved))
    assert got[0] is y and got[1] is waved and untouched(around) and untouched(around_waved)
    assert torch.equal(y, want[0]) and torch.equal(waved, want[1])
    assert all(map(torch.equal, given, (x, weight, bias, residual, *wave)))
    conv1d(x, weight, bias, **options, out=(residual, waved))  # over the residual
    assert torch.equal(residual, want[0]) and torch.equal(waved, want[1])


def test_songs_of_a_batch_do_not_meet(rng):
    for Cout in (32, 8, 2):
        x, weight, bias = inputs(3, 40, 32, Cout, 7, rng)
        y = conv1d(x, weight, bias, padding=9, dilation=3, backend="cpu")
        x[[0, 2]] = torch.nan
        assert torch.equal(conv1d(x, weight, bias, padding=9, dilation=3, backend="cpu")[1], y[1])


@pytest.mark.parametrize("dilation", (1, 3))
@pytest.mark.parametrize("L, Cout", [(20, 256), (1100, 40), (1100, 16), (1100, 2)])  # shared by columns, by rows
def test_threads_give_the_same_bits(L, Cout, dilation, rng):
    x, weight, bias = inputs(1, L, 64, Cout, 7, rng)
    options = {"padding": 3 * dilation, "dilation": dilation, "backend": "cpu"}
    want = conv1d(x, weight, bias, **options)
    for count in (2, 3):
        with on_threads(count):
            assert torch.equal(conv1d(x, weight, bias, **options), want)


@pytest.mark.parametrize("Cout", (8, 32))
def test_nothing_beyond_a_song_is_read(Cout, rng):
    """Whether its last block, of 672 rows where they are 8 numbers, ends before it, with it or behind it."""
    for L in range(1310, 1350):
        x, weight, bias = inputs(1, L, 32 if Cout == 32 else 8, Cout, 7, rng)
        around = torch.full((1, L + 80, x.shape[2]), torch.nan, dtype=x.dtype)
        around[:, 40:-40] = x
        within = around.flatten()[40 * x.shape[2] : -40 * x.shape[2]].view(x.shape)
        y = conv1d(within, weight, bias, padding=3, backend="cpu")
        assert torch.equal(y, conv1d(x, weight, bias, padding=3, backend="cpu")) and y.isfinite().all()


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("dilation", (1, 3))
def test_a_row_is_the_same_wherever_a_song_is_cut(dilation, isa, rng):
    """Tiles of a song are its own rows, bit for bit: in a narrow convolution, too, whatever column of a tile one is."""
    x, weight, bias = inputs(1, 400, 16, 8, 7, rng)
    options = {"dilation": dilation, "backend": "cpu"}
    with at_isa(isa):
        whole = conv1d(x, weight, bias, **options)
        for first in (1, 2, 3, 171):
            part = conv1d(x[:, first:].contiguous(), weight, bias, **options)
            assert torch.equal(part, whole[:, first:])


def test_it_is_what_runs_on_a_cpu_and_what_it_does_not_take_runs_on_the_reference(rng, monkeypatch):
    x, weight, bias = inputs(1, 20, 64, 32, 3, rng)
    apart = torch.randn(1, 18, 64, generator=rng).bfloat16()[:, :, ::2]
    for arguments, options in (
        ((x.float(), weight.float(), bias.float()), {}),
        ((x.half(), weight.half(), bias.half()), {}),
        ((x[:, :, :48].contiguous(), weight[:, :, :48].contiguous(), bias), {}),
        ((x[:, :, :48].contiguous(), weight[:16, :, :48].contiguous(), bias[:16]), {"stride": 2}),
        ((with_guards(x), weight, bias), {"guarded": True}),
        ((x, weight, bias), {"residual": apart}),
        ((x, weight, bias), {"wave": torch.rand(32, 2, generator=rng).unbind(1)}),
    ):
        with pytest.raises(BackendUnavailable, match="conv1d: backend='cpu' cannot run: it has no cpu kernel"):
            conv1d(*arguments, **options, backend="cpu")
        got, want = conv1d(*arguments, **options), conv1d_reference(*arguments, **options)
        assert all(map(torch.equal, got, want))
    monkeypatch.setattr(module, "conv1d_reference", None)
    conv1d(x, weight, bias)
