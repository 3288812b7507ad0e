"""self_attention on the CPU's kernel, at every level of instructions that is here, against a dense softmax in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acefast.backends import BackendUnavailable
from acefast.cpu import self_attention as launcher
from acefast.ops.self_attention import self_attention, self_attention_reference
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_self_attention import GATE, expected, inputs, relative, visible

BF16 = torch.bfloat16
# One row; a part of a block of keys; a part and the first of the next; two steps of keys, the second a part.
ROWS = [1, 13, 33, 545]
# No groups; the 2B models' ratio and width; XL's; a group whose queries fill no tile, in a narrow head.
HEADS = [(2, 2, 64), (4, 2, 128), (4, 1, 128), (5, 1, 32), (3, 1, 96)]
WINDOWS = [None, 0, 5, 128]

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


def packed(B, S, heads, kv_heads, D, rng):
    """q, k, v as views of a packed projection."""
    qkv = torch.randn(B, S, heads + 2 * kv_heads, D, generator=rng).to(BF16)
    return qkv.split((heads, kv_heads, kv_heads), 2)


def library(q, k, v, window=None, causal=False):
    """PyTorch's attention in bf16."""
    group, S = q.shape[2] // k.shape[2], q.shape[1]
    k, v = (t.repeat_interleave(group, 2) for t in (k, v))
    seen = visible(S, window, causal)
    found = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=seen)
    return found.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads, kv_heads, D", HEADS)
def test_equals_a_dense_softmax_in_fp64(isa, heads, kv_heads, D, window, rng):
    for S in ROWS:
        q, k, v = packed(2, S, heads, kv_heads, D, rng)
        want = expected(q, k, v, window)
        got = self_attention(q, k, v, window, backend="cpu")
        assert got.dtype == BF16 and got.shape == want.shape
        assert relative(got, want) <= min(GATE[BF16], 1.1 * relative(library(q, k, v, window), want)), S


@pytest.mark.parametrize("window", (None, 5))
@pytest.mark.parametrize("heads, kv_heads, D", HEADS)
def test_no_row_sees_ahead_where_it_is_causal(isa, heads, kv_heads, D, window, rng):
    for S in ROWS:
        q, k, v = packed(2, S, heads, kv_heads, D, rng)
        want = expected(q, k, v, window, causal=True)
        got = self_attention(q, k, v, window, causal=True, backend="cpu")
        assert relative(got, want) <= min(GATE[BF16], 1.1 * relative(library(q, k, v, window, True), want)), S


def test_what_comes_later_changes_no_bit_where_it_is_causal(isa, rng):
    q, k, v = (t.contiguous() for t in packed(1, 130, 4, 2, 64, rng))
    before = self_attention(q, k, v, causal=True, backend="cpu")
    for t in (q, k, v):
        t[:, 77:] = 1e3
    assert torch.equal(self_attention(q, k, v, causal=True, backend="cpu")[:, :77], before[:, :77])


def test_padding_is_left_out_where_it_is_causal_too(isa, rng):
    lengths = torch.tensor([150, 100, 1])
    q, k, v = inputs(3, 150, 4, 2, 32, BF16, rng)
    got = self_attention(q, k, v, None, lengths, causal=True, pad_rows=True, backend="cpu")
    assert relative(got, expected(q, k, v, None, lengths, causal=True)) <= GATE[BF16]


def test_a_song_of_thirty_seconds(isa, rng):
    q, k, v = packed(1, 375, 4, 2, 128, rng)
    for window in (None, 128, 374):
        assert relative(self_attention(q, k, v, window, backend="cpu"), expected(q, k, v, window)) <= GATE[BF16]


@pytest.mark.parametrize("row, first, last", [(0, 0, 5), (50, 45, 55), (66, 61, 71), (127, 122, 127)])
def test_window_reaches_as_far_to_both_sides(isa, row, first, last):
    """Values that name their key, as many channels as keys: the output's channels are the keys seen."""
    q, k, v = (torch.zeros(1, 128, n, 128, dtype=BF16) for n in (2, 1, 1))
    v[0, :, 0] = torch.eye(128)
    seen = self_attention(q, k, v, 5, backend="cpu")[0, row, 128:].nonzero()[:, 0].tolist()
    assert seen == list(range(first, last + 1))


@pytest.mark.parametrize("window", (None, 20))
def test_padding_is_seen_by_nobody_and_comes_back_as_zeros(isa, window, rng):
    S, lengths = 150, [150, 100, 97, 1, 0]
    q, k, v = inputs(5, S, 4, 2, 32, BF16, rng)
    want = expected(q, k, v, window, torch.tensor(lengths))
    for t in (q, k, v):
        for b, n in enumerate(lengths):
            t[b, n:] = float("nan")
    for dtype in (torch.int32, torch.int64):
        got = self_attention(q, k, v, window, torch.tensor(lengths, dtype=dtype), backend="cpu")
        for b, n in enumerate(lengths):
            assert not n or relative(got[b, :n], want[b, :n]) <= GATE[BF16]
            assert not got[b, n:].any()


