"""linear_swiglu against its equation in fp64: the library's product, and the Triton kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.linear import linear
from acefast.ops.linear_swiglu import linear_swiglu, linear_swiglu_reference
from acefast.ops.swiglu import swiglu

GATE = {torch.float32: 2e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
# Rows: one; a row tile of 64, 128 or 256 rows and its neighbours; two tiles and a part; what a song of 30 s has.
SIZES = [
    *((rows, 48, 80) for rows in (1, 63, 64, 65, 150)),  # "narrow", tiles of 64 x 16
    *((rows, 192, 128) for rows in (1, 127, 128, 129, 375)),  # "few", tiles of 128 x 64
    *((rows, 128, 64) for rows in (513, 768)),  # "many", tiles of 256 x 64
]


def tensors(rng, rows, H, I, dtype):  # noqa: E741
    """x [rows, H] and a weight [2 * I, H] that makes sums of the size of 1."""
    return torch.randn(rows, H, generator=rng).to(dtype), (torch.randn(2 * I, H, generator=rng) / H**0.5).to(dtype)


def exact(x, weight):
    gate, up = (x.double() @ weight.double().T).chunk(2, -1)
    return gate / (1 + (-gate).exp()) * up


def error(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.fixture
def interpreted():
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim import interpreter

    with interpreter.interpreted():
        yield interpreter


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("rows, H, I", SIZES)
def test_kernel_equals_the_equation_in_fp64(interpreted, rows, H, I, dtype, rng):  # noqa: E741
    from acefast.kernels.linear_swiglu import linear_swiglu as kernel

    x, weight = tensors(rng, rows, H, I, dtype)
    out = torch.empty(rows, I, dtype=dtype)
    assert kernel(x, weight, out=out) is out
    interpreted.check_written("out", out)
    assert error(out, exact(x, weight)) <= GATE[dtype]


def test_kernel_is_nearer_than_the_library_which_rounds_twice(interpreted, rng):
    x, weight = tensors(rng, 130, 192, 128, torch.bfloat16)
    want = exact(x, weight)
    assert error(linear_swiglu(x, weight, backend="triton"), want) < 0.8 * error(
        linear_swiglu(x, weight, backend="reference"), want
    )


def test_kernel_covers_more_row_tiles_than_a_group_has(interpreted, rng):
    x, weight = tensors(rng, 19 * 64 + 5, 32, 48, torch.float16)  # 20 row tiles: two groups of 8 and one of 4
    got = linear_swiglu(x, weight, backend="triton")
    assert error(got, exact(x, weight)) <= GATE[torch.float16]


@pytest.mark.parametrize("batch, length", [(1, 128), (2, 65), (3, 40)])
def test_kernel_takes_batches_and_slices_and_keeps_to_its_rows(interpreted, batch, length, rng):
    """Each operand lies in a wider one that is NaN all around."""
    rows, H, I = batch * length, 64, 64  # noqa: E741
    x, weight = tensors(rng, rows, H, I, torch.bfloat16)
    memory = [torch.full((n + 3, m + 48), torch.nan).bfloat16() for n, m in ((rows, H), (2 * I, H), (rows, I))]
    x_in, weight_in, out = (t[2:-1, 16:-32] for t in memory)
    x_in.copy_(x)
    weight_in.copy_(weight)
    x_in, out = (t.unflatten(0, (batch, length)) for t in (x_in, out))
    assert linear_swiglu(x_in, weight_in, out=out, backend="triton") is out
    assert error(out.flatten(0, 1), exact(x, weight)) <= GATE[torch.bfloat16]
    out.fill_(torch.nan)
    assert memory[2].isnan().all()


@pytest.mark.parametrize("rows", (256, 250))
def test_poisoned_padding_stays_in_its_rows(interpreted, rows, rng):
    x, weight = tensors(rng, rows, 64, 64, torch.bfloat16)
    clean = linear_swiglu(x, weight, backend="triton")
    x[70:] = torch.nan
    got = linear_swiglu(x, weight, backend="triton")
    assert torch.equal(got[:70], clean[:70]) and got[70:].isnan().all()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")  # to infinity, as it should
def test_large_gates_do_not_overflow(interpreted):
    x = torch.zeros(2, 16).bfloat16()
    x[0, 0], x[1, 0] = -1e30, 1e30
    weight = torch.zeros(32, 16).bfloat16()
    weight[:16, 0] = 1
    weight[16:, 0] = 2**-90
    got = linear_swiglu(x, weight, backend="triton")
    assert (got[0] == 0).all()
    torch.testing.assert_close(got[1], (x[1, :1].double() * x[1, :1].double() * 2**-90).bfloat16().expand(16))


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", [(3, 40), (2, 80, 40)], ids=str)
def test_reference_is_the_two_ops_bit_for_bit(shape, dtype, rng):
    x = torch.randn(shape, generator=rng).to(dtype)
    weight = torch.randn(60, 40, generator=rng).to(dtype)
    want = swiglu(linear(x, weight))
    assert torch.equal(linear_swiglu(x, weight), want)
    assert torch.equal(linear_swiglu_reference(x, weight), want)
    out = torch.empty(want.shape, dtype=dtype)
    assert linear_swiglu(x, weight, out=out) is out and torch.equal(out, want)
    assert error(want, exact(x, weight)) <= 2 * GATE[dtype]


@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_a_gate_may_lie_apart_from_the_other_rows(dtype, rng):
    x, weight = tensors(rng, 6, 40, 30, dtype)
    x, (gate, up) = x.view(2, 3, 40), weight.chunk(2)
    assert torch.equal(linear_swiglu(x, gate, up, backend="reference"), linear_swiglu_reference(x, gate, up))
    assert error(linear_swiglu(x, gate, up).flatten(0, 1), exact(x.flatten(0, 1), weight)) <= 2 * GATE[dtype]


def test_the_gate_comes_first():
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert linear_swiglu(torch.tensor([[0.0, 5.0]]), weight).item() == 0
    assert linear_swiglu(torch.tensor([[20.0, 3.0]]), weight).item() == pytest.approx(60)


@pytest.mark.parametrize(
    "x, weight",
    [
        (torch.zeros(4, 32), torch.zeros(32, 32)),  # fp32: the library's
        (torch.zeros(4, 24).half(), torch.zeros(32, 24).half()),
        (torch.zeros(4, 32).half(), torch.zeros(48, 32).half()),
        (torch.zeros(32, 4).half().T, torch.zeros(32, 32).half()),
    ],
    ids=["fp32", "H 24", "I 24", "transposed"],
)
def test_what_does_not_fit_the_kernel_goes_to_the_library_unless_it_is_named(interpreted, x, weight):
    from acefast.backends import use_backend

    with pytest.raises(BackendUnavailable, match="linear_swiglu: backend='triton' cannot run: it has no triton kernel"):
        linear_swiglu(x, weight, backend="triton")
    with use_backend("triton"):
        assert linear_swiglu(x, weight).shape == (len(x), len(weight) // 2)


def test_wrong_arguments_are_refused_with_a_sentence():
    x = torch.zeros(3, 32)
    for weight in (torch.zeros(32, 16), torch.zeros(31, 32), torch.zeros(32)):
        with pytest.raises(ValueError, match=r"linear_swiglu: weight must be \[2 \* I, H\] with H = 32, got"):
            linear_swiglu(x, weight)
    with pytest.raises(ValueError, match=r"linear_swiglu: weight must be torch.float32, got torch.float16"):
        linear_swiglu(x, torch.zeros(32, 32).half())
    with pytest.raises(ValueError, match=r"linear_swiglu: up must be \[I, H\] = \[16, 32\], got \[8, 32\]"):
        linear_swiglu(x, torch.zeros(16, 32), torch.zeros(8, 32))
    with pytest.raises(ValueError, match=r"linear_swiglu: out must be \[..., I\] = \[3, 16\], got \[3, 32\]"):
        linear_swiglu(x, torch.zeros(32, 32), out=torch.zeros(3, 32))
    with pytest.raises(ValueError, match=r"linear_swiglu: out must be torch.float32, got torch.float16"):
        linear_swiglu(x, torch.zeros(32, 32), out=torch.zeros(3, 16).half())
