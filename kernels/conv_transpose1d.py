"""Triton kernel of acefast.ops.conv_transpose1d (K11): one GEMM whose rows overlap, with a crop at the store.

Math    y[t * s + j - s / 2] = bias + x[t - 1] @ w[j + s] + x[t] @ w[j],  and snake(y) or silu(y); fp32, each rounded
        once
Tiling  one program per BLOCK_M rows t and BLOCK_N of the s * Cout columns (j, channel), GROUP row tiles at a time so
        that a weight tile is read from L2. The crop leaves rows 1 .. L of the columns with j < s / 2 and rows
        0 .. L - 1 of the others: L rows for every tile, since BLOCK_N divides s / 2 * Cout
Loop    flat over 2 * Cin without a mask: x[t - 1] and x[t] are neighbours in memory, the guards are the zeros beyond
        the ends, rows beyond the last repeat it and are not stored. The weight's halves change places
Flops   4 * B * L * Cin * s * Cout
Bytes   (B * L * Cin + 2 * Cin * s * Cout + results * B * L * s * Cout) * itemsize
Bound   tensor cores; memory at 128 channels, where a row is 131 kFLOP and 1.3 KB
"""

from __future__ import annotations

import torch
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


CONFIGS = {
    ("wide", 80): _tile(128, 256, 64, 8, 3),  # 96 KB
    ("wide", 90): _tile(128, 128, 64, 8, 4),  # 256 columns spill, as on sm_100
    ("half", 80): _tile(128, 128, 64, 4, 3),  # 64 KB: two blocks, one of which multiplies while the other stores
    **{("half", sm): _tile(128, 128, 32, 8, 4) for sm in (86, 89, 120)},  # 48 KB; 4 warps spill
    **{(name, 100): _tile(128, 128, 64, 8, 3) for name in ("wide", "half")},
    ("silu", 80): _tile(128, 128, 64, 8, 3),  # the vocoder's from here on: 4 warps, or 256 columns, spill
    **{("silu", sm): _tile(128, 128, 32, 8, 4) for sm in (86, 89, 120)},
    ("c64", 80): _tile(128, 64, 64, 4, 3),
    ("c32", 80): _tile(128, 32, 64, 4, 3),
    ("narrow", 80): _tile(64, 16, 16, 4, 3),
}


def shape_class(inner: int, outer: int, stride: int, silu: bool = False) -> str:
    """By the widest column tile that divides half of the columns and holds whole channels or is held by them."""
    widest = (("silu", 128),) if silu else (("wide", 256), ("half", 128))
    for name, columns in (*widest, ("c64", 64), ("c32", 32)):
        if inner % 64 == 0 and stride // 2 * outer % columns == 0 and 0 in (outer % columns, columns % outer):
            return name
    return "narrow"


