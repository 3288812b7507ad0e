"""Triton kernel of acefast.ops.snake, and what every kernel of the autoencoder shares.

Math    y = x + inv_beta * sin(alpha * x)², fp32, rounded once
Tiling  one program per ROWS rows of all channels; a thread moves 16 bytes at a time
Bytes   2 * B * L * C * itemsize: x in, y out
Bound   memory
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def snake_of(x, alpha, inv_beta):
    """``x + inv_beta * sin(alpha * x)**2`` of fp32; the three broadcast.

    The sine's square has period pi: the nearest multiple is taken off in two parts, the first of which is exact in any
    product with a whole number below 2**13. Then the hardware's approximation is as good as it gets.
    """
    v = alpha * x
    n = (v * 0.3183098861837907 + 12582912.0) - 12582912.0  # 1.5 * 2**23: the sum has no fraction left
    r = v - n * 3.140625
    r = r - n * 9.67653589793e-4
    s = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [r], dtype=tl.float32, is_pure=True, pack=1)
    return x + inv_beta * (s * s)


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
