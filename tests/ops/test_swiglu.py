"""swiglu against its equation in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.swiglu import swiglu

GATE = {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
SHAPES = [(1, 2), (3, 7, 96), (2, 375, 512)]  # the smallest; ragged; a song's rows


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equation_in_fp64(shape, dtype, rng):
    x = (3 * torch.randn(shape, generator=rng)).to(dtype)
    before = x.clone()
    got = swiglu(x)
    gate, up = x.double().chunk(2, -1)
    want = gate / (1 + (-gate).exp()) * up
    assert got.dtype == dtype and got.shape == want.shape and torch.equal(x, before)
    assert float((got.double() - want).norm() / want.norm()) <= GATE[dtype]


def test_the_gate_comes_first():
    assert swiglu(torch.tensor([[0.0, 5.0]])).item() == 0
    assert swiglu(torch.tensor([[5.0, 0.0]])).item() == 0
    assert swiglu(torch.tensor([[20.0, 3.0]])).item() == pytest.approx(60)


def test_large_gates_do_not_overflow():
    assert swiglu(torch.tensor([[-1e30, 1.0], [1e30, 1.0]])).tolist() == [[0.0], [pytest.approx(1e30)]]


def test_odd_width_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"swiglu: gate_up must be \[..., 2 \* I\], got \[1, 3\]"):
        swiglu(torch.zeros(1, 3))
