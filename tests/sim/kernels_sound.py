"""Sample kernels that are right: vector add, RMSNorm of rows, a bf16 matrix product."""

import triton
import triton.language as tl


@triton.jit
def add(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    y = tl.load(y_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, x + y, mask=i < n)


@triton.jit
def rms_norm(x_ptr, weight_ptr, out_ptr, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * D + i, mask=i < D, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + i, mask=i < D, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / D + eps) * weight
    tl.store(out_ptr + row * D + i, y.to(out_ptr.dtype.element_ty), mask=i < D)


@triton.jit
def matmul(a_ptr, b_ptr, out_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + rows.to(tl.int64) * K + k[None, :], mask=(rows < M) & (k[None, :] < K), other=0.0)
        b = tl.load(b_ptr + k[:, None].to(tl.int64) * N + columns, mask=(k[:, None] < K) & (columns < N), other=0.0)
        total = tl.dot(a, b, total)
    out = total.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows.to(tl.int64) * N + columns, out, mask=(rows < M) & (columns < N))


@triton.jit
def bf16_mix(x_ptr, y_ptr, total_ptr, out_ptr, BLOCK: tl.constexpr):
    """Arithmetic, comparison, maximum, negation and reductions on bf16 itself, which sound kernels avoid."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    y = tl.load(y_ptr + i)
    tl.store(out_ptr + i, tl.where(x < y, -x * y, tl.maximum(x, y) - 0.5))
    tl.store(total_ptr, tl.max(x, 0))


@triton.jit
def shifted_in_place(x_ptr, n, BLOCK: tl.constexpr):
    """Every program loads, then stores, its own block of the one tensor."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0) + 1.0, mask=i < n)


@triton.jit
def total(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Programs meet at one address, through an atomic."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out_ptr, tl.sum(tl.load(x_ptr + i, mask=i < n, other=0.0), 0))


@triton.jit
def alternate(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):
    """Even lanes read one tensor, odd lanes the other."""
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(tl.where(i % 2 == 0, x_ptr + i, y_ptr + i)))


@triton.jit
def sine(x_ptr, out_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FLAT: tl.constexpr):
    """sin(x) + 1 by the hardware's approximation; of rows, or of one flat tile."""
    i = tl.arange(0, ROWS * COLUMNS) if FLAT else tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    x = tl.load(x_ptr + i)
    s = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(out_ptr + i, s + 1.0)
