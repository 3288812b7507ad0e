"""rms_residual against its equation in fp64, the Triton kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.rms_residual import rms_residual

GATE = {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
# One number; a song's row; rows of 16 a program and one more; of 4; channels that are no power of two.
SHAPES = [(1, 1), (2, 3, 5, 96), *((rows, 128) for rows in (16, 17)), *((rows, 1024) for rows in (3, 5)), (2, 1000)]


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "reference":
        yield request.param
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield request.param


def inputs(shape, dtype, rng):
    h, x = (torch.randn(shape, generator=rng).to(dtype) for _ in range(2))
    return h, *(torch.randn(shape[-1], generator=rng).to(dtype) for _ in range(2)), x


def exact(h, weight, bias, x, eps=1e-5):
    h = h.double()
    y = h / (h.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double() + bias.double()
    return y if x is None else y + x.double()


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equation_in_fp64(backend, shape, dtype, rng):
    given = inputs(shape, dtype, rng)
    before = [t.clone() for t in given]
    y = rms_residual(*given, backend=backend)
    assert y.dtype == dtype and y.shape == shape and relative(y, exact(*given)) <= GATE[dtype]
    alone = rms_residual(*given[:3], relu=True, backend=backend)
    want = exact(*given[:3], None).relu()
    assert float((alone.double() - want).norm()) <= GATE[dtype] * float(exact(*given[:3], None).norm())
    assert all(torch.equal(a, b) for a, b in zip(before, given))


def test_a_small_row_is_normed_with_its_eps(backend, rng):
    given = inputs((3, 64), torch.float32, rng)
    given[0].mul_(1e-3)
    for eps in (1e-5, 1e-2):
        assert relative(rms_residual(*given, eps=eps, backend=backend), exact(*given, eps)) <= 1e-6


@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_images_are_rows_also_padded_ones_and_the_result_may_replace_its_inputs(backend, dtype, rng):
    """A channels-last image, whose rows of channels lie at a distance."""
    h, weight, bias, x = inputs((2, 3, 4, 96), dtype, rng)
    image = torch.full((2, 3, 4, 100), torch.nan).to(dtype)
    image[..., :96] = h
    rows = image.permute(0, 3, 1, 2)[:, :96].permute(0, 2, 3, 1)
    want = rms_residual(h, weight, bias, x, backend="reference")
    wide = torch.zeros(2, 3, 4, 112, dtype=dtype)
    wide[..., :96] = x
    for out in (rows, x):
        given = rows if out is rows else h
        got = rms_residual(given, weight, bias, wide[..., :96], out=out, backend=backend)
        assert got is out and relative(got, want.double()) <= GATE[dtype]
        assert image[..., 96:].isnan().all()


def test_a_nan_is_not_hidden_by_relu(backend):
    h = torch.ones(2, 16)
    h[1, 3] = torch.nan
    y = rms_residual(h, torch.ones(16), torch.zeros(16), relu=True, backend=backend)
    assert not y[0].isnan().any() and y[1].isnan().all()


def test_rows_at_uneven_distances_are_the_references(backend):
    h = torch.ones(2, 3, 32)[:, ::2]
    given = h, torch.ones(32), torch.zeros(32)
    if backend == "triton":
        with pytest.raises(BackendUnavailable, match="rms_residual: backend='triton' cannot run: it has no triton"):
            rms_residual(*given, backend=backend)
    assert rms_residual(*given).shape == h.shape and rms_residual(h[:0], *given[1:], backend="reference").numel() == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(weight=torch.ones(4)), r"rms_residual: weight must be \[C\] = \[8\], got \[4\]"),
        (dict(bias=torch.ones(1, 8)), r"rms_residual: bias must be \[C\]"),
        (dict(x=torch.ones(2, 8)), r"rms_residual: x must be \[..., C\] = \[3, 8\], got \[2, 8\]"),
        (dict(x=torch.ones(3, 8).half()), r"rms_residual: x must be torch.float32, got torch.float16"),
        (dict(out=torch.ones(3, 4)), r"rms_residual: out must be \[..., C\] = \[3, 8\], got \[3, 4\]"),
        (dict(out=torch.ones(3, 8).half()), r"rms_residual: out must be torch.float32"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        rms_residual(**dict(h=torch.ones(3, 8), weight=torch.ones(8), bias=torch.ones(8)) | change)
