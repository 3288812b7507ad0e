"""Linear layers on the CPU's kernels, at every level of instructions that is here, against fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acefast.backends import BackendUnavailable
from acefast.cpu import linear as launcher
from acefast.ops.linear import add_linear, linear, linear_reference
from acefast.panels import to_panels
from tests.cpu.convolutions import on_threads
from tests.cpu.isas import NAMES, at_isa, extension

GATE = 4e-3  # relative L2 of bf16
# One row; a part of a tile; several tiles and a part; a song of 30 s. Widths: one step; a block that is not full; a K
# whose rows begin in few sets of the first cache, and are copied.
SIZES = [(1, 32, 32), (13, 96, 40), (40, 2048, 72), (375, 1024, 33), (375, 160, 7)]

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


def tensors(rng, rows, K, N):
    x, weight, bias = (torch.randn(s, generator=rng) for s in ((rows, K), (N, K), (N,)))
    return x.bfloat16(), (weight / K**0.5).bfloat16(), bias.bfloat16()


def error(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("biased", (True, False), ids=("bias", "no bias"))
@pytest.mark.parametrize("rows, K, N", SIZES)
def test_equals_the_product_in_fp64(isa, rows, K, N, biased, rng):
    x, weight, bias = tensors(rng, rows, K, N)
    want = x.double() @ weight.double().T + (bias.double() if biased else 0)
    got = linear(x, weight, bias if biased else None, backend="cpu")
    assert got.dtype == x.dtype and got.shape == want.shape
    assert error(got, want) <= min(GATE, 1.1 * error(linear_reference(x, weight, bias if biased else None), want))


@pytest.mark.parametrize("rows, K, N", SIZES)
def test_adds_in_place_and_rounds_once(isa, rows, K, N, rng):
    y, weight, _ = tensors(rng, rows, K, N)
    x = torch.randn(rows, N, generator=rng).bfloat16()
    want = x.double() + y.double() @ weight.double().T
    add_linear(x, y, weight, backend="cpu")
    assert error(x, want) <= GATE and float((x.double() - want).abs().max()) <= 2**-8 * float(want.abs().max())


@pytest.mark.parametrize("added", (True, False), ids=("residual", "no residual"))
@pytest.mark.parametrize("rows, K, N", SIZES)
def test_takes_gelu_then_adds_and_rounds_once(isa, rows, K, N, added, rng):
    x, weight, bias = tensors(rng, rows, K, N)
    residual = torch.randn(rows, N, generator=rng).bfloat16() if added else None
    options = {"gelu": True, "residual": residual, "backend": "cpu"}
    want = F.gelu(x.double() @ weight.double().T + bias.double())
    want = want + residual.double() if added else want
    got = linear(x, weight, bias, **options)
    assert error(got, want) <= 1.05 * error(want.bfloat16(), want)  # a rounding before GELU or the sum: 1.2 at least
    out = residual if added else torch.empty_like(got)
    assert linear(x, weight, bias, **options, out=out) is out and torch.equal(out, got)  # over the residual


def test_a_sum_is_rounded_once():
    """1 + 2**-8 + 2**-16 of three terms: a sum rounded before the bias is there, or before x is, would end at 1."""
    one, weight = torch.zeros(1, 32).bfloat16(), torch.zeros(1, 32).bfloat16()
    one[0, :2], weight[0, 0], weight[0, 1] = 1, 1, 2**-16
    half = torch.tensor([2.0**-8]).bfloat16()
    assert linear(one, weight, half, backend="cpu").item() == 1 + 2**-7
    x = half[None].clone()
    add_linear(x, one, weight, backend="cpu")
    assert x.item() == 1 + 2**-7


@pytest.mark.parametrize("rows, K, N", SIZES)
def test_keeps_to_its_rows_and_columns(isa, rows, K, N, rng):
    """Each operand lies in a wider one that is NaN all around."""
    given = tensors(rng, rows, K, N)
    want = linear(*given, backend="cpu")
    sizes = (rows, K), (N, K), (rows, N), (rows, N)
    memory = [torch.full((n + 3, m + 48), torch.nan).bfloat16() for n, m in sizes]
    x, weight, out, residual = (t[2:-1, 16:-32] for t in memory)
    x.copy_(given[0])
    weight.copy_(given[1])
    assert linear(x, weight, given[2], out=out, backend="cpu") is out and torch.equal(out, want)
    residual.zero_()
    assert torch.equal(linear(x, weight, given[2], residual=residual, backend="cpu"), want)
    out.fill_(torch.nan)
    assert memory[2].isnan().all()


@pytest.mark.parametrize("rows, K, N", [(1, 32, 32), (40, 2048, 96), (375, 160, 1312)])
def test_panels_give_the_same_bits(isa, rows, K, N, rng):
    x, weight, bias = tensors(rng, rows, K, N)
    want, panels = linear(x, weight, bias, backend="cpu"), to_panels(weight)
    for threads in (1, 3):
        with on_threads(threads):
            assert torch.equal(linear(x, panels, bias, backend="cpu"), want)
    assert torch.equal(linear(x, panels, bias, backend="reference"), linear_reference(x, weight, bias))


def test_panels_of_another_weight_are_refused():
    panels = to_panels(torch.ones(64, 32).bfloat16())
    with pytest.raises(ValueError, match=r"linear: weight must be \[O / 32, I / 2, 32, 2\] = \[any, 32, 32, 2\], got"):
        linear(torch.ones(4, 64).bfloat16(), panels)
    apart = torch.ones(2, 16, 64, 2).bfloat16()[:, :, ::2]
    with pytest.raises(BackendUnavailable, match="linear: backend='cpu' cannot run"):
        linear(torch.ones(4, 32).bfloat16(), apart, backend="cpu")


def test_a_bad_row_stays_one_and_inputs_stay_as_they_were(isa, rng):
    given = tensors(rng, 50, 64, 40)
    before = [t.clone() for t in given]
    want = linear(*given, backend="cpu")
    assert all(map(torch.equal, given, before))
    given[0][20] = torch.nan
    got = linear(*given, backend="cpu")
    assert got[20].isnan().all() and torch.equal(got[:20], want[:20]) and torch.equal(got[21:], want[21:])


@pytest.mark.parametrize("rows, K, N", [(375, 1024, 33), (750, 1024, 256), (2, 64, 1300)])
def test_is_the_same_on_any_number_of_threads(monkeypatch, rows, K, N, rng):
    """Few columns are shared out by rows, many by columns."""
    given, found = tensors(rng, rows, K, N), []
    residual = torch.randn(rows, N, generator=rng).bfloat16()
    for threads in (1, 2, 3):
        monkeypatch.setattr(launcher, "threads", lambda threads=threads: threads)
        found.append(torch.stack([linear(*given, gelu=g, residual=residual, backend="cpu") for g in (False, True)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_batches_are_rows(rng):
    x, weight, bias = tensors(rng, 6, 64, 40)
    got = linear(x.view(2, 3, 64), weight, bias, backend="cpu")
    assert got.shape == (2, 3, 40) and torch.equal(got.view(6, 40), linear(x, weight, bias, backend="cpu"))


@pytest.mark.parametrize(
    "x, weight, bias",
    [
        (torch.ones(4, 32), torch.ones(8, 32), None),
        (torch.ones(4, 32).half(), torch.ones(8, 32).half(), None),
        (torch.ones(4, 48).bfloat16(), torch.ones(8, 48).bfloat16(), None),
        (torch.ones(32, 4).bfloat16().T, torch.ones(8, 32).bfloat16(), None),
        (torch.ones(4, 32).bfloat16(), torch.ones(32, 8).bfloat16().T, None),
        (torch.ones(4, 32).bfloat16(), torch.ones(8, 32).bfloat16(), torch.ones(8, 2).bfloat16()[:, 0]),
        (torch.ones(0, 32).bfloat16(), torch.ones(8, 32).bfloat16(), None),
    ],
    ids=["fp32", "fp16", "K 48", "x transposed", "weight transposed", "bias apart", "no rows"],
)
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(x, weight, bias):
    with pytest.raises(BackendUnavailable, match="linear: backend='cpu' cannot run: it has no cpu kernel"):
        linear(x, weight, bias, backend="cpu")
    assert torch.equal(linear(x, weight, bias), linear_reference(x, weight, bias))


def test_a_wider_stream_is_added_to_by_the_library(rng):
    y, weight, _ = tensors(rng, 5, 32, 16)
    with pytest.raises(BackendUnavailable, match="linear: backend='cpu' cannot run"):
        add_linear(torch.zeros(5, 16), y, weight, backend="cpu")
