"""Proof of acefast.ops.spectral_conv1d's reference: the direct convolution, its tables, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acefast.ops.spectral_conv1d import spectral_conv1d, tables, transformed
from acefast.panels import to_panels
from tests.cpu.convolutions import relative, snaked, waves


def inputs(rng, B, L, Cin, Cout, K, dtype=torch.float32):
    x, weight, bias = (torch.randn(s, generator=rng) for s in ((B, L, Cin), (Cout, K, Cin), (Cout,)))
    return x.to(dtype), weight / (K * Cin) ** 0.5, bias.to(dtype)


def direct(x, weight, bias, dilation=1):
    """In fp64."""
    bias = None if bias is None else bias.double()
    padding = dilation * (weight.shape[1] - 1) // 2
    return F.conv1d(x.double().mT, weight.double().mT, bias, 1, padding, dilation).mT


@pytest.mark.parametrize("kernel, dilation", [(7, 1), (11, 3), (13, 5), (31, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("L", (1, 20, 61))  # less than a piece, one or more, a ragged last one
def test_reference_is_the_direct_convolution(kernel, dilation, L, rng):
    x, weight, bias = inputs(rng, 2, L, 24, 10, kernel)
    for b in (bias, None):
        got = spectral_conv1d(x, transformed(weight), b, kernel, dilation=dilation, backend="reference")
        assert got.shape == (2, L, 10) and got.is_contiguous()
        assert relative(got, direct(x, weight, b, dilation)) <= 1e-6


def test_reference_does_what_follows(rng):
    x, weight, bias = inputs(rng, 2, 40, 16, 8, 7)
    residual, total = torch.randn(2, 2, 40, 8, generator=rng)
    given = x, transformed(weight), bias, 7
    want = total.double() + 0.25 * (direct(x, weight, bias) + residual.double())
    added = {"residual": residual, "share": 0.25, "total": total, "backend": "reference"}
    assert relative(spectral_conv1d(*given, **added), want) <= 1e-6
    y, activated = spectral_conv1d(*given, **added, wave="silu")
    assert relative(y, want) <= 1e-6 and relative(activated, want * want.sigmoid()) <= 1e-6
    none, alone = spectral_conv1d(*given, **added, wave="silu", keep=False)
    assert none is None and torch.equal(alone, activated)


def test_reference_passes_snakes_before_and_after(rng):
    x, weight, bias = inputs(rng, 2, 40, 16, 8, 7)
    before, wave = waves(16, rng), waves(8, rng)
    given = x, transformed(weight), bias, 7
    want = direct(snaked(x, *before), weight, bias)
    y, activated = spectral_conv1d(*given, before=before, wave=wave, backend="reference")
    assert relative(y, want) <= 1e-6 and relative(activated, snaked(want, *wave)) <= 1e-5  # which amplifies


def test_tables_are_exact_and_fewer_products():
    for kernel in (7, 13):
        analysis, filters, synthesis = tables(kernel)
        assert analysis.shape == (49, 34) and filters.shape == (49, kernel) and synthesis.shape == (35 - kernel, 49)
        taps = torch.einsum("tm,mk,mn->tkn", synthesis, filters, analysis)  # of every product the results' share
        want = torch.zeros_like(taps)
        for t in range(35 - kernel):
            for k in range(kernel):
                want[t, k, t + k] = 1
        torch.testing.assert_close(taps, want, rtol=0, atol=1e-13)
        assert 49 / (35 - kernel) <= kernel / 4


def test_bad_input_is_refused_in_one_sentence(rng):
    x, weight, bias = inputs(rng, 1, 40, 16, 8, 7)
    weight = transformed(weight)
    for message, change in {
        "kernel must be odd and at most 31 and dilation at least 1, got kernel=8": {"kernel": 8},
        "got kernel=33": {"kernel": 33},
        "dilation=0": {"dilation": 0},
        "weight must be": {"weight": weight[:, 16:].contiguous()},
        "weight must be .* = .any, 392, 32, 2": {"weight": to_panels(torch.ones(32, 49 * 32))},
        "bias must be": {"bias": bias[:4]},
        "weight must have x's dtype": {"weight": weight.double()},
        "x must be contiguous": {"x": x.mT.contiguous().mT},
        "total must be": {"total": x},
        r"wave\[0\] must be \[C\] = \[8\], got \[7\]": {"wave": (torch.ones(7), torch.ones(8))},
        r"before\[1\] must be \[C\] = \[16\], got \[8\]": {"before": (torch.ones(16), torch.ones(8))},
        r"before\[0\] must be torch.float32": {"before": (torch.ones(16).half(), torch.ones(16))},
        "keep=False needs a wave": {"keep": False},
    }.items():
        given = {"x": x, "weight": weight, "bias": bias, "kernel": 7} | change
        with pytest.raises(ValueError, match=message) as error:
            spectral_conv1d(**given)
        assert str(error.value).startswith("spectral_conv1d: ")
