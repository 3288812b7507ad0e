"""rms_residual on the CPU's kernel, at every level of instructions that is here, against its equation in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.cpu import rms_residual as launcher
from acefast.models.v1.dcae_layers import EPS, RMSNorm
from acefast.ops.rms_residual import rms_residual, rms_residual_reference
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_rms_residual import exact, inputs, relative

GATE = 4e-3  # relative L2 of bf16
SHAPES = [(1, 16), (2, 3, 5, 96), (375, 128), (13, 1024)]  # one vector; an image; more than one task

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equation_in_fp64(isa, shape, rng):
    given = inputs(shape, torch.bfloat16, rng)
    for args in (given, given[:3]):
        for relu in (False, True):
            want = exact(*args) if len(args) == 4 else exact(*args, None)
            want = want.relu() if relu else want
            got = rms_residual(*args, relu=relu, eps=1e-5, backend="cpu")
            assert got.dtype == torch.bfloat16 and got.shape == want.shape
            assert relative(got, want) <= min(GATE, 1.1 * relative(rms_residual_reference(*args, relu=relu), want))


def test_a_small_row_is_normed_with_its_eps(isa, rng):
    given = inputs((3, 64), torch.bfloat16, rng)
    given[0].mul_(1e-3)
    for eps in (1e-5, 1e-2):
        assert relative(rms_residual(*given, eps=eps, backend="cpu"), exact(*given, eps)) <= GATE


@pytest.mark.parametrize("place", (0, 3), ids=("h", "x"))
def test_writes_over_what_it_reads(isa, place, rng):
    given = inputs((13, 96), torch.bfloat16, rng)
    want = rms_residual(*given, backend="cpu")
    assert rms_residual(*given, out=given[place], backend="cpu") is given[place] and torch.equal(given[place], want)


def test_keeps_to_its_rows_and_channels(isa, rng):
    h, weight, bias, x = inputs((13, 96), torch.bfloat16, rng)
    want = rms_residual(h, weight, bias, x, backend="cpu")
    memory = [torch.full((16, m), torch.nan).bfloat16() for m in (160, 128, 192)]
    wide_h, wide_x, out = (t[2:-1, 16:112] for t in memory)
    wide_h.copy_(h)
    wide_x.copy_(x)
    assert rms_residual(wide_h, weight, bias, wide_x, out=out, backend="cpu") is out and torch.equal(out, want)
    out.fill_(torch.nan)
    assert memory[2].isnan().all()


@pytest.mark.parametrize("relu", (False, True))
def test_a_bad_row_stays_one(isa, relu, rng):
    given = inputs((375, 128), torch.bfloat16, rng)
    want = rms_residual(*given, relu=relu, backend="cpu")
    given[0][20] = torch.nan
    got = rms_residual(*given, relu=relu, backend="cpu")
    assert got[20].isnan().all() and torch.equal(got[:20], want[:20]) and torch.equal(got[21:], want[21:])


def test_is_the_same_on_any_number_of_threads(monkeypatch, rng):
    given, found = inputs((2000, 128), torch.bfloat16, rng), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(launcher, "threads", lambda threads=threads: threads)
        found.append(rms_residual(*given, backend="cpu"))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("relu", (False, True))
def test_the_decoder_of_v1_runs_it(relu, rng):
    h, weight, bias, x = inputs((1, 3, 5, 96), torch.bfloat16, rng)
    norm = RMSNorm(96).bfloat16()
    norm.weight.copy_(weight)
    norm.bias.copy_(bias)
    want = rms_residual(h, weight, bias, x, relu=relu, eps=EPS, backend="cpu")
    assert torch.equal(norm(h, x, relu), want) and torch.equal(h, want)


def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(rng):
    h, weight, bias, x = inputs((4, 64), torch.bfloat16, rng)
    cases = [
        tuple(t.float() for t in (h, weight, bias, x)),
        (h, weight.float(), bias, x),
        (h[:, :40], weight[:40], bias[:40], x[:, :40]),
        (h.T.contiguous().T, weight, bias, x),
        (h, weight, bias[:1].expand(64), x),
    ]
    for case in cases:
        with pytest.raises(BackendUnavailable, match="rms_residual: backend='cpu' cannot run"):
            rms_residual(*case, backend="cpu")
        assert torch.equal(rms_residual(*case), rms_residual_reference(*case))
    empty = rms_residual(h[:0], weight, bias, x[:0], backend="cpu")
    assert empty.shape == (0, 64)
