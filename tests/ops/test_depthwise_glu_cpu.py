"""depthwise_glu on the CPU's kernel, at every level of instructions that is here, against its equation in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.cpu import depthwise_glu as launcher
from acefast.ops.depthwise_glu import depthwise_glu
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_depthwise_glu import GATE, expected, inputs, relative

BF16 = torch.bfloat16
# One row, one vector; a task's rows, one less and one more; three tasks; two blocks of channels, the last a part.
SIZES = [(1, 1, 16), (2, 63, 48), (1, 64, 16), (2, 65, 32), (1, 131, 16), (1, 13, 560)]

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


def tensors(B, S, F, rng):
    x, weight, bias = inputs(B, S, F, BF16, rng)
    return x, weight.T.contiguous().T, bias


@pytest.mark.parametrize("silu_input", (False, True), ids=("plain", "silu"))
@pytest.mark.parametrize("B, S, F", SIZES)
def test_equals_the_equation_in_fp64(isa, B, S, F, silu_input, rng):
    given = tensors(B, S, F, rng)
    got = depthwise_glu(*given, silu_input=silu_input, backend="cpu")
    assert got.dtype == BF16 and relative(got, expected(*given, silu_input=silu_input)) <= GATE[BF16]


def test_rows_behind_a_song_count_for_nothing_and_come_out_as_zeros(isa, rng):
    x, *rest = tensors(5, 80, 16, rng)
    lengths = torch.tensor([80, 65, 64, 1, 0])
    want = expected(x, *rest, lengths, True)
    for b, n in enumerate(lengths):
        x[b, n:] = torch.nan
    for dtype in (torch.int32, torch.int64):
        got = depthwise_glu(x, *rest, lengths.to(dtype), silu_input=True, backend="cpu")
        assert relative(got, want) <= GATE[BF16] and not any(got[b, n:].any() for b, n in enumerate(lengths))


def test_large_numbers_do_not_overflow_the_gate(isa):
    x, weight, bias = torch.zeros(1, 3, 32).to(BF16), torch.ones(3, 32).to(BF16).T, torch.zeros(32).to(BF16)
    x[0, 0], x[0, 2] = -1e4, 1e4
    want = expected(x, weight, bias)
    assert relative(depthwise_glu(x, weight, bias, backend="cpu"), want) <= GATE[BF16]


def test_keeps_to_its_rows_and_channels(isa, rng):
    given = tensors(2, 70, 32, rng)
    want = depthwise_glu(*given, silu_input=True, backend="cpu")
    memory = [torch.full((4, 73, width + 24), torch.nan).to(BF16) for width in (64, 32)]
    x, out = (t[1:3, 1:-2, 8:-16] for t in memory)
    x.copy_(given[0])
    assert depthwise_glu(x, *given[1:], silu_input=True, out=out, backend="cpu") is out and torch.equal(out, want)
    out.fill_(torch.nan)
    assert memory[1].isnan().all()


def test_is_the_same_on_any_number_of_threads(monkeypatch, rng):
    given, found = tensors(2, 150, 48, rng), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(launcher, "threads", lambda threads=threads: threads)
        found.append(depthwise_glu(*given, backend="cpu"))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("F, dtype, turned", [(16, torch.float32, True), (24, BF16, True), (16, BF16, False)])
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(F, dtype, turned, rng):
    x, weight, bias = inputs(1, 5, F, dtype, rng)
    weight = weight.T.contiguous().T if turned else weight
    with pytest.raises(BackendUnavailable, match="depthwise_glu: backend='cpu' cannot run: it has no cpu kernel"):
        depthwise_glu(x, weight, bias, backend="cpu")
    assert torch.equal(depthwise_glu(x, weight, bias), depthwise_glu(x, weight, bias, backend="reference"))
