"""residual_norm against its equation in fp64: the reference, and the Triton kernel in the interpreter."""

from __future__ import annotations

import contextlib

import pytest
import torch

from acefast.backends import BackendUnavailable, use_backend
from acefast.ops.residual_norm import residual_norm

SHAPES = [(1, 1, 8), (2, 3, 2048), (1, 5, 2560)]  # one row; the 2B width; XL's, no power of two
# One row; a program of 4 rows less one, full, and one more; three songs; a width of one piece, of two, of two that do
# not fill the second; the real widths; one for the configuration with 2 rows.
KERNEL_SHAPES = [(1, 1, 64), (2, 3, 96), (3, 4, 112), (2, 5, 16), (1, 9, 2048), (2, 6, 2560), (1, 3, 4096)]
GATE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # relative L2: one rounding at its worst


@contextlib.contextmanager
def emulation():
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield


@pytest.fixture(params=["reference", "triton"])
def backend(request):
    """Each in turn; the kernel is interpreted, with its memory checked and torch.empty full of NaN."""
    with emulation() if request.param == "triton" else contextlib.nullcontext():
        yield request.param


def inputs(shape, dtype, rng):
    x, y = (torch.randn(shape, generator=rng).to(dtype) for _ in range(2))
    weight = (1 + 0.2 * torch.randn(shape[-1], generator=rng)).to(dtype)
    gate, scale, shift = (torch.randn(shape[-1], generator=rng) for _ in range(3))
    return x, weight, y, gate, scale, shift


def expected(x, weight, y=None, gate=None, scale=None, shift=None, eps=1e-6):
    new = x.double()
    if y is not None:
        new = new + y.double() * (1 if gate is None else gate.double())
    x64 = new.to(x.dtype).double()
    h = x64 / (x64.square().mean(-1, keepdim=True) + eps).sqrt() * (1 if weight is None else weight.double())
    return new, h * (1 + (0 if scale is None else scale.double())) + (0 if shift is None else shift.double())


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


def check(shape, dtype, given, rng, **options):
    x, weight, *rest = inputs(shape, dtype, rng)
    kwargs = {k: v for k, v in zip(("y", "gate", "scale", "shift"), rest) if k in given.split()}
    new, h = residual_norm(x, weight, **kwargs, **options)
    want_new, want_h = expected(x, weight, **kwargs)
    assert new.dtype == h.dtype == dtype
    assert relative(new, want_new) <= GATE[dtype] and relative(h, want_h) <= GATE[dtype]


GIVEN = ["", "y", "y gate", "scale shift", "y scale shift", "y gate scale shift"]


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("given", GIVEN)
def test_equals_the_equation_in_fp64(shape, dtype, given, rng):
    check(shape, dtype, given, rng)


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_kernel_equals_the_equation_in_fp64(shape, dtype, rng):
    with emulation():
        check(shape, dtype, GIVEN[-1], rng, backend="triton")


@pytest.mark.parametrize("given", GIVEN[:-1])
def test_kernel_does_with_what_it_is_given(given, rng):
    with emulation():
        check((2, 5, 96), torch.bfloat16, given, rng, backend="triton")


@pytest.mark.parametrize("given", ["", "shift", *GIVEN[3:]])
def test_without_a_weight_it_is_one(backend, given, rng):
    x, _, *rest = inputs((2, 5, 96), torch.bfloat16, rng)
    kwargs = {k: v for k, v in zip(("y", "gate", "scale", "shift"), rest) if k in given.split()}
    new, h = residual_norm(x, None, **kwargs, backend=backend)
    want_new, want_h = expected(x, None, **kwargs)
    assert relative(new, want_new) <= 2**-8 and relative(h, want_h) <= 2**-8


def test_statistics_are_those_of_the_rounded_stream(backend, rng):
    x, weight, y, gate, *_ = inputs((1, 4, 256), torch.bfloat16, rng)
    new, h = residual_norm(x, weight, y, gate, backend=backend)
    assert torch.equal(h, residual_norm(new, weight, backend=backend)[1])


def test_silence_is_kept_finite_by_eps(backend, rng):
    x, weight, *_ = inputs((1, 4, 64), torch.float32, rng)
    h = residual_norm(x * 1e-3, weight, eps=1e-4, backend=backend)[1]
    assert relative(h, expected(x * 1e-3, weight, eps=1e-4)[1]) <= 1e-6
    assert not residual_norm(x * 0, weight, eps=1e-4, backend=backend)[1].any()


def test_inputs_stay_as_they_were(backend, rng):
    args = inputs((1, 4, 64), torch.float32, rng)
    before = [a.clone() for a in args]
    residual_norm(*args, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(args, before))


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16], ids=str)
def test_the_stream_may_be_wider_than_the_norm(backend, narrow, rng):
    x, weight, y, *_ = inputs((1, 4, 64), narrow, rng)
    big = x.float() * 1e6  # beyond fp16
    new, h = residual_norm(big, weight, y, dtype=narrow, backend=backend)
    assert new.dtype == torch.float32 and h.dtype == narrow and h.isfinite().all()
    want_new, want_h = expected(big, weight, y)
    assert relative(new, want_new) <= 1e-6 and relative(h, want_h) <= GATE[narrow]


def test_the_norm_may_be_wider_than_the_stream(backend, rng):
    x, weight, y, *_ = inputs((2, 3, 96), torch.bfloat16, rng)
    new, h = residual_norm(x, weight, y, dtype=torch.float32, backend=backend)
    assert new.dtype == torch.bfloat16 and h.dtype == torch.float32
    assert relative(h, expected(x, weight, y)[1]) <= 1e-6


