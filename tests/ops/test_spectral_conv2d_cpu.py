"""The CPU's kernel of acefast.ops.spectral_conv2d, at every level of instructions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import acefast.ops.spectral_conv2d as module
from acefast.backends import BackendUnavailable
from acefast.cpu import spectral_conv2d as launcher
from acefast.models.v1.dcae_layers import ResBlock
from acefast.ops.spectral_conv2d import spectral_conv2d, spectral_conv2d_reference, transformed
from acefast.panels import hold_panels, to_panels
from tests.cpu.convolutions import GATE, between_sentinels, on_threads, relative, untouched
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_spectral_conv2d import direct, inputs

# (B, T, F, Cin, Cout)
SHAPES = {
    "one pixel": (1, 1, 1, 32, 32),
    "a tile": (1, 8, 8, 32, 32),
    "ragged tiles and outputs": (2, 5, 23, 64, 40),
    "fewer outputs than a vector": (1, 9, 6, 32, 5),
    "a row": (1, 1, 50, 32, 64),
    "a column": (1, 50, 1, 32, 32),
    "shares of tiles that end within a row and a song": (3, 51, 44, 32, 96),
    "as many channels as a level has": (1, 6, 16, 512, 64),
}

extension()


def rounded(B, T, W, C, N, rng):
    """x, the filter in fp32 and the bias."""
    x, weight, bias = inputs(B, T, W, C, N, rng)
    return x.bfloat16(), weight, bias.bfloat16()


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_products_in_single_precision(shape, isa, rng):
    """Of the rounded filters: what is left is the rounding of x's factors and of the result."""
    x, weight, bias = rounded(*shape, rng)
    W = transformed(weight).bfloat16()
    with at_isa(isa):
        for b, silu in ((bias, False), (bias, True), (None, False), (None, True)):
            y = spectral_conv2d(x, W, b, silu=silu, backend="cpu")
            want = spectral_conv2d_reference(x.float(), W.float(), None if b is None else b.float(), silu=silu)
            assert y.shape == want.shape and y.dtype == torch.bfloat16 and y.is_contiguous()
            assert relative(y, want.double()) <= GATE


def test_the_error_is_less_than_twice_that_of_a_direct_convolution(rng):
    x, weight, _ = rounded(1, 24, 24, 256, 64, rng)
    image, filters = x.permute(0, 3, 1, 2), weight.bfloat16().permute(0, 3, 1, 2)
    want, library = direct(x, weight), F.conv2d(image, filters, padding=1).permute(0, 2, 3, 1)
    W = transformed(weight).bfloat16()
    assert relative(spectral_conv2d(x, W, backend="cpu"), want) <= 1.83 * relative(library, want)


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("T, W", [(20, 30), (60, 50)])  # threads share the columns, of which there are 96; the tiles
def test_panels_and_threads_give_the_same_bits(T, W, isa, rng):
    x, weight, bias = rounded(1, T, W, 64, 96, rng)
    filters = transformed(weight).bfloat16()
    panels = to_panels(filters)
    with at_isa(isa):
        want = spectral_conv2d(x, filters, bias, silu=True, backend="cpu")
        for count in (1, 2, 3):
            with on_threads(count):
                for given in (filters, panels):
                    assert torch.equal(spectral_conv2d(x, given, bias, silu=True, backend="cpu"), want)
    reference = spectral_conv2d_reference(x, filters, bias)
    assert torch.equal(spectral_conv2d(x, panels, bias, backend="reference"), reference)


def test_results_are_written_where_they_are_told_and_nowhere_else(rng):
    x, weight, bias = rounded(2, 13, 23, 96, 40, rng)  # ends within a tile, a vector and a block
    W = transformed(weight).bfloat16()
    given = [t.clone() for t in (x, W, bias)]
    for silu in (False, True):
        want = spectral_conv2d(x, W, bias, silu=silu, backend="cpu")
        y, around = between_sentinels(*want.shape)
        launcher.spectral_conv2d(x, W, bias, silu=silu, out=y)
        assert torch.equal(y, want) and untouched(around) and all(map(torch.equal, given, (x, W, bias)))


def test_songs_of_a_batch_do_not_meet_and_what_is_no_number_stays_so(rng):
    x, weight, bias = rounded(3, 6, 23, 64, 32, rng)
    W = transformed(weight).bfloat16()
    y = spectral_conv2d(x, W, bias, backend="cpu")
    x[[0, 2]] = torch.nan
    got = spectral_conv2d(x, W, bias, backend="cpu")
    assert torch.equal(got[1], y[1]) and got[[0, 2]].isnan().all()


def test_a_piece_of_an_image_gives_the_same_bits_where_its_tiles_are_the_same(rng):
    x, weight, bias = rounded(1, 100, 40, 64, 32, rng)
    W = transformed(weight).bfloat16()
    whole = spectral_conv2d(x, W, bias, backend="cpu")
    piece = spectral_conv2d(x[:, 24:90].contiguous(), W, bias, backend="cpu")
    assert torch.equal(piece[:, 8:-10], whole[:, 32:80])


def test_the_autoencoder_of_v1_runs_it(rng, monkeypatch):
    block = ResBlock(64, fast_filters=True).bfloat16()
    for parameter in block.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    x = torch.randn(1, 6, 4, 64, generator=rng).bfloat16()
    monkeypatch.setattr(module, "spectral_conv2d_reference", None)
    with torch.no_grad():
        y = block(x)
        hold_panels(block)
        assert block.conv1.weight.dim() == block.conv2.weight.dim() == 4
        assert y.isfinite().all() and torch.equal(block(x), y)


def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(rng):
    x, weight, bias = rounded(1, 4, 6, 64, 32, rng)
    W = transformed(weight).bfloat16()
    for case in (
        (x.float(), W.float(), bias.float()),
        (x.half(), W.half(), bias.half()),
        (x[..., :48].contiguous(), W[:, : 142 * 48].contiguous(), bias),
        (x, W, bias[:1].expand(32)),
    ):
        with pytest.raises(BackendUnavailable, match="spectral_conv2d: backend='cpu' cannot run: it has no cpu kernel"):
            spectral_conv2d(*case, backend="cpu")
        assert torch.equal(spectral_conv2d(*case), spectral_conv2d_reference(*case))
