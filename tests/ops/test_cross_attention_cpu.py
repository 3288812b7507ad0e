"""cross_attention on the CPU's kernel, at every level of instructions that is here, against softmax in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acefast.backends import BackendUnavailable
from acefast.cpu import cross_attention as launcher
from acefast.ops.cross_attention import cross_attention
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_cross_attention import GATE, expected, inputs, relative

BF16 = torch.bfloat16
# One of each; both ragged; a real song's conditions; more keys than a step has.
SIZES = [(1, 1, 1), (2, 65, 63), (1, 100, 501), (2, 13, 545)]
HEADS = [(2, 2, 64), (4, 2, 128), (4, 1, 128), (5, 1, 32)]  # no groups; the 2B models'; XL's; a narrow odd group

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


def library(q, weight, k, v):
    """PyTorch's norm and attention in bf16."""
    D, group = k.shape[-1], q.shape[-1] // (k.shape[1] * k.shape[-1])
    u = q.unflatten(-1, (-1, D))
    u = (u if weight is None else F.rms_norm(u, (D,), weight, 1e-6)).transpose(1, 2)
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    return F.scaled_dot_product_attention(u, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("normed", (True, False))
@pytest.mark.parametrize("heads, kv_heads, D", HEADS)
@pytest.mark.parametrize("B, S, E", SIZES)
def test_equals_softmax_in_fp64(isa, B, S, E, heads, kv_heads, D, normed, rng):
    q, weight, k, v = inputs(B, S, E, heads, kv_heads, BF16, rng, D)
    args = q, weight if normed else None, k, v
    want, got = expected(*args), cross_attention(*args, backend="cpu")
    assert got.dtype == BF16 and got.shape == want.shape
    assert relative(got, want) <= min(GATE[BF16], 1.1 * relative(library(*args), want))


@pytest.mark.parametrize("scale", (1e-3, 100.0))
def test_the_norm_takes_any_size_of_query(isa, scale, rng):
    q, *rest = inputs(1, 20, 40, 4, 2, BF16, rng, 64)
    q = q * scale
    assert relative(cross_attention(q, *rest, backend="cpu"), expected(q, *rest)) <= GATE[BF16]


def test_eps_is_added_to_the_mean_square(isa, rng):
    q, *rest = inputs(1, 20, 40, 4, 2, BF16, rng, 64)
    got = cross_attention(q, *rest, eps=1e4, backend="cpu")  # queries of nearly nothing: all keys weigh alike
    even = rest[2].float().mean(2).repeat_interleave(2, 1).view(1, 1, -1)
    assert (got - even).abs().max() <= 0.02


def test_padding_is_seen_by_nobody(isa, rng):
    q, weight, k, v = inputs(4, 20, 40, 4, 2, BF16, rng, 32)
    lengths = torch.tensor([40, 17, 1, 0])
    want = expected(q, weight, k, v, lengths)
    for b, n in enumerate(lengths):
        k[b, :, n:] = v[b, :, n:] = float("nan")
    for dtype in (torch.int32, torch.int64):
        got = cross_attention(q, weight, k, v, lengths.to(dtype), backend="cpu")
        assert relative(got[:3], want[:3]) <= GATE[BF16] and not got[3].any()


@pytest.mark.parametrize("lengths", (None, torch.tensor([17])), ids=["whole", "padded"])
def test_one_set_of_keys_serves_all_rows(isa, lengths, rng):
    q, weight, k, v = inputs(3, 20, 40, 4, 2, BF16, rng, 64)
    got = cross_attention(q, weight, k[:1], v[:1], lengths, backend="cpu")
    copied = [t[:1].expand(3, -1, -1, -1).contiguous() for t in (k, v)]
    want = cross_attention(q, weight, *copied, None if lengths is None else lengths.expand(3), backend="cpu")
    assert torch.equal(got, want)


def test_views_give_the_same_and_nothing_else_is_touched(isa, rng):
    q, weight, k, v = inputs(2, 21, 40, 4, 2, BF16, rng, 64)
    want = cross_attention(q, weight, k, v, backend="cpu")
    both = torch.stack((k, v), 3)  # [B, kv_heads, E, 2, D]
    wide = torch.full((2, 23, 4 * 64 + 24), torch.nan).to(BF16)
    own = wide[:, 1:-1, 8:-16].copy_(q)
    memory = torch.full((4, 24, 4 * 64 + 24), torch.nan).to(BF16)
    out = memory[1:3, 1:-2, 8:-16]
    assert cross_attention(own, weight, *both.unbind(3), out=out, backend="cpu") is out and torch.equal(out, want)
    apart = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k, v))  # as the projection leaves them
    assert torch.equal(cross_attention(q, weight, *apart, backend="cpu"), want)
    out.fill_(torch.nan)
    assert memory.isnan().all()


def test_is_the_same_on_any_number_of_threads(monkeypatch, rng):
    args = inputs(2, 100, 545, 4, 2, BF16, rng, 64)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(launcher, "threads", lambda threads=threads: threads)
        found.append(cross_attention(*args, backend="cpu"))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("D, dtype, weight", [(32, torch.float32, None), (48, BF16, None), (32, BF16, torch.float32)])
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(D, dtype, weight, rng):
    q, q_weight, k, v = inputs(1, 5, 7, 2, 1, dtype, rng, D)
    args = q, q_weight.to(weight or dtype), k, v
    with pytest.raises(BackendUnavailable, match="cross_attention: backend='cpu' cannot run: it has no cpu kernel"):
        cross_attention(*args, backend="cpu")
    assert torch.equal(cross_attention(*args), cross_attention(*args, backend="reference"))
