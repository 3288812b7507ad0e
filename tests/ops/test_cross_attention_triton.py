"""The kernel of cross_attention in the interpreter, against softmax in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.cross_attention import cross_attention
from tests.ops.test_cross_attention import GATE, expected, inputs, relative

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.kernels.cross_attention import CONFIGS
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.interpreter import check_written, interpreted
from acefast.sim.resources import read_kernel


def cached(B, S, E, heads, kv_heads, dtype, rng, D=16):
    """q in rows of a wider tensor, k and v as views of the cache [B, kv_heads, E, 2, D]."""
    q, weight, *_ = inputs(B, S, 1, heads, kv_heads, dtype, rng, D)
    wide = torch.full((B, S, heads * D + 16), torch.nan, dtype=dtype)
    wide[..., 8:-8] = q
    cache = torch.randn(B, kv_heads, E, 2, D, generator=rng).to(dtype)
    return wide[..., 8:-8], weight, *cache.unbind(3)


def run(*args, **options):
    with interpreted():
        got = cross_attention(*args, backend="triton", **options)
        check_written("out", got)
    return got


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (4, 2), (8, 2)], ids=str)
def test_equals_softmax_around_a_tile_of_rows_and_a_block_of_keys(heads, kv_heads, dtype, rng):
    """Every combination of a ragged last tile and a ragged last block, on the views of a real cache."""
    config = CONFIGS["fp32-16" if dtype == torch.float32 else "half-16", 80]
    tile, block = config["M"] // (heads // kv_heads), config["KEYS"]
    for B, S, E in ((1, 1, 1), (2, tile - 1, block), (1, tile, block - 1), (1, tile + 1, block + 1), (1, 2 * tile, 75)):
        args = cached(B, S, E, heads, kv_heads, dtype, rng)
        assert relative(run(*args), expected(*args)) <= GATE[dtype], (S, E)


@pytest.mark.parametrize("integers", (torch.int32, torch.int64), ids=str)
@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_padding_is_seen_by_nobody(dtype, integers, rng):
    q, weight, k, v = cached(3, 20, 70, 4, 2, dtype, rng)
    lengths = torch.tensor([70, 33, 1], dtype=integers)
    want = expected(q, weight, k, v, lengths)
    for b, n in enumerate(lengths):
        k[b, :, n:] = v[b, :, n:] = torch.nan
    assert relative(run(q, weight, k, v, lengths), want) <= GATE[dtype]


@pytest.mark.parametrize("lengths", (None, torch.tensor([17])), ids=["whole", "padded"])
def test_one_set_of_keys_serves_all_rows(lengths, rng):
    q, weight, k, v = cached(3, 20, 40, 4, 2, torch.float32, rng)
    copied = [t[:1].expand(3, -1, -1, -1).contiguous() for t in (k, v)]
    want = expected(q, weight, *copied, None if lengths is None else lengths.expand(3))
    assert relative(run(q, weight, k[:1], v[:1], lengths), want) <= GATE[torch.float32]


def test_lengths_may_lie_apart(rng):
    q, weight, k, v = cached(3, 20, 40, 4, 2, torch.float32, rng)
    apart = torch.tensor([[17, 0], [40, 0], [3, 0]])[:, 0]
    for lengths in (apart, torch.tensor([17]).expand(3)):
        assert relative(run(q, weight, k, v, lengths), expected(q, weight, k, v, lengths)) <= GATE[torch.float32]


@pytest.mark.parametrize("D", (32, 64, 128))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_real_heads_on_ragged_rows(dtype, D, rng):
    args = cached(1, 70, 140, 2, 1, dtype, rng, D)
    assert relative(run(*args), expected(*args)) <= GATE[dtype]


def test_the_norm_takes_eps_and_zero_rows(rng):
    q, weight, k, v = cached(1, 20, 40, 2, 1, torch.float32, rng)
    q[:, 3] = 0  # looks at all keys alike
    got = run(1e-3 * q, weight, k, v, eps=1e-2)
    scale = ((1e-3 * q).unflatten(-1, (2, 16)).square().mean(-1, keepdim=True) + 1e-2).rsqrt()
    u = (1e-3 * q).unflatten(-1, (2, 16)) * scale * weight
    want = torch.softmax(u.transpose(1, 2) @ k.transpose(-1, -2) / 4, -1) @ v
    assert relative(got, want.transpose(1, 2).flatten(2).double()) <= GATE[torch.float32]
    torch.testing.assert_close(got[0, 3], v[0, 0].mean(0).repeat(2))


def test_an_item_without_any_key_is_zero(rng):
    q, weight, k, v = cached(2, 20, 40, 2, 1, torch.float32, rng)
    got = run(q, weight, k, v, torch.tensor([0, 40]))
    assert not got[0].any() and got[1].all()


def test_out_is_written_within_its_rows(rng):
    args = cached(2, 70, 40, 2, 1, torch.bfloat16, rng)
    memory = torch.full((2, 74, 48), torch.nan).bfloat16()
    out = memory[:, 2:-2, 8:-8]
    with interpreted():
        assert cross_attention(*args, out=out, backend="triton") is out
    assert relative(out, expected(*args)) <= GATE[torch.bfloat16]
    out.fill_(torch.nan)
    assert memory.isnan().all()


def test_what_the_kernel_does_not_take_is_refused_by_name(rng):
    q, weight, k, v = inputs(1, 20, 20, 6, 2, torch.float32, rng)
    with interpreted():
        for arguments in (
            (q, weight, k, v),  # three queries to a key
            (q[..., :32], weight[:8].contiguous(), k[..., :8], v[..., :8]),
            (q[..., :64], weight, k.transpose(2, 3).contiguous().transpose(2, 3), v),
        ):
            with pytest.raises(BackendUnavailable, match="cross_attention: backend='triton' cannot run: it has no"):
                cross_attention(*arguments, backend="triton")


@pytest.mark.parametrize(
    "sm, dtype, D",
    [
        (80, torch.bfloat16, 128),
        *(
            pytest.param(sm, dtype, D, marks=pytest.mark.slow)
            for sm in BLOCK_SHARED_LIMIT
            for dtype in (torch.float32, torch.bfloat16)
            for D in (16, 32, 64, 128)
            if (sm, dtype, D) != (80, torch.bfloat16, 128)
        ),
    ],
    ids=str,
)
def test_ragged_sizes_without_lengths_compile_without_spills(sm, dtype, D):
    q, weight = (torch.empty(*shape, dtype=dtype, device="meta") for shape in ((1, 250, 4 * D), (D,)))
    k, v = torch.empty(1, 2, 373, 2, D, dtype=dtype, device="meta").unbind(3)
    with dry_run(sm) as launches:
        cross_attention(q, weight, k, v, backend="triton")
    (launch,) = launches
    found = read_kernel(launch.kernel)
    assert not found.spill_bytes and not found.local and found.shared_bytes <= BLOCK_SHARED_LIMIT[sm]
    assert bool(found.tensor_core) == (dtype != torch.float32)
