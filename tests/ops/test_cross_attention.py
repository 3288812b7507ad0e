"""cross_attention against softmax in fp64; its Triton kernel is in test_cross_attention_triton.py."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.cross_attention import cross_attention

GATE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}  # relative L2
SHAPES = [
    (1, 1, 1),
    (2, 65, 63),
    (3, 128, 501),
]  # one of each; both ragged; a block of rows on a real song's conditions
HEADS = [(2, 2), (4, 2), (8, 2)]


def inputs(B, S, E, heads, kv_heads, dtype, rng, D=16):
    q = torch.randn(B, S, heads * D, generator=rng).to(dtype)
    k, v = (torch.randn(B, kv_heads, E, D, generator=rng).to(dtype) for _ in range(2))
    return q, (1 + 0.2 * torch.randn(D, generator=rng)).to(dtype), k, v


def expected(q, weight, k, v, lengths=None):
    B, S, _ = q.shape
    D, E = k.shape[-1], k.shape[2]
    q = q.double().view(B, S, -1, D)
    if weight is not None:
        q = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    q = q.transpose(1, 2)
    k, v = (t.double().repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / D**0.5
    if lengths is not None:
        scores = scores.masked_fill((torch.arange(E) >= lengths[:, None])[:, None, None], -1e300)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, S, -1)


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("normed", (True, False))
@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("heads, kv_heads", HEADS)
@pytest.mark.parametrize("B, S, E", SHAPES)
def test_equals_softmax_in_fp64(B, S, E, heads, kv_heads, dtype, normed, rng):
    q, weight, k, v = inputs(B, S, E, heads, kv_heads, dtype, rng)
    args = q, weight if normed else None, k, v
    got = cross_attention(*args)
    assert got.dtype == dtype and relative(got, expected(*args)) <= GATE[dtype]


def test_padding_is_seen_by_nobody(rng):
    q, weight, k, v = inputs(3, 20, 40, 4, 2, torch.float32, rng)
    lengths = torch.tensor([40, 17, 1])
    want = expected(q, weight, k, v, lengths)
    for b, n in enumerate(lengths):
        k[b, :, n:] = v[b, :, n:] = float("nan")
    assert relative(cross_attention(q, weight, k, v, lengths), want) <= GATE[torch.float32]


@pytest.mark.parametrize("lengths", (None, torch.tensor([17])), ids=["whole", "padded"])
def test_one_set_of_keys_serves_all_rows(lengths, rng):
    q, weight, k, v = inputs(3, 20, 40, 4, 2, torch.float32, rng)
    got = cross_attention(q, weight, k[:1], v[:1], lengths)
    copied = [t[:1].expand(3, -1, -1, -1).contiguous() for t in (k, v)]
    want = cross_attention(q, weight, *copied, None if lengths is None else lengths.expand(3))
    assert torch.equal(got, want)


def test_out_is_written_and_returned(rng):
    args = inputs(2, 20, 40, 4, 2, torch.float32, rng)
    out = torch.full((2, 20, 80), torch.nan)[..., 8:-8]
    assert cross_attention(*args, out=out) is out
    assert torch.equal(out, cross_attention(*args))


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    q, weight, k, v = inputs(3, 4, 5, 4, 2, torch.float32, rng)
    with pytest.raises(ValueError, match="cross_attention: k must have batch B = 3 or 1, got 2"):
        cross_attention(q, weight, k[:2], v[:2])
    with pytest.raises(ValueError, match="cross_attention: v must be"):
        cross_attention(q, weight, k, v[:, :1])
    with pytest.raises(ValueError, match="heads a multiple of 2"):
        cross_attention(q[..., :48], weight, k, v)
    with pytest.raises(ValueError, match=r"cross_attention: out must be \[B, S, heads \* D\] = \[3, 4, 64\]"):
        cross_attention(q, weight, k, v, out=torch.empty(3, 4, 4, 16))
    with pytest.raises(ValueError, match=r"cross_attention: out must be torch\.float32, got torch\.float64"):
        cross_attention(q, weight, k, v, out=torch.empty(3, 4, 64).double())
