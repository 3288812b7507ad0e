"""self_attention's CUDA kernel: what is launched, and its PTX in the simulator against a dense softmax in fp64.

tests/csrc/test_self_attention.py proves its synchronisation, tests/kernels its costs, and
tests/gpu/test_cuda_attention_gpu.py all of it on a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast import sim
from acefast.backends import BackendUnavailable, emulated, use_backend
from acefast.cuda import loader, toolkit
from acefast.cuda.self_attention import KERNELS, SHARED
from acefast.cuda.self_attention import self_attention as kernel
from acefast.kernel_config import pick
from acefast.ops.self_attention import self_attention
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from tests.ops.simulated import simulated
from tests.ops.test_self_attention import GATE, expected, inputs, relative

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
D = 128


def run(q, k, v, window, lengths=None, **options):
    """What the kernel makes of it in the simulator, in rows of a wider tensor that is NaN around them."""
    B, S, heads, _ = q.shape
    memory = torch.full((B, S + 2, heads * D + 16), torch.nan, dtype=q.dtype)
    out = memory[:, 1:-1, 8:-8]
    given = {"q": q, "k": k, "v": v, "window": window, "lengths": lengths, "out": out}
    simulated(kernel, given, **options)
    got = out.clone()
    out.fill_(torch.nan)
    assert memory.isnan().all()
    return got


def launched(*args, sm=80, **options):
    """Entry point, grid, threads and shared memory of the one launch that the op makes."""
    launches = []
    with emulated(sm), loader.recorded(lambda *launch: launches.append(launch)):
        self_attention(*args, backend="cuda", **options)
    (one,) = launches
    return one[1:5]


@pytest.mark.parametrize(
    "B, S, heads, kv_heads, dtype",
    [
        (2, 65, 2, 1, torch.bfloat16),  # a tile and one position, and half of that
        (1, 127, 1, 1, torch.float16),
        (3, 32, 8, 2, torch.float16),  # whole tiles; a song of one row
        (1, 17, 8, 1, torch.bfloat16),
        (1, 1, 2, 2, torch.float16),
    ],
    ids=str,
)
def test_equals_dense_softmax_around_a_tile_and_a_window(B, S, heads, kv_heads, dtype, rng):
    """Views of the packed projection, a batch of unequal lengths whose padding is NaN."""
    lengths = torch.tensor([S, (S + 1) // 2, 1][:B])
    qkv = torch.randn(B, S, heads + 2 * kv_heads, D, generator=rng).to(dtype)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), 2)
    want = expected(q, k, v, 16, lengths)
    for b, n in enumerate(lengths):
        qkv[b, n:] = torch.nan
    got = run(q, k, v, 16, lengths)
    for b, n in enumerate(lengths):
        assert relative(got[b, :n], want[b, :n]) <= GATE[dtype]
        assert not got[b, n:].any()


@pytest.mark.parametrize("window", (0, 15, 16, 33, 300))
def test_any_window_equals_its_mask(window, rng):
    q, k, v = inputs(1, 70, 2, 1, D, torch.bfloat16, rng)
    assert relative(run(q, k, v, window), expected(q, k, v, window)) <= GATE[torch.bfloat16]


def test_every_key_seen_is_seen_and_no_other():
    """Values that name their key: the output's channels are the keys seen, 30 to both sides."""
    q, k, v = torch.zeros(1, 100, 1, D), torch.zeros(1, 100, 1, D), torch.zeros(1, 100, 1, D)
    v[0, :, 0, :100] = torch.eye(100)
    i = torch.arange(100)
    assert torch.equal(run(q.half(), k.half(), v.half(), 30)[0, :, :100] != 0, (i[:, None] - i).abs() <= 30)


@pytest.mark.parametrize("factor", (-300.0, 300.0, 1.0))
def test_scores_of_any_size_neither_overflow_nor_let_hidden_keys_in(factor, rng):
    """Rows whose visible scores are all far below zero, beside hidden keys; huge ones; ones that grow key by key."""
    q, k, v = inputs(1, 60, 2, 1, D, torch.float16, rng)
    q, k = q.abs(), k.abs() * factor
    if factor == 1:
        k = k * torch.arange(60)[:, None, None].half() / 8
    assert relative(run(q, k, v, 16), expected(q, k, v, 16)) <= GATE[torch.float16]


def test_lengths_may_be_of_32_bits_zero_or_beyond_the_rows(rng):
    q, k, v = inputs(3, 20, 2, 1, D, torch.float16, rng)
    got = run(q, k, v, 16, torch.tensor([0, 20, 99], dtype=torch.int32))
    assert not got[0].any() and relative(got[1:], expected(q, k, v, 16)[1:]) <= GATE[torch.float16]
    assert torch.equal(run(q, k, v, 16, torch.tensor([[0, -1], [20, -1], [99, -1]])[:, 0]), got)


def test_a_missing_barrier_is_a_race(rng):
    q, k, v = inputs(1, 64, 2, 1, D, torch.float16, rng)
    with pytest.raises(sim.Finding, match="race"):
        run(q, k, v, 64, change=lambda ptx: ptx.replace("bar.sync", "// bar.sync"))


@pytest.mark.parametrize("sm", BLOCK_SHARED_LIMIT)
def test_the_op_launches_one_tile_per_128_rows_of_a_key_head(sm):
    q, k, v = (torch.empty(3, 250, n, D, dtype=torch.bfloat16, device="meta") for n in (32, 8, 8))
    assert launched(q, k, v, 128, sm=sm) == ("self_attention_bf16", (8, 8, 3), 128, SHARED)


@pytest.mark.parametrize("sm", (80, 86, 89, 90, 100, 120))
def test_two_blocks_share_a_multiprocessor(sm):
    assert 2 * (pick(KERNELS, "half-128", sm).shared + 1024) <= BLOCK_SHARED_LIMIT[sm] + 1024


def test_what_the_kernel_does_not_take_is_refused_by_name(rng):
    q, k, v = inputs(1, 20, 4, 2, D, torch.bfloat16, rng)
    shifted = torch.empty(1, 20, 4 * D + 1).bfloat16()[..., 1:]
    with loader.recorded(lambda *launch: None):
        for arguments, options in (
            ((q.float(), k.float(), v.float(), 16), {}),
            ((q, k, v, None), {}),
            ((q, k, v, 16), {"pad_rows": True}),
            ((q, k, v, 16), {"out": shifted}),
            ((*(t[..., :64].contiguous() for t in (q, k, v)), 16), {}),
            ((q, k.transpose(1, 2).contiguous().transpose(1, 2), v, 16), {}),
        ):
            with pytest.raises(BackendUnavailable, match="self_attention: backend='cuda' cannot run: it has no cuda"):
                self_attention(*arguments, **options, backend="cuda")
    with dry_run(80) as launches, use_backend("triton"):
        self_attention(q, k, v, 16, out=shifted)
    assert [one.name for one in launches] == ["_window_kernel"]


def test_compiled_it_is_one_call(rng):
    q, k, v = inputs(1, 20, 4, 2, 16, torch.float32, rng)
    lengths = torch.tensor([17])
    compiled = torch.compile(lambda *given: self_attention(*given) + 0, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v, 5, lengths), self_attention(q, k, v, 5, lengths))
    torch.library.opcheck(torch.ops.acefast.self_attention.default, (q, k, v, 5, lengths))
