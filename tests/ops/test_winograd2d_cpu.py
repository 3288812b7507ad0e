"""The CPU's kernel of acefast.ops.winograd2d, at every level of instructions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import acefast.ops.winograd2d as module
from acefast.backends import BackendUnavailable
from acefast.cpu import winograd2d as launcher
from acefast.models.v1.dcae_layers import ResBlock, Up, _up_filter
from acefast.ops.winograd2d import transformed, winograd2d, winograd2d_reference
from tests.cpu.convolutions import GATE, between_sentinels, on_threads, relative, untouched
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_winograd2d import direct, inputs, twice

# (B, T, F, Cin, Cout)
SHAPES = {
    "one pixel": (1, 1, 1, 32, 32),
    "odd sizes, ragged outputs": (2, 5, 7, 64, 40),
    "fewer outputs than a vector": (1, 4, 6, 32, 5),
    "a row": (1, 1, 50, 32, 64),
    "a column": (1, 50, 1, 32, 32),
    "blocks of tiles that end within a row and a song": (3, 13, 20, 96, 64),
    "as many channels as a level has": (1, 6, 16, 512, 64),
}

extension()


def rounded(B, T, W, C, N, rng):
    """x, both kinds of filters and the bias in bf16; of 9 products Cin is twice Cout."""
    x, weight, bias = inputs(B, T, W, C, N, rng)
    return x.bfloat16(), weight, bias.bfloat16()


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_products_in_double_precision(shape, isa, rng):
    """Of the rounded filters: what is left is the rounding of V and of the result."""
    x, weight, bias = rounded(*shape, rng)
    W = transformed(weight).bfloat16()
    with at_isa(isa):
        for b in (bias, None):
            for silu in (False, True):
                y = winograd2d(x, W, b, silu=silu, backend="cpu")
                want = winograd2d_reference(x.float(), W.float(), None if b is None else b.float(), silu=silu)
                assert y.shape == want.shape and y.dtype == torch.bfloat16 and y.is_contiguous()
                assert relative(y, want.double()) <= GATE


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (2, 5, 7, 48), (1, 30, 16, 32), (1, 3, 4, 256)], ids=str)
def test_matches_the_products_of_pixels_twice(shape, isa, rng):
    *sizes, N = shape
    x, weight, bias = rounded(*sizes, 2 * N, N, rng)
    W = transformed(weight, twice=True).bfloat16()
    with at_isa(isa):
        for b, silu in ((bias, False), (None, False), (bias, True)):
            y = winograd2d(x, W, b, silu=silu, backend="cpu")
            want = winograd2d_reference(x.float(), W.float(), None if b is None else b.float(), silu=silu)
            assert y.shape == want.shape and relative(y, want.double()) <= GATE


def test_the_error_is_at_most_twice_that_of_a_direct_convolution(rng):
    x, weight, bias = rounded(1, 24, 16, 128, 64, rng)
    image, filters = x.permute(0, 3, 1, 2), weight.bfloat16().permute(0, 3, 1, 2)
    want, library = direct(x, weight), F.conv2d(image, filters, padding=1).permute(0, 2, 3, 1)
    assert relative(winograd2d(x, transformed(weight).bfloat16(), backend="cpu"), want) <= 2 * relative(library, want)
    want, up = twice(x, weight, bias), Up(64).bfloat16()
    up.weight.copy_(_up_filter(weight.permute(0, 3, 2, 1)))
    up.bias.copy_(bias)
    W = transformed(weight, twice=True).bfloat16()
    assert relative(winograd2d(x, W, bias, backend="cpu"), want) <= 1.5 * relative(up(x), want)


@pytest.mark.parametrize("products", (16, 9))
def test_results_are_written_where_they_are_told_and_nowhere_else(products, rng):
    x, weight, bias = rounded(2, 5, 7, 96, 40 if products == 16 else 48, rng)  # ends within a vector, and a block
    W = transformed(weight, products == 9).bfloat16()
    given = [t.clone() for t in (x, W, bias)]
    want = winograd2d(x, W, bias, backend="cpu")
    y, around = between_sentinels(*want.shape)
    launcher.winograd2d(x, W, bias, twice=products == 9, silu=False, out=y)
    assert torch.equal(y, want) and untouched(around) and all(map(torch.equal, given, (x, W, bias)))


@pytest.mark.parametrize("products", (16, 9))
def test_songs_of_a_batch_do_not_meet_and_what_is_no_number_stays_so(products, rng):
    x, weight, bias = rounded(3, 6, 7, 64, 32, rng)
    W = transformed(weight, products == 9).bfloat16()
    y = winograd2d(x, W, bias, backend="cpu")
    x[[0, 2]] = torch.nan
    got = winograd2d(x, W, bias, backend="cpu")
    assert torch.equal(got[1], y[1]) and got[[0, 2]].isnan().all()


@pytest.mark.parametrize("products", (16, 9))
@pytest.mark.parametrize("B, T, W, C", [(1, 3, 4, 64), (2, 31, 40, 256)])  # one block of tiles; many
def test_threads_give_the_same_bits(B, T, W, C, products, rng):
    x, weight, bias = rounded(B, T, W, C, C // 2, rng)
    filters = transformed(weight, products == 9).bfloat16()
    want = winograd2d(x, filters, bias, silu=True, backend="cpu")
    for count in (2, 3):
        with on_threads(count):
            assert torch.equal(winograd2d(x, filters, bias, silu=True, backend="cpu"), want)


def test_a_piece_of_an_image_gives_the_same_bits(rng):
    """Whatever block a tile falls into, if its pieces begin at an even row."""
    x, weight, bias = rounded(1, 60, 32, 256, 32, rng)
    W = transformed(weight).bfloat16()
    whole = winograd2d(x, W, bias, backend="cpu")
    assert torch.equal(winograd2d(x[:, 18:40].contiguous(), W, bias, backend="cpu")[:, 1:-1], whole[:, 19:39])


@pytest.mark.parametrize("kind", (ResBlock, Up))
def test_the_autoencoder_of_v1_runs_it(kind, rng, monkeypatch):
    block = kind(64, winograd=True).bfloat16()
    for parameter in block.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    x = torch.randn(1, 6, 4, 128 if kind is Up else 64, generator=rng).bfloat16()
    monkeypatch.setattr(module, "winograd2d_reference", None)
    with torch.no_grad():
        assert block(x).isfinite().all()


def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(rng):
    x, weight, bias = rounded(1, 4, 6, 64, 32, rng)
    W = transformed(weight).bfloat16()
    for case in (
        (x.float(), W.float(), bias.float()),
        (x.half(), W.half(), bias.half()),
        (x[..., :48].contiguous(), W[..., :48].contiguous(), bias),
        (x, W, bias[:1].expand(32)),
    ):
        with pytest.raises(BackendUnavailable, match="winograd2d: backend='cpu' cannot run: it has no cpu kernel"):
            winograd2d(*case, backend="cpu")
        assert torch.equal(winograd2d(*case), winograd2d_reference(*case))
