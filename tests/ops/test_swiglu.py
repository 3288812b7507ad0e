"""swiglu against its equation in fp64, the Triton kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.swiglu import swiglu, swiglu_reference

GATE = {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
# The smallest; ragged; of the full width; one row tile of 8 and its neighbours; a column tile of 64 and its neighbours;
# two tiles of 512 columns.
SHAPES = [(1, 2), (3, 7, 96), (20, 12288), *((rows, 128) for rows in (7, 8, 9)), (2, 126), (2, 130), (3, 3, 2048)]


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "reference":
        yield request.param
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield request.param


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equation_in_fp64(backend, shape, dtype, rng):
    x = (3 * torch.randn(shape, generator=rng)).to(dtype)
    before = x.clone()
    got = swiglu(x, backend=backend)
    gate, up = x.double().chunk(2, -1)
    want = gate / (1 + (-gate).exp()) * up
    assert got.dtype == dtype and got.shape == want.shape and torch.equal(x, before)
    assert float((got.double() - want).norm() / want.norm()) <= GATE[dtype]


def test_the_gate_comes_first(backend):
    assert swiglu(torch.tensor([[0.0, 5.0]]), backend=backend).item() == 0
    assert swiglu(torch.tensor([[5.0, 0.0]]), backend=backend).item() == 0
    assert swiglu(torch.tensor([[20.0, 3.0]]), backend=backend).item() == pytest.approx(60)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")  # to infinity, as it should
def test_large_gates_do_not_overflow(backend):
    x = torch.tensor([[-1e30, 1.0], [1e30, 1.0]])
    assert swiglu(x, backend=backend).tolist() == [[0.0], [pytest.approx(1e30)]]


@pytest.mark.parametrize("batch, length", [(1, 8), (2, 5), (3, 9)])
def test_takes_slices_and_keeps_to_its_rows(backend, batch, length, rng):
    """Both tensors lie in wider ones that are NaN all around; NaN in a row stays there."""
    memory = [torch.full((batch * length + 3, n + 48), torch.nan).bfloat16() for n in (160, 80)]
    x, out = (t[2:-1, 16:-32].unflatten(0, (batch, length)) for t in memory)
    x.copy_(torch.randn(batch, length, 160, generator=rng))
    want = swiglu_reference(x)
    x[:, -1] = torch.nan  # a row of padding
    assert swiglu(x, out=out, backend=backend) is out
    torch.testing.assert_close(out[:, :-1], want[:, :-1], rtol=2**-7, atol=0)  # one ulp: two libraries' exp
    assert out[:, -1].isnan().all()
    out.fill_(torch.nan)
    assert memory[1].isnan().all()


def test_rows_at_uneven_distances_are_the_references(backend):
    x = torch.ones(2, 3, 32)[:, ::2]  # 2 x 2 rows, 64, 32 and 64 apart
    if backend == "triton":
        with pytest.raises(BackendUnavailable, match="swiglu: backend='triton' cannot run: it has no triton kernel"):
            swiglu(x, backend=backend)
    assert swiglu(x).shape == (2, 2, 16)


def test_out_of_another_kind_is_refused_with_a_sentence():
    x = torch.zeros(3, 32)
    with pytest.raises(ValueError, match=r"swiglu: out must be \[..., I\] = \[3, 16\], got \[3, 32\]"):
        swiglu(x, out=torch.zeros(3, 32))
    with pytest.raises(ValueError, match=r"swiglu: out must be torch.float32, got torch.float16"):
        swiglu(x, out=torch.zeros(3, 16).half())


def test_odd_width_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"swiglu: gate_up must be \[..., 2 \* I\], got \[1, 3\]"):
        swiglu(torch.zeros(1, 3))
