"""Proof of the Triton kernels of acefast.ops.linear_attention: interpreted, as PTX, and as compiled for every GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import BackendUnavailable, use_backend
from acefast.kernels.linear_attention import linear_attention as kernel
from acefast.ops.linear_attention import CHUNK, linear_attention, scratch_memory
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.interpreter import check_written, interpreted
from acefast.sim.resources import read_kernel
from tests.ops.simulated import simulated
from tests.ops.test_linear_attention import GATE, expected, inputs, relative, table_of


def run(*args, **options):
    with interpreted():
        got = linear_attention(*args, backend="triton", **options)
        check_written("out", got)
    return got


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_equals_the_quadratic_sum_around_blocks_and_chunks(dtype, rng):
    """Lengths of a chunk, of one row more, of less than a block and of no row; the padding is NaN, or is finite."""
    lengths = torch.tensor([CHUNK + 1, CHUNK, 31, 0], dtype=torch.int32)
    qkv, *rest = inputs(4, CHUNK + 2, 1, 16, dtype, rng)
    for b, n in enumerate(lengths):
        qkv[b, n:] = 7.0 if b == 2 else torch.nan
    got = run(qkv, *rest, lengths)
    want = expected(qkv, *rest, lengths)
    for b, n in enumerate(lengths.tolist()):
        assert n == 0 or relative(got[b, :n], want[b, :n]) <= GATE[dtype]
        assert not got[b, n:].any()


@pytest.mark.parametrize("D, dtype", [(32, torch.bfloat16), (64, torch.bfloat16), *((128, t) for t in GATE)], ids=str)
def test_every_width_of_a_head_on_ragged_rows(D, dtype, rng):
    given = inputs(1, 70, 1, D, dtype, rng)
    assert relative(run(*given), expected(*given)) <= GATE[dtype]


def test_means_of_16_bits_keep_the_accuracy_of_fp32(rng):
    """Keys and queries that 16 bits hold exactly: what is left is one rounding, whatever the state's size."""
    qkv, table, heads = inputs(1, 100, 1, 64, torch.bfloat16, rng)
    qkv[..., :128] = torch.randint(-4, 5, (1, 100, 128), generator=rng).bfloat16()
    still = torch.stack((torch.ones_like(table[:, 0]), torch.zeros_like(table[:, 0])), 1)  # no mixing, no rounding
    got, want = run(qkv, still, heads), linear_attention(qkv.float(), still, heads)
    assert relative(got, want.double()) <= 1.05 * relative(want.bfloat16(), want.double())


def test_fp16_holds_sums_that_are_too_large_for_it(rng):
    qkv, *rest = inputs(1, 200, 1, 16, torch.float16, rng)
    qkv = qkv.abs() * 60  # sums of products are some 1e5
    assert relative(run(qkv, *rest), expected(qkv, *rest)) <= GATE[torch.float16]


def test_a_song_is_the_same_bits_in_any_batch_and_bucket(rng):
    qkv, table, heads = inputs(2, CHUNK + 50, 1, 16, torch.bfloat16, rng)
    lengths = torch.tensor([CHUNK + 3, 17])
    together = run(qkv, table, heads, lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = run(qkv[b : b + 1, :n], table_of(n, 16), heads)
        assert torch.equal(together[b : b + 1, :n], alone)


def test_packed_rows_that_lie_apart_and_memory_that_is_given(rng):
    qkv, *rest = inputs(2, 40, 2, 16, torch.bfloat16, rng)
    want = run(qkv, *rest)
    wide, memory = (torch.full((2, 44, n), torch.nan).bfloat16() for n in (160, 64))
    packed, out = wide[:, 1:41, 32:128], memory[:, :40, 16:48]
    packed.copy_(qkv)
    scratch = tuple(t.fill_(torch.nan) for t in scratch_memory(packed, 2))
    with interpreted():
        assert linear_attention(packed, *rest, scratch=scratch, out=out, backend="triton") is out
    assert torch.equal(out, want)
    out.fill_(torch.nan)
    assert memory.isnan().all()


def test_ptx_gives_the_same_bits_again_and_those_of_a_song_alone(rng):
    def launched(qkv, lengths):
        out = torch.empty(*qkv.shape[:2], 16, dtype=qkv.dtype)
        scratch = tuple(t.fill_(torch.nan) for t in scratch_memory(qkv, 1))
        given = dict(qkv=qkv, table=table_of(qkv.shape[1], 16), heads=1, lengths=lengths, scratch=scratch, out=out)
        simulated(kernel, given, registers=True)
        return out

    qkv, lengths = (
        inputs(2, CHUNK + 16, 1, 16, torch.bfloat16, rng)[0],
        torch.tensor([CHUNK + 1, 90], dtype=torch.int32),
    )
    once = launched(qkv, lengths)
    assert torch.equal(once, launched(qkv, lengths))
    assert torch.equal(once[:1, : CHUNK + 1], launched(qkv[:1, : CHUNK + 1].clone(), lengths[:1]))


def test_a_real_layer_is_three_launches():
    qkv, table = torch.empty(2, 1408, 7680, device="meta").bfloat16(), torch.empty(1408, 2, 128, device="meta")
    with dry_run(80) as launches:
        linear_attention(qkv, table, 20, torch.empty(2, dtype=torch.int32, device="meta"), backend="triton")
    grids = {"_chunk_kernel": (6, 20, 2), "_mean_kernel": (33, 20, 2), "_row_kernel": (11, 20, 2)}
    assert {one.name: one.grid for one in launches} == grids


@pytest.mark.slow
@pytest.mark.parametrize("sm", (80, 90, 100))  # a kind of tensor core each
@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("D", (16, 32, 64, 128))
def test_every_width_compiles_without_spills(D, dtype, sm):
    qkv, table = torch.empty(1, 400, 6 * D, dtype=dtype, device="meta"), torch.empty(400, 2, D, device="meta")
    with dry_run(sm) as launches:
        linear_attention(qkv, table, 2, torch.empty(1, dtype=torch.int32, device="meta"), backend="triton")
    for one in launches:
        assert not read_kernel(one.kernel).spill_bytes and one.shared_bytes <= BLOCK_SHARED_LIMIT[sm]


def test_what_the_kernel_does_not_take_is_refused_by_name_and_left_to_the_reference(rng):
    qkv, table, heads = inputs(2, 20, 1, 24, torch.float32, rng)
    cases = [
        ((qkv, table, heads), {}),  # heads of 24
        ((qkv[..., :48].double(), table_of(20, 16), heads), {}),
        ((qkv.repeat_interleave(2, 2)[..., :96:2], table_of(20, 16), heads), {}),
        ((qkv[..., :48], table_of(20, 16), heads), {"lengths": torch.tensor([9]).expand(2)}),
    ]
    with interpreted():
        for given, options in cases:
            with pytest.raises(BackendUnavailable, match="no triton kernel for this input"):
                linear_attention(*given, **options, backend="triton")
            with use_backend("triton"):
                assert relative(linear_attention(*given, **options), expected(*given, **options)) <= 1e-6
