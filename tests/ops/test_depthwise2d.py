"""depthwise2d against its equation in fp64, the Triton kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.depthwise2d import depthwise2d

GATE = {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
# B, H, W, channels out, K: one pixel; less than the taps; a column tile of 8 and one more; two tiles of channels; a row
# tile of 32 and one more.
SIZES = [
    (1, 1, 1, 16, 3),
    (2, 2, 3, 16, 5),
    *((1, 3, W, 16, 3) for W in (8, 9)),
    (1, 4, 17, 32, 3),
    (1, 6, 5, 128, 5),
    *((1, H, 2, 16, 3) for H in (32, 33)),
]
VARIANTS = {
    "plain": {},
    "glu": {"silu_input": True, "gate": True},
    "gate": {"gate": True},
    "silu": {"silu_input": True},
}


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "reference":
        yield request.param
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield request.param


def inputs(B, H, W, channels, K, dtype, rng, gate=False):
    C = 2 * channels if gate else channels
    x, weight, bias = (torch.randn(size, generator=rng) for size in ((B, H, W, C), (K, K, C), (C,)))
    return x.to(dtype), (weight / K).to(dtype), bias.to(dtype)


def matrices(C, D, dtype, rng):
    return (torch.randn(C // D, D, D, generator=rng) / D**0.5).to(dtype)


def exact(x, weight, bias=None, silu_input=False, gate=False, mix=None):
    """Tap by tap."""
    B, H, W, C = x.shape
    K, u = len(weight), x.double()
    u = u * u.sigmoid() if silu_input else u
    around = torch.zeros(B, H + K - 1, W + K - 1, C, dtype=torch.float64)
    around[:, K // 2 : K // 2 + H, K // 2 : K // 2 + W] = u
    y = sum(weight[i, j].double() * around[:, i : i + H, j : j + W] for i in range(K) for j in range(K))
    y = y if bias is None else y + bias.double()
    if gate:
        a, g = y.chunk(2, -1)
        y = a * g * g.sigmoid()
    if mix is not None:
        y = torch.einsum("...gi,gio->...go", y.unflatten(3, mix.shape[:2]), mix.double()).flatten(3)
    return y


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_equation_in_fp64(backend, size, dtype, rng):
    variant = VARIANTS["plain" if size[-1] == 5 else "glu"]  # as the autoencoder has them
    given = inputs(*size, dtype, rng, gate=bool(variant))
    before = [t.clone() for t in given]
    y = depthwise2d(*given, **variant, backend=backend)
    assert y.dtype == dtype and y.is_contiguous() and relative(y, exact(*given, **variant)) <= GATE[dtype]
    assert all(torch.equal(a, b) for a, b in zip(before, given))


@pytest.mark.parametrize("variant", VARIANTS)
def test_bias_gate_and_silu_are_asked_for_one_by_one(backend, variant, rng):
    options = VARIANTS[variant]
    x, weight, _ = inputs(1, 3, 5, 16, 3, torch.float32, rng, gate="gate" in options)
    out = torch.full((1, 3, 5, 16), torch.nan)
    assert depthwise2d(x, weight, **options, out=out, backend=backend) is out
    assert relative(out, exact(x, weight, **options)) <= 1e-6


@pytest.mark.parametrize("D", (4, 8))
def test_groups_of_channels_are_mixed(backend, D, rng):
    x, weight, bias = inputs(2, 3, 9, 16, 5, torch.float32, rng)
    mix, out = matrices(16, D, torch.float32, rng), torch.full((2, 3, 9, 16), torch.nan)
    want = exact(x, weight, bias, mix=mix)
    assert relative(depthwise2d(x, weight, bias, mix=mix, backend=backend), want) <= 1e-6
    assert depthwise2d(x, weight, bias, mix=mix, out=out, backend=backend) is out and relative(out, want) <= 1e-6


def test_images_and_pixels_far_apart_do_not_meet(backend, rng):
    x, weight, bias = inputs(3, 5, 12, 16, 3, torch.float32, rng)
    want = exact(x, weight, bias)
    x[[0, 2]] = torch.nan
    x[1, 0, 0] = torch.nan
    y = depthwise2d(x, weight, bias, backend=backend)
    touched = torch.zeros(5, 12, dtype=torch.bool)
    touched[:2, :2] = True
    assert torch.equal(y[1].isnan().all(2), touched) and relative(y[1][~touched], want[1][~touched]) <= 1e-6


def test_many_columns_are_taken_some_at_a_time(rng):
    x, weight, bias = inputs(1, 2, 61, 8, 5, torch.float32, rng)
    assert relative(depthwise2d(x, weight, bias), exact(x, weight, bias)) <= 1e-6


def test_what_does_not_fit_the_kernel_goes_to_the_library_unless_it_is_named(backend):
    for x in (torch.ones(1, 2, 2, 24), torch.ones(1, 2, 0, 16)):
        weight = torch.ones(3, 3, x.shape[3])
        if backend == "triton":
            with pytest.raises(BackendUnavailable, match="depthwise2d: backend='triton' cannot run: it has no triton"):
                depthwise2d(x, weight, backend=backend)
        assert (depthwise2d(x, weight) == 4).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(3, 4, 8)), r"depthwise2d: x must be \[B, H, W, C\]"),
        (dict(x=torch.ones(1, 8, 3, 4).permute(0, 2, 3, 1)), r"depthwise2d: x must be contiguous"),
        (dict(weight=torch.ones(8, 3, 3)), r"depthwise2d: weight must be \[K, K, C\] = \[any, any, 8\]"),
        (dict(weight=torch.ones(2, 2, 8)), r"weight must be \[K, K, C\] with an odd K, got \[2, 2, 8\]"),
        (dict(weight=torch.ones(3, 5, 8)), r"weight must be \[K, K, C\] with an odd K, got \[3, 5, 8\]"),
        (dict(weight=torch.ones(8, 3, 3).permute(1, 2, 0)), r"depthwise2d: weight must be contiguous"),
        (dict(weight=torch.ones(3, 3, 8).half()), r"depthwise2d: weight must be torch.float32"),
        (dict(bias=torch.ones(4)), r"depthwise2d: bias must be \[C\] = \[8\]"),
        (dict(bias=torch.ones(8).half()), r"depthwise2d: bias must be torch.float32"),
        (dict(x=torch.ones(1, 3, 4, 7), weight=torch.ones(3, 3, 7), gate=True), r"a gate needs an even number .*got 7"),
        *(
            (dict(mix=torch.ones(size)) | more, rf"mix must be \[C / D, D, D\] of C = 8, .*got \[{size[0]}, ")
            for size, more in (((4, 2, 3), {}), ((2, 2, 2), {}), ((2, 4), {}), ((4, 2, 2), {"gate": True}))
        ),
        (dict(mix=torch.ones(4, 2, 2).mT), r"depthwise2d: mix must be contiguous"),
        (dict(mix=torch.ones(4, 2, 2).half()), r"depthwise2d: mix must be torch.float32"),
        (dict(out=torch.ones(1, 3, 4, 8), gate=True), r"out must be \[B, H, W, channels\] = \[1, 3, 4, 4\]"),
        (dict(out=torch.ones(1, 3, 4, 8).half()), r"depthwise2d: out must be torch.float32"),
        (dict(out=torch.ones(1, 3, 4, 16)[..., ::2]), r"depthwise2d: out must be contiguous"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        depthwise2d(**dict(x=torch.ones(1, 3, 4, 8), weight=torch.ones(3, 3, 8)) | change)
