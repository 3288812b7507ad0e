"""The CPU's kernel of acefast.ops.depthwise2d, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.depthwise2d import depthwise2d
from tests.cpu.convolutions import on_threads
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_depthwise2d import GATE, VARIANTS, exact, inputs, relative

extension()

BF16 = torch.bfloat16
# B, H, W, channels out, K: one pixel; less than the taps; a single tap; several blocks of channels and images
SIZES = [(1, 1, 1, 32, 3), (2, 2, 3, 32, 5), (1, 3, 2, 32, 1), (2, 9, 16, 96, 3), (1, 6, 5, 64, 5)]


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_equation_in_fp64(size, variant, isa, rng):
    options = VARIANTS[variant]
    x, weight, bias = inputs(*size, BF16, rng, options.get("gate", False))
    before = x.clone()
    with at_isa(isa):
        for b in (bias, None):
            y = depthwise2d(x, weight, b, **options, backend="cpu")
            assert y.dtype == BF16 and y.is_contiguous() and torch.equal(x, before)
            assert relative(y, exact(x, weight, b, **options)) <= GATE[BF16]


def test_images_do_not_meet_and_threads_change_nothing(rng):
    x, weight, bias = inputs(2, 7, 5, 96, 5, BF16, rng, True)
    options = {"silu_input": True, "gate": True, "backend": "cpu"}
    want = depthwise2d(x, weight, bias, **options)
    x[0] = torch.nan
    for threads in (1, 2, 3):
        with on_threads(threads):
            y = depthwise2d(x, weight, bias, **options)
        assert torch.equal(y[1], want[1]) and y[0].isnan().all()


def test_results_are_written_where_they_are_told_and_nowhere_else(rng):
    x, weight, bias = inputs(2, 3, 5, 32, 3, BF16, rng)
    memory = torch.full((4, 3, 5, 32), torch.nan, dtype=BF16)
    out = memory[1:3]
    assert depthwise2d(x, weight, bias, out=out, backend="cpu") is out
    assert torch.equal(out, depthwise2d(x, weight, bias, backend="cpu")) and memory[::3].isnan().all()


@pytest.mark.parametrize("channels, dtype", [(48, BF16), (32, torch.float32)])
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(channels, dtype, rng):
    given = inputs(1, 2, 3, channels, 3, dtype, rng)
    with pytest.raises(BackendUnavailable, match="it has no cpu kernel"):
        depthwise2d(*given, backend="cpu")
    assert torch.equal(depthwise2d(*given), depthwise2d(*given, backend="reference"))
