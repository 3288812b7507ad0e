"""cross_attention's CUDA kernel: what is launched, and its PTX in the simulator against softmax in fp64.

Its loop is self_attention's, whose synchronisation and registers are proved in test_self_attention_cuda.py and
tests/csrc/test_self_attention.py.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import BackendUnavailable, emulated
from acefast.cuda import loader, toolkit
from acefast.cuda.cross_attention import cross_attention as kernel
from acefast.cuda.self_attention import SHARED
from acefast.ops.cross_attention import cross_attention
from tests.ops.simulated import simulated
from tests.ops.test_cross_attention import GATE, expected, inputs, relative

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
D = 128


def cached(B, S, E, heads, kv_heads, dtype, rng):
    """q in rows of a wider tensor, k and v as views of the cache [B, kv_heads, E, 2, D]."""
    q, weight, *_ = inputs(B, S, 1, heads, kv_heads, dtype, rng, D)
    wide = torch.full((B, S, heads * D + 16), torch.nan, dtype=dtype)
    wide[..., 8:-8] = q
    cache = torch.randn(B, kv_heads, E, 2, D, generator=rng).to(dtype)
    return wide[..., 8:-8], weight, *cache.unbind(3)


def run(q, weight, k, v, lengths=None, eps=1e-6):
    memory = torch.full((len(q), q.shape[1] + 2, q.shape[2] + 16), torch.nan, dtype=q.dtype)
    out = memory[:, 1:-1, 8:-8]
    given = {"q": q, "q_weight": weight, "k": k, "v": v, "lengths": lengths, "eps": eps, "out": out}
    simulated(kernel, given)
    got = out.clone()
    out.fill_(torch.nan)
    assert memory.isnan().all()
    return got


@pytest.mark.parametrize(
    "B, S, E, heads, kv_heads, dtype",
    [
        (1, 1, 1, 1, 1, torch.bfloat16),
        (2, 63, 32, 2, 1, torch.float16),  # a row less than a tile; a whole piece of keys
        (1, 32, 31, 8, 2, torch.bfloat16),
        (1, 65, 33, 2, 1, torch.float16),  # a row, and a key, more
        (1, 16, 100, 8, 1, torch.float16),  # the ring goes around
    ],
    ids=str,
)
def test_equals_softmax_around_a_tile_of_rows_and_a_piece_of_keys(B, S, E, heads, kv_heads, dtype, rng):
    args = cached(B, S, E, heads, kv_heads, dtype, rng)
    assert relative(run(*args), expected(*args)) <= GATE[dtype]


@pytest.mark.parametrize("integers", (torch.int32, torch.int64), ids=str)
def test_padding_is_seen_by_nobody(integers, rng):
    q, weight, k, v = cached(4, 20, 70, 4, 2, torch.bfloat16, rng)
    lengths = torch.tensor([70, 33, 1, 0], dtype=integers)
    want = expected(q, weight, k, v, lengths)
    for b, n in enumerate(lengths):
        k[b, :, n:] = v[b, :, n:] = torch.nan
    got = run(q, weight, k, v, lengths)
    assert relative(got[:3], want[:3]) <= GATE[torch.bfloat16]
    assert not got[3].any()


@pytest.mark.parametrize("lengths", (None, torch.tensor([17])), ids=["whole", "padded"])
def test_one_set_of_keys_serves_all_rows(lengths, rng):
    q, weight, k, v = cached(3, 20, 40, 4, 2, torch.float16, rng)
    copied = [t[:1].expand(3, -1, -1, -1).contiguous() for t in (k, v)]
    want = expected(q, weight, *copied, None if lengths is None else lengths.expand(3))
    assert relative(run(q, weight, k[:1], v[:1], lengths), want) <= GATE[torch.float16]


def test_lengths_may_lie_apart(rng):
    q, weight, k, v = cached(3, 20, 40, 2, 1, torch.float16, rng)
    for lengths in (torch.tensor([[17, 0], [40, 0], [3, 0]])[:, 0], torch.tensor([17]).expand(3)):
        assert relative(run(q, weight, k, v, lengths), expected(q, weight, k, v, lengths)) <= GATE[torch.float16]


def test_the_norm_takes_eps_and_zero_rows(rng):
    q, weight, k, v = cached(1, 20, 40, 2, 1, torch.float16, rng)
    q[:, 3] = 0  # looks at all keys alike
    got = run(q, weight, k, v, eps=0.5)
    heads = q.double().unflatten(-1, (2, D))
    u = heads * (heads.square().mean(-1, keepdim=True) + 0.5).rsqrt() * weight
    want = torch.softmax(u.transpose(1, 2) @ k.double().transpose(-1, -2) / D**0.5, -1) @ v.double()
    assert relative(got, want.transpose(1, 2).flatten(2)) <= GATE[torch.float16]
    torch.testing.assert_close(got[0, 3].float(), v[0, 0].float().mean(0).repeat(2), rtol=1e-3, atol=1e-3)


def test_the_op_launches_one_tile_per_128_rows_of_a_key_head():
    q, weight = (torch.empty(*shape, dtype=torch.float16, device="meta") for shape in ((2, 250, 16 * D), (D,)))
    k, v = torch.empty(1, 8, 512, 2, D, dtype=torch.float16, device="meta").unbind(3)
    launches = []
    with emulated(90), loader.recorded(lambda *launch: launches.append(launch)):
        cross_attention(q, weight, k, v, backend="cuda")
    (one,) = launches
    assert one[1:5] == ("cross_attention_fp16", (4, 8, 2), 128, SHARED)


def test_what_the_kernel_does_not_take_is_refused_by_name(rng):
    q, weight, k, v = inputs(1, 20, 20, 4, 2, torch.bfloat16, rng, D)
    refused = "cross_attention: backend='cuda' cannot run: it has no cuda"
    with loader.recorded(lambda *launch: None):
        for arguments in (
            (q.float(), weight.float(), k.float(), v.float()),
            (q, weight.float(), k, v),
            inputs(1, 20, 20, 6, 2, torch.bfloat16, rng, D),  # three queries to a key
            inputs(1, 20, 20, 4, 2, torch.bfloat16, rng, 64),
            (q, weight, k.transpose(2, 3).contiguous().transpose(2, 3), v),
            (torch.empty(1, 20, 4 * D + 1).bfloat16()[..., 1:], weight, k, v),
        ):
            with pytest.raises(BackendUnavailable, match=refused):
                cross_attention(*arguments, backend="cuda")


def test_compiled_it_is_one_call(rng):
    q, weight, k, v = inputs(2, 20, 30, 4, 2, torch.float32, rng)
    lengths = torch.tensor([30, 11])
    compiled = torch.compile(lambda *given: cross_attention(*given) + 0, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, weight, k, v, lengths), cross_attention(q, weight, k, v, lengths))
    torch.library.opcheck(torch.ops.acefast.cross_attention.default, (q, weight, k, v, lengths))
