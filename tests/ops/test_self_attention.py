"""self_attention against a dense masked softmax in fp64; its Triton kernel is in test_self_attention_triton.py."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import acefast.ops.self_attention as op
from acefast.backends import use_backend
from acefast.ops.self_attention import band, self_attention
from acefast.sim.graph import check_step

GATE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}  # relative L2
ROWS = [1, 2, 63, 64, 65, 128, 129, 130, 257, 258, 300, 385]  # around a block, a window and a band
HEADS = [(2, 2), (4, 2), (8, 2)]  # no groups; the 2B models' ratio; XL's


def inputs(B, S, heads, kv_heads, D, dtype, rng):
    return [torch.randn(B, S, n, D, generator=rng).to(dtype) for n in (heads, kv_heads, kv_heads)]


def visible(S, window, causal=False):
    i = torch.arange(S)
    seen = (i[:, None] - i).abs() <= (S if window is None else window)
    return seen & (i <= i[:, None]) if causal else seen


def expected(q, k, v, window=None, lengths=None, causal=False):
    group = q.shape[2] // k.shape[2]
    q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    seen = visible(q.shape[2], window, causal).expand(len(q), 1, -1, -1)
    if lengths is not None:
        seen = seen & (torch.arange(q.shape[2]) < lengths[:, None])[:, None, None]
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~seen, -1e300)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("heads, kv_heads", HEADS)
@pytest.mark.parametrize("window", (None, 128))
def test_equals_dense_softmax_in_fp64(heads, kv_heads, window, dtype, rng):
    for S in ROWS:
        q, k, v = inputs(2, S, heads, kv_heads, 16, dtype, rng)
        got = self_attention(q, k, v, window)
        assert got.dtype == dtype and relative(got, expected(q, k, v, window)) <= GATE[dtype], S


@pytest.mark.parametrize("window", (0, 1, 5, 127, 300))
def test_any_window_equals_its_mask(window, rng):
    q, k, v = inputs(1, 290, 4, 2, 16, torch.float32, rng)
    assert relative(self_attention(q, k, v, window), expected(q, k, v, window)) <= GATE[torch.float32]


@pytest.mark.parametrize("window", (None, 0, 5, 128, 400))
def test_no_row_sees_ahead_where_it_is_causal(window, rng):
    for S in ROWS:
        q, k, v = inputs(2, S, 4, 2, 16, torch.float32, rng)
        want = expected(q, k, v, window, causal=True)
        assert relative(self_attention(q, k, v, window, causal=True), want) <= GATE[torch.float32], S


@pytest.mark.parametrize("window", (None, 128))
def test_padding_is_left_out_where_it_is_causal_too(window, rng):
    lengths = torch.tensor([310, 200, 1])
    q, k, v = inputs(3, 310, 4, 2, 16, torch.float32, rng)
    want = expected(q, k, v, window, lengths, causal=True)
    padded = self_attention(q, k, v, window, lengths, causal=True, pad_rows=True)
    assert relative(padded, want) <= GATE[torch.float32]
    for b, n in enumerate(lengths):
        want[b, n:] = 0
    assert relative(self_attention(q, k, v, window, lengths, causal=True), want) <= GATE[torch.float32]


@pytest.mark.parametrize("row, first, last", [(0, 0, 128), (150, 22, 278), (299, 171, 299)])
def test_window_reaches_128_rows_to_both_sides(row, first, last):
    """Values that name their key, as many channels as keys: the output's channels are the keys seen."""
    q, k, v = torch.zeros(1, 300, 2, 300), torch.zeros(1, 300, 1, 300), torch.eye(300)[None, :, None]
    seen = self_attention(q, k, v, 128)[0, row, :300].nonzero()[:, 0].tolist()
    assert seen == list(range(first, last + 1))


@pytest.mark.parametrize("window", (None, 128))
def test_padding_is_seen_by_nobody_and_comes_back_as_zeros(window, rng):
    S, lengths = 310, torch.tensor([310, 200, 129, 1])
    q, k, v = inputs(4, S, 4, 2, 16, torch.float32, rng)
    want = expected(q, k, v, window, lengths)
    for t in (q, k, v):
        for b, n in enumerate(lengths):
            t[b, n:] = float("nan")
    got = self_attention(q, k, v, window, lengths)
    for b, n in enumerate(lengths):
        assert relative(got[b, :n], want[b, :n]) <= GATE[torch.float32]
        assert not got[b, n:].any()


@pytest.mark.parametrize("window", (None, 128))
def test_padded_rows_follow_a_dense_mask_where_asked(window, rng):
    S, lengths = 310, torch.tensor([310, 200, 1])
    q, k, v = inputs(3, S, 4, 2, 16, torch.float32, rng)
    got = self_attention(q, k, v, window, lengths, pad_rows=True)
    assert relative(got, expected(q, k, v, window, lengths)) <= GATE[torch.float32]


def test_mask_counts_257_keys_in_the_middle():
    assert band(128, 384, 128, 128, 128, 1, torch.float32, torch.device("cpu")).eq(0).sum(1).tolist() == [257] * 128


@pytest.mark.parametrize("window", (None, 128))
def test_out_is_written_and_returned(window, rng):
    q, k, v = inputs(2, 140, 4, 2, 16, torch.float32, rng)
    out = torch.full((2, 140, 80), torch.nan)[..., 8:-8]
    assert self_attention(q, k, v, window, torch.tensor([140, 9]), out=out) is out
    assert torch.equal(out, self_attention(q, k, v, window, torch.tensor([140, 9], dtype=torch.int32)))


