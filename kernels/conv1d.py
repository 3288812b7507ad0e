"""Triton kernel of acefast.ops.conv1d (K09): one implicit GEMM for the convolutions of autoencoder and vocoder.

Math    y = bias + Σ_j weight[:, j] * x's element j from a row's first tap on (+ residual), that times a share and
        added to a total where there is one; and snake(y) or silu(y). Sums and epilogue in fp32, each result rounded
        once
Tiling  one program per BLOCK_M rows x BLOCK_N channels of a song, GROUP row tiles at a time so that a weight tile is
        read from L2; the epilogue takes half of the columns at a time, or registers do not suffice
Loop    flat over taps and channels, without a mask: songs lie between guards of zeros (acefast.guarded). Rows beyond
        the last repeat it and are not stored. The last step advances nothing: a pointer whose step the compiler takes
        for constant costs it four instructions a round in place of two
Flops   2 * R * K * Cin * Cout
Bytes   (L * Cin + K * Cin * Cout + R * Cout * (results + residual + total)) * itemsize
Bound   tensor cores; by memory a pointwise one with a residual up to 512 channels, and any one up to 64
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.guarded import GUARD, guarded, whole
from acefast.kernel_config import Config, pick
from acefast.kernels.snake import parameters, wave_of, waved, zero_guards
from acefast.ops.snake import SILU, Activation


def _tile(m: int, n: int, k: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}, warps, stages)


_SMALLER = (86, 89, 120)  # 100 KB on a multiprocessor: two blocks of 48

CONFIGS = {
    ("wide", 80): _tile(128, 256, 64, 8, 3),  # 96 KB
    ("half", 80): _tile(128, 128, 64, 4, 3),  # 64 KB: two blocks on a multiprocessor, one's epilogue beside the other
    ("half", 90): _tile(64, 128, 64, 4, 3),
    **{(shape, sm): _tile(128, 128, 32, 4, 4) for shape in ("wide", "half") for sm in _SMALLER},
    ("wide-silu", 80): _tile(128, 256, 64, 8, 3),  # the vocoder's, whose residual and two results spill on others
    ("wide-silu", 100): _tile(128, 128, 64, 8, 3),
    ("half-silu", 80): _tile(128, 128, 64, 4, 3),
    ("half-silu", 90): _tile(64, 128, 64, 4, 3),
    **{(shape, sm): _tile(128, 128, 32, 8, 4) for shape in ("wide-silu", "half-silu", "short") for sm in _SMALLER},
    ("short", 80): _tile(128, 128, 64, 8, 3),  # few steps, which the compiler writes out: with 4 warps they spill
    ("frames", 80): _tile(64, 128, 64, 4, 3),  # a row is a frame, 512 or 1024 of them: more tiles
    ("last", 80): _tile(64, 64, 64, 4, 4),
    ("last", 90): _tile(64, 16, 256, 4, 4),  # 512 rows of 128 channels: 64 tiles in place of 16
    ("stereo", 80): _tile(128, 128, 16, 4, 2),
    ("small", 80): _tile(128, 64, 64, 4, 3),
    ("c32", 80): _tile(128, 32, 32, 4, 3),  # the vocoder's last levels
    ("c16", 80): _tile(256, 16, 16, 4, 3),
    ("c16", 100): _tile(128, 16, 16, 4, 3),
    ("narrow", 80): _tile(64, 16, 16, 4, 3),  # test models
}


def shape_class(cin: int, cout: int, taps: int, dilation: int, silu: bool = False) -> str:
    """Of a weight [cout, taps, cin]; never of the number of rows, so that a row's bits are those of any tile."""
    inner = cin if dilation > 1 else taps * cin  # what a step of the loop has to divide
    if inner == 16 and cout % 128 == 0:
        return "stereo"
    if inner % 64 or cout % 64:
        return {32: "c32", 16: "c16"}.get(cin, "narrow") if cin == cout else "narrow"
    if cout % 128:
        return "small"
    if max(cin, cout) >= 2048:
        return "last" if cout == 128 and inner % 256 == 0 else "frames"
    shape = "wide" if cout % 256 == 0 and taps > 1 else "half"
    if shape == "half" and taps == 3:
        return "short"
    return f"{shape}-silu" if silu else shape


