"""linear_swiglu on the CPU's kernel, at every level of instructions that is here, against its equation in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.cpu import linear_swiglu as launcher
from acefast.ops.linear_swiglu import linear_swiglu, linear_swiglu_reference
from acefast.panels import to_panels
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_linear_swiglu import error, exact, tensors

GATE = 4e-3  # relative L2 of bf16
SIZES = [(1, 32, 32), (13, 96, 40), (40, 1024, 72), (375, 160, 7)]  # rows, H, I: parts of a tile and of a block

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


@pytest.mark.parametrize("rows, H, I", SIZES)
def test_equals_the_equation_in_fp64(isa, rows, H, I, rng):  # noqa: E741
    x, weight = tensors(rng, rows, H, I, torch.bfloat16)
    want = exact(x, weight)
    got = linear_swiglu(x, weight, backend="cpu")
    assert got.dtype == x.dtype and got.shape == want.shape
    assert error(got, want) <= min(GATE, 1.1 * error(linear_swiglu_reference(x, weight), want))


@pytest.mark.parametrize("rows, H, I", SIZES)
def test_a_gate_apart_from_the_other_rows_changes_no_bit(isa, rows, H, I, rng):  # noqa: E741
    x, weight = tensors(rng, rows, H, I, torch.bfloat16)
    gate, up = (half.clone() for half in weight.chunk(2))
    assert torch.equal(linear_swiglu(x, gate, up, backend="cpu"), linear_swiglu(x, weight, backend="cpu"))


@pytest.mark.parametrize("rows, H, I", [(1, 32, 32), (40, 1024, 96)])
def test_panels_give_the_same_bits(isa, rows, H, I, rng):  # noqa: E741
    x, weight = tensors(rng, rows, H, I, torch.bfloat16)
    want, halves = linear_swiglu(x, weight, backend="cpu"), map(to_panels, weight.chunk(2))
    assert torch.equal(linear_swiglu(x, to_panels(weight), backend="cpu"), want)
    assert torch.equal(linear_swiglu(x, *halves, backend="cpu"), want)
    near = linear_swiglu(x, weight, backend="reference")
    assert torch.equal(linear_swiglu(x, to_panels(weight), backend="reference"), near)


def test_panels_whose_halves_share_one_go_to_the_library(rng):
    x, weight = tensors(rng, 13, 64, 48, torch.bfloat16)  # 48 rows of the gate: the second panel has some of both
    with pytest.raises(BackendUnavailable):
        linear_swiglu(x, to_panels(weight), backend="cpu")
    assert torch.equal(linear_swiglu(x, to_panels(weight)), linear_swiglu(x, weight, backend="reference"))


def test_rounds_once_where_the_library_rounds_twice(isa, rng):
    x, weight = tensors(rng, 130, 192, 128, torch.bfloat16)
    want = exact(x, weight)
    assert error(linear_swiglu(x, weight, backend="cpu"), want) < 0.8 * error(linear_swiglu_reference(x, weight), want)


@pytest.mark.parametrize("rows, H, I", SIZES)
def test_keeps_to_its_rows_and_columns(isa, rows, H, I, rng):  # noqa: E741
    """Each operand lies in a wider one that is NaN all around."""
    given = tensors(rng, rows, H, I, torch.bfloat16)
    memory = [torch.full((n + 3, m + 48), torch.nan).bfloat16() for n, m in ((rows, H), (2 * I, H), (rows, I))]
    x, weight, out = (t[2:-1, 16:-32] for t in memory)
    x.copy_(given[0])
    weight.copy_(given[1])
    assert linear_swiglu(x, weight, out=out, backend="cpu") is out
    assert torch.equal(out, linear_swiglu(*given, backend="cpu"))
    out.fill_(torch.nan)
    assert memory[2].isnan().all()


def test_a_bad_row_stays_one(isa, rng):
    x, weight = tensors(rng, 50, 64, 40, torch.bfloat16)
    want = linear_swiglu(x, weight, backend="cpu")
    x[20] = torch.nan
    got = linear_swiglu(x, weight, backend="cpu")
    assert got[20].isnan().all() and torch.equal(got[:20], want[:20]) and torch.equal(got[21:], want[21:])


def test_large_gates_do_not_overflow(isa):
    x, weight = torch.zeros(2, 32).bfloat16(), torch.zeros(2, 32).bfloat16()
    x[0, 0], x[1, 0], weight[0, 0], weight[1, 0] = -1e30, 1e30, 1, 2**-90
    got = linear_swiglu(x, weight, backend="cpu")
    assert got[0] == 0 and got[1] == (x[1, 0].double().square() * 2**-90).bfloat16()


@pytest.mark.parametrize("rows, H, I", [(375, 1024, 33), (750, 1024, 128)])
def test_is_the_same_on_any_number_of_threads(monkeypatch, rows, H, I, rng):  # noqa: E741
    given, found = tensors(rng, rows, H, I, torch.bfloat16), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(launcher, "threads", lambda threads=threads: threads)
        found.append(linear_swiglu(*given, backend="cpu"))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "x, weight",
    [
        (torch.ones(4, 32), torch.ones(16, 32)),
        (torch.ones(4, 32).half(), torch.ones(16, 32).half()),
        (torch.ones(4, 48).bfloat16(), torch.ones(16, 48).bfloat16()),
        (torch.ones(32, 4).bfloat16().T, torch.ones(16, 32).bfloat16()),
        (torch.ones(0, 32).bfloat16(), torch.ones(16, 32).bfloat16()),
    ],
    ids=["fp32", "fp16", "H 48", "transposed", "no rows"],
)
def test_what_does_not_fit_goes_to_the_library_unless_the_kernel_is_named(x, weight):
    with pytest.raises(BackendUnavailable, match="linear_swiglu: backend='cpu' cannot run: it has no cpu kernel"):
        linear_swiglu(x, weight, backend="cpu")
    assert torch.equal(linear_swiglu(x, weight), linear_swiglu_reference(x, weight))
