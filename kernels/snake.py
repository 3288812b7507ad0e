"""Triton kernel of acefast.ops.snake, and what every kernel of the autoencoder shares.

Math    y = x + inv_beta * sin(alpha * x)², fp32, rounded once
Tiling  one program per ROWS rows of BLOCK channels of a song; a thread moves 16 bytes at a time
Bytes   2 * B * L * C * itemsize: x in, y out; and the guards of y
Bound   memory
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
from acefast.ops.snake import SILU, Activation

CONFIGS = {
    ("wide", 80): Config({"ROWS": 32, "BLOCK": 128}, num_warps=4),  # C a multiple of 128
    ("narrow", 80): Config({"ROWS": 64, "BLOCK": 16}, num_warps=1),
}


@triton.jit
def snake_of(x, alpha, inv_beta):
    """``x + inv_beta * sin(alpha * x)**2`` of fp32; the three broadcast.

    The sine's square has period pi. The nearest multiple is taken off in one fma, whose pi is 9e-8 too large: 1e-5 at
    the 127th, where the product's own rounding costs 1.5e-5. Then the hardware's approximation is as good as it gets.
    """
    v = alpha * x
    n = (v * 0.3183098861837907 + 12582912.0) - 12582912.0  # 1.5 * 2**23: the sum has no fraction left
    r = tl.fma(n, -3.141592653589793, v)
    s = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [r], dtype=tl.float32, is_pure=True, pack=1)
    return x + inv_beta * (s * s)


@triton.jit
def silu_of(x):
    """``x / (1 + exp(-x))`` of fp32, without the instructions that a division has beyond the hardware's reciprocal.

    That is of 1 or more, or infinite, and wrong by an ulp: nothing that a division would mend.
    """
    e = 1.0 + tl.exp2(x * -1.4426950408889634)
    r = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [e], dtype=tl.float32, is_pure=True, pack=1)
    return x * r


@triton.jit
def wave_of(y, alpha_ptr, inv_beta_ptr, first, columns):
    """What the next layer reads of fp32 [rows, columns]: their snake, or where it has no parameters their SiLU.

    The columns' channels are ``first + columns``.
    """
    if alpha_ptr is None:
        return silu_of(y)
    else:
        alpha = tl.load(alpha_ptr + first + columns)[None, :]
        return snake_of(y, alpha, tl.load(inv_beta_ptr + first + columns)[None, :])


@triton.jit
def zero_guards(ptr, rows, first, last, columns, C: tl.constexpr, GUARD: tl.constexpr):
    """Write zeros to the guards around a song's rows, if this program is the one that has the first or last of them.

    ``ptr`` is at the song's first guard row; ``columns`` are the channels that this program writes.
    """
    guard = ptr + tl.arange(0, GUARD)[:, None] * C + columns[None, :]
    zeros = tl.zeros([GUARD, columns.shape[0]], ptr.dtype.element_ty)
    if first:
        tl.store(guard, zeros)
    if last:
        tl.store(guard + (GUARD + rows).to(tl.int64) * C, zeros)


@triton.jit(do_not_specialize=["L"])  # or a length that 16 divides would be another kernel
def _snake(
    x_ptr,
    alpha_ptr,
    inv_beta_ptr,
    y_ptr,
    L,
    C: tl.constexpr,
    GUARD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    song = tl.program_id(2).to(tl.int64) * (L + 2 * GUARD) * C  # its first guard row
    alpha, inv_beta = tl.load(alpha_ptr + c)[None, :], tl.load(inv_beta_ptr + c)[None, :]
    at = song + (GUARD + tile.to(tl.int64) * ROWS) * C
    offsets = tl.arange(0, ROWS)[:, None] * C + c[None, :]
    live = L - tile * ROWS
    mask = (tl.arange(0, ROWS) < live)[:, None]
    x = tl.load(x_ptr + at + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + at + offsets, snake_of(x, alpha, inv_beta).to(y_ptr.dtype.element_ty), mask=mask)
    zero_guards(y_ptr + song, L, tile == 0, live <= ROWS, c, C, GUARD)


def parameters(wave: Activation | None) -> tuple[Tensor | None, Tensor | None]:
    """Arguments of a kernel that activates its result by ``wave_of``."""
    return (None, None) if wave is None or wave == SILU else wave


def waved(y: Tensor, wave: Activation | None) -> tuple[Tensor, ...]:
    """What ``wave`` makes of rows, in y's precision, for the references of cases; nothing where there is none."""
    if wave is None:
        return ()
    return (F.silu(y) if wave == SILU else y + wave[1] * (wave[0] * y).sin().square(),)


def snake(x: Tensor, alpha: Tensor, inv_beta: Tensor, *, out: Tensor) -> Tensor:
    """Launches the kernel on guarded rows; the op has checked the inputs."""
    B, L, C = x.shape
    config = pick(CONFIGS, "narrow" if C % 128 else "wide")
    grid = (triton.cdiv(L, config["ROWS"]), C // config["BLOCK"], B)
    _snake[grid](whole(x), alpha, inv_beta, whole(out), L, C=C, GUARD=GUARD, **config.options)
    return out


def _reference(x: Tensor, alpha: Tensor, inv_beta: Tensor, *, out: Tensor) -> tuple[Tensor, ...]:
    return (x + inv_beta * (alpha * x).sin().square(),)


def _case(config: str, dtype: torch.dtype, real: tuple[int, int, int], small: tuple[int, int, int]) -> Case:
    """Sizes as B, L, C."""

    def arguments(B: int, L: int, C: int, **options) -> Arguments:
        meta = "generator" not in options
        make, uniform = (torch.empty, torch.empty) if meta else (torch.randn, torch.rand)
        rows = {"dtype": dtype, "device": options.get("device", torch.device("cpu"))}
        x, out = (guarded(B, L, C, **rows) for _ in range(2))
        x.copy_(3 * make(B, L, C, **options))
        alpha, inv_beta = uniform(C, **options) * 4 + 0.1, uniform(C, **options) * 2
        return {"x": x, "alpha": alpha, "inv_beta": inv_beta, "out": out}

    return Case(
        kernel="snake",
        config=config,
        launch=snake,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: 0,
        bytes=lambda a: 2 * a["x"].nbytes + 2 * len(a["x"]) * GUARD * a["x"].shape[2] * a["x"].itemsize,
        tolerance=4e-4 if dtype == torch.float16 else 3e-3,
    )


CASES = (
    _case("c128-bf16", torch.bfloat16, (1, 512 * 1920, 128), (2, 75, 128)),
    _case("c128-fp16", torch.float16, (1, 512 * 1920, 128), (2, 75, 128)),
    _case("c1024-bf16", torch.bfloat16, (1, 512 * 10, 1024), (1, 40, 256)),
    _case("tiny-bf16", torch.bfloat16, (1, 2000, 48), (2, 75, 48)),
)
