"""Triton kernels of acefast.ops.linear_attention (K13), in three launches.

Math    k = relu(r(key)); state = mean_j k_j v_j^T, z = mean_j k_j per head; q = relu(r(query));
        out_i = q_i state / (q_i . z + 1e-15 / rows). Means in place of sums, so that fp16 holds them
Tiling  first one program per CHUNK rows of a head, which writes its sums, [D + 1, D] fp32; then one per PIECE of these
        numbers, which adds those of all chunks in their order; then one per M rows of a head. A head is its two halves,
        which share their angles. q and k are rounded to the dtype of the products; means of 16 bits are split in two,
        high and low, so that their fp32 counts
Bytes   4 B S heads D itemsize: q, k, v in, out out; and 8 B heads S / CHUNK (D + 1) D, the sums, out and in. Angles,
        8 B S heads D, and means, 4 D D for each M rows, come from L2
Bound   L2 and memory; below about 60 s of song latency
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.kernels.paired_rope import first_half, mix
from acefast.ops.linear_attention import CHUNK, TINY, linear_attention_reference, scratch_memory
from acefast.ops.paired_rope import mix_pairs, paired_rope_table

_TINY = tl.constexpr(TINY)
_CHUNK = tl.constexpr(CHUNK)


@triton.jit
def _length(lengths_ptr, b, S):
    length = S
    if lengths_ptr is not None:
        length = tl.minimum(tl.load(lengths_ptr + b).to(tl.int32), S)
    return length


@triton.jit(do_not_specialize=["S"])
def _chunk_kernel(
    qkv_ptr, table_ptr, lengths_ptr, parts_ptr, S, qkv_batch, qkv_row: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    chunk, head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads, start, length = tl.num_programs(1), chunk * _CHUNK, _length(lengths_ptr, b, S)
    n, d = tl.arange(0, ROWS), tl.arange(0, D)
    half = tl.max_contiguous(tl.arange(0, HALF), min(HALF, 4))[None, None, :]
    both = tl.arange(0, 2)[:, None, None] * HALF + half
    song = qkv_ptr + b * qkv_batch + (heads + head) * D
    state, z = tl.zeros([D, D], tl.float32), tl.zeros([D], tl.float32)
    for first in tl.range(start, tl.minimum(start + _CHUNK, length), ROWS, num_stages=STAGES):
        j = tl.minimum(first + n, length - 1)  # no masks: the last row stands for what is behind it, as zeros
        k = tl.load(song + (j * qkv_row)[None, :, None] + both)  # [2, ROWS, HALF]
        v = tl.load(song + heads * D + (j * qkv_row)[:, None] + d[None, :])
        angles = table_ptr + (j * (2 * D))[None, :, None] + half
        k = (
            tl.maximum(mix(k.to(tl.float32), tl.load(angles), tl.load(angles + D)), 0.0)
            .permute(1, 0, 2)
            .reshape(ROWS, D)
        )
        k = tl.where((first + n < length)[:, None], k, 0.0).to(v.dtype)
        state = tl.dot(tl.trans(k), v, state, input_precision=PRECISION)
        z += tl.sum(k.to(tl.float32), 0)
    if start < length:
        part = parts_ptr + ((b * heads + head) * tl.num_programs(0) + chunk) * ((D + 1) * D)
        tl.store(part + (d * D)[:, None] + d[None, :], state)
        tl.store(part + D * D + d, z)


@triton.jit(do_not_specialize=["S", "chunks"])
def _mean_kernel(parts_ptr, lengths_ptr, means_ptr, S, chunks, D: tl.constexpr, PIECE: tl.constexpr):
    SIZE: tl.constexpr = (D + 1) * D
    b, length = tl.program_id(2).to(tl.int64), _length(lengths_ptr, tl.program_id(2), S)
    head = b * tl.num_programs(1) + tl.program_id(1)
    numbers = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    mean = tl.zeros([PIECE], tl.float32)
    for chunk in range(tl.cdiv(length, _CHUNK)):
        mean += tl.load(parts_ptr + (head * chunks + chunk) * SIZE + numbers, mask=numbers < SIZE, other=0.0)
    mean /= tl.maximum(length, 1).to(tl.float32)
    high = mean.to(means_ptr.dtype.element_ty)
    means = means_ptr + head * (2 * SIZE) + numbers
    tl.store(means, high, mask=numbers < SIZE)
    tl.store(means + SIZE, (mean - high.to(tl.float32)).to(high.dtype), mask=numbers < SIZE)


@triton.jit(do_not_specialize=["S"])
def _row_kernel(
    qkv_ptr, table_ptr, lengths_ptr, means_ptr, out_ptr, S, qkv_batch, out_batch, out_row, qkv_row: tl.constexpr,
    D: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    SIZE: tl.constexpr = (D + 1) * D
    head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    heads, length = tl.num_programs(1), _length(lengths_ptr, b, S)
    i, d = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
    row = tl.minimum(i, S - 1)  # no masks: rows of padding are replaced at the end
    half = tl.max_contiguous(tl.arange(0, COLUMNS), min(COLUMNS, 4))[None, None, :]
    both = tl.arange(0, 2)[:, None, None] * HALF + half
    q_ptrs = qkv_ptr + b * qkv_batch + head * D + (row * qkv_row)[None, :, None] + both
    angles = table_ptr + (row * (2 * D))[None, :, None] + half
    column = tl.arange(0, 2 * COLUMNS)
    column = column // COLUMNS * HALF + column % COLUMNS
    means = means_ptr + (b * heads + head) * (2 * SIZE)
    state_ptrs, z_ptrs = means + (column * D)[:, None] + d[None, :], means + D * D + column
    sums, weights = tl.zeros([M, D], tl.float32), tl.zeros([M], tl.float32)
    for c in tl.range(0, HALF, COLUMNS, num_stages=STAGES):  # as many columns of either half
        q = tl.load(q_ptrs + c).to(tl.float32)
        high, low = tl.load(state_ptrs + c * D), tl.load(state_ptrs + (c * D + SIZE))  # [2 COLUMNS, D]
        q = tl.maximum(mix(q, tl.load(angles + c), tl.load(angles + (c + D))), 0.0)
        q = q.permute(1, 0, 2).reshape(M, 2 * COLUMNS).to(high.dtype)
        z = tl.load(z_ptrs + c).to(tl.float32) + tl.load(z_ptrs + (c + SIZE)).to(tl.float32)
        weights += tl.sum(q.to(tl.float32) * z[None, :], 1)
        sums = tl.dot(q, high, sums, input_precision=PRECISION)
        sums = tl.dot(q, low, sums, input_precision=PRECISION)
    weights += tl.div_rn(_TINY, tl.maximum(length, 1).to(tl.float32))
    out = tl.where((i < length)[:, None], sums * tl.div_rn(1.0, weights)[:, None], 0.0)
    out_ptrs = out_ptr + b * out_batch + (i * out_row)[:, None] + head * D + d[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(i < S)[:, None])


CONFIGS = {
    ("chunk-half-128", 80): Config({"ROWS": 64, "STAGES": 2}, num_warps=8),
    ("chunk-half-64", 80): Config({"ROWS": 64, "STAGES": 2}, num_warps=4),
    ("chunk-half-64", 100): Config({"ROWS": 64, "STAGES": 2}, num_warps=8),
    ("chunk-half-32", 80): Config({"ROWS": 64, "STAGES": 2}, num_warps=4),
    ("chunk-half-32", 100): Config({"ROWS": 64, "STAGES": 2}, num_warps=8),
    ("chunk-half-16", 80): Config({"ROWS": 64, "STAGES": 2}, num_warps=4),
    ("chunk-fp32-128", 80): Config({"ROWS": 32, "STAGES": 1}, num_warps=8),
    ("chunk-fp32-64", 80): Config({"ROWS": 32, "STAGES": 1}, num_warps=4),
    ("chunk-fp32-32", 80): Config({"ROWS": 32, "STAGES": 1}, num_warps=4),
    ("chunk-fp32-16", 80): Config({"ROWS": 32, "STAGES": 1}, num_warps=4),
    ("mean", 80): Config({"PIECE": 512}, num_warps=4),
    ("rows-half-128", 80): Config({"M": 128, "COLUMNS": 16, "STAGES": 3}, num_warps=8),
    ("rows-half-64", 80): Config({"M": 128, "COLUMNS": 16, "STAGES": 2}, num_warps=4),
    ("rows-half-32", 80): Config({"M": 64, "COLUMNS": 16, "STAGES": 2}, num_warps=4),
    ("rows-half-32", 100): Config({"M": 64, "COLUMNS": 16, "STAGES": 2}, num_warps=8),
    ("rows-half-16", 80): Config({"M": 64, "COLUMNS": 8, "STAGES": 2}, num_warps=4),
    ("rows-fp32-128", 80): Config({"M": 32, "COLUMNS": 16, "STAGES": 1}, num_warps=8),
    ("rows-fp32-64", 80): Config({"M": 32, "COLUMNS": 16, "STAGES": 1}, num_warps=4),
    ("rows-fp32-32", 80): Config({"M": 32, "COLUMNS": 16, "STAGES": 1}, num_warps=4),
    ("rows-fp32-16", 80): Config({"M": 32, "COLUMNS": 8, "STAGES": 1}, num_warps=4),
}


def linear_attention(
    qkv: Tensor,
    table: Tensor,
    heads: int,
    lengths: Tensor | None = None,
    *,
    scratch: tuple[Tensor, Tensor],
    out: Tensor,
) -> Tensor:
    """Launches the kernels; the op has checked the inputs."""
    B, S, width = qkv.shape
    D, (parts, means) = width // (3 * heads), scratch
    chunks = parts.shape[2]
    kind = f"{'fp32' if qkv.dtype == torch.float32 else 'half'}-{D}"
    fixed = {"D": D, "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32"}
    _chunk_kernel[(chunks, heads, B)](
        qkv, table, lengths, parts, S, *qkv.stride()[:2], **fixed, **pick(CONFIGS, f"chunk-{kind}").options
    )
    config = pick(CONFIGS, "mean")
    grid = triton.cdiv((D + 1) * D, config["PIECE"]), heads, B
    _mean_kernel[grid](parts, lengths, means, S, chunks, D=D, **config.options)
    config = pick(CONFIGS, f"rows-{kind}")
    _row_kernel[(triton.cdiv(S, config["M"]), heads, B)](
        *(qkv, table, lengths, means, out, S, qkv.stride(0), *out.stride()[:2], qkv.stride(1)),
        **fixed,
        **config.options,
    )
    return out


def _meaning(table: Tensor, *, scratch: tuple[Tensor, Tensor], out: Tensor, **arguments) -> tuple[Tensor]:
    return (linear_attention_reference(table=first_half(table), **arguments),)


def _upstream(
    qkv: Tensor, table: Tensor, heads: int, lengths: Tensor, *, scratch: tuple[Tensor, Tensor], out: Tensor
) -> tuple[Tensor]:
    """As PyTorch does it in 16 bits: q and k rounded before the products, which are of fp32."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(2)
    mixed = [mix_pairs(t.float(), first_half(table)).to(t.dtype) for t in (q, k)]
    plain = torch.stack((torch.ones_like(table[:, 0]), torch.zeros_like(table[:, 0])), 1)
    return (linear_attention_reference(torch.stack((*mixed, v), 2).flatten(2), plain, heads, lengths),)


