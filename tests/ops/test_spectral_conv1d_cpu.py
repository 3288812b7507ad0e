"""The CPU's kernel of acefast.ops.spectral_conv1d, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.spectral_conv1d import spectral_conv1d, spectral_conv1d_reference, transformed
from acefast.panels import from_panels, to_panels
from tests.cpu.convolutions import accurate, on_threads, relative, snaked, waves
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_spectral_conv1d import direct, inputs

extension()

# (B, L, Cin, Cout, K, dilation)
SHAPES = {
    "one row": (1, 1, 32, 32, 7, 1),
    "one piece": (1, 28, 64, 64, 7, 1),
    "a ragged last piece": (2, 61, 32, 32, 13, 1),
    "dilated, of rows that fill no phase": (2, 61, 32, 64, 11, 3),
    "more phases than rows": (1, 3, 32, 32, 3, 5),
    "ragged outputs": (1, 70, 64, 40, 7, 5),
    "one tap": (1, 40, 32, 32, 1, 1),
    "31 taps": (1, 40, 32, 32, 31, 2),
    "shares of pieces": (2, 1300, 32, 96, 7, 3),
    "fewer pieces than threads": (1, 20, 32, 2, 7, 1),
}


def given(shape, rng):
    *sizes, kernel, dilation = shape
    x, weight, bias = inputs(rng, *sizes, kernel, torch.bfloat16)
    return x, weight, bias, kernel, dilation


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_direct_convolution_in_double_precision(shape, isa, rng):
    x, weight, bias, kernel, dilation = given(shape, rng)
    filters = transformed(weight).bfloat16()
    with at_isa(isa):
        for b in (bias, None):
            y = spectral_conv1d(x, filters, b, kernel, dilation=dilation, backend="cpu")
            want = direct(x, weight, b, dilation)
            assert y.shape == want.shape and y.dtype == torch.bfloat16 and y.is_contiguous()
            assert accurate(y, want, spectral_conv1d_reference(x, filters, b, kernel, dilation=dilation))


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("Cout", (64, 40))
def test_what_follows_is_done_before_the_one_rounding(Cout, isa, rng):
    x, weight, bias = inputs(rng, 2, 61, 64, Cout, 7, torch.bfloat16)
    residual, total = torch.randn(2, 2, 61, Cout, generator=rng).bfloat16()
    want = total.double() + 0.25 * (direct(x, weight, bias, 3) + residual.double())
    added = {"dilation": 3, "residual": residual, "share": 0.25, "total": total, "backend": "cpu"}
    operands = x, transformed(weight).bfloat16(), bias, 7
    with at_isa(isa):
        y, activated = spectral_conv1d(*operands, **added, wave="silu")
        none, alone = spectral_conv1d(*operands, **added, wave="silu", keep=False)
        assert torch.equal(spectral_conv1d(*operands, **added), y) and relative(y, want) <= 2.5e-3
        assert none is None and torch.equal(activated, alone) and relative(activated, want * want.sigmoid()) <= 2.5e-3


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("pieces", (1, 20, 40))  # of fewer than a fourth of 96 columns, the threads share these
def test_panels_give_the_same_bits(pieces, isa, rng):
    x, weight, bias = inputs(rng, 1, 28 * pieces - 5, 64, 96, 7, torch.bfloat16)
    filters = transformed(weight).bfloat16()
    panels = to_panels(filters)
    assert panels.shape == (3, 49 * 32, 32, 2) and torch.equal(from_panels(panels), filters)
    with at_isa(isa):
        want = spectral_conv1d(x, filters, bias, 7, backend="cpu")
        for count in (1, 3):
            with on_threads(count):
                assert torch.equal(spectral_conv1d(x, panels, bias, 7, backend="cpu"), want)
    assert torch.equal(
        spectral_conv1d(x, panels, bias, 7, backend="reference"), spectral_conv1d_reference(x, filters, bias, 7)
    )


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("Cout", (64, 40))
def test_snakes_before_and_after_are_rounded_with_what_is_between(Cout, isa, rng):
    x, weight, bias = inputs(rng, 2, 61, 64, Cout, 7, torch.bfloat16)
    before, wave = waves(64, rng), waves(Cout, rng)
    operands, options = (x, transformed(weight).bfloat16(), bias, 7), {"dilation": 3, "before": before}
    want = direct(snaked(x, *before), weight, bias, 3)
    near, waved = spectral_conv1d_reference(*operands, **options, wave=wave)
    with at_isa(isa):
        y, activated = spectral_conv1d(*operands, **options, wave=wave, backend="cpu")
        none, alone = spectral_conv1d(*operands, **options, wave=wave, keep=False, backend="cpu")
    assert accurate(y, want, near) and none is None and torch.equal(activated, alone)
    assert relative(activated, snaked(want, *wave)) <= relative(waved, snaked(want, *wave))


@pytest.mark.parametrize("shape", ("shares of pieces", "fewer pieces than threads"))
def test_results_do_not_depend_on_threads(shape, rng):
    x, weight, bias, kernel, dilation = given(SHAPES[shape], rng)
    filters, found = transformed(weight).bfloat16(), []
    for count in (1, 2, 3):
        with on_threads(count):
            found.append(spectral_conv1d(x, filters, bias, kernel, dilation=dilation, wave="silu", backend="cpu"))
    for y, activated in found[1:]:
        assert torch.equal(y, found[0][0]) and torch.equal(activated, found[0][1])


def test_a_row_sees_its_own_and_no_other_songs_rows(rng):
    x, weight, bias = inputs(rng, 2, 90, 32, 32, 7, torch.bfloat16)
    filters = transformed(weight).bfloat16()
    want = spectral_conv1d(x, filters, bias, 7, dilation=2, backend="cpu")
    x[1] = torch.nan
    got = spectral_conv1d(x, filters, bias, 7, dilation=2, backend="cpu")
    assert torch.equal(got[0], want[0]) and got[1].isnan().all()


def test_what_the_kernel_does_not_take_is_said(rng):
    x, weight, bias = inputs(rng, 1, 40, 24, 8, 7, torch.bfloat16)
    filters = transformed(weight).bfloat16()
    with pytest.raises(BackendUnavailable):
        spectral_conv1d(x, filters, bias, 7, backend="cpu")
    assert spectral_conv1d(x, filters, bias, 7).shape == (1, 40, 8)
    x, weight, bias = inputs(rng, 1, 40, 32, 8, 7, torch.bfloat16)
    apart = torch.rand(32, 2, generator=rng)[:, 0]
    with pytest.raises(BackendUnavailable):
        spectral_conv1d(x, transformed(weight).bfloat16(), bias, 7, before=(apart, apart), backend="cpu")
