"""winograd2d's reference against direct convolutions in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import acefast.ops.winograd2d as module
from acefast.ops.winograd2d import transformed, winograd2d, winograd2d_reference

# (B, T, F, Cin, Cout): one pixel; odd sizes; a row; a column; more than one piece of rows
SHAPES = [(1, 1, 1, 3, 2), (2, 5, 7, 8, 6), (1, 1, 6, 4, 8), (1, 8, 1, 4, 4), (1, 40, 6, 32, 16)]


def inputs(B, T, W, C, N, rng):
    """x, a filter [Cout, 3, 3, Cin] and a bias, in fp32."""
    x, weight, bias = (torch.randn(s, generator=rng) for s in ((B, T, W, C), (N, 3, 3, C), (N,)))
    return x, weight / (9 * C) ** 0.5, bias


def direct(x, weight, bias=None):
    """In fp64."""
    image, filters = x.double().permute(0, 3, 1, 2), weight.double().permute(0, 3, 1, 2)
    y = F.conv2d(image, filters, None if bias is None else bias.double(), padding=1)
    return y.permute(0, 2, 3, 1).contiguous()


def twice(x, weight, bias=None):
    """Of images with each pixel twice along both axes, plus the shortcut, in fp64."""
    shortcut = x.double().unflatten(3, (-1, 2)).transpose(3, 4).flatten(2, 3)  # the pair's halves beside each other
    doubled = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return direct(doubled, weight, bias) + shortcut.repeat_interleave(2, 1)


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_direct_convolution(shape, rng, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS", 1 << 15)
    x, weight, bias = inputs(*shape, rng)
    given = [t.clone() for t in (x, bias)]
    for b in (bias, None):
        for silu in (False, True):
            want = direct(x, weight, b)
            y = winograd2d(x, transformed(weight), b, silu=silu)
            assert y.shape == want.shape and y.dtype == torch.float32 and y.is_contiguous()
            assert relative(y, F.silu(want) if silu else want) <= 1e-6
    assert torch.equal(x, given[0]) and torch.equal(bias, given[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nine_products_are_of_pixels_twice_with_a_shortcut(shape, rng, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS", 1 << 15)
    *sizes, N = shape
    x, weight, bias = inputs(*sizes[:3], 2 * N, N, rng)
    for b in (bias, None):
        y = winograd2d(x, transformed(weight, twice=True), b)
        assert y.shape == (sizes[0], 2 * sizes[1], 2 * sizes[2], N) and y.is_contiguous()
        assert relative(y, twice(x, weight, b)) <= 1e-6


@pytest.mark.parametrize("dtype, gate", [(torch.bfloat16, 2.5e-3), (torch.float16, 4e-4)])
def test_sixteen_bits_are_rounded_once(dtype, gate, rng):
    x, weight, bias = inputs(1, 6, 8, 32, 16, rng)
    x, bias, W = x.to(dtype), bias.to(dtype), transformed(weight).to(dtype)
    y = winograd2d_reference(x, W, bias)
    want = winograd2d_reference(x.float(), W.float(), bias.float())
    assert y.dtype == dtype and relative(y, want.double()) <= gate


def test_no_pixels_are_none():
    for shape in ((0, 4, 4, 8), (1, 0, 4, 8), (1, 4, 0, 8)):
        assert winograd2d(torch.ones(shape), torch.ones(16, 6, 8)).shape == (*shape[:3], 6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(2, 3, 8)), r"winograd2d: x must be \[B, T, F, Cin\]"),
        (dict(x=torch.ones(1, 8, 4, 4).permute(0, 2, 3, 1)), "winograd2d: x must be contiguous"),
        (dict(weight=torch.ones(16, 6, 4)), r"winograd2d: weight must be \[16 or 9, Cout, Cin\]"),
        (dict(weight=torch.ones(16, 8, 6).mT), "winograd2d: weight must be contiguous"),
        (dict(weight=torch.ones(16, 6, 8).half()), "winograd2d: weight must be torch.float32, got torch.float16"),
        (dict(weight=torch.ones(12, 6, 8)), "winograd2d: weight must be of 16 or 9 products, got 12"),
        (
            dict(weight=torch.ones(9, 6, 8)),
            r"winograd2d: of 9 products weight must be \[9, Cout, 2 \* Cout\], got \[9, 6",
        ),
        (dict(bias=torch.ones(8)), r"winograd2d: bias must be \[Cout\] = \[6\], got \[8\]"),
        (dict(bias=torch.ones(6).half()), "winograd2d: bias must be torch.float32"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = dict(x=torch.ones(1, 4, 4, 8), weight=torch.ones(16, 6, 8), bias=torch.ones(6)) | change
    with pytest.raises(ValueError, match=message):
        winograd2d(**given)