@pytest.mark.parametrize("row", [0, 2])
def test_the_step_on_the_device_chooses_the_row_of_the_tables(backend, row, rng):
    x, weight, y, *_ = inputs((2, 5, 96), torch.bfloat16, rng)
    # A row is 6 * 96 after the one before, or 2 * 96, or 96.
    gate, scale, shift = (torch.randn(3, n, 96, generator=rng)[:, n // 2] for n in (6, 2, 1))
    step = torch.tensor([row], dtype=torch.int32)
    found = residual_norm(x, weight, y, gate, scale, shift, step=step, backend=backend)
    picked = residual_norm(x, weight, y, gate[row], scale[row], shift[row], backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(found, picked))
    assert relative(found[1], expected(x, weight, y, gate[row], scale[row], shift[row])[1]) <= 2**-8


def test_in_place_equals_out_of_place(backend, rng):
    args = inputs((2, 5, 96), torch.bfloat16, rng)
    new, h = residual_norm(*args, backend=backend)
    x, into = args[0], torch.empty_like(h)
    found = residual_norm(*args, out=(x, into), backend=backend)
    assert found[0] is x and found[1] is into and torch.equal(x, new) and torch.equal(into, h)


def test_without_a_place_the_stream_is_not_stored(backend, rng):
    args = inputs((2, 5, 96), torch.bfloat16, rng)
    before = args[0].clone()
    found = residual_norm(*args, out=(None, torch.empty_like(before)), backend=backend)
    assert found[0] is None and torch.equal(found[1], residual_norm(*args, backend=backend)[1])
    assert torch.equal(args[0], before)


def test_without_a_sublayer_the_stream_is_returned_as_it_is(backend, rng):
    x, weight, _, _, scale, shift = inputs((2, 5, 96), torch.bfloat16, rng)
    other, h = torch.zeros_like(x), torch.empty_like(x)
    found = residual_norm(x, weight, scale=scale, shift=shift, out=(other, h), backend=backend)
    assert found[0] is x and found[1] is h and not other.any()
    assert relative(h, expected(x, weight, scale=scale, shift=shift)[1]) <= 2**-8


def test_rows_may_lie_apart_and_what_is_between_stays(backend, rng):
    shape, H = (3, 5, 96), 96
    x, weight, y, *rest = inputs(shape, torch.float32, rng)
    new, h = residual_norm(x, weight, y, *rest, backend=backend)

    def apart(t, left):  # two rows more per song, and columns left and right of it, each time others
        wide = torch.full((3, 7, left + H + 5), torch.nan)
        wide[:, :5, left : left + H] = t
        return wide, wide[:, :5, left : left + H]

    (wide_x, x), (_, y), (wide_h, into) = apart(x, 16), apart(y, 3), apart(torch.zeros(shape), 32)
    for options in ({}, {"out": (x, into)}):
        found = residual_norm(x, weight, y, *rest, backend=backend, **options)
        assert torch.equal(found[0], new) and torch.equal(found[1], h)
    for wide, part in ((wide_x, x), (wide_h, into)):
        part.fill_(torch.nan)
        assert wide.isnan().all()


def test_padding_stays_in_its_rows(backend, rng):
    x, weight, y, *rest = inputs((2, 7, 96), torch.bfloat16, rng)
    new, h = residual_norm(x, weight, y, *rest, backend=backend)
    for song, valid in enumerate((3, 6)):
        x[song, valid:], y[song, valid:] = torch.nan, torch.inf
    found = residual_norm(x, weight, y, *rest, backend=backend)
    for song, valid in enumerate((3, 6)):
        assert torch.equal(found[0][song, :valid], new[song, :valid])
        assert torch.equal(found[1][song, :valid], h[song, :valid])


def test_what_the_kernel_cannot_take_goes_to_the_reference(rng):
    x, weight, *_ = inputs((1, 4, 64), torch.float32, rng)
    apart = x.mT.contiguous().mT  # columns that are no neighbours
    with emulation():
        for case in ((apart, weight), (x.double(), weight), (x, weight.double())):
            with use_backend("triton"):
                assert torch.equal(residual_norm(*case)[1], residual_norm(*case, backend="reference")[1])
            with pytest.raises(BackendUnavailable, match="residual_norm: backend='triton' cannot run"):
                residual_norm(*case, backend="triton")


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    x, weight, y, gate, *_ = inputs((1, 4, 64), torch.float32, rng)
    with pytest.raises(ValueError, match=r"residual_norm: gate must be \[H\] = \[64\], got \[1, 64\]"):
        residual_norm(x, weight, y, gate[None])
    with pytest.raises(ValueError, match="gate needs y"):
        residual_norm(x, weight, gate=gate)
    step = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"gate must be \[steps, H\] = \[any, 64\], got \[64\]"):
        residual_norm(x, weight, y, gate, step=step)
    with pytest.raises(ValueError, match=r"step must be torch.int32, got torch.int64"):
        residual_norm(x, weight, y, gate[None], step=step.long())
    with pytest.raises(ValueError, match=r"out\[0\] must be torch.float32, got torch.float16"):
        residual_norm(x, weight, y, out=(x.half(), y))
    with pytest.raises(ValueError, match=r"out\[1\] must be torch.float16, got torch.float32"):
        residual_norm(x, weight, y, dtype=torch.float16, out=(x, y))
    with pytest.raises(ValueError, match=r"out\[1\] must be \[B, S, H\] = \[1, 4, 64\]"):
        residual_norm(x, weight, y, out=(x, y[:, :2]))