@triton.jit(do_not_specialize=["L", "SONGS"])
def _conv_transpose1d(
    x_ptr,
    weight_ptr,
    bias_ptr,
    alpha_ptr,
    inv_beta_ptr,
    y_ptr,  # None: not kept
    wave_ptr,  # None: no activation
    L,
    SONGS,
    Cin: tl.constexpr,
    Cout: tl.constexpr,
    STRIDE: tl.constexpr,
    GUARD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    N: tl.constexpr = STRIDE * Cout
    tiles = tl.cdiv(L, BLOCK_M)
    group = tl.program_id(0) // (GROUP * (N // BLOCK_N))
    within = tl.program_id(0) % (GROUP * (N // BLOCK_N))
    high = tl.minimum(SONGS * tiles - group * GROUP, GROUP)  # row tiles of this group
    row_tile = group * GROUP + within % high
    song, tile = (row_tile // tiles).to(tl.int64), row_tile % tiles
    first = within // high * BLOCK_N
    late = (first < N // 2).to(tl.int32)  # rows 1 .. L, not 0 .. L - 1
    r, n, k = tile * BLOCK_M + tl.arange(0, BLOCK_M), first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    source = tl.minimum(r, L - 1) + (late + GUARD - 1)
    x_song = x_ptr + song * (L + 2 * GUARD) * Cin
    x_ptrs = x_song + source.to(tl.int64)[:, None] * Cin + k[None, :]  # [BLOCK_M, BLOCK_K]
    weight_ptrs = weight_ptr + k[:, None] * N + n[None, :]  # [BLOCK_K, BLOCK_N]

    # The guards first, while registers are free.
    rows = L * STRIDE
    here = song * (rows + 2 * GUARD) * Cout
    zeroed = first + tl.arange(0, min(BLOCK_N, Cout))
    top, bottom = (tile == 0) & (first < Cout), (tile == tiles - 1) & (first < Cout)
    if y_ptr is not None:
        zero_guards(y_ptr + here, rows, top, bottom, zeroed, Cout, GUARD)
    if wave_ptr is not None:
        zero_guards(wave_ptr + here, rows, top, bottom, zeroed, Cout, GUARD)

    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(0, 2 * Cin, BLOCK_K):
        x, weight = tl.load(x_ptrs + i), tl.load(weight_ptrs + (i + Cin) % (2 * Cin) * N)
        sums = tl.dot(x, weight, sums, input_precision="ieee")

    tile += tl.minimum(L, 0)  # 0, which the compiler does not know: it computes rows anew and holds no registers
    r = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = n % Cout
    sums += tl.load(bias_ptr + channel).to(tl.float32)[None, :]
    at = here + GUARD * Cout - N // 2 + (r + late).to(tl.int64)[:, None] * N + n[None, :]
    if y_ptr is not None:
        tl.store(y_ptr + at, sums.to(y_ptr.dtype.element_ty), mask=(r < L)[:, None])
    if wave_ptr is not None:
        wave = wave_of(sums, alpha_ptr, inv_beta_ptr, 0, channel)
        tl.store(wave_ptr + at, wave.to(wave_ptr.dtype.element_ty), mask=(r < L)[:, None])


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    wave: Activation | None,
    out: tuple[Tensor | None, Tensor | None],
) -> None:
    """Launches the kernel on guarded rows; the op has checked. ``out``: y and what ``wave`` makes of it, if wanted."""
    (B, L, Cin), Cout = x.shape, len(bias)
    config = pick(CONFIGS, shape_class(Cin, Cout, stride, wave == SILU))
    programs = B * triton.cdiv(L, config["BLOCK_M"]) * (stride * Cout // config["BLOCK_N"])
    results = (None if t is None else whole(t) for t in out)
    _conv_transpose1d[(programs,)](
        *(whole(x), weight, bias, *parameters(wave), *results, L, B),
        Cin=Cin,
        Cout=Cout,
        STRIDE=stride,
        GUARD=GUARD,
        **config.options,
    )


def _reference(x: Tensor, weight: Tensor, bias: Tensor, *, stride: int, wave, out) -> tuple[Tensor, ...]:
    """With what x's guards hold as its neighbours."""
    B, L, Cin = x.shape
    around = whole(x)[:, GUARD - 1 : GUARD + L + 1]
    rows = torch.cat([around[:, 1:], around[:, :-1]], dim=-1).view(-1, 2 * Cin)
    y = torch.addmm(bias.repeat(stride), rows, weight).view(B, (L + 1) * stride, -1)
    y = y[:, stride // 2 : stride // 2 + L * stride]
    return tuple(result for result, wanted in zip((y, *waved(y, wave)), out) if wanted is not None)


def _case(
    config: str,
    real: tuple[int, int, int, int, int],
    small: tuple[int, int, int, int, int],
    results: tuple[bool, bool] = (True, True),
    dtype: torch.dtype = torch.bfloat16,
    loop_mix: float | None = 0.9,
    silu: bool = False,
) -> Case:
    """Sizes as B, L, Cin, Cout, stride; ``results``: whether y and the activation's, a snake's or SiLU, are wanted."""

    def arguments(B: int, L: int, Cin: int, Cout: int, stride: int, device=None, generator=None) -> Arguments:
        def made(*shape: int) -> Tensor:
            return torch.empty(shape, device=device) if generator is None else torch.randn(shape, generator=generator)

        like = {"dtype": dtype, "device": made(0).device}
        out = tuple(guarded(B, L * stride, Cout, **like) if wanted else None for wanted in results)
        return {
            "x": guarded(B, L, Cin, **like).copy_(made(B, L, Cin)),
            "weight": (made(2 * Cin, stride * Cout) / (2 * Cin) ** 0.5).to(dtype),
            "bias": made(Cout).to(dtype),
            "stride": stride,
            "wave": None if not results[1] else SILU if silu else (made(Cout).abs() + 0.5, made(Cout).abs()),
            "out": out,
        }

    return Case(
        kernel="conv_transpose1d",
        config=config,
        launch=conv_transpose1d,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: 2 * a["x"].shape[0] * a["x"].shape[1] * a["weight"].numel(),
        bytes=lambda a: sum(t.numel() * t.itemsize for t in (a["x"], a["weight"], *a["out"]) if t is not None),
        dots=True,
        tolerance=3e-3 if dtype == torch.bfloat16 else 4e-4,
        loop_mix=loop_mix,
    )


# A tile of 512 frames. Small: two row tiles, the last ragged, or one; taps of both halves.
CASES = (
    _case("2048-s10", (1, 512, 2048, 1024, 10), (1, 30, 64, 256, 2)),
    _case("1024-s6", (1, 5120, 1024, 512, 6), (1, 30, 64, 64, 8)),
    _case("512-s4", (1, 30720, 512, 256, 4), (1, 130, 64, 128, 4)),
    _case("512-s4-fp16", (1, 30720, 512, 256, 4), (1, 130, 64, 128, 4), dtype=torch.float16),
    _case("256-s4", (1, 122880, 256, 128, 4), (2, 20, 64, 128, 4)),
    _case("128-s2", (1, 491520, 128, 128, 2), (1, 140, 128, 128, 2), loop_mix=None),  # four steps, written out
    _case("1024-s4-silu", (2, 1024, 1024, 512, 4), (1, 30, 64, 256, 4), silu=True, loop_mix=1.45),  # the vocoder's
    _case("128-s2-c64-silu", (2, 32768, 128, 64, 2), (1, 140, 128, 64, 2), silu=True, loop_mix=None),
    _case("64-s2-c32-silu", (2, 65536, 64, 32, 2), (1, 140, 64, 32, 2), silu=True, loop_mix=None),
    _case("tiny", (1, 512, 32, 16, 4), (2, 70, 32, 16, 2), (False, True), loop_mix=None),
)