@triton.jit
def _finish(
    y,
    column,
    bias_ptr,
    residual_ptr,
    total_ptr,
    alpha_ptr,
    inv_beta_ptr,
    y_ptr,
    activated_ptr,
    song,
    tile,
    R,
    SHARE: tl.constexpr,
    C: tl.constexpr,
    GUARD: tl.constexpr,
):
    """Bias, residual, share of a total, activation and stores of a tile's columns from ``column`` on."""
    m, n = tl.arange(0, y.shape[0]), tl.arange(0, y.shape[1])
    song = song.to(tl.int64) * (R + 2 * GUARD) * C + column  # its first guard row
    at = song + (GUARD + tile.to(tl.int64) * y.shape[0]) * C
    offsets = m[:, None] * C + n[None, :]
    live = R - tile * y.shape[0]
    mask = (m < live)[:, None]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column + n).to(tl.float32)[None, :]
    if residual_ptr is not None:
        y += tl.load(residual_ptr + at + offsets, mask=mask, other=0.0).to(tl.float32)
    if SHARE != 1:
        y *= SHARE
    if total_ptr is not None:
        y += tl.load(total_ptr + at + offsets, mask=mask, other=0.0).to(tl.float32)
    if y_ptr is not None:
        tl.store(y_ptr + at + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)
        zero_guards(y_ptr + song, R, tile == 0, live <= y.shape[0], n, C, GUARD)
    if activated_ptr is not None:
        activated = wave_of(y, alpha_ptr, inv_beta_ptr, column, n).to(activated_ptr.dtype.element_ty)
        tl.store(activated_ptr + at + offsets, activated, mask=mask)
        zero_guards(activated_ptr + song, R, tile == 0, live <= y.shape[0], n, C, GUARD)


