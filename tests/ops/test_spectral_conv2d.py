"""Proof of acefast.ops.spectral_conv2d's reference: the direct convolution, its tables, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import acefast.ops.spectral_conv2d as module
from acefast.ops.spectral_conv2d import spectral_conv2d, spectral_conv2d_reference, tables, transformed
from acefast.panels import to_panels
from tests.cpu.convolutions import relative

# (B, T, F, Cin, Cout): one pixel; a tile; less and more than one either way; a row; a column; pieces of rows of tiles
SHAPES = [(1, 1, 1, 3, 2), (1, 8, 8, 4, 4), (2, 5, 13, 8, 6), (1, 1, 30, 4, 8), (1, 30, 1, 4, 4), (1, 90, 6, 32, 16)]


def inputs(B, T, W, C, N, rng):
    """x, a filter [Cout, 3, 3, Cin] and a bias, in fp32."""
    x, weight, bias = (torch.randn(s, generator=rng) for s in ((B, T, W, C), (N, 3, 3, C), (N,)))
    return x, weight / (9 * C) ** 0.5, bias


def direct(x, weight, bias=None):
    """In fp64."""
    image, filters = x.double().permute(0, 3, 1, 2), weight.double().permute(0, 3, 1, 2)
    y = F.conv2d(image, filters, None if bias is None else bias.double(), padding=1)
    return y.permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_a_direct_convolution(shape, rng, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS", 1 << 15)
    x, weight, bias = inputs(*shape, rng)
    given = [t.clone() for t in (x, bias)]
    for b in (bias, None):
        for silu in (False, True):
            want = direct(x, weight, b)
            y = spectral_conv2d(x, transformed(weight), b, silu=silu)
            assert y.shape == want.shape and y.dtype == torch.float32 and y.is_contiguous()
            assert relative(y, F.silu(want) if silu else want) <= 1e-6
    assert torch.equal(x, given[0]) and torch.equal(bias, given[1])


@pytest.mark.parametrize("dtype, gate", [(torch.bfloat16, 2.5e-3), (torch.float16, 4e-4)])
def test_sixteen_bits_are_rounded_once(dtype, gate, rng):
    x, weight, bias = inputs(1, 6, 8, 32, 16, rng)
    x, bias, W = x.to(dtype), bias.to(dtype), transformed(weight).to(dtype)
    y = spectral_conv2d_reference(x, W, bias)
    want = spectral_conv2d_reference(x.float(), W.float(), bias.float())
    assert y.dtype == dtype and relative(y, want.double()) <= gate


def test_tables_are_exact_and_a_fourth_of_the_products():
    analysis, filters, synthesis = tables()
    assert analysis.shape == (142, 100) and filters.shape == (142, 9) and synthesis.shape == (64, 142)
    taps = torch.einsum("tm,mk,mn->tkn", synthesis, filters, analysis)  # of every product the results' share
    want = torch.zeros(8, 8, 3, 3, 10, 10, dtype=torch.float64)
    for t in range(8):
        for f in range(8):
            for k in range(9):
                want[t, f, k // 3, k % 3, t + k // 3, f + k % 3] = 1
    torch.testing.assert_close(taps, want.view_as(taps), rtol=0, atol=1e-14)
    assert 142 / 64 < 9 / 4


def test_no_pixels_are_none():
    for shape in ((0, 4, 4, 8), (1, 0, 4, 8), (1, 4, 0, 8)):
        assert spectral_conv2d(torch.ones(shape), torch.ones(6, 142 * 8)).shape == (*shape[:3], 6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(2, 3, 8)), r"x must be \[B, T, F, Cin\]"),
        (dict(x=torch.ones(1, 8, 4, 4).permute(0, 2, 3, 1)), "x must be contiguous"),
        (dict(weight=torch.ones(6, 142 * 4)), r"weight must be \[Cout, 142 \* Cin\]"),
        (dict(weight=torch.ones(142, 6, 8)), r"weight must be \[Cout, 142 \* Cin\]"),
        (dict(weight=torch.ones(142 * 8, 6).mT), "weight must be contiguous"),
        (dict(weight=torch.ones(6, 142 * 8).half()), "weight must be torch.float32, got torch.float16"),
        (dict(weight=to_panels(torch.ones(32, 142 * 6))), r"weight must be .* = \[any, 568, 32, 2\]"),
        (dict(bias=torch.ones(8)), r"bias must be \[Cout\] = \[6\], got \[8\]"),
        (dict(bias=torch.ones(6).half()), "bias must be torch.float32"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = dict(x=torch.ones(1, 4, 4, 8), weight=torch.ones(6, 142 * 8), bias=torch.ones(6)) | change
    with pytest.raises(ValueError, match=f"spectral_conv2d: {message}"):
        spectral_conv2d(**given)
