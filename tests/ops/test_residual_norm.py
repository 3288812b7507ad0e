"""residual_norm against its equation in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.residual_norm import residual_norm

SHAPES = [(1, 1, 8), (2, 3, 2048), (1, 5, 2560)]  # one row; the 2B width; XL's, no power of two
GATE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # relative L2: one rounding at its worst


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
    h = x64 / (x64.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    return new, h * (1 + (0 if scale is None else scale.double())) + (0 if shift is None else shift.double())


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("given", ["", "y", "y gate", "scale shift", "y scale shift", "y gate scale shift"])
def test_equals_the_equation_in_fp64(shape, dtype, given, rng):
    x, weight, *rest = inputs(shape, dtype, rng)
    kwargs = {k: v for k, v in zip(("y", "gate", "scale", "shift"), rest) if k in given.split()}
    new, h = residual_norm(x, weight, **kwargs)
    want_new, want_h = expected(x, weight, **kwargs)
    assert new.dtype == h.dtype == dtype
    assert relative(new, want_new) <= GATE[dtype] and relative(h, want_h) <= GATE[dtype]


def test_statistics_are_those_of_the_rounded_stream(rng):
    x, weight, y, gate, *_ = inputs((1, 4, 256), torch.bfloat16, rng)
    new, h = residual_norm(x, weight, y, gate)
    assert torch.equal(h, residual_norm(new, weight)[1])


def test_inputs_stay_as_they_were(rng):
    args = inputs((1, 4, 64), torch.float32, rng)
    before = [a.clone() for a in args]
    residual_norm(*args)
    assert all(torch.equal(a, b) for a, b in zip(args, before))


def test_the_stream_may_be_wider_than_the_norm(rng):
    x, weight, y, *_ = inputs((1, 4, 64), torch.float16, rng)
    big = x.float() * 1e6  # beyond fp16
    new, h = residual_norm(big, weight, y, dtype=torch.float16)
    assert new.dtype == torch.float32 and h.dtype == torch.float16 and h.isfinite().all()


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    x, weight, y, gate, *_ = inputs((1, 4, 64), torch.float32, rng)
    with pytest.raises(ValueError, match=r"residual_norm: gate must be \[H\] = \[64\], got \[1, 64\]"):
        residual_norm(x, weight, y, gate[None])
    with pytest.raises(ValueError, match="gate needs y"):
        residual_norm(x, weight, gate=gate)
