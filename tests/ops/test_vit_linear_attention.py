"""vit_linear_attention against its equation in fp64, position by position, the Triton kernels in the interpreter."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.vit_linear_attention import vit_linear_attention

GATE = {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
# B, positions, heads, head_dim: one position, fewer than parts, a tile of 256 and one more, parts of three steps.
SIZES = [(1, 1, 2, 32), (2, 7, 1, 32), *((1, P, 2, 32) for P in (256, 257)), (1, 1040, 1, 32), (1, 40, 2, 16)]


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "reference":
        yield request.param
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield request.param


def exact(heads, D):
    """The quadratic form, a weight for each pair of positions."""
    q, k, v = heads.double().unflatten(-1, (-1, 3, D)).unbind(3)
    weights = torch.einsum("bind,bjnd->bnij", q.relu(), k.relu())
    sums = torch.einsum("bnij,bjnd->bind", weights, v)
    return (sums / (weights.sum(3) + 1e-15).mT[..., None]).flatten(2)


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, P, n, D", SIZES)
def test_equals_the_equation_in_fp64(backend, B, P, n, D, dtype, rng):
    heads = torch.randn(B, P, n * 3 * D, generator=rng).to(dtype)
    before = heads.clone()
    out = vit_linear_attention(heads, head_dim=D, backend=backend)
    assert out.dtype == dtype and out.shape == (B, P, n * D) and torch.equal(heads, before)
    assert relative(out, exact(heads, D)) <= GATE[dtype]


def test_small_and_large_activations_count_alike(backend, rng):
    """Neither a state of many large keys nor one of small ones leaves the range of its 16 bits."""
    heads = torch.randn(1, 300, 96, generator=rng).half()
    want = exact(heads, 32)
    for factor in (2.0**-10, 2.0**7):
        out = vit_linear_attention(heads * factor, backend=backend)
        assert relative(out.float() / factor, want) <= 5e-3  # numbers of 2**-24 are few bits
        assert out.isfinite().all()


def test_a_query_that_agrees_with_nothing_gives_zeros(backend):
    heads = torch.ones(1, 5, 96)
    heads[0, 3, :32] = -1.0
    out = vit_linear_attention(heads, backend=backend)
    assert (out[0, 3] == 0).all() and torch.allclose(out[0, [0, 1, 2, 4]], torch.ones(4, 32))


def test_images_of_a_batch_do_not_meet_and_rows_may_lie_at_a_distance(backend, rng):
    heads = torch.randn(3, 20, 192, generator=rng)
    want = exact(heads[1:2], 32)
    memory, result = torch.full((3, 22, 200), torch.nan), torch.full((3, 22, 80), torch.nan)
    memory[1, :20, :192] = heads[1]
    out = vit_linear_attention(memory[1:2, :20, :192], out=result[1:2, 1:21, :64], backend=backend)
    assert out.data_ptr() == result[1, 1].data_ptr() and relative(out, want) <= 1e-6
    assert result[[0, 2]].isnan().all() and result[1, [0, 21]].isnan().all() and result[1, :, 64:].isnan().all()


def test_what_does_not_fit_the_kernel_goes_to_the_library_unless_it_is_named(backend):
    for heads, dim in ((torch.ones(1, 4, 24), 8), (torch.ones(1, 4, 192)[..., ::2], 32), (torch.ones(1, 0, 96), 32)):
        if backend == "triton":
            with pytest.raises(
                BackendUnavailable, match="vit_linear_attention: backend='triton' cannot run: it has no"
            ):
                vit_linear_attention(heads, head_dim=dim, backend=backend)
        out = vit_linear_attention(heads, head_dim=dim)
        assert out.shape == (*heads.shape[:2], dim) and (out == 1).all()


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match=r"vit_linear_attention: heads must be \[B, P, n \* 3 \* 32\], got \[1, 4, 64\]"
    ):
        vit_linear_attention(torch.ones(1, 4, 64))
    with pytest.raises(ValueError, match=r"out must be \[B, P, n \* head_dim\] = \[1, 4, 32\], got \[1, 4, 96\]"):
        vit_linear_attention(torch.ones(1, 4, 96), out=torch.ones(1, 4, 96))
    with pytest.raises(ValueError, match=r"vit_linear_attention: out must be torch.float32, got torch.float16"):
        vit_linear_attention(torch.ones(1, 4, 96), out=torch.ones(1, 4, 32).half())