@triton.jit(do_not_specialize=["L", "R"])  # or a length that 16 divides would be another kernel
def _conv1d(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    total_ptr,
    alpha_ptr,
    inv_beta_ptr,
    y_ptr,
    activated_ptr,
    L,
    R,
    SHARE: tl.constexpr,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    GUARD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    group = tl.program_id(0) // (GROUP * (COUT // BLOCK_N))
    within = tl.program_id(0) % (GROUP * (COUT // BLOCK_N))
    high = tl.minimum(tl.cdiv(R, BLOCK_M) - group * GROUP, GROUP)  # row tiles of this group
    tile, column = group * GROUP + within % high, within // high * BLOCK_N
    song = tl.program_id(1)

    K: tl.constexpr = TAPS * CIN
    m, n, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    source = tl.minimum(m, R - tile * BLOCK_M - 1)
    x_ptr += (song.to(tl.int64) * (L + 2 * GUARD) + tile.to(tl.int64) * (BLOCK_M * STRIDE) + (GUARD - PADDING)) * CIN
    x_ptrs = x_ptr + source[:, None] * (STRIDE * CIN) + k[None, :]  # [BLOCK_M, BLOCK_K]
    weight_ptrs = weight_ptr + column * K + n[None, :] * K + k[:, None]  # [BLOCK_K, BLOCK_N]

    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        sums = tl.dot(tl.load(x_ptrs), tl.load(weight_ptrs), sums, input_precision="ieee")
        step = tl.where(start + BLOCK_K < K, BLOCK_K, 0)
        weight_ptrs += step
        if DILATION > 1:
            step = tl.where((start + BLOCK_K) % CIN == 0, BLOCK_K + (DILATION - 1) * CIN, BLOCK_K)
        x_ptrs += step

    added, results = (bias_ptr, residual_ptr, total_ptr), (alpha_ptr, inv_beta_ptr, y_ptr, activated_ptr)
    if BLOCK_N < 128:
        _finish(sums, column, *added, *results, song, tile, R, SHARE, COUT, GUARD)
    else:
        left, right = sums.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
        _finish(left, column, *added, *results, song, tile, R, SHARE, COUT, GUARD)
        column += BLOCK_N // 2
        _finish(right, column, *added, *results, song, tile, R, SHARE, COUT, GUARD)


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    residual: Tensor | None = None,
    share: float = 1.0,
    total: Tensor | None = None,
    wave: Activation | None = None,
    out: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor | None, Tensor | None]:
    """Launches the kernel on guarded rows; ``out``: the result and what ``wave`` makes of it. The op has checked."""
    (B, L, CIN), (COUT, TAPS, _) = x.shape, weight.shape
    R = next(t for t in out if t is not None).shape[1]
    config = pick(CONFIGS, shape_class(CIN, COUT, TAPS, dilation, wave == SILU or total is not None))
    residual, total, y, activated = (None if t is None else whole(t) for t in (residual, total, *out))
    grid = (triton.cdiv(R, config["BLOCK_M"]) * (COUT // config["BLOCK_N"]), B)
    sizes = {"CIN": CIN, "COUT": COUT, "TAPS": TAPS, "STRIDE": stride, "PADDING": padding, "DILATION": dilation}
    tensors = whole(x), weight, bias, residual, total, *parameters(wave), y, activated
    _conv1d[grid](*tensors, L, R, SHARE=share, **sizes, GUARD=GUARD, **config.options)
    return out


def _reference(x: Tensor, weight: Tensor, bias: Tensor, **given) -> tuple[Tensor, ...]:
    geometry = {name: given[name] for name in ("stride", "padding", "dilation")}
    y = F.conv1d(x.transpose(1, 2), weight.transpose(1, 2), bias, **geometry).transpose(1, 2)
    if given["residual"] is not None:
        y = y + given["residual"]
    y = y * given["share"]
    if given["total"] is not None:
        y = y + given["total"]
    results = [y] if given["out"][0] is not None else []
    return (*results, *waved(y, given["wave"]))


Sizes = tuple[int, int, int, int]  # songs, rows, Cin, Cout


def _case(
    config: str,
    real: Sizes,
    small: Sizes,
    taps: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    residual: bool = False,
    results: str = "snake",  # "y", "snake" or "both"; a residual, or a total, is written over where y is kept
    silu: bool = False,  # in the snake's place
    share: float = 1.0,
    total: bool = False,
    mix: float | None = None,
    dots: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    def arguments(B: int, L: int, cin: int, cout: int, **options) -> Arguments:
        make = torch.randn if "generator" in options else torch.empty
        R = (L + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        rows = {"dtype": dtype, "device": options.get("device", torch.device("cpu"))}
        x = guarded(B, L, cin, **rows).copy_(make(B, L, cin, **options))
        added, others = (
            guarded(B, R, cout, **rows).copy_(make(B, R, cout, **options)) if there else None
            for there in (residual, total)
        )
        y, activated = (guarded(B, R, cout, **rows) if results in (one, "both") else None for one in ("y", "snake"))
        return {
            "x": x,
            "weight": (make(cout, taps, cin, **options) / (taps * cin) ** 0.5).to(dtype),
            "bias": make(cout, **options).to(dtype),
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "residual": added,
            "share": share,
            "total": others,
            "wave": None
            if activated is None
            else SILU
            if silu
            else tuple(make(cout, **options).exp() for _ in range(2)),
            "out": (y if y is None else next((t for t in (others, added) if t is not None), y), activated),
        }

    def moved(a: Arguments) -> int:
        tensors = [t for t in (a["x"], a["weight"], a["residual"], a["total"], *a["out"]) if t is not None]
        written = [t for t in a["out"] if t is not None]
        guards = sum(2 * GUARD * len(t) * t.shape[2] * t.itemsize for t in written)
        return sum(t.nbytes for t in tensors) + guards

    return Case(
        kernel="conv1d",
        config=f"{config}-{'bf16' if dtype == torch.bfloat16 else 'fp16'}",
        launch=conv1d,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: 2 * taps * a["x"].shape[2] * (a["out"][1] if a["out"][0] is None else a["out"][0]).numel(),
        bytes=moved,
        dots=dots,
        sector_limit=1.15,
        loop_mix=mix,
        tolerance=4e-4 if dtype == torch.float16 else 3e-3,
    )


# Section 4.2 of the plan has 115 other instructions per 128 on tensor cores for K09, and 103 for the pointwise one.
K7 = {"taps": 7, "padding": 3, "mix": 0.9}
K7D9 = {"taps": 7, "padding": 27, "dilation": 9, "mix": 0.9}
POINTWISE = {"taps": 1, "residual": True, "mix": 0.885}
DOWN4 = {"taps": 8, "stride": 4, "padding": 2, "results": "both", "mix": 0.9}
K13D5 = {"taps": 13, "padding": 30, "dilation": 5, "silu": True}
SECOND = {"residual": True, "results": "both", "silu": True}  # of a pair in the vocoder
QUARTER = {"taps": 3, "padding": 1, "residual": True, "share": 0.25, "total": True}
CASES = (
    _case("c1024-k7d9", (1, 5120, 1024, 1024), (1, 150, 64, 256), **K7D9),  # 512 frames of the decoder
    _case("c1024-k7d9", (1, 5120, 1024, 1024), (1, 100, 64, 256), **K7D9, dtype=torch.float16),
    _case("c1024-k7d1", (1, 5120, 1024, 1024), (2, 60, 64, 256), **K7),
    _case("c512-k7d3", (1, 30720, 512, 512), (1, 128, 64, 256), taps=7, padding=9, dilation=3, mix=0.9),
    _case("c512-1x1", (1, 30720, 512, 512), (1, 150, 128, 128), **POINTWISE, results="both"),
    _case("c512-1x1", (1, 30720, 512, 512), (1, 100, 128, 128), **POINTWISE, results="both", dtype=torch.float16),
    _case("c1024-1x1", (1, 5120, 1024, 1024), (1, 100, 128, 128), **POINTWISE, results="both"),
    _case("c1024-1x1-last", (1, 5120, 1024, 1024), (1, 100, 128, 128), **POINTWISE),
    _case("c512-1x1-last", (1, 30720, 512, 512), (1, 150, 128, 128), **POINTWISE),
    _case("first", (1, 512, 64, 2048), (1, 50, 64, 2048), taps=7, padding=3),
    _case("down2", (1, 983040, 128, 128), (1, 300, 64, 128), taps=4, stride=2, padding=1, results="both", mix=0.9),
    _case("down4-128", (1, 491520, 128, 256), (1, 400, 64, 256), **DOWN4),
    _case("down4-256", (1, 122880, 256, 512), (1, 400, 64, 256), **DOWN4),
    _case("down6", (1, 30720, 512, 1024), (1, 600, 64, 256), taps=12, stride=6, padding=3, results="both", mix=0.9),
    _case("down10", (1, 5120, 1024, 2048), (1, 500, 64, 2048), taps=20, stride=10, padding=5, mix=1.45),
    _case("stereo", (1, 983040, 2, 128), (1, 200, 2, 128), taps=8, padding=3, results="both", dots=False),
    _case("last", (1, 512, 2048, 128), (1, 50, 2048, 128), taps=3, padding=1, results="y", mix=2.2),
    _case("c512-k13d5-silu", (2, 4096, 512, 512), (1, 150, 64, 256), **K13D5, mix=0.9),  # the vocoder's
    _case("c512-k11-both-silu", (2, 4096, 512, 512), (1, 100, 64, 256), **SECOND, taps=11, padding=5, mix=0.9),
    _case("c128-k3-both-silu", (2, 32768, 128, 128), (1, 150, 128, 128), **SECOND, taps=3, padding=1),
    _case("c64-k7-both-silu", (2, 65536, 64, 64), (1, 150, 64, 64), **SECOND, taps=7, padding=3),
    _case("c32-k11-both-silu", (2, 131072, 32, 32), (1, 150, 32, 32), **SECOND, taps=11, padding=5),
    _case("c16-k13d5-silu", (2, 262144, 16, 16), (2, 300, 16, 16), **K13D5),
    _case("c16-k7-both-silu", (2, 262144, 16, 16), (1, 300, 16, 16), **SECOND, taps=7, padding=3, dtype=torch.float16),
    _case("c16-mean-silu", (2, 262144, 16, 16), (1, 300, 16, 16), **QUARTER, silu=True),
    _case("tiny", (1, 500, 48, 48), (2, 70, 16, 48), taps=7, padding=9, dilation=3, residual=True, results="both"),
)
