"""qk_norm_rope against complex rotation in fp64: the reference, and the Triton kernel in the interpreter."""

from __future__ import annotations

import contextlib

import pytest
import torch

from acefast.backends import BackendUnavailable, use_backend
from acefast.ops.qk_norm_rope import qk_norm_rope, rope_table

CPU = torch.device("cpu")
GATE = {torch.float32: 2e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
SHAPES = [(1, 1, 2, 1, 8), (2, 300, 4, 2, 128), (1, 7, 8, 2, 128)]  # one row; the models' heads; XL's ratio of heads
# One token; a program of 16 tokens less one, full, and one more; heads of no power of two; of 8 tokens; the real heads.
KERNEL_SHAPES = [
    (1, 1, 2, 1, 8),
    (2, 15, 4, 2, 16),
    (3, 16, 6, 3, 32),
    (1, 17, 8, 4, 2),
    (2, 9, 4, 4, 64),
    (1, 11, 16, 8, 128),
]


@contextlib.contextmanager
def emulation():
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield


@pytest.fixture(params=["reference", "triton"])
def backend(request):
    """Each in turn; the kernel is interpreted, with its memory checked and torch.empty full of NaN."""
    with emulation() if request.param == "triton" else contextlib.nullcontext():
        yield request.param


def inputs(B, S, heads, kv_heads, D, dtype, rng):
    qkv = torch.randn(B, S, (heads + 2 * kv_heads) * D, generator=rng).to(dtype)
    q_weight, k_weight = ((1 + 0.2 * torch.randn(D, generator=rng)).to(dtype) for _ in range(2))
    return qkv, q_weight, k_weight


def expected(x, weight, positions, theta=1e6, eps=1e-6):
    D = x.shape[-1]
    x, weight = x.double(), weight.double()
    u = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    angle = positions.double()[:, None, None] * theta ** (-torch.arange(0, D, 2).double() / D)
    turned = torch.complex(u[..., : D // 2], u[..., D // 2 :]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


def check(B, S, heads, kv_heads, D, dtype, rng, **options):
    qkv, q_weight, k_weight = inputs(B, S, heads, kv_heads, D, dtype, rng)
    before = qkv.clone()
    q, k, v = qk_norm_rope(qkv, q_weight, k_weight, *rope_table(S, D, 1e6, CPU), heads, kv_heads, **options)
    parts = qkv.unflatten(-1, (-1, D))
    raw_q, raw_k, raw_v = parts.split((heads, kv_heads, kv_heads), dim=2)
    gate = max(GATE[dtype], 2e-5 * (S > 100))  # the angle p * w is an fp32 product
    assert relative(q, expected(raw_q, q_weight, torch.arange(S))) <= gate
    assert relative(k, expected(raw_k, k_weight, torch.arange(S))) <= gate
    assert torch.equal(v, raw_v) and torch.equal(qkv, before) and q.dtype == k.dtype == dtype


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, S, heads, kv_heads, D", SHAPES)
def test_equals_rotation_in_fp64(B, S, heads, kv_heads, D, dtype, rng):
    check(B, S, heads, kv_heads, D, dtype, rng)


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, S, heads, kv_heads, D", KERNEL_SHAPES)
def test_kernel_equals_rotation_in_fp64(B, S, heads, kv_heads, D, dtype, rng):
    with emulation():
        check(B, S, heads, kv_heads, D, dtype, rng, backend="triton")


def test_without_a_table_only_the_norm_is_taken(backend, rng):
    """Cross-attention's keys: no queries in the packing, no rotation."""
    qkv, weight, k_weight = inputs(2, 9, 0, 2, 16, torch.float32, rng)
    q, k, v = qk_norm_rope(qkv, weight, k_weight, None, None, 0, 2, backend=backend)
    raw_k, raw_v = qkv.view(2, 9, 4, 16).split(2, dim=2)
    assert q.shape == (2, 9, 0, 16) and torch.equal(v, raw_v)
    assert relative(k, expected(raw_k, k_weight, torch.zeros(9))) <= 1e-6


def test_silence_is_kept_finite_by_eps(backend, rng):
    qkv, weight, k_weight = inputs(1, 9, 0, 2, 16, torch.float32, rng)
    k = qk_norm_rope(qkv * 1e-3, weight, k_weight, None, None, 0, 2, eps=1e-4, backend=backend)[1]
    want = expected(qkv.view(1, 9, 4, 16)[:, :, :2] * 1e-3, k_weight, torch.zeros(9), eps=1e-4)
    assert relative(k, want) <= 1e-6
    assert not qk_norm_rope(qkv * 0, weight, k_weight, None, None, 0, 2, backend=backend)[1].any()


def test_keys_alone_may_be_rotated(backend, rng):
    qkv, weight, k_weight = inputs(1, 9, 0, 2, 16, torch.float32, rng)
    _, k, _ = qk_norm_rope(qkv, weight, k_weight, *rope_table(9, 16, 1e6, CPU), 0, 2, backend=backend)
    assert relative(k, expected(qkv.view(1, 9, 4, 16)[:, :, :2], k_weight, torch.arange(9))) <= 2e-6


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("rotate", [True, False])
def test_in_place_equals_out_of_place(backend, rotate, dtype, rng):
    qkv, q_weight, k_weight = inputs(2, 19, 4, 2, 16, dtype, rng)
    table = rope_table(19, 16, 1e6, CPU) if rotate else (None, None)
    q, k, v = (t.clone() for t in qk_norm_rope(qkv, q_weight, k_weight, *table, 4, 2, backend=backend))
    into = torch.zeros_like(qkv)
    beside = qk_norm_rope(qkv, q_weight, k_weight, *table, 4, 2, out=into, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(beside, (q, k, v)))
    assert torch.equal(into, torch.cat((q, k, torch.zeros_like(v)), 2).flatten(2))
    found = qk_norm_rope(qkv, q_weight, k_weight, *table, 4, 2, out=qkv, backend=backend)
    assert torch.equal(qkv, torch.cat((q, k, v), 2).flatten(2))
    assert [t.data_ptr() for t in found] == [qkv.data_ptr() + i * 16 * qkv.itemsize for i in (0, 4, 6)]
    assert all(torch.equal(a, b) for a, b in zip(found, (q, k, v)))


def test_rows_may_lie_apart_and_what_is_between_stays(backend, rng):
    """Also the tables' rows."""
    qkv, q_weight, k_weight = inputs(3, 5, 2, 1, 16, torch.float32, rng)
    cos, sin = rope_table(5, 16, 1e6, CPU)
    want = torch.cat(qk_norm_rope(qkv, q_weight, k_weight, cos, sin, 2, 1, backend=backend), 2).flatten(2)
    wide, tables = torch.full((3, 7, 96), torch.nan), torch.stack((cos, sin), 1)
    inner = wide[:, :5, 16:80]
    inner.copy_(qkv)
    qk_norm_rope(inner, q_weight, k_weight, tables[:, 0], tables[:, 1], 2, 1, out=inner, backend=backend)
    assert torch.equal(inner, want)
    inner.fill_(torch.nan)
    assert wide.isnan().all()


def test_padding_stays_in_its_rows(backend, rng):
    qkv, q_weight, k_weight = inputs(2, 19, 2, 1, 16, torch.bfloat16, rng)
    table = rope_table(19, 16, 1e6, CPU)
    want = qk_norm_rope(qkv, q_weight, k_weight, *table, 2, 1, backend=backend)
    padded = qkv.clone()
    padded[0, 3:], padded[1, 18:] = torch.nan, 1e4
    found = qk_norm_rope(padded, q_weight, k_weight, *table, 2, 1, backend=backend)
    for song, valid in enumerate((3, 18)):
        assert all(torch.equal(a[song, :valid], b[song, :valid]) for a, b in zip(found, want))


@pytest.mark.parametrize("D", [8, 12])
def test_what_the_kernel_cannot_take_goes_to_the_reference(D, rng):
    qkv, *weights = inputs(1, 4, 2, 1, D, torch.float32, rng)
    apart = qkv.mT.contiguous().mT  # columns that are no neighbours
    with emulation():
        for x in (apart, qkv.double()) if D == 8 else (qkv,):  # 12 is no power of two
            case = (x, *weights, None, None, 2, 1)
            with use_backend("triton"):
                found = qk_norm_rope(*case)
            assert all(torch.equal(a, b) for a, b in zip(found, qk_norm_rope(*case, backend="reference")))
            with pytest.raises(BackendUnavailable, match="qk_norm_rope: backend='triton' cannot run"):
                qk_norm_rope(*case, backend="triton")


def test_frequencies_and_angles_are_the_published_ones():
    inverse = torch.tensor([1, 0.80584222, 0.64938164, 1.24093776e-6])
    cos, sin = rope_table(6, 128, 1e6, CPU)
    torch.testing.assert_close(torch.atan2(sin[1], cos[1])[[0, 1, 2, 63]], inverse, rtol=2e-6, atol=0)
    assert float(cos[5, 1]) == pytest.approx(-0.63126093, abs=1e-6)
    assert cos.shape == (6, 64) and cos.dtype == torch.float32


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    qkv, q_weight, k_weight = inputs(1, 4, 2, 1, 8, torch.float32, rng)
    cos, sin = rope_table(5, 8, 1e6, CPU)
    with pytest.raises(ValueError, match=r"qk_norm_rope: cos must be \[S, D / 2\] = \[4, 4\], got \[5, 4\]"):
        qk_norm_rope(qkv, q_weight, k_weight, cos, sin, 2, 1)
    with pytest.raises(ValueError, match="together"):
        qk_norm_rope(qkv, q_weight, k_weight, None, sin[:4], 2, 1)
    with pytest.raises(ValueError, match="qkv must be"):
        qk_norm_rope(qkv, q_weight, k_weight, None, None, 3, 1)
    with pytest.raises(ValueError, match=r"out must be .* = \[1, 4, 32\], got \[1, 4, 24\]"):
        qk_norm_rope(qkv, q_weight, k_weight, None, None, 2, 1, out=qkv[..., :24])
    with pytest.raises(ValueError, match=r"out must be torch.float32, got torch.float16"):
        qk_norm_rope(qkv, q_weight, k_weight, None, None, 2, 1, out=qkv.half())
