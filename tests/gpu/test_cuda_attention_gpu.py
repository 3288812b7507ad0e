"""csrc/self_attention.cu and cross_attention.cu on a GPU: songs of the models' heads, beside softmax in fp64 and beside
Triton's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.backends import why_unavailable
from acefast.cases import all_cases
from acefast.cuda import loader
from acefast.ops.cross_attention import cross_attention
from acefast.ops.self_attention import self_attention
from acefast.sim.driver import BLOCK_SHARED_LIMIT
from acefast.sim.kernel_times import time_case
from tests.ops.test_self_attention import GATE, relative

DEVICE = "cuda"
D = 128
HEADS = {"2b": (16, 8), "xl": (32, 8), "alone": (3, 3), "eight": (8, 1)}
DTYPES = (torch.bfloat16, torch.float16)
MOST = 1.25  # times Triton's error, whatever the rounding of the largest weights costs
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    pytest.mark.skipif(bool(why_unavailable("cuda")), reason=f"no CUDA kernels: {why_unavailable('cuda')}"),
]


def random(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def softmax(q, k, v, hidden):
    """[B, heads, S, D] of queries on [B, kv_heads, E, D], in fp64 one head at a time, and by how much the error may
    exceed that of a kernel in which a row's largest weight is 1: here it is rounded like the others."""
    group = q.shape[1] // k.shape[1]
    found, squares = torch.empty(q.shape, dtype=torch.float64, device=q.device), torch.zeros(2, dtype=torch.float64)
    for h in range(q.shape[1]):
        keys, values = (t[:, h // group].double() for t in (k, v))
        scores = (q[:, h].double() @ keys.mT / D**0.5).masked_fill(hidden, -1e300)
        weights = scores.softmax(-1)
        found[:, h] = weights @ values
        squares += torch.stack([weights.square().sum(), weights.amax(-1).square().sum()]).cpu()
    return found.transpose(1, 2).flatten(2), min(MOST, float(squares[0] / (squares[0] - squares[1])) ** 0.5)


def packed(model, S, lengths, dtype):
    """q, k, v as views of the packed projection, NaN in its padding, and what they mean."""
    heads, kv_heads = HEADS[model]
    qkv = random(len(lengths), S, heads + 2 * kv_heads, D, dtype=dtype)
    parts = qkv.split((heads, kv_heads, kv_heads), 2)
    i, counts = torch.arange(S, device=DEVICE), torch.tensor(lengths, device=DEVICE)
    hidden = ((i[:, None] - i).abs() > 128) | (i >= counts[:, None, None])
    want, most = softmax(*(t.transpose(1, 2) for t in parts), hidden)
    want[i >= counts[:, None]] = 0
    for song, length in zip(qkv, lengths):
        song[length:] = torch.nan
    return parts, counts, want, most


def cached(model, S, E, lengths, dtype):
    """q, its norm's weight, k and v as views of a cache that is NaN behind each song's conditions, and the result."""
    heads, kv_heads = HEADS[model]
    q, weight = random(len(lengths), S, heads * D, dtype=dtype), random(D, dtype=dtype, seed=1)
    k, v = (cache := random(len(lengths), kv_heads, E, 2, D, dtype=dtype, seed=2)).unbind(3)
    counts = torch.tensor(lengths, device=DEVICE)
    hidden = (torch.arange(E, device=DEVICE) >= counts[:, None])[:, None]
    heads64 = q.double().unflatten(-1, (-1, D))
    u = heads64 * (heads64.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.double()
    want, most = softmax(u.transpose(1, 2), k, v, hidden)
    for song, length in zip(cache, lengths):
        song[:, length:] = torch.nan
    return (q, weight, k, v, counts), want, most


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model, S, lengths", [
    ("2b", 1536, [1500]), ("xl", 1536, [1500]), ("2b", 512, [375, 512, 1, 0]), ("xl", 257, [257, 129]),
    ("alone", 385, [384]), ("eight", 130, [130]),
])  # fmt: skip
def test_a_window_is_softmax_in_fp64_and_as_near_as_tritons(model, S, lengths, dtype):
    (q, k, v), counts, want, most = packed(model, S, lengths, dtype)
    ours, theirs = (self_attention(q, k, v, 128, counts, backend=name) for name in ("cuda", "triton"))
    assert relative(ours, want) <= GATE[dtype]
    for song, length in zip(ours, lengths):
        assert not song[length:].any()
    assert relative(ours, want) <= most * relative(theirs, want)
    assert torch.equal(self_attention(q, k, v, 128, counts.int(), backend="cuda"), ours)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model, S, E, lengths", [
    ("2b", 1500, 512, [501]), ("xl", 1500, 512, [501]), ("2b", 375, 128, [128, 75, 1]), ("alone", 130, 64, [50]),
    ("eight", 17, 33, [33]),
])  # fmt: skip
def test_cross_attention_is_softmax_in_fp64_and_as_near_as_tritons(model, S, E, lengths, dtype):
    given, want, most = cached(model, S, E, lengths, dtype)
    ours, theirs = (cross_attention(*given, backend=name) for name in ("cuda", "triton"))
    assert relative(ours, want) <= GATE[dtype]
    assert relative(ours, want) <= most * relative(theirs, want)
    assert torch.equal(cross_attention(*given, backend="cuda"), ours)


def test_songs_share_keys_and_a_song_does_not_depend_on_its_batch():
    (q, weight, k, v, _), *_ = cached("2b", 200, 96, [96, 96, 96], torch.float16)
    together = cross_attention(q, weight, k[:1], v[:1], backend="cuda")
    for song, alone in zip(together, q):
        assert torch.equal(cross_attention(alone[None], weight, k[:1], v[:1], backend="cuda")[0], song)


def test_a_graph_reads_lengths_where_they_are():
    (q, k, v), counts, *_ = packed("2b", 512, [512], torch.float16)
    out = torch.empty(1, 512, 16 * D, dtype=torch.float16, device=DEVICE)
    self_attention(q, k, v, 128, counts, out=out, backend="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        self_attention(q, k, v, 128, counts, out=out, backend="cuda")
    for length in (512, 300):
        counts.fill_(length)
        graph.replay()
        got = out.clone()
        assert torch.equal(got, self_attention(q, k, v, 128, counts, backend="cuda")) and not got[0, length:].any()


def test_compiled_they_are_one_call_each():
    (q, k, v), counts, *_ = packed("2b", 130, [130], torch.bfloat16)
    compiled = torch.compile(
        lambda *given: self_attention(*given, backend="cuda") + 0, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(q, k, v, 128, counts), self_attention(q, k, v, 128, counts, backend="cuda"))


@pytest.mark.skipif(
    torch.cuda.is_available() and loader.current_sm() not in BLOCK_SHARED_LIMIT, reason="an unknown GPU"
)
def test_a_case_is_timed_beside_tritons(capsys):
    """And prints microseconds of both."""
    kernels = ("self_attention", "cross_attention")
    ours = {case.name: case for case in all_cases("cuda") if case.kernel in kernels}
    theirs = {case.name: case for case in all_cases() if case.name in ours}
    for name, case in ours.items():
        with torch.inference_mode():
            times = {
                who: time_case(each, torch.device(DEVICE), loader.current_sm())["measured_us"]
                for who, each in (("CUDA", case), ("Triton", theirs[name]))
            }
        with capsys.disabled():
            print(f"\n{name}:", ", ".join(f"{who} {us:.1f} us" for who, us in times.items()))
        assert min(times.values()) > 0
