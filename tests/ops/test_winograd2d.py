"""winograd2d's reference against direct convolutions in fp64, of images with each pixel twice."""

from __future__ import annotations

import pytest
import torch

import acefast.ops.winograd2d as module
from acefast.ops.winograd2d import transformed, winograd2d, winograd2d_reference
from acefast.panels import to_panels
from tests.cpu.convolutions import relative
from tests.ops.test_spectral_conv2d import direct

# (B, T, F, Cout): one pixel; odd sizes; a row; a column; more than one piece of rows
SHAPES = [(1, 1, 1, 2), (2, 5, 7, 6), (1, 1, 6, 8), (1, 8, 1, 4), (1, 40, 6, 16)]


def inputs(B, T, W, N, rng):
    """x, a filter [Cout, 3, 3, Cin] and a bias, in fp32; Cin is twice Cout."""
    x, weight, bias = (torch.randn(s, generator=rng) for s in ((B, T, W, 2 * N), (N, 3, 3, 2 * N), (N,)))
    return x, weight / (18 * N) ** 0.5, bias


def twice(x, weight, bias=None):
    """Of images with each pixel twice along both axes, plus the shortcut, in fp64."""
    shortcut = x.double().unflatten(3, (-1, 2)).transpose(3, 4).flatten(2, 3)  # the pair's halves beside each other
    doubled = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return direct(doubled, weight, bias) + shortcut.repeat_interleave(2, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_direct_convolution_and_the_shortcut(shape, rng, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS", 1 << 15)
    B, T, W, N = shape
    x, weight, bias = inputs(*shape, rng)
    given = [t.clone() for t in (x, bias)]
    for b in (bias, None):
        y = winograd2d(x, transformed(weight), b)
        assert y.shape == (B, 2 * T, 2 * W, N) and y.dtype == torch.float32 and y.is_contiguous()
        assert relative(y, twice(x, weight, b)) <= 1e-6
    assert torch.equal(x, given[0]) and torch.equal(bias, given[1])


@pytest.mark.parametrize("dtype, gate", [(torch.bfloat16, 2.5e-3), (torch.float16, 4e-4)])
def test_sixteen_bits_are_rounded_once(dtype, gate, rng):
    x, weight, bias = inputs(1, 6, 8, 16, rng)
    x, bias, W = x.to(dtype), bias.to(dtype), transformed(weight).to(dtype)
    y = winograd2d_reference(x, W, bias)
    want = winograd2d_reference(x.float(), W.float(), bias.float())
    assert y.dtype == dtype and relative(y, want.double()) <= gate


def test_no_pixels_are_none():
    for B, T, W in ((0, 4, 4), (1, 0, 4), (1, 4, 0)):
        assert winograd2d(torch.ones(B, T, W, 12), torch.ones(6, 108)).shape == (B, 2 * T, 2 * W, 6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(2, 3, 12)), r"x must be \[B, T, F, 2 \* Cout\]"),
        (dict(x=torch.ones(1, 12, 4, 4).permute(0, 2, 3, 1)), "x must be contiguous"),
        (dict(weight=torch.ones(6, 36)), r"weight must be \[Cout, 9 \* 2 \* Cout\]"),
        (dict(weight=torch.ones(9, 6, 12)), r"weight must be \[Cout, 9 \* 2 \* Cout\]"),
        (dict(weight=torch.ones(8, 108)), "x must have two channels for each of weight's Cout = 8, got 12"),
        (dict(weight=to_panels(torch.ones(32, 108))), "x must have two channels for each of weight's Cout = 32"),
        (dict(weight=to_panels(torch.ones(32, 9 * 64))), r"weight must be .* = \[any, 54, 32, 2\]"),
        (dict(weight=torch.ones(108, 6).mT), "weight must be contiguous"),
        (dict(weight=torch.ones(6, 108).half()), "weight must be torch.float32, got torch.float16"),
        (dict(bias=torch.ones(8)), r"bias must be \[Cout\] = \[6\], got \[8\]"),
        (dict(bias=torch.ones(6).half()), "bias must be torch.float32"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = dict(x=torch.ones(1, 4, 4, 12), weight=torch.ones(6, 108), bias=torch.ones(6)) | change
    with pytest.raises(ValueError, match=f"winograd2d: {message}"):
        winograd2d(**given)
