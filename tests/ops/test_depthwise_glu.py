"""depthwise_glu against its equation in fp64, the Triton kernel in the interpreter and as PTX."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable, use_backend
from acefast.ops.depthwise_glu import ROWS, depthwise_glu

GATE = {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "reference":
        yield request.param
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield request.param


def inputs(B, S, F, dtype, rng):
    x, weight, bias = (torch.randn(shape, generator=rng).to(dtype) for shape in ((B, S, 2 * F), (2 * F, 3), (2 * F,)))
    return x, weight, bias


def expected(x, weight, bias, lengths=None, silu_input=False):
    """Row by row, in fp64."""
    B, S, _ = x.shape
    x, weight, bias = x.double(), weight.double(), bias.double()
    want = torch.zeros(B, S, x.shape[2] // 2, dtype=torch.float64)
    for b in range(B):
        n = S if lengths is None else int(lengths[b])
        u = x[b, :n] / (1 + (-x[b, :n]).exp()) if silu_input else x[b, :n]
        for s in range(n):
            y = bias + sum(weight[:, k] * u[s + k - 1] for k in range(3) if 0 <= s + k - 1 < n)
            a, g = y.chunk(2)
            want[b, s] = a * g / (1 + (-g).exp())
    return want


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


# One row; around a program's rows and the reference's; a ragged last block of channels; the class of wide ones.
@pytest.mark.parametrize("B, S, F", [(1, 1, 9), (2, 17, 5), (1, ROWS, 70), (1, ROWS + 1, 64), (2, 66, 128)])
@pytest.mark.parametrize("silu_input", (False, True), ids=("plain", "silu"))
def test_equals_the_equation_in_fp64(backend, B, S, F, silu_input, rng):
    given = inputs(B, S, F, torch.float32, rng)
    got = depthwise_glu(*given, silu_input=silu_input, backend=backend)
    assert got.dtype == torch.float32 and relative(got, expected(*given, silu_input=silu_input)) <= 1e-6


@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_rounds_once(backend, dtype, rng):
    given = inputs(2, 20, 16, dtype, rng)
    before = [t.clone() for t in given]
    got = depthwise_glu(*given, silu_input=True, backend=backend)
    assert got.dtype == dtype and relative(got, expected(*given, silu_input=True)) <= GATE[dtype]
    assert all(map(torch.equal, given, before))


def test_rows_behind_a_song_count_for_nothing_and_come_out_as_zeros(backend, rng):
    x, *rest = inputs(4, 40, 16, torch.float32, rng)
    lengths = torch.tensor([40, 33, 16, 0], dtype=torch.int32)
    for b, n in enumerate(lengths):
        x[b, n:] = torch.nan
    got = depthwise_glu(x, *rest, lengths, silu_input=True, backend=backend)
    assert relative(got, expected(x, *rest, lengths, silu_input=True)) <= 1e-6
    assert not any(song[n:].any() for song, n in zip(got, lengths))


def test_a_song_is_the_same_bits_in_any_batch_and_bucket(backend, rng):
    x, *rest = inputs(2, 40, 16, torch.bfloat16, rng)
    both = depthwise_glu(x, *rest, torch.tensor([40, 21]), backend=backend)
    alone = depthwise_glu(x[1:, :21], *rest, backend=backend)
    torch.testing.assert_close(both[1:, :21], alone, rtol=0 if backend == "triton" else 2**-7, atol=0)


def test_strides_of_rows_and_of_the_weight_and_out(backend, rng):
    x, weight, bias = inputs(2, 20, 16, torch.float32, rng)
    want = depthwise_glu(x, weight, bias, backend=backend)
    wide, memory = torch.full((2, 22, 50), torch.nan), torch.full((2, 21, 30), torch.nan)
    apart, out = wide[:, 1:21, 8:40], memory[:, :20, 4:20]
    apart.copy_(x)
    turned = weight.T.contiguous().T
    assert depthwise_glu(apart, turned, bias, out=out, backend=backend) is out
    torch.testing.assert_close(out, want, rtol=0 if backend == "triton" else 1e-5, atol=0)
    out.fill_(torch.nan)
    assert memory.isnan().all()


def test_what_the_kernel_does_not_take_is_refused_by_name_and_left_to_the_reference(rng):
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    x, weight, bias = inputs(2, 10, 8, torch.float32, rng)
    cases = [
        ((x.double(), weight.double(), bias.double()), {}),
        ((x.mT.contiguous().mT, weight, bias), {}),
        ((x, weight, bias), {"lengths": torch.tensor([7]).expand(2)}),
    ]
    with interpreted():
        for given, options in cases:
            with pytest.raises(BackendUnavailable, match="depthwise_glu: backend='triton' cannot run"):
                depthwise_glu(*given, **options, backend="triton")
            with use_backend("triton"):
                assert relative(depthwise_glu(*given, **options), expected(*given, **options)) <= 1e-6


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    x, weight, bias = inputs(2, 10, 8, torch.float32, rng)
    with pytest.raises(ValueError, match=r"depthwise_glu: x must be \[B, S, 2F\], got \[2, 10, 15\]"):
        depthwise_glu(x[..., :15], weight, bias)
    with pytest.raises(ValueError, match=r"weight must be \[2F, 3\] = \[16, 3\], got \[3, 16\]"):
        depthwise_glu(x, weight.T, bias)
    with pytest.raises(ValueError, match=r"bias must be \[2F\] = \[16\], got \[8\]"):
        depthwise_glu(x, weight, bias[:8])
    with pytest.raises(ValueError, match=r"lengths must be \[B\] = \[2\], got \[1\]"):
        depthwise_glu(x, weight, bias, torch.tensor([3]))
    with pytest.raises(ValueError, match=r"out must be \[B, S, F\] = \[2, 10, 8\], got \[2, 10, 16\]"):
        depthwise_glu(x, weight, bias, out=x)
    with pytest.raises(ValueError, match=r"out must be torch.float32, got torch.float16"):
        depthwise_glu(x, weight, bias, out=x[..., :8].half())