def _case(config: str, real: Arguments, small: Arguments) -> Case:
    def arguments(
        heads: int, D: int, S: int, lengths: list[int], device: torch.device, rng: torch.Generator | None = None
    ) -> Arguments:
        qkv = torch.randn(len(lengths), S, 3 * heads * D, generator=rng, device=device).bfloat16()
        if rng is not None:
            for song, length in zip(qkv, lengths):
                song[length:] = torch.nan
        counts = torch.tensor(lengths, dtype=torch.int32, device=device)
        scratch = tuple(t.fill_(torch.nan) for t in scratch_memory(qkv, heads))
        given = {"qkv": qkv, "table": paired_rope_table(S, D, 1e6, device).clone(), "heads": heads, "lengths": counts}
        return given | {"scratch": scratch, "out": qkv.new_empty(len(lengths), S, heads * D)}

    def moved(a: Arguments) -> float:
        return a["qkv"].nbytes + a["out"].nbytes + 2 * a["scratch"][0].nbytes

    return Case(
        kernel="linear_attention",
        config=config,
        launch=linear_attention,
        reference=_meaning,
        plain=_upstream,
        real=lambda device: arguments(**real, device=device),
        small=lambda rng: arguments(**small, device=torch.device("cpu"), rng=rng),
        outputs=("out",),
        flops=lambda a: 6 * a["out"].numel() * (a["out"].shape[-1] // a["heads"]),
        bytes=moved,
        dots=True,
        sector_limit=1.05 if real["D"] == 128 else 1.25,  # half a head of 16 is half a sector
    )


# 120 s with guidance. Small: two chunks, the second one ragged; a song of less than one, beside rows of padding only.
CASES = (
    _case(
        "v1",
        {"heads": 20, "D": 128, "S": 1408, "lengths": [1291, 1291]},
        {"heads": 1, "D": 128, "S": 336, "lengths": [331, 70]},
    ),
    _case(
        "tiny",
        {"heads": 2, "D": 16, "S": 128, "lengths": [107]},
        {"heads": 2, "D": 16, "S": 336, "lengths": [331, 70]},
    ),
)
