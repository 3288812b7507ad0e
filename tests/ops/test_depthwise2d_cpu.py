"""The CPU's kernel of acefast.ops.depthwise2d, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.depthwise2d import depthwise2d
from tests.cpu.convolutions import on_threads
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_depthwise2d import GATE, VARIANTS, exact, inputs, matrices, relative

extension()

BF16 = torch.bfloat16
# B, H, W, channels out, K: one pixel; less than the taps; several blocks of channels and images
SIZES = [(1, 1, 1, 32, 3), (2, 2, 3, 32, 5), (2, 9, 16, 96, 3), (1, 6, 5, 64, 5)]


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


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_groups_of_channels_are_mixed(size, isa, rng):
    x, weight, bias = inputs(*size, BF16, rng)
    mix = matrices(x.shape[3], 32, BF16, rng)
    with at_isa(isa):
        y = depthwise2d(x, weight, bias, mix=mix, backend="cpu")
    assert y.shape == x.shape and relative(y, exact(x, weight, bias, mix=mix)) <= 1.5 * GATE[BF16]  # two roundings


@pytest.mark.parametrize("gate", (True, False), ids=("gate", "mix"))
def test_images_do_not_meet_and_threads_change_nothing(gate, rng):
    x, weight, bias = inputs(2, 7, 5, 96, 5, BF16, rng, gate)
    options = {"silu_input": True, "gate": gate, "mix": None if gate else matrices(96, 32, BF16, rng), "backend": "cpu"}
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


@pytest.mark.parametrize(
    "channels, K, head, dtype", [(48, 3, 0, BF16), (32, 3, 0, torch.float32), (32, 7, 0, BF16), (32, 3, 16, BF16)]
)
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(channels, K, head, dtype, rng):
    given = inputs(1, 2, 3, channels, K, dtype, rng)
    mix = matrices(channels, head, dtype, rng) if head else None
    with pytest.raises(BackendUnavailable, match="it has no cpu kernel"):
        depthwise2d(*given, mix=mix, backend="cpu")
    assert torch.equal(depthwise2d(*given, mix=mix), depthwise2d(*given, mix=mix, backend="reference"))
