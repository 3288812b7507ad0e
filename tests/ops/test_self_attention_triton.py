"""The window kernel of self_attention in the interpreter, against a dense masked softmax in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.self_attention import self_attention
from tests.ops.test_self_attention import GATE, expected, inputs, relative

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.kernels.self_attention import CONFIGS
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.interpreter import check_written, interpreted
from acefast.sim.resources import read_kernel


def packed(B, S, heads, kv_heads, D, dtype, rng):
    """q, k, v as views of one buffer, as the packed projection gives them."""
    qkv = torch.randn(B, S, heads + 2 * kv_heads, D, generator=rng).to(dtype)
    return qkv, *qkv.split((heads, kv_heads, kv_heads), 2)


def run(*args, **options):
    with interpreted():
        got = self_attention(*args, backend="triton", **options)
        check_written("out", got)
    return got


def positions(dtype, D, group):
    """Positions in a tile, as the kernel's table has it."""
    return CONFIGS[f"{'fp32' if dtype == torch.float32 else 'half'}-{D}", 80]["M"] // group


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (2, 1), (8, 2)], ids=str)
def test_equals_dense_softmax_around_a_tile_and_a_window(heads, kv_heads, dtype, rng):
    """Strided rows, a batch of unequal lengths whose padding is NaN."""
    tile = positions(dtype, 16, heads // kv_heads)
    for B, S in ((1, 1), (2, tile - 1), (1, tile), (2, tile + 1), (3, 2 * tile + 5)):
        lengths = torch.tensor([S, (S + 1) // 2, 1][:B])
        qkv, q, k, v = packed(B, S, heads, kv_heads, 16, dtype, rng)
        want = expected(q, k, v, 16, lengths)
        for b, n in enumerate(lengths):
            qkv[b, n:] = torch.nan
        got = run(q, k, v, 16, lengths)
        for b, n in enumerate(lengths):
            assert relative(got[b, :n], want[b, :n]) <= GATE[dtype], (S, b)
            assert not got[b, n:].any()


@pytest.mark.parametrize("window", (0, 1, 31, 32, 33, 100, 300))
def test_any_window_equals_its_mask(window, rng):
    q, k, v = inputs(1, 110, 2, 1, 16, torch.bfloat16, rng)
    assert relative(run(q, k, v, window), expected(q, k, v, window)) <= GATE[torch.bfloat16]


@pytest.mark.parametrize("D", (32, 64, 128))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_real_windows_on_ragged_rows(dtype, D, rng):
    """Tiles with blocks that need no comparison, keys cut off on both sides and by the length."""
    q, k, v = inputs(1, 300, 2, 1, D, dtype, rng)
    lengths = torch.tensor([277], dtype=torch.int32)
    got, want = run(q, k, v, 128, lengths), expected(q, k, v, 128, lengths)
    assert relative(got[:, :277], want[:, :277]) <= GATE[dtype]
    assert not got[:, 277:].any()


def test_window_reaches_128_rows_to_both_sides(rng):
    """Values that name their key, a hundred keys at a time: the output's channels are the keys seen."""
    q, k = torch.zeros(1, 300, 1, 128), torch.zeros(1, 300, 1, 128)
    seen = []
    for first in (0, 100, 200):
        v = torch.zeros(1, 300, 1, 128)
        v[0, first : first + 100, 0, :100] = torch.eye(100)
        seen.append(run(q.half(), k.half(), v.half(), 128)[0, :, :100] != 0)
    i = torch.arange(300)
    assert torch.equal(torch.cat(seen, 1), (i[:, None] - i).abs() <= 128)


def test_scores_of_any_size_neither_overflow_nor_let_hidden_keys_in(rng):
    """Rows whose visible scores are all far below zero, beside hidden keys; and rows of huge ones."""
    q, k, v = inputs(1, 100, 2, 1, 16, torch.float32, rng)
    for factor in (-3000.0, 3000.0):
        big = k.abs() * factor
        assert relative(run(q.abs(), big, v, 16), expected(q.abs(), big, v, 16)) <= 1e-4  # scores of 1e4 in fp32


def test_an_item_without_any_row_is_zero(rng):
    q, k, v = inputs(2, 40, 2, 1, 16, torch.float32, rng)
    got = run(q, k, v, 16, torch.tensor([0, 40]))
    assert not got[0].any() and relative(got[1], expected(q, k, v, 16)[1]) <= GATE[torch.float32]


def test_out_is_written_within_its_rows(rng):
    q, k, v = inputs(2, 70, 2, 1, 16, torch.bfloat16, rng)
    memory = torch.full((2, 74, 48), torch.nan).bfloat16()
    out = memory[:, 2:-2, 8:-8]
    with interpreted():
        assert self_attention(q, k, v, 16, out=out, backend="triton") is out
    assert relative(out, expected(q, k, v, 16)) <= GATE[torch.bfloat16]
    out.fill_(torch.nan)
    assert memory.isnan().all()


def test_what_the_kernel_does_not_take_is_refused_by_name(rng):
    q, k, v = inputs(1, 20, 6, 2, 16, torch.float32, rng)
    two = [t[:, :, : 2 * n] for t, n in ((q, 2), (k, 1), (v, 1))]
    with interpreted():
        for arguments, options in (
            ((q, k, v, 16), {}),  # three queries to a key
            ((*two, None), {}),
            ((*two, 16), {"pad_rows": True}),
            ((*(t[..., :8] for t in two), 16), {}),
            ((*(t.expand(2, -1, -1, -1) for t in two), 16), {"lengths": torch.tensor([9]).expand(2)}),
        ):
            with pytest.raises(BackendUnavailable, match="self_attention: backend='triton' cannot run: it has no"):
                self_attention(*arguments, **options, backend="triton")


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
def test_ragged_rows_without_lengths_compile_without_spills(sm, dtype, D):
    q, k, v = (torch.empty(1, 250, n, D, dtype=dtype, device="meta") for n in (4, 2, 2))
    with dry_run(sm) as launches:
        self_attention(q, k, v, 128, backend="triton")
    (launch,) = launches
    found = read_kernel(launch.kernel)
    assert not found.spill_bytes and not found.local and found.shared_bytes <= BLOCK_SHARED_LIMIT[sm]
    assert bool(found.tensor_core) == (dtype != torch.float32)
