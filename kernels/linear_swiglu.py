"""Triton kernel of acefast.ops.linear_swiglu (K05): a GEMM with SwiGLU as its epilogue.

Math    out = silu(x @ gate.T) * (x @ up.T), sums and epilogue in fp32, rounded once
Tiling  one program per BLOCK_M x BLOCK_N outputs, GROUP row tiles at a time so that a weight tile is read from L2.
        Row j of gate and row j of up stand side by side in one operand of 2 * BLOCK_N rows; their sums then are
        neighbours in one accumulator, in one thread, and meet without leaving it. Two accumulators, one product each,
        would give every warp a 32 x 64 tile of both instead of 64 x 64 of one, a quarter more shared-memory reads
Loop    flat over H without a mask: rows beyond the last repeat it and are not stored (RAGGED, another variant)
Flops   4 * R * H * I
Bytes   (R * H + 2 * I * H + R * I) * itemsize
Bound   tensor cores from about 210 rows, below that the weight's bytes
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.kernels.swiglu import silu


def _tile(m: int, n: int, k: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}, warps, stages)


# Most other instructions per tensor-core one in the main loop.
MANY_MIX, FEW_MIX = 1.08, 1.30

# A warp's 64 x 64 tile keeps shared memory below the tensor cores (sm_80: 0.69 of their time for "many", 0.75 for
# "few"). "few" has two blocks on a multiprocessor, and wastes less of its last row tile.
CONFIGS = {
    ("many", 80): _tile(256, 64, 64, 8, 3),  # 96 KB
    ("few", 80): _tile(128, 64, 64, 4, 3),  # 64 KB
    ("few", 86): _tile(128, 64, 32, 4, 4),  # 48 KB: two blocks in 100 KB
    ("few", 89): _tile(128, 64, 32, 4, 4),
    ("few", 120): _tile(128, 64, 32, 4, 4),
    ("narrow", 80): _tile(64, 16, 16, 4, 3),  # test models
}


def shape_class(rows: int, inner: int, outputs: int) -> str:
    """Of a product [rows, inner] x [2 * outputs, inner]."""
    if inner % 64 or outputs % 64:
        return "narrow"
    return "many" if rows > 512 else "few"


@triton.jit(do_not_specialize=["R"])  # or a length that 16 divides would be another kernel
def _linear_swiglu(
    x_ptr,
    weight_ptr,
    out_ptr,
    R,
    x_row,
    weight_row,
    out_row,
    H: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    RAGGED: tl.constexpr,  # whether BLOCK_M does not divide R
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    group = tl.program_id(0) // (GROUP * (I // BLOCK_N))
    within = tl.program_id(0) % (GROUP * (I // BLOCK_N))
    high = tl.minimum(tl.cdiv(R, BLOCK_M) - group * GROUP, GROUP)  # row tiles of this group
    rows = (group * GROUP + within % high) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = within // high * BLOCK_N
    pair = tl.arange(0, 2 * BLOCK_N)
    weight_rows = first + pair // 2 + pair % 2 * I  # gate 0, up 0, gate 1, up 1, ...
    k = tl.arange(0, BLOCK_K)
    source = tl.minimum(rows, R - 1) if RAGGED else rows
    x_ptrs = x_ptr + source.to(tl.int64)[:, None] * x_row + k[None, :]  # [BLOCK_M, BLOCK_K]
    weight_ptrs = weight_ptr + weight_rows.to(tl.int64)[None, :] * weight_row + k[:, None]  # [BLOCK_K, 2 * BLOCK_N]

    sums = tl.zeros([BLOCK_M, 2 * BLOCK_N], tl.float32)
    for _ in range(0, H, BLOCK_K):
        sums = tl.dot(tl.load(x_ptrs), tl.load(weight_ptrs), sums, input_precision="ieee")
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K

    gate, up = sums.reshape(BLOCK_M, BLOCK_N, 2).split()
    out = (silu(gate) * up).to(out_ptr.dtype.element_ty)
    out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * out_row + (first + tl.arange(0, BLOCK_N))[None, :]
    tl.store(out_ptrs, out, mask=(rows < R)[:, None] if RAGGED else None)


def linear_swiglu(x: Tensor, weight: Tensor, *, out: Tensor) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    H, I = x.shape[-1], out.shape[-1]  # noqa: E741
    source, target = x.view(-1, H), out.view(-1, I)
    R = len(target)
    config = pick(CONFIGS, shape_class(R, H, I))
    tile = config["BLOCK_M"]
    grid = (triton.cdiv(R, tile) * (I // config["BLOCK_N"]),)
    strides = source.stride(0), weight.stride(0), target.stride(0)
    _linear_swiglu[grid](source, weight, target, R, *strides, H=H, I=I, RAGGED=R % tile != 0, **config.options)
    return out


def _reference(x: Tensor, weight: Tensor, *, out: Tensor) -> tuple[Tensor, ...]:
    gate, up = F.linear(x, weight).chunk(2, dim=-1)
    return (F.silu(gate) * up,)


def _case(config: str, real: tuple[int, int, int], small: tuple[int, int, int], loop_mix: float | None = None) -> Case:
    """Sizes as R, H, I."""

    def arguments(R: int, H: int, I: int, **options) -> Arguments:  # noqa: E741
        make = torch.randn if "generator" in options else torch.empty
        x, weight = make(R, H, **options).bfloat16(), (make(2 * I, H, **options) / H**0.5).bfloat16()
        return {"x": x, "weight": weight, "out": x.new_empty(R, I)}

    return Case(
        kernel="linear_swiglu",
        config=config,
        launch=linear_swiglu,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: 2 * a["x"].numel() * len(a["weight"]),
        bytes=lambda a: a["x"].nbytes + a["weight"].nbytes + a["out"].nbytes,
        dots=True,
        sector_limit=1.15,
        loop_mix=loop_mix,
    )


CASES = (
    _case("2b", (1536, 2048, 6144), (768, 192, 128), MANY_MIX),  # 120 s
    _case("xl", (1536, 2560, 9728), (768, 256, 128), MANY_MIX),
    _case("2b-few", (384, 2048, 6144), (256, 192, 128), FEW_MIX),  # 30 s
    _case("2b-ragged", (1500, 2048, 6144), (600, 192, 64), MANY_MIX),
    _case("2b-few-ragged", (375, 2048, 6144), (150, 192, 64), FEW_MIX),
    _case("tiny", (128, 96, 160), (128, 48, 32)),
)
