"""Triton kernel of acefast.ops.paired_rope (K02 of ACE-Step v1).

Math    y[2i] = x[2i] cos[2i] - x[2i+1] sin[2i];  y[2i+1] = x[2i+1] cos[2i+1] + x[2i] sin[2i+1], per head
Tiling  one program per ROWS rows of HEADS heads; a head as its two halves, which share their angles. A thread has 4
        neighbouring channels, two pairs, of every head and half, so that its angles are read once for all of them and
        nothing goes through shared memory
Bytes   2 R H D itemsize: x in, y out; angles, 4 S D bytes for every group of heads, come from L2 after the first time
Bound   memory, or latency below about 200 s of song
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.ops.paired_rope import paired_rope_reference, paired_rope_table

CONFIGS = {
    ("d128", 80): Config({"ROWS": 16}, num_warps=4),  # heads of 128 or more
    ("d64", 80): Config({"ROWS": 32}, num_warps=4),
    ("narrow", 80): Config({"ROWS": 32}, num_warps=1),  # tiny models
}
MOST_HEADS = 4  # of a program: more read angles less often, and leave too few programs for a short song


@triton.jit
def mix(x, cos, sin):
    """fp32 [2, R, C], C columns of both halves of a head, and their angles [1, R, C]: the mixed columns, [2, R, C]."""
    R: tl.constexpr = x.shape[1]
    C: tl.constexpr = x.shape[2]
    partner = tl.flip(x.reshape(2, R, C // 2, 2), 3).reshape(2, R, C)
    sin = tl.where((tl.arange(0, C) % 2 == 0)[None, None, :], -sin, sin)
    return x * cos + partner * sin


@triton.jit(do_not_specialize=["S"])
def _paired_rope(
    x_ptr, table_ptr, out_ptr, S, x_batch, x_row, x_head, out_batch, out_row, out_head,
    D: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    batch, first = tl.program_id(2).to(tl.int64), tl.program_id(1) * HEADS
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[None, :, None].to(tl.int64)
    half = tl.max_contiguous(tl.arange(0, HALF), min(HALF, 4))[None, None, :]
    both, live = tl.arange(0, 2)[:, None, None] * HALF + half, rows < S
    cos = tl.load(table_ptr + rows * (2 * D) + half, mask=live, other=0.0)  # [1, ROWS, HALF]
    sin = tl.load(table_ptr + rows * (2 * D) + (D + half), mask=live, other=0.0)
    for head in tl.static_range(HEADS):
        x = x_ptr + batch * x_batch + rows * x_row + (first + head) * x_head + both
        y = mix(tl.load(x, mask=live, other=0.0).to(tl.float32), cos, sin)
        out = out_ptr + batch * out_batch + rows * out_row + (first + head) * out_head + both
        tl.store(out, y.to(out_ptr.dtype.element_ty), mask=live)


def paired_rope(x: Tensor, table: Tensor, *, out: Tensor) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    B, S, H, D = x.shape
    heads = min(H & -H, MOST_HEADS)  # a power of two that divides them
    config = pick(CONFIGS, "d128" if D >= 128 else "d64" if D == 64 else "narrow")
    grid = triton.cdiv(S, config["ROWS"]), H // heads, B
    _paired_rope[grid](x, table, out, S, *x.stride()[:3], *out.stride()[:3], D=D, HEADS=heads, **config.options)
    return out


def first_half(table: Tensor) -> Tensor:
    """A table whose second half of columns is the first, which is all that kernels read: on a GPU cases hold noise."""
    return table[..., : table.shape[-1] // 2].repeat(1, 1, 2)


def _meaning(x: Tensor, table: Tensor, *, out: Tensor) -> tuple[Tensor]:
    return (paired_rope_reference(x.to(torch.promote_types(x.dtype, torch.float32)), first_half(table)),)


def _case(config: str, real: tuple[int, int, int], small: tuple[int, int, int], parts: int) -> Case:
    def arguments(S: int, H: int, D: int, device: torch.device, rng: torch.Generator | None = None) -> Arguments:
        x = torch.randn(2, S, parts, H, D, generator=rng, device=device).bfloat16()[:, :, 0]  # keys of keys and values
        return {"x": x, "table": paired_rope_table(S, D, 1e6, device).clone(), "out": x}

    return Case(
        kernel="paired_rope",
        config=config,
        launch=paired_rope,
        reference=_meaning,
        real=lambda device: arguments(*real, device),
        small=lambda rng: arguments(*small, torch.device("cpu"), rng),
        outputs=("out",),
        flops=lambda a: 3.0 * a["x"].numel(),
        bytes=lambda a: 2 * a["x"].numel() * a["x"].itemsize + a["table"].nbytes / 2,
    )


CASES = (
    _case("queries", (1291, 20, 128), (19, 4, 128), 1),  # 120 s of song, with guidance
    _case("keys", (512, 20, 128), (19, 4, 128), 2),
)
