"""depthwise_norm against its equations in fp64, the Triton kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.depthwise_norm import depthwise_norm

GATE = {torch.float32: 2e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
# One row; fewer rows than taps; rows of 8 a program and one more; of 4; channels that are no power of two.
SHAPES = [(1, 1, 16), (2, 3, 40), *((1, rows, 128) for rows in (8, 9)), *((2, rows, 384) for rows in (3, 5))]


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "reference":
        yield request.param
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield request.param


def inputs(shape, dtype, rng, taps=7):
    C = shape[-1]
    sizes = shape, (taps, C), (C,), (C,), (C,)
    return [(torch.randn(size, generator=rng) + 0.5).to(dtype) for size in sizes]


def exact(x, conv_weight, conv_bias, weight, bias, eps=1e-6):
    """Row by row, tap by tap."""
    x, conv_weight, weight, bias = (t.double() for t in (x, conv_weight, weight, bias))
    u = conv_bias.double().expand(x.shape).clone()
    for t in range(x.shape[1]):
        for k in range(len(conv_weight)):
            if 0 <= t + k - len(conv_weight) // 2 < x.shape[1]:
                u[:, t] += conv_weight[k] * x[:, t + k - len(conv_weight) // 2]
    u = u - u.mean(-1, keepdim=True)
    return u / (u.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equations_in_fp64(backend, shape, dtype, rng):
    given = inputs(shape, dtype, rng)
    before = [t.clone() for t in given]
    y = depthwise_norm(*given, backend=backend)
    assert y.dtype == dtype and relative(y, exact(*given)) <= GATE[dtype]
    assert all(torch.equal(a, b) for a, b in zip(before, given))


def test_vectors_may_be_fp32_and_other_kernels_and_eps(backend, rng):
    x, *rest = inputs((2, 12, 32), torch.float32, rng, taps=3)
    for eps in (1e-6, 1.0):
        got = depthwise_norm(x.bfloat16(), *rest, eps=eps, backend=backend)
        assert relative(got, exact(x.bfloat16(), *rest, eps)) <= GATE[torch.bfloat16]


def test_songs_of_a_batch_do_not_meet_and_rows_may_lie_at_a_distance(backend, rng):
    x, *rest = inputs((3, 10, 24), torch.float32, rng)
    want = exact(x, *rest)
    memory, result = torch.full((3, 12, 40), torch.nan), torch.full((3, 15, 32), torch.nan)
    apart, out = memory[:, :10, :24], result[:, 1:11, :24]
    apart[1:] = x[1:]
    assert depthwise_norm(apart[1:], *rest, out=out[1:], backend=backend).data_ptr() == out[1].data_ptr()
    assert relative(out[1:], want[1:]) <= 2e-6
    out[1:] = torch.nan
    assert result.isnan().all()
    depthwise_norm(apart, *rest, out=out, backend=backend)
    assert out[0].isnan().all() and relative(out[1:], want[1:]) <= 2e-6


def test_channels_apart_are_the_references(backend):
    x, rest = torch.ones(1, 4, 32)[..., ::2], (torch.ones(7, 16), *3 * (torch.ones(16),))
    if backend == "triton":
        with pytest.raises(BackendUnavailable, match="depthwise_norm: backend='triton' cannot run: it has no triton"):
            depthwise_norm(x, *rest, backend=backend)
    assert depthwise_norm(x, *rest).shape == (1, 4, 16)
    assert depthwise_norm(x.contiguous()[:, :0], *rest, backend=backend).shape == (1, 0, 16)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(4, 8)), r"depthwise_norm: x must be \[B, L, C\]"),
        (
            dict(conv_weight=torch.ones(8, 7)),
            r"depthwise_norm: conv_weight must be \[K, C\] = \[any, 8\], got \[8, 7\]",
        ),
        (dict(conv_weight=torch.ones(8, 7).T), r"depthwise_norm: conv_weight must be contiguous"),
        (dict(conv_weight=torch.ones(4, 8)), r"conv_weight must have an odd number of taps, got 4"),
        (dict(conv_bias=torch.ones(4)), r"depthwise_norm: conv_bias must be \[C\] = \[8\]"),
        (dict(weight=torch.ones(8).half()), r"depthwise_norm: weight must be torch.float32, got torch.float16"),
        (dict(bias=torch.ones(1, 8)), r"depthwise_norm: bias must be \[C\]"),
        (dict(out=torch.ones(1, 5, 8)), r"depthwise_norm: out must be \[B, L, C\] = \[1, 4, 8\]"),
        (dict(out=torch.ones(1, 4, 8).half()), r"depthwise_norm: out must be torch.float32"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    right = dict(x=torch.ones(1, 4, 8), conv_weight=torch.ones(7, 8))
    with pytest.raises(ValueError, match=message):
        depthwise_norm(**right | dict(conv_bias=torch.ones(8), weight=torch.ones(8), bias=torch.ones(8)) | change)
