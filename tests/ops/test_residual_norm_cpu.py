"""residual_norm on the CPU's kernel, at every level of instructions that is here, against its equation in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.cpu import residual_norm as launcher
from acefast.ops.residual_norm import residual_norm, residual_norm_reference
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_residual_norm import expected, inputs, relative

GATE = 4e-3  # relative L2 of bf16
SHAPES = [(1, 1, 16), (3, 13, 96), (1, 375, 2048)]  # one vector; a part of a task; a song of 30 s
GIVEN = ["", "y", "y gate", "shift", "y scale shift", "y gate scale shift"]

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


def keywords(given, rest):
    return {k: v for k, v in zip(("y", "gate", "scale", "shift"), rest) if k in given.split()}


@pytest.mark.parametrize("weighted", (True, False), ids=("weight", "no weight"))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("given", GIVEN)
def test_equals_the_equation_in_fp64(isa, shape, given, weighted, rng):
    x, weight, *rest = inputs(shape, torch.bfloat16, rng)
    weight, kwargs = weight if weighted else None, keywords(given, rest)
    got = residual_norm(x, weight, **kwargs, backend="cpu")
    for found, want, reference in zip(got, expected(x, weight, **kwargs), residual_norm_reference(x, weight, **kwargs)):
        assert found.dtype == torch.bfloat16
        assert relative(found, want) <= min(GATE, 1.1 * relative(reference, want))


def test_statistics_are_those_of_the_rounded_stream(isa, rng):
    x, weight, y, gate, *_ = inputs((1, 4, 256), torch.bfloat16, rng)
    new, h = residual_norm(x, weight, y, gate, backend="cpu")
    assert torch.equal(h, residual_norm(new, weight, backend="cpu")[1])


def test_eps_keeps_silence_finite(isa):
    x = torch.full((1, 2, 64), 1e-3).bfloat16()
    assert relative(residual_norm(x, None, eps=1e-4, backend="cpu")[1], expected(x, None, eps=1e-4)[1]) <= GATE
    assert not residual_norm(x * 0, None, backend="cpu")[1].any()


def test_vectors_of_16_bits_are_taken_as_the_numbers_they_are(rng):
    x, weight, y, *rest = inputs((2, 5, 96), torch.bfloat16, rng)
    narrow = [t.bfloat16() for t in rest]
    wide = [t.float() for t in narrow]
    for got, want in zip(*(residual_norm(x, weight, y, *v, backend="cpu") for v in (narrow, wide))):
        assert torch.equal(got, want)


@pytest.mark.parametrize("row", (0, 2))
def test_the_step_chooses_the_row_of_the_tables(row, rng):
    x, weight, y, *_ = inputs((2, 5, 96), torch.bfloat16, rng)
    gate, scale, shift = torch.randn(3, 6, 96, generator=rng).unbind(1)[:3]
    step = torch.tensor([row], dtype=torch.int32)
    found = residual_norm(x, weight, y, gate, scale, shift, step=step, backend="cpu")
    picked = residual_norm(x, weight, y, gate[row], scale[row], shift[row], backend="cpu")
    assert all(map(torch.equal, found, picked))


@pytest.mark.parametrize("options", ({}, {"in_place": True}, {"stored": False}), ids=("new", "in place", "not stored"))
def test_where_the_results_go(isa, options, rng):
    args = inputs((2, 13, 96), torch.bfloat16, rng)
    new, h = residual_norm(*args, backend="cpu")
    x, into = args[0], torch.empty_like(h)
    before = x.clone()
    place = x if options.get("in_place") else torch.empty_like(x) if options.get("stored", True) else None
    found = residual_norm(*args, out=(place, into), backend="cpu")
    assert found[0] is place and found[1] is into and torch.equal(into, h)
    assert place is None or torch.equal(place, new)
    assert torch.equal(x, new if place is x else before)


def test_without_a_sublayer_the_stream_is_returned_as_it_is(isa, rng):
    x, weight, _, _, scale, shift = inputs((2, 5, 96), torch.bfloat16, rng)
    other, h = torch.zeros_like(x), torch.empty_like(x)
    found = residual_norm(x, weight, scale=scale, shift=shift, out=(other, h), backend="cpu")
    assert found[0] is x and found[1] is h and not other.any()
    assert relative(h, expected(x, weight, scale=scale, shift=shift)[1]) <= GATE


def test_rows_may_lie_apart_and_what_is_between_stays(isa, rng):
    shape, H = (3, 5, 96), 96
    x, weight, y, *rest = inputs(shape, torch.bfloat16, rng)
    new, h = residual_norm(x, weight, y, *rest, backend="cpu")

    def apart(t, left):  # two rows more per song, and columns left and right of it, each time others
        wide = torch.full((3, 7, left + H + 5), torch.nan).bfloat16()
        wide[:, :5, left : left + H] = t
        return wide, wide[:, :5, left : left + H]

    (wide_x, x), (_, y), (wide_h, into) = apart(x, 16), apart(y, 3), apart(torch.zeros(shape), 32)
    for options in ({}, {"out": (x, into)}):
        found = residual_norm(x, weight, y, *rest, backend="cpu", **options)
        assert torch.equal(found[0], new) and torch.equal(found[1], h)
    for wide, part in ((wide_x, x), (wide_h, into)):
        part.fill_(torch.nan)
        assert wide.isnan().all()


def test_songs_and_rows_may_be_the_same_one(isa, rng):
    """Unconditional rows split off one stream, and all get one row from cross-attention."""
    x, weight, y, *rest = inputs((1, 5, 96), torch.bfloat16, rng)
    x, y = x.expand(2, -1, -1), torch.stack((torch.zeros(1, 96).bfloat16(), y[0, :1])).expand(-1, 5, -1)
    found = residual_norm(x, weight, y, *rest, backend="cpu")
    want = residual_norm(x.contiguous(), weight, y.contiguous(), *rest, backend="cpu")
    assert all(map(torch.equal, found, want)) and all(t.is_contiguous() for t in found)


def test_a_bad_row_stays_one(isa, rng):
    x, weight, y, *rest = inputs((2, 13, 96), torch.bfloat16, rng)
    want = residual_norm(x, weight, y, *rest, backend="cpu")
    x[0, 4], y[1, 7] = torch.nan, torch.inf
    for got, clean in zip(residual_norm(x, weight, y, *rest, backend="cpu"), want):
        assert not got[0, 4].isfinite().any() and not got[1, 7].isfinite().all()
        got[0, 4], got[1, 7] = clean[0, 4], clean[1, 7]
        assert torch.equal(got, clean)


def test_is_the_same_on_any_number_of_threads(monkeypatch, rng):
    args, found = inputs((2, 375, 2048), torch.bfloat16, rng), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(launcher, "threads", lambda threads=threads: threads)
        found.append(residual_norm(*args, backend="cpu"))
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others))


def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(rng):
    x, weight, y, *_ = inputs((2, 4, 64), torch.bfloat16, rng)
    cases = [
        ((x.float(), weight.float()), {}),
        ((x.float(), weight, y), {}),
        ((x, weight.float()), {}),
        ((x[..., :40], weight[:40]), {}),
        ((x.mT.contiguous().mT, weight), {}),
        ((x, weight), {"dtype": torch.float32}),
        ((x[:, :0], weight), {}),
    ]
    for case, options in cases:
        with pytest.raises(BackendUnavailable, match="residual_norm: backend='cpu' cannot run"):
            residual_norm(*case, **options, backend="cpu")
        want = residual_norm_reference(*case, **options)
        assert all(map(torch.equal, residual_norm(*case, **options), want))