def flash(out, q, k, v, q_starts, k_starts, q_most, k_most, dropout, causal, mask, *, seqused_k):
    """What aten._flash_attention_forward_no_dropout_inplace does, for a batch whose rows lie one after the other."""
    assert (dropout, causal, mask) == (0.0, False, False) and q_most == k_most == int(q_starts.diff().max())
    for b, (start, stop) in enumerate(q_starts.unfold(0, 2, 1)):
        last = int(k_starts[b] + (k_starts.diff()[b] if seqused_k is None else seqused_k[b]))
        item = (t[None].float() for t in (q[start:stop], k[k_starts[b] : last], v[k_starts[b] : last]))
        out[start:stop] = expected_over_all(*item)


def expected_over_all(q, k, v):
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)[0]


@pytest.mark.parametrize("lengths", (None, [70, 33, 1]), ids=str)
def test_flash_attention_is_given_lengths_and_no_mask(lengths, rng, monkeypatch):
    """PyTorch's FlashAttention runs on a GPU only; a model of it stands in."""
    monkeypatch.setattr(op, "FLASH_IN_PLACE", flash)
    qkv = torch.randn(3, 70, 8 * 16, generator=rng).bfloat16()
    q, k, v = qkv.unflatten(-1, (8, 16)).split((4, 2, 2), 2)
    lengths = None if lengths is None else torch.tensor(lengths)
    want = expected(q, k, v, None, lengths)
    if lengths is not None:
        for b, n in enumerate(lengths):
            qkv[b, n:] = torch.nan
    got = op.library_attention(q, k, v, lengths, torch.empty(3, 70, 64).bfloat16())
    for b, n in enumerate([70] * 3 if lengths is None else lengths):
        assert relative(got[b, :n], want[b, :n]) <= GATE[torch.bfloat16]
    assert relative(op.library_attention(q, k, v, None, None)[0], expected(q, k, v)[0]) <= GATE[torch.bfloat16]


@pytest.mark.parametrize("lengths", (None, torch.empty(2, dtype=torch.int32, device="meta")), ids=["all", "lengths"])
def test_attention_to_everything_is_one_launch_that_a_graph_can_hold(lengths):
    qkv = torch.empty(2, 256, 8 * 128, dtype=torch.bfloat16, device="meta")
    q, k, v = qkv.unflatten(-1, (8, 128)).split((4, 2, 2), 2)
    out = torch.empty(2, 256, 512, dtype=torch.bfloat16, device="meta")
    step = functools.partial(self_attention, q, k, v, None, lengths, out=out)
    report = check_step(step, static=(qkv, out, lengths))
    # The library makes memory for its row sums, which a graph's own pool holds, and could draw numbers for dropout.
    report.require(allow=("allocation", "random"))
    assert report.launches.total() == 1 and "flash" in str(report.launches)
    assert report.allocated_bytes == 4 * 2 * 256 * 4


def test_attention_to_everything_without_lengths_passes_no_mask(monkeypatch):
    """With a mask and grouped heads PyTorch would fall back to fp32 scores in memory."""
    q, k, v = (torch.empty(1, 256, n, 128, dtype=torch.bfloat16, device="meta") for n in (4, 2, 2))
    given = {}
    library = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **o: given.update(o) or library(*a, **o))
    assert self_attention(q, k, v).shape == (1, 256, 512)
    assert given == {"enable_gqa": True}


def test_a_reference_that_is_named_anywhere_leaves_the_library_alone(monkeypatch):
    q, k, v = (torch.empty(1, 256, n, 128, dtype=torch.bfloat16, device="meta") for n in (4, 2, 2))
    used = []
    monkeypatch.setattr(op, "library_attention", lambda q, *_: used.append(q) or q.flatten(2))
    self_attention(q, k, v, backend="reference")
    with use_backend("reference"):
        self_attention(q, k, v)
    with monkeypatch.context() as patch:
        patch.setenv("ACEFAST_BACKEND", "reference")
        self_attention(q, k, v)
    assert not used
    self_attention(q, k, v, causal=True)  # the reference alone knows it there
    assert not used
    self_attention(q, k, v)
    assert used


@pytest.mark.parametrize(
    ("device", "capability", "fits"),
    [("meta", None, True), ("cuda:0", (8, 0), True), ("cuda:0", (7, 5), False), ("mps", None, False)],
)
def test_the_library_is_called_where_it_has_flash_attention(device, capability, fits, monkeypatch):
    monkeypatch.setattr(op, "_has_flash", op._has_flash.__wrapped__)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    q = SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16, shape=(1, 256, 4, 128))
    assert op.library_fits(q, None) == fits


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    q, k, v = inputs(1, 4, 4, 2, 8, torch.float32, rng)
    with pytest.raises(ValueError, match=r"self_attention: k must be \[B, S, kv_heads, D\] = \[1, 4, any, 8\]"):
        self_attention(q, k[..., :4], v)
    with pytest.raises(ValueError, match="multiple of kv_heads = 2, got 3"):
        self_attention(q[:, :, :3], k, v)
    with pytest.raises(ValueError, match="lengths must be"):
        self_attention(q, k, v, lengths=torch.tensor([4, 4]))
    with pytest.raises(ValueError, match=r"self_attention: out must be \[B, S, heads \* D\] = \[1, 4, 32\]"):
        self_attention(q, k, v, out=torch.empty(1, 4, 4, 8))
    with pytest.raises(ValueError, match=r"self_attention: out must be torch\.float32, got torch\.float64"):
        self_attention(q, k, v, out=torch.empty(1, 4, 32).double())
