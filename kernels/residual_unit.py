"""Triton kernel of acefast.ops.residual_unit (K10): both convolutions of a unit, its second snake and the next layer's.

Math    h = snake2(conv7_d(activated) + b1), rounded; y = x + W2 @ h + b2; snake_next(y) of the unrounded y. Sums and
        epilogues in fp32
Tiling  one program per BLOCK_M rows of all C channels, so that h never leaves the multiprocessor: it is the left
        operand of a second product, of CHUNK output channels at a time, whose weight W2 is read chunk by chunk
Loop    flat over 7 C without a mask: rows beyond a song's ends are guards. The last tile of a song is moved back to
        end with it and stores only the rows that are its own; SHORT, another variant, repeats the last row instead
Flops   16 * B * L * C²
Bytes   (4 * B * L * C + 8 * C²) * itemsize: x, activated in, y, snake_next(y) out; 3 where one result is wanted
Bound   tensor cores
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
from acefast.kernels.snake import snake_of, zero_guards

TAPS = 7


def _tile(m: int, k: int, chunk: int, warps: int, stages: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_K": k, "CHUNK": chunk}, warps, stages)


# On sm_80 a warp's tile of the first product is 64 x 64, and C 128 has two blocks on a multiprocessor, one's epilogue
# beside the other's loop. Never chosen by the number of rows, so that a row has the same bits in any tile.
CONFIGS = {
    ("c256", 80): _tile(128, 64, 64, 8, 3),  # 144 KB
    ("c256", 86): _tile(128, 32, 16, 8, 3),  # 84 KB
    ("c256", 89): _tile(128, 32, 16, 8, 3),
    ("c256", 100): _tile(64, 64, 64, 8, 3),
    ("c256", 120): _tile(128, 32, 16, 8, 3),
    ("c128", 80): _tile(128, 64, 32, 4, 3),  # 64 KB; on sm_90 the fastest without a spill
    ("c128", 100): _tile(128, 64, 64, 8, 3),
    ("c64", 80): _tile(128, 64, 32, 4, 3),
    ("c32", 80): _tile(128, 32, 32, 4, 3),
    ("c16", 80): _tile(128, 16, 16, 4, 3),
}

# Other instructions per product in the main loop, a tenth more than the first compiled prototypes had.
WIDE_MIX, MIX = 1.1 * 125 / 128, 1.1 * 115 / 128  # C 256, C 128


@triton.jit(do_not_specialize=["L"])
def _residual_unit(
    x_ptr,
    activated_ptr,
    weight1_ptr,
    bias1_ptr,
    alpha2_ptr,
    inv_beta2_ptr,
    weight2_ptr,
    bias2_ptr,
    alpha_ptr,
    inv_beta_ptr,
    y_ptr,
    waved_ptr,
    L,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    DILATION: tl.constexpr,
    GUARD: tl.constexpr,
    SHORT: tl.constexpr,  # whether a song is shorter than a tile
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
):
    STEPS: tl.constexpr = C // BLOCK_K  # of a tap
    own = tl.program_id(0) * BLOCK_M  # the first row that this program stores
    first = 0 if SHORT else tl.minimum(own, L - BLOCK_M)  # and that it computes
    song = tl.program_id(1).to(tl.int64) * (GUARD + L + GUARD) * C
    start = song + (GUARD + first).to(tl.int64) * C
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    c = tl.arange(0, C)
    source = tl.minimum(m, L - 1) if SHORT else m
    a_ptrs = activated_ptr + (start - TAPS // 2 * DILATION * C) + (source[:, None] * C + k[None, :])
    w_ptrs = weight1_ptr + (c[None, :] * (TAPS * C) + k[:, None])  # [BLOCK_K, C]

    sums = tl.zeros([BLOCK_M, C], tl.float32)
    for step in range(0, TAPS * STEPS):
        sums = tl.dot(tl.load(a_ptrs), tl.load(w_ptrs), sums, input_precision="ieee")
        a_ptrs += tl.where(step % STEPS == STEPS - 1, DILATION * C - (STEPS - 1) * BLOCK_K, BLOCK_K)
        w_ptrs += BLOCK_K
    sums += tl.load(bias1_ptr + c).to(tl.float32)[None, :]
    sums = snake_of(sums, tl.load(alpha2_ptr + c)[None, :], tl.load(inv_beta2_ptr + c)[None, :])
    hidden = sums.to(activated_ptr.dtype.element_ty)

    live = ((first + m >= own) & (first + m < L))[:, None]
    for n in range(0, C, CHUNK):
        d = n + tl.arange(0, CHUNK)
        at = start + (m[:, None] * C + d[None, :])
        y = tl.dot(hidden, tl.load(weight2_ptr + (d[None, :] * C + c[:, None])), input_precision="ieee")
        y += tl.load(bias2_ptr + d).to(tl.float32)[None, :]
        y += tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
        if y_ptr is not None:
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=live)
        if waved_ptr is not None:
            waved = snake_of(y, tl.load(alpha_ptr + d)[None, :], tl.load(inv_beta_ptr + d)[None, :])
            tl.store(waved_ptr + at, waved.to(waved_ptr.dtype.element_ty), mask=live)

    if y_ptr is not None:
        zero_guards(y_ptr + song, L, own == 0, own + BLOCK_M >= L, c, C, GUARD)
    if waved_ptr is not None:
        zero_guards(waved_ptr + song, L, own == 0, own + BLOCK_M >= L, c, C, GUARD)


def residual_unit(
    x: Tensor,
    activated: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    inv_beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    dilation: int,
    wave: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor | None, Tensor | None]:
    """Launches the kernel on guarded rows; the op has checked the inputs."""
    B, L, C = x.shape
    config = pick(CONFIGS, f"c{C}")
    tile = config["BLOCK_M"]
    first = (weight1, bias1, alpha2, inv_beta2)
    results = (None if t is None else whole(t) for t in out)
    _residual_unit[(triton.cdiv(L, tile), B)](
        *(whole(x), whole(activated), *first, weight2, bias2, *(wave or (None, None)), *results, L),
        **{"C": C, "TAPS": TAPS, "DILATION": dilation, "GUARD": GUARD, "SHORT": tile > L},
        **config.options,
    )
    return out


def _reference(
    x: Tensor,
    activated: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    inv_beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    dilation: int,
    wave: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, ...]:
    def snake(rows: Tensor, alpha: Tensor, inv_beta: Tensor) -> Tensor:
        return (rows + inv_beta * (alpha * rows).sin() ** 2).to(x.dtype)

    padding = TAPS // 2 * dilation
    h = F.conv1d(activated.mT, weight1.mT, bias1, padding=padding, dilation=dilation).mT
    y = x + F.linear(snake(h, alpha2, inv_beta2), weight2, bias2)
    return *(() if out[0] is None else (y,)), *(() if wave is None else (snake(y, *wave),))


def _case(
    config: str,
    real: tuple[int, int, int],
    small: tuple[int, int],
    dilation: int,
    *,
    keep: bool = True,
    wave: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    loop_mix: float | None = None,
) -> Case:
    """Sizes as B, L, C and, a few tiles, B, L. What is kept replaces x."""

    def arguments(B: int, L: int, C: int, generator: torch.Generator | None = None, device="cpu") -> Arguments:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) if generator else torch.empty(shape, device=device)

        def rows() -> Tensor:
            made = guarded(B, L, C, dtype=dtype, device=torch.device(device))
            return made.copy_(normal(B, L, C)) if generator else made

        def waves() -> tuple[Tensor, Tensor]:
            return normal(C).abs() + 0.1, normal(C).abs()

        x = rows()
        return {
            "x": x,
            "activated": rows(),
            "weight1": (normal(C, TAPS, C) / (TAPS * C) ** 0.5).to(dtype),
            "bias1": normal(C).to(dtype),
            **dict(zip(("alpha2", "inv_beta2"), waves())),
            "weight2": (normal(C, C) / C**0.5).to(dtype),
            "bias2": normal(C).to(dtype),
            "dilation": dilation,
            "wave": waves() if wave else None,
            "out": (x if keep else None, rows() if wave else None),
        }

    return Case(
        kernel="residual_unit",
        config=config,
        launch=residual_unit,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, real[2], generator=generator),
        outputs=("out",),
        flops=lambda a: 2 * (TAPS + 1) * a["x"].numel() * a["x"].shape[2],
        bytes=lambda a: (2 + keep + wave) * a["x"].nbytes + a["weight1"].nbytes + a["weight2"].nbytes,
        dots=True,
        sector_limit=1.15,
        loop_mix=loop_mix,
        tolerance={torch.bfloat16: 3e-3, torch.float16: 4e-4}[dtype],
    )


# A tile of 512 frames, 240 or 960 rows each. Of a block's units the last leaves the next layer's input alone.
CASES = (
    _case("c256-d1", (1, 122_880, 256), (1, 150), 1, loop_mix=WIDE_MIX),
    _case("c256-d3", (1, 122_880, 256), (1, 128), 3, loop_mix=WIDE_MIX),
    _case("c256-d9-last", (1, 122_880, 256), (1, 128), 9, keep=False, loop_mix=WIDE_MIX),
    _case("c128-d1", (1, 491_520, 128), (1, 150), 1, loop_mix=MIX),
    _case("c128-d3", (1, 491_520, 128), (1, 128), 3, loop_mix=MIX),
    _case("c128-d9-last", (1, 491_520, 128), (1, 128), 9, keep=False, loop_mix=MIX),
    _case("c128-d9-last-fp16", (1, 491_520, 128), (1, 150), 9, keep=False, dtype=torch.float16, loop_mix=MIX),
    _case("c128-short", (1, 100, 128), (1, 100), 9),
    _case("c64", (2, 65_536, 64), (2, 150), 3),
    _case("c32", (2, 65_536, 32), (2, 150), 3, wave=False),
    _case("c16", (2, 65_536, 16), (2, 150), 9),
)
