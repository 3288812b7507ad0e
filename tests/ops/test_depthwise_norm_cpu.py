"""The CPU's kernel of acefast.ops.depthwise_norm, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.depthwise_norm import depthwise_norm
from tests.cpu.convolutions import between_sentinels, on_threads, untouched
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_depthwise_norm import GATE, exact, inputs, relative

extension()

BF16 = torch.bfloat16
# B, L, C, taps: one row; fewer rows than taps; a block of 16 rows, and one more; several; the widest; others' taps
SIZES = [(1, 1, 16, 7), (2, 3, 48, 7), (1, 16, 128, 7), (2, 17, 128, 7), (1, 61, 384, 7), (1, 20, 1040, 7)]
SIZES += [(2, 19, 32, 1), (1, 40, 32, 3), (1, 5, 32, 31)]


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_equations_in_fp64(size, isa, rng):
    *shape, taps = size
    given = inputs(shape, BF16, rng, taps)
    before = [t.clone() for t in given]
    with at_isa(isa):
        for eps in (1e-6, 1.0):
            y = depthwise_norm(*given, eps=eps, backend="cpu")
            assert y.dtype == BF16 and y.is_contiguous() and relative(y, exact(*given, eps)) <= GATE[BF16]
    assert all(map(torch.equal, before, given))


@pytest.mark.parametrize("isa", NAMES)
def test_a_mean_far_from_zero_costs_no_digits(isa, rng):
    """A variance as the mean of squares less the square of the mean would leave nothing of them."""
    x, taps, start, *norm = inputs((1, 9, 64), BF16, rng)
    start = start + 4096
    with at_isa(isa):
        assert relative(depthwise_norm(x, taps, start, *norm, backend="cpu"), exact(x, taps, start, *norm)) <= 4e-3


def test_songs_do_not_meet_and_threads_change_nothing(rng):
    x, *rest = inputs((3, 45, 64), BF16, rng)
    want = depthwise_norm(x, *rest, backend="cpu")
    x[[0, 2]] = torch.nan
    for threads in (1, 2, 3):
        with on_threads(threads):
            y = depthwise_norm(x, *rest, backend="cpu")
        assert torch.equal(y[1], want[1]) and y[[0, 2]].isnan().all()


def test_rows_may_lie_at_a_distance_and_nothing_else_is_touched(rng):
    x, *rest = inputs((2, 20, 32), BF16, rng)
    want = depthwise_norm(x, *rest, backend="cpu")
    memory, (result, around) = torch.full((2, 27, 48), torch.nan, dtype=BF16), between_sentinels(2, 30, 40)
    apart, out = memory[:, 5:25, 8:40], result[:, 3:23, 4:36]
    apart.copy_(x)
    result.fill_(torch.nan)
    assert depthwise_norm(apart, *rest, out=out, backend="cpu") is out and torch.equal(out, want)
    out.fill_(torch.nan)
    assert result.isnan().all() and untouched(around)


def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(rng):
    odd, wide = inputs((1, 4, 24), BF16, rng), inputs((1, 4, 32), torch.float32, rng)
    mixed = [wide[0].bfloat16(), *wide[1:]]
    empty = [inputs((1, 4, 32), BF16, rng)[0][:, :0], *inputs((1, 4, 32), BF16, rng)[1:]]
    for given in (odd, wide, mixed, empty):
        with pytest.raises(BackendUnavailable, match="it has no cpu kernel"):
            depthwise_norm(*given, backend="cpu")
        assert torch.equal(depthwise_norm(*given), depthwise_norm(*given, backend="reference"))
