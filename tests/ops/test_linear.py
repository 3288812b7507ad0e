"""The linear layers' reference: its way round slow 16-bit products, and results in memory that is given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acefast.backends import use_backend
from acefast.ops import linear as room
from acefast.ops.linear import add_linear, linear

GATE = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding


@pytest.fixture(params=(True, False), ids=["through fp32", "as it is"])
def slow(request, monkeypatch):
    monkeypatch.setattr(room, "cpu_multiplies", lambda dtype: not request.param)
    monkeypatch.setattr(room, "SCRATCH", 96 * 64)  # several slices of the weight, the last one ragged
    with use_backend("reference"):
        yield


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("biased", (True, False))
@pytest.mark.parametrize("shape", [(1, 96), (2, 40, 96), (375, 96)], ids=str)
def test_linear_rounds_once(slow, shape, biased, dtype, rng):
    x, weight, bias = (torch.randn(s, generator=rng).to(dtype) for s in (shape, (200, 96), (200,)))
    got = linear(x, weight, bias if biased else None)
    want = x.double() @ weight.double().T + (bias.double() if biased else 0)
    assert got.dtype == dtype and got.shape == want.shape and got.is_contiguous()
    assert float((got.double() - want).norm() / want.norm()) <= GATE[dtype]


def test_linear_takes_a_slice_of_a_weight(slow, rng):
    x, weight = torch.randn(80, 32, generator=rng).bfloat16(), torch.randn(70, 96, generator=rng).bfloat16()
    want = x.double() @ weight[:, 64:].double().T
    assert float((linear(x, weight[:, 64:]).double() - want).norm() / want.norm()) <= GATE[torch.bfloat16]


@pytest.mark.parametrize("dtype", (*GATE, torch.float32), ids=str)
@pytest.mark.parametrize("biased", (True, False))
@pytest.mark.parametrize("rows", (3, 80))
def test_linear_writes_where_it_is_told_what_it_would_return(slow, rows, biased, dtype, rng):
    x, weight, bias = (torch.randn(s, generator=rng).to(dtype) for s in ((2, rows, 96), (200, 96), (200,)))
    bias = bias if biased else None
    memory = torch.full((3, rows, 200), torch.nan, dtype=dtype)
    out = memory[1:]
    assert linear(x, weight, bias, out=out) is out
    torch.testing.assert_close(out, linear(x, weight, bias))
    assert memory[0].isnan().all()


@pytest.mark.parametrize("dtype", (*GATE, torch.float32), ids=str)
@pytest.mark.parametrize("gelu", (True, False))
@pytest.mark.parametrize("added", (True, False))
def test_gelu_and_a_residual_follow(slow, added, gelu, dtype, rng):
    x, weight, bias = (torch.randn(s, generator=rng).to(dtype) for s in ((2, 40, 96), (200, 96), (200,)))
    residual = torch.randn(2, 40, 200, generator=rng).to(dtype) if added else None
    before = [t.clone() for t in (x, weight, bias)]
    want = x.double() @ weight.double().T + bias.double()
    want = F.gelu(want) if gelu else want
    want = want + residual.double() if added else want
    options = {"gelu": gelu, "residual": residual}
    got = linear(x, weight, bias, **options)
    assert got.dtype == dtype and float((got.double() - want).norm() / want.norm()) <= 2 * GATE.get(dtype, 1e-6)
    out = residual if added else torch.empty_like(got)
    assert linear(x, weight, bias, **options, out=out) is out and torch.equal(out, got)  # over the residual
    assert all(map(torch.equal, before, (x, weight, bias)))


@pytest.mark.parametrize(
    "residual, message",
    [
        (torch.ones(1, 4), r"linear: residual must be \[..., O\] = \[2, 4\], got \[1, 4\]"),
        (torch.ones(2, 4).half(), "linear: residual must be torch.float32, got torch.float16"),
    ],
)
def test_a_wrong_residual_is_named(residual, message):
    with pytest.raises(ValueError, match=message):
        linear(torch.ones(2, 8), torch.ones(4, 8), residual=residual)


@pytest.mark.parametrize("residual", (torch.bfloat16, torch.float32), ids=str)
def test_add_linear_adds_in_place(residual, rng):
    x, y, weight = (torch.randn(s, generator=rng) for s in ((2, 40, 200), (2, 40, 96), (200, 96)))
    x, y, weight = x.to(residual), y.bfloat16(), weight.bfloat16()
    want = x.double() + y.double() @ weight.double().T
    add_linear(x, y, weight)
    assert x.dtype == residual and float((x.double() - want).norm() / want.norm()) <= 2 * GATE[torch.bfloat16]


@pytest.mark.parametrize("device", ("cpu", "meta"))
def test_add_linear_takes_a_wider_stream_where_addmm_does_not(device, monkeypatch):
    """torch before 2.11, and devices that have no product of two dtypes, which "meta" stands for."""
    monkeypatch.setattr(room, "WIDE_SUMS", False)
    x, y, weight = torch.zeros(3, 8, device=device), *(torch.ones(n, 4, device=device).half() for n in (3, 8))
    add_linear(x, y, weight)
    assert x.dtype == torch.float32 and (device == "meta" or x.eq(4).all())
