"""Triton kernel of acefast.ops.depthwise2d (K13, the autoencoder's attention blocks).

Math    y = bias + Σ_ij weight[i, j] * u[h + i - K / 2, w + j - K / 2], u = x or silu(x); and a * silu(g) of y's halves
Tiling  one program per ROWS x COLUMNS of an image and BLOCK channels (with a gate of either half), from the first row
        down: each row is read once for each of its K shifts, the first time from memory, and adds to the sums of K
        rows, of which the oldest is then done. The taps stay in registers
Bytes   B * H * W * (C + channels out) * itemsize
Bound   memory
"""

# ruff: noqa: RUF005 (Triton compiles no starred tuples)
from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.kernels.snake import silu_of

CONFIGS = {
    ("wide", 80): Config({"ROWS": 32, "COLUMNS": 8, "BLOCK": 64}, num_warps=4),  # a multiple of 64 channels out
    ("wide", 90): Config({"ROWS": 32, "COLUMNS": 8, "BLOCK": 64}, num_warps=8),  # with 4 the taps spill
    ("narrow", 80): Config({"ROWS": 32, "COLUMNS": 8, "BLOCK": 16}, num_warps=1),
}


@triton.jit
def _vector(ptr, c):
    return tl.load(ptr + c).to(tl.float32)[None, :]


@triton.jit
def _weights(ptr, c, C: tl.constexpr, K: tl.constexpr):
    """All taps' vectors, which stay in registers."""
    found = ()
    for tap in tl.static_range(K * K):
        found = found + (_vector(ptr + tap * C, c),)
    return found


@triton.jit
def _add_row(sums, x_ptr, weights, row, columns, c, H, W, C: tl.constexpr, K: tl.constexpr, SILU: tl.constexpr):
    """Sums of K rows of the result, the oldest first, with what one row of x adds to each."""
    for j in tl.static_range(K):
        column = columns + (j - K // 2)
        live = (column >= 0) & (column < tl.where((row >= 0) & (row < H), W, 0))
        u = tl.load(x_ptr + column[:, None] * C + c[None, :], mask=live[:, None], other=0.0)
        u = u.to(tl.float32)
        if SILU:
            u = silu_of(u)
        new = ()
        for i in tl.static_range(K):  # the oldest sum has this row as its last
            new = new + (sums[i] + u * weights[(K - 1 - i) * K + j],)
        sums = new
    return sums


@triton.jit
def _started(bias_ptr, c, COLUMNS: tl.constexpr):
    sums = tl.zeros([COLUMNS, c.shape[0]], tl.float32)
    if bias_ptr is not None:
        sums += _vector(bias_ptr, c)
    return sums


@triton.jit
def _next(sums, bias_ptr, c, COLUMNS: tl.constexpr, K: tl.constexpr):
    """The sums without the oldest, which is done, and with that of another row."""
    left = ()
    for i in tl.static_range(1, K):
        left = left + (sums[i],)
    return left + (_started(bias_ptr, c, COLUMNS),)


@triton.jit(do_not_specialize=["H", "W"])
def _depthwise2d(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    H,
    W,
    C: tl.constexpr,
    K: tl.constexpr,
    SILU: tl.constexpr,
    GATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    OUT: tl.constexpr = C // 2 if GATE else C
    across = tl.cdiv(W, COLUMNS)
    start = tl.program_id(0) // across * ROWS - K // 2  # the first row that is read, if there is one
    columns = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = (tl.program_id(2).to(tl.int64) * H + start) * W
    x_ptr += first * C
    out_ptrs = out_ptr + (first + columns - K // 2 * W)[:, None] * OUT + c[None, :]
    weights, sums, gates = _weights(weight_ptr, c, C, K), (), ()
    if GATE:
        gate_weights = _weights(weight_ptr, c + OUT, C, K)
    for _ in tl.static_range(K):
        sums = sums + (_started(bias_ptr, c, COLUMNS),)
        if GATE:
            gates = gates + (_started(bias_ptr, c + OUT, COLUMNS),)
    for i in range(0, ROWS + K - 1):
        row = start + i
        sums = _add_row(sums, x_ptr, weights, row, columns, c, H, W, C, K, SILU)
        y = sums[0]
        sums = _next(sums, bias_ptr, c, COLUMNS, K)
        if GATE:
            gates = _add_row(gates, x_ptr, gate_weights, row, columns, c + OUT, H, W, C, K, SILU)
            y *= silu_of(gates[0])
            gates = _next(gates, bias_ptr, c + OUT, COLUMNS, K)
        mask = (columns < tl.where((i >= K - 1) & (row < H + K // 2), W, 0))[:, None]
        tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=mask)
        x_ptr += W * C
        out_ptrs += W * OUT


def depthwise2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, silu_input: bool = False, gate: bool = False, out: Tensor
) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    B, H, W, C = x.shape
    config = pick(CONFIGS, "narrow" if out.shape[-1] % 64 else "wide")
    tiles = triton.cdiv(H, config["ROWS"]) * triton.cdiv(W, config["COLUMNS"])
    grid = (tiles, out.shape[-1] // config["BLOCK"], B)
    sizes = {"C": C, "K": len(weight), "SILU": silu_input, "GATE": gate}
    _depthwise2d[grid](x, weight, bias, out, H, W, **sizes, **config.options)
    return out


def _reference(x, weight, bias, *, silu_input: bool, gate: bool, out: Tensor) -> tuple[Tensor, ...]:
    u = F.silu(x) if silu_input else x
    filters = weight.permute(2, 0, 1).unsqueeze(1)
    y = F.conv2d(u.permute(0, 3, 1, 2), filters, bias, padding=len(weight) // 2, groups=x.shape[3]).permute(0, 2, 3, 1)
    if gate:
        a, g = y.chunk(2, dim=-1)
        y = a * F.silu(g)
    return (y,)


def _case(
    config: str, real: tuple[int, ...], small: tuple[int, ...], K: int, *, glu: bool, dtype=torch.bfloat16
) -> Case:
    """Sizes as B, H, W, C; ``glu``: with bias, SiLU before and a gate."""

    def arguments(B: int, H: int, W: int, C: int, **options) -> Arguments:
        make = torch.randn if "generator" in options else torch.empty
        x, weight = make(B, H, W, C, **options).to(dtype), (make(K, K, C, **options) / K).to(dtype)
        bias = make(C, **options).to(dtype) if glu else None
        out = x.new_empty(B, H, W, C // 2 if glu else C)
        return {"x": x, "weight": weight, "bias": bias, "silu_input": glu, "gate": glu, "out": out}

    return Case(
        kernel="depthwise2d",
        config=config,
        launch=depthwise2d,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: (2 * K * K + (8 if glu else 0)) * a["x"].numel(),
        bytes=lambda a: a["x"].nbytes + a["out"].nbytes + a["weight"].nbytes,
        tolerance=3e-3 if dtype == torch.bfloat16 else 4e-4,
    )


# 30 s of song: 323 rows of 16 columns. Small: a tile and ragged ones behind it and beside it.
CASES = (
    _case("glu-k3", (1, 323, 16, 8192), (1, 33, 9, 128), 3, glu=True),
    _case("k5", (1, 323, 16, 3072), (1, 34, 5, 64), 5, glu=False),
)