@pytest.mark.parametrize("window", (None, 20))
def test_padded_rows_follow_a_dense_mask_where_asked(isa, window, rng):
    lengths = torch.tensor([150, 100, 1])
    q, k, v = inputs(3, 150, 4, 2, 32, BF16, rng)
    got = self_attention(q, k, v, window, lengths, pad_rows=True, backend="cpu")
    assert relative(got, expected(q, k, v, window, lengths)) <= GATE[BF16]


def test_large_scores_neither_overflow_nor_lose_the_small_ones(isa, rng):
    """Scores up to 3e5 of either sign; the last keys are the largest, so that all before are scaled to nothing."""
    q, k, v = (t.contiguous() for t in packed(1, 600, 2, 1, 64, rng))
    q *= 100
    k *= torch.linspace(1, 100, 600)[None, :, None, None].to(BF16)
    got, want = self_attention(q, k, v, backend="cpu"), expected(q, k, v)
    assert got.isfinite().all() and relative(got, want) <= GATE[BF16]


def test_a_row_that_is_no_number_stays_one(isa, rng):
    q, k, v = (t.contiguous() for t in packed(1, 70, 4, 2, 64, rng))
    want = self_attention(q, k, v, backend="cpu")
    q[0, 40, 1] = torch.nan
    got = self_attention(q, k, v, backend="cpu").view(1, 70, 4, 64)
    assert got[0, 40, 1].isnan().all()
    got[0, 40, 1] = want.view(1, 70, 4, 64)[0, 40, 1]
    assert torch.equal(got.flatten(2), want)
    k[0, 3, 0, 5] = torch.nan  # which the first two heads see
    nan = self_attention(q, k, v, backend="cpu").view(1, 70, 4, 64).isnan()
    assert nan[:, :, :2].all() and not nan[:, :, 2:].any()


@pytest.mark.parametrize("window", (None, 20))
def test_views_and_copies_give_the_same_and_nothing_else_is_touched(isa, window, rng):
    q, k, v = packed(2, 75, 4, 2, 64, rng)
    before = [t.clone() for t in (q, k, v)]
    want = self_attention(*(t.contiguous() for t in (q, k, v)), window, backend="cpu")
    memory = torch.full((4, 78, 4 * 64 + 24), torch.nan).to(BF16)
    out = memory[1:3, 1:-2, 8:-16]
    assert self_attention(q, k, v, window, out=out, backend="cpu") is out and torch.equal(out, want)
    assert all(map(torch.equal, (q, k, v), before))
    apart = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]  # heads lie outermost
    assert torch.equal(self_attention(*apart, window, backend="cpu"), want)
    out.fill_(torch.nan)
    assert memory.isnan().all()


@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("window", (None, 20, 300))  # the last sees more keys than a step has
def test_is_the_same_on_any_number_of_threads(window, causal, monkeypatch, rng):
    q, k, v = packed(2, 800, 4, 2, 64, rng)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(launcher, "threads", lambda threads=threads: threads)
        found.append(self_attention(q, k, v, window, torch.tensor([800, 700]), causal=causal, backend="cpu"))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_row_does_not_depend_on_the_batch(isa, rng):
    q, k, v = packed(3, 75, 4, 2, 64, rng)
    whole = self_attention(q, k, v, 20, backend="cpu")
    assert torch.equal(self_attention(q[1:2], k[1:2], v[1:2], 20, backend="cpu"), whole[1:2])


def test_auto_takes_the_kernel(monkeypatch, rng):
    q, k, v = packed(1, 20, 2, 1, 32, rng)
    used = []
    monkeypatch.setattr(launcher, "self_attention", lambda *a, out, **_: used.append(a) or out)
    self_attention(q, k, v)
    self_attention(q, k, v, 5, torch.tensor([7]), pad_rows=True)
    self_attention(q, k, v, causal=True)
    assert [a[3] for a in used] == [(19, 19), (5, 5), (19, 0)]


@pytest.mark.parametrize(
    "shape, dtype, turn",
    [
        ((1, 5, 2, 32), torch.float32, False),
        ((1, 5, 2, 48), BF16, False),
        ((1, 5, 2, 160), BF16, False),
        ((1, 5, 32, 32), BF16, True),
    ],
    ids=["fp32", "D 48", "D 160", "channels apart"],
)
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(shape, dtype, turn, rng):
    q, k, v = (torch.randn(shape, generator=rng).to(dtype) for _ in range(3))
    q = q.transpose(2, 3) if turn else q
    with pytest.raises(BackendUnavailable, match="self_attention: backend='cpu' cannot run: it has no cpu kernel"):
        self_attention(q, k, v, backend="cpu")
    assert torch.equal(self_attention(q, k, v), self_attention_reference(q, k, v))
