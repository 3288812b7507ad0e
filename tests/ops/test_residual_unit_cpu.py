"""The CPU's kernel of acefast.ops.residual_unit, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

import acefast.ops.residual_unit as module
from acefast.backends import BackendUnavailable
from acefast.guarded import with_guards
from acefast.ops.residual_unit import residual_unit, residual_unit_reference
from acefast.ops.snake import snake
from tests.cpu.convolutions import accurate, between_sentinels, on_threads, relative, snaked, untouched, waves
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.units import exact, weights

extension()

# One row, fewer than the unit looks at, ragged, two tiles at any size of the second cache up to 2 MB
SHAPES = [(1, 1, 32), (2, 13, 96), (1, 375, 128), (1, 1100, 256)]


def inputs(B, L, C, rng, dtype=torch.bfloat16):
    """The op's arguments, and the next snake."""
    rest, wave = weights(rng, C, dtype)
    return [torch.randn(B, L, C, generator=rng).to(dtype), *waves(C, rng), *rest], wave


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("dilation", (1, 9))
@pytest.mark.parametrize("B, L, C", SHAPES)
def test_matches_the_formula_in_double_precision(B, L, C, dilation, isa, rng):
    arguments, wave = inputs(B, L, C, rng)
    x, alpha1, inv_beta1, *rest = arguments
    want, waved = exact(x, snaked(x, alpha1, inv_beta1), *rest, dilation, [w.double() for w in wave])
    reference = residual_unit_reference(*arguments, dilation=dilation, wave=wave)
    with at_isa(isa):
        options = {"dilation": dilation, "backend": "cpu"}
        y = residual_unit(*arguments, **options)
        assert y.dtype == torch.bfloat16 and y.is_contiguous() and accurate(y, want, reference[0])
        kept, second = residual_unit(*arguments, **options, wave=wave)
        none, alone = residual_unit(*arguments, **options, wave=wave, keep=False)
        assert torch.equal(kept, y) and none is None and torch.equal(second, alone)
        assert relative(second, waved) <= 1.1 * relative(reference[1], waved)
        given = residual_unit(*arguments, **options, activated=snake(x, alpha1, inv_beta1, backend="cpu"))
        assert torch.equal(given, y)


def test_results_are_written_where_they_are_told_and_nowhere_else(rng):
    arguments, wave = inputs(2, 61, 64, rng)
    given = [t.clone() for t in (*arguments, *wave)]
    options = {"dilation": 3, "wave": wave, "backend": "cpu"}
    want = residual_unit(*arguments, **options)
    (y, around), (waved, around_waved) = between_sentinels(2, 61, 64), between_sentinels(2, 61, 64)
    got = residual_unit(*arguments, **options, out=(y, waved))
    assert got[0] is y and got[1] is waved and untouched(around) and untouched(around_waved)
    assert torch.equal(y, want[0]) and torch.equal(waved, want[1])
    assert all(map(torch.equal, given, (*arguments, *wave)))


@pytest.mark.parametrize("given", (True, False))
@pytest.mark.parametrize("L", (40, 1100))
def test_results_may_be_written_over_x(L, given, rng):
    arguments, wave = inputs(2, L, 128, rng)
    x, options = arguments[0].clone(), {"dilation": 9, "backend": "cpu"}
    if given:
        options["activated"] = snake(*arguments[:3])
    y, waved = residual_unit(*arguments, **options, wave=wave)
    assert residual_unit(*arguments, **options, out=arguments[0]) is arguments[0]
    assert torch.equal(arguments[0], y)
    arguments[0].copy_(x)
    residual_unit(*arguments, **options, wave=wave, keep=False, out=(None, arguments[0]))
    assert torch.equal(arguments[0], waved)


def test_songs_of_a_batch_do_not_meet(rng):
    arguments, _ = inputs(3, 40, 32, rng)
    y = residual_unit(*arguments, dilation=9, backend="cpu")
    arguments[0][[0, 2]] = torch.nan
    assert torch.equal(residual_unit(*arguments, dilation=9, backend="cpu")[1], y[1])


@pytest.mark.parametrize("L, C", [(13, 256), (1100, 64)])
def test_threads_give_the_same_bits(L, C, rng):
    arguments, wave = inputs(2, L, C, rng)
    want = residual_unit(*arguments, dilation=9, wave=wave, backend="cpu")
    for count in (2, 3):
        with on_threads(count):
            assert all(map(torch.equal, residual_unit(*arguments, dilation=9, wave=wave, backend="cpu"), want))


def test_it_is_what_runs_on_a_cpu_and_what_it_does_not_take_runs_on_the_reference(rng, monkeypatch):
    arguments, _ = inputs(1, 20, 32, rng)
    narrow, _ = inputs(1, 20, 48, rng)
    apart = [*arguments]
    apart[1] = torch.rand(32, 2, generator=rng)[:, 0]
    for given, options in (
        (inputs(1, 20, 32, rng, torch.float32)[0], {}),
        (inputs(1, 20, 32, rng, torch.float16)[0], {}),
        (narrow, {}),
        (apart, {}),
        ([with_guards(arguments[0]), *arguments[1:]], {"guarded": True}),
    ):
        with pytest.raises(BackendUnavailable, match="residual_unit: backend='cpu' cannot run: it has no cpu kernel"):
            residual_unit(*given, dilation=3, **options, backend="cpu")
        want = residual_unit_reference(*given, dilation=3, **options)
        assert torch.equal(residual_unit(*given, dilation=3, **options), want)
    monkeypatch.setattr(module, "residual_unit_reference", None)
    residual_unit(*arguments, dilation=3)
