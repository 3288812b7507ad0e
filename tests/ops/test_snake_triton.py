"""The kernel of snake: its sine's accuracy, and its rows, in the interpreter and as PTX."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable, use_backend
from acefast.guarded import elements, guarded, whole, with_guards
from acefast.ops.snake import snake
from tests.ops.test_conv1d import padded_with_zeros, poisoned, relative
from tests.ops.test_snake import inputs, naive

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.kernels.snake import CONFIGS
from acefast.kernels.snake import snake as kernel
from acefast.sim.interpreter import check_written, interpreted
from tests.ops.simulated import simulated

GATE = {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
HARDWARE = 2**-20.5  # of the sine's approximation in [-pi, pi]


def run(x, alpha, inv_beta, **options):
    with interpreted():
        got = snake(x, alpha, inv_beta, **options, backend="triton")
        check_written("out", got)
    return got


def bumps(most):
    """x between -1 and 1 and frequencies up to ``most``, all of height 1: what is added is the sine's square alone."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 64, 64, generator=g) * 2 - 1
    alpha = torch.rand(64, generator=g) * most
    return x, alpha, torch.ones(64)


def off(y, x, alpha, sine):
    """Whether the square is further off than fp32's rounding of the product and of pi, and twice the sine's error."""
    v = alpha.double() * x.double()
    error = (y.double() - x.double() - v.sin() ** 2).abs()
    return error > v.abs() * (2**-24 + 3e-8) + 2 * sine + 2.5e-7  # the last: roundings of values up to 2


@pytest.mark.parametrize("most", (1, 10, 400))
def test_the_reduction_loses_no_more_than_the_product_rounds(most):
    x, alpha, inv_beta = bumps(most)
    assert not off(run(x, alpha, inv_beta), x, alpha, 0.0).any()


@pytest.mark.parametrize("approx", ("low", "high", "random"))
def test_the_hardwares_sine_is_used_where_its_bound_holds(approx):
    x, alpha, inv_beta = bumps(400)
    y = guarded(1, 64, 64, dtype=torch.float32, device=x.device)
    arguments = {"x": with_guards(x), "alpha": alpha, "inv_beta": inv_beta, "out": y}
    simulated(kernel, arguments, approx=approx)
    assert not off(y, x, alpha, HARDWARE).any()
    assert off(y, x, alpha, 0.0).any()  # the simulator does put it there
    simulated(kernel, arguments, without_sine)
    most = (y - x).max().sqrt()  # of what the sine was asked for
    assert 1.5 < most < torch.pi / 2 + 1e-4


def without_sine(ptx):
    assert "sin.approx.f32" in ptx
    return ptx.replace("sin.approx.f32", "mov.f32")


def test_silence_stays_silent_and_what_is_not_finite_shows():
    x = torch.zeros(1, 3, 16)
    x[0, 1], x[0, 2] = torch.nan, torch.inf
    with interpreted():
        y = snake(x, torch.full((16,), 3.0), torch.ones(16), backend="triton")
    assert (y[0, 0] == 0).all() and not y[0, 1:].isfinite().any()


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("C", (48, 128, 256))
def test_kernel_equals_the_formula_around_a_row_tile(C, dtype):
    tile = CONFIGS["narrow" if C % 128 else "wide", 80]["ROWS"]
    for B, L in ((1, 1), (2, tile - 1), (1, tile), (3, tile + 1)):
        x, alpha, inv_beta = inputs(B, L, C, dtype)
        memory = torch.full((elements(B, L, C) + 256,), torch.nan, dtype=dtype)
        out = guarded(B, L, C, dtype=dtype, device=x.device, memory=memory[128:])
        assert run(with_guards(x), alpha, inv_beta, guarded=True, out=out) is out
        assert relative(out, naive(x, alpha, inv_beta)) <= GATE[dtype] and padded_with_zeros(out)
        whole(out)[:] = torch.nan
        assert memory.isnan().all()


@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_in_place_plain_and_guarded_rows_have_the_same_bits(dtype):
    x, alpha, inv_beta = inputs(2, 70, 128, dtype)
    before, want = x.clone(), run(with_guards(x), alpha, inv_beta, guarded=True)
    plain = run(x, alpha, inv_beta)
    assert plain.is_contiguous() and torch.equal(plain, want) and torch.equal(x, before)
    rows = poisoned(2, 70, 128, dtype)
    rows.copy_(x)  # between guards that are not read
    assert run(rows, alpha, inv_beta, guarded=True, out=rows) is rows
    assert torch.equal(rows, want) and padded_with_zeros(rows)
    assert run(x, alpha, inv_beta, out=x) is x and torch.equal(x, want)
    part = run(with_guards(before[:, 13:60]), alpha, inv_beta, guarded=True)
    assert torch.equal(part, want[:, 13:60])


def test_what_does_not_fit_the_kernel_goes_to_the_library_unless_it_is_named():
    with interpreted():
        for x in (torch.zeros(1, 4, 24), torch.zeros(1, 4, 16).double()):
            waves = torch.ones(2, x.shape[2])
            with pytest.raises(BackendUnavailable, match="snake: backend='triton' cannot run: it has no triton kernel"):
                snake(x, *waves, backend="triton")
            with use_backend("triton"):
                assert not snake(x, *waves).any()
        assert snake(torch.zeros(1, 0, 16), *torch.ones(2, 16), backend="triton").shape == (1, 0, 16)
