"""Sample kernels with a fault planted in each; their sound twins are in kernels_sound.py."""

import triton
import triton.language as tl


@triton.jit
def add_without_load_mask(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i) + tl.load(y_ptr + i), mask=i < n)


@triton.jit
def add_without_store_mask(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, x + tl.load(y_ptr + i, mask=i < n, other=0.0))


@triton.jit
def add_without_other(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """The total is of every lane, also those that the mask leaves undefined."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n)
    y = tl.load(y_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, x + y + tl.sum(x, 0), mask=i < n)


@triton.jit
def add_all_but_last(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, x + tl.load(y_ptr + i, mask=i < n, other=0.0), mask=i < n - 1)


@triton.jit
def overlapping_blocks(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * (BLOCK - 1) + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    tl.store(out_ptr + i, x + tl.load(y_ptr + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def smoothed_in_place(x_ptr, n, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Every program also loads the neighbour of its block, which another program stores."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0)
    neighbour = tl.load(x_ptr + i + STEP, mask=(i + STEP >= 0) & (i + STEP < n), other=0.0)
    tl.store(x_ptr + i, x + neighbour, mask=i < n)


@triton.jit
def two_lanes_one_address(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i // 2, tl.load(x_ptr + i))


@triton.jit
def cosine_by_assembly(x_ptr, out_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    c = tl.inline_asm_elementwise("cos.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(out_ptr + i, c)
