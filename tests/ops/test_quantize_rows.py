"""quantize_rows against its equation in fp64, and what it makes of rows that have no scale."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.quantize_rows import LEAST, quantize_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (2, 5, 96), (7,)], ids=str)
def test_every_element_is_within_half_a_scale(shape, dtype, rng):
    x = (10 * torch.randn(shape, generator=rng)).to(dtype)
    q, scale = quantize_rows(x)
    assert q.dtype == torch.int8 and scale.dtype == torch.float32 and q.shape == x.shape and scale.shape == shape[:-1]
    assert torch.equal(q.abs().amax(-1), torch.full(shape[:-1], 127, dtype=torch.int8))
    torch.testing.assert_close(scale.double(), x.double().abs().amax(-1) / 127, rtol=1e-7, atol=0)
    off = (q.double() * scale.double()[..., None] - x.double()).abs()
    assert (off <= scale.double()[..., None] * (0.5 + 1e-4)).all()


def test_ties_go_to_the_even_integer():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]])
    assert quantize_rows(x)[0].tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_zeros_is_zeros_and_has_a_scale(dtype):
    x = torch.zeros(2, 8, dtype=dtype)
    x[1] = 1
    q, scale = quantize_rows(x)
    assert not q[0].any() and scale[0] == LEAST / 127 and (q[1] == 127).all()


def test_the_smallest_and_the_largest_numbers_stay_finite():
    tiny, huge = torch.tensor(1e-45), torch.finfo(torch.float32).max
    q, scale = quantize_rows(torch.stack([tiny.expand(4), torch.full((4,), -huge)]))
    assert q.tolist() == [[0] * 4, [-127] * 4] and scale.isfinite().all() and (scale > 0).all()


@pytest.mark.parametrize("poison", (torch.nan, torch.inf, -torch.inf))
def test_poison_is_in_its_rows_scale_and_no_other(poison, rng):
    x = torch.randn(3, 16, generator=rng)
    clean = quantize_rows(x)
    x[1, 3] = poison
    q, scale = quantize_rows(x)
    assert not scale[1].isfinite()
    for row in (0, 2):
        assert torch.equal(q[row], clean[0][row]) and scale[row] == clean[1][row]


def test_results_go_where_they_are_wanted(rng):
    x = torch.randn(2, 3, 16, generator=rng)
    out = torch.empty(2, 3, 16, dtype=torch.int8), torch.empty(2, 3)
    assert quantize_rows(x, out=out)[0] is out[0]
    assert all(map(torch.equal, out, quantize_rows(x)))
    assert quantize_rows(torch.zeros(0, 8))[0].shape == (0, 8)


def test_it_is_one_call_to_the_compiler(rng):
    x = torch.randn(4, 16, generator=rng)
    compiled = torch.compile(lambda x: quantize_rows(x + 1), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(x), quantize_rows(x + 1)))
    torch.library.opcheck(torch.ops.acefast.quantize_rows.default, (x,))


def test_wrong_arguments_are_refused_with_a_sentence():
    x = torch.zeros(3, 16)
    with pytest.raises(ValueError, match="quantize_rows: x must be contiguous"):
        quantize_rows(x.T)
    with pytest.raises(ValueError, match=r"quantize_rows: x must be \[..., K\] with K at least 1, got \[3, 0\]"):
        quantize_rows(x[:, :0].contiguous())
    with pytest.raises(ValueError, match=r"quantize_rows: x must be torch.bfloat16, .* got torch.float64"):
        quantize_rows(x.double())
    with pytest.raises(ValueError, match=r"quantize_rows: out\[1\] must be \[...\] = \[3\], got \[4\]"):
        quantize_rows(x, out=(x.to(torch.int8), torch.zeros(4)))
    with pytest.raises(ValueError, match=r"quantize_rows: out\[0\] must be torch.int8, got torch.float32"):
        quantize_rows(x, out=(x, torch.zeros(3)))
