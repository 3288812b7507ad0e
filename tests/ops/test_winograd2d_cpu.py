"""The CPU's kernel of acefast.ops.winograd2d, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

import acefast.ops.winograd2d as module
from acefast.backends import BackendUnavailable
from acefast.cpu import winograd2d as launcher
from acefast.models.v1.dcae_layers import Up, _up_filter
from acefast.ops.winograd2d import transformed, winograd2d, winograd2d_reference
from acefast.panels import hold_panels, to_panels
from tests.cpu.convolutions import GATE, between_sentinels, on_threads, relative, untouched
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_winograd2d import inputs, twice

# (B, T, F, Cout)
SHAPES = {
    "one pixel": (1, 1, 1, 32),
    "ragged outputs": (2, 5, 7, 48),
    "many blocks of pixels": (1, 30, 16, 32),
    "wide": (1, 3, 4, 256),
}

extension()


def rounded(B, T, W, N, rng):
    """x, the filter in fp32 and the bias."""
    x, weight, bias = inputs(B, T, W, N, rng)
    return x.bfloat16(), weight, bias.bfloat16()


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_products_in_single_precision(shape, isa, rng):
    """Of the rounded filters: what is left is the rounding of V and of the result."""
    x, weight, bias = rounded(*shape, rng)
    W = transformed(weight).bfloat16()
    with at_isa(isa):
        for b in (bias, None):
            y = winograd2d(x, W, b, backend="cpu")
            want = winograd2d_reference(x.float(), W.float(), None if b is None else b.float())
            assert y.shape == want.shape and y.dtype == torch.bfloat16 and y.is_contiguous()
            assert relative(y, want.double()) <= GATE


def test_the_error_is_at_most_one_and_a_half_times_that_of_four_phases(rng):
    x, weight, bias = rounded(1, 24, 16, 64, rng)
    want, up = twice(x, weight, bias), Up(64).bfloat16()
    up.weight.copy_(_up_filter(weight.permute(0, 3, 2, 1)))
    up.bias.copy_(bias)
    W = transformed(weight).bfloat16()
    assert relative(winograd2d(x, W, bias, backend="cpu"), want) <= 1.5 * relative(up(x), want)


def test_results_are_written_where_they_are_told_and_nowhere_else(rng):
    x, weight, bias = rounded(2, 5, 7, 48, rng)  # ends within a block of columns
    W = transformed(weight).bfloat16()
    given = [t.clone() for t in (x, W, bias)]
    want = winograd2d(x, W, bias, backend="cpu")
    y, around = between_sentinels(*want.shape)
    launcher.winograd2d(x, W, bias, out=y)
    assert torch.equal(y, want) and untouched(around) and all(map(torch.equal, given, (x, W, bias)))


def test_songs_of_a_batch_do_not_meet_and_what_is_no_number_stays_so(rng):
    x, weight, bias = rounded(3, 6, 7, 32, rng)
    W = transformed(weight).bfloat16()
    y = winograd2d(x, W, bias, backend="cpu")
    x[[0, 2]] = torch.nan
    got = winograd2d(x, W, bias, backend="cpu")
    assert torch.equal(got[1], y[1]) and got[[0, 2]].isnan().all()


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("B, T, W, N", [(1, 3, 4, 32), (2, 31, 40, 128)])  # one block of pixels; many
def test_panels_and_threads_give_the_same_bits(B, T, W, N, isa, rng):
    x, weight, bias = rounded(B, T, W, N, rng)
    filters = transformed(weight).bfloat16()
    panels = to_panels(filters)
    with at_isa(isa):
        want = winograd2d(x, filters, bias, backend="cpu")
        for count in (1, 2, 3):
            with on_threads(count):
                for given in (filters, panels):
                    assert torch.equal(winograd2d(x, given, bias, backend="cpu"), want)
    reference = winograd2d_reference(x, filters, bias)
    assert torch.equal(winograd2d(x, panels, bias, backend="reference"), reference)


def test_a_piece_of_an_image_gives_the_same_bits(rng):
    """Whatever block a pixel falls into."""
    x, weight, bias = rounded(1, 60, 32, 64, rng)
    W = transformed(weight).bfloat16()
    whole = winograd2d(x, W, bias, backend="cpu")
    assert torch.equal(winograd2d(x[:, 17:40].contiguous(), W, bias, backend="cpu")[:, 2:-2], whole[:, 36:78])


def test_the_autoencoder_of_v1_runs_it(rng, monkeypatch):
    up = Up(64, fast_filters=True).bfloat16()
    for parameter in up.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    x = torch.randn(1, 6, 4, 128, generator=rng).bfloat16()
    monkeypatch.setattr(module, "winograd2d_reference", None)
    with torch.no_grad():
        y = up(x)
        hold_panels(up)
        assert up.weight.dim() == 4 and y.isfinite().all() and torch.equal(up(x), y)


def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(rng):
    x, weight, bias = rounded(1, 4, 6, 32, rng)
    W = transformed(weight).bfloat16()
    for case in (
        (x.float(), W.float(), bias.float()),
        (x.half(), W.half(), bias.half()),
        (x[..., :48].contiguous(), W[:24, : 9 * 48].contiguous(), bias[:24].contiguous()),
        (x, W, bias[:1].expand(32)),
    ):
        with pytest.raises(BackendUnavailable, match="winograd2d: backend='cpu' cannot run: it has no cpu kernel"):
            winograd2d(*case, backend="cpu")
        assert torch.equal(winograd2d(*case), winograd2d_reference(*case))
