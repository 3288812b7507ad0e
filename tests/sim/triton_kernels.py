"""Compiles the Triton kernels of test_ptx_triton.py for sm_80; prints {name: {ptx, shared, warps}} as JSON.

A program of its own: ``@triton.jit`` reads its settings when it decorates.
"""

from __future__ import annotations

import json
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def add_ragged(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=live) + tl.load(y_ptr + i, mask=live), mask=live)


@triton.jit
def rmsnorm(x_ptr, w_ptr, y_ptr, D, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    live = i < D
    x = tl.load(x_ptr + row * D + i, mask=live, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + i, mask=live, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / D + eps) * w
    tl.store(y_ptr + row * D + i, y.to(tl.bfloat16), mask=live)


@triton.jit
def softmax(x_ptr, y_ptr, D, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * D + i, mask=i < D, other=-float("inf"))
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(y_ptr + row * D + i, e / tl.sum(e, axis=0), mask=i < D)


@triton.jit
def matmul(a_ptr, b_ptr, c_ptr, K, sa, sb, sc, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.float32)
    for k0 in range(0, K, BK):
        a = tl.load(a_ptr + m[:, None] * sa + (k0 + k)[None, :])
        b = tl.load(b_ptr + (k0 + k)[:, None] * sb + n[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + m[:, None] * sc + n[None, :], acc.to(tl.bfloat16))


@triton.jit
def matmul_s8(a_ptr, b_ptr, c_ptr, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    acc = tl.zeros([BM, BN], tl.int32)
    for k0 in range(0, K, BK):
        a = tl.load(a_ptr + m[:, None] * K + (k0 + k)[None, :])
        b = tl.load(b_ptr + n[None, :] * K + (k0 + k)[:, None])
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + m[:, None] * BN + n[None, :], acc)


@triton.jit
def scale_rows64(x_ptr, y_ptr, stride, D, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + i, mask=i < D)
    tl.store(y_ptr + row * D + i, x * 2.0, mask=i < D)


@triton.jit
def scale_rows32(x_ptr, y_ptr, stride, D, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + i, mask=i < D)
    tl.store(y_ptr + row * D + i, x * 2.0, mask=i < D)


@triton.jit
def sine(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.sin(tl.load(x_ptr + i, mask=i < n)), mask=i < n)


@triton.jit
def column_sums(x_ptr, y_ptr, D, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * D + i, mask=i < D, other=0.0)
    tl.atomic_add(y_ptr + i, x, mask=i < D)


F, B, I8, N = "*fp32", "*bf16", "*i8", "i32"
KERNELS = {
    "add_ragged": (add_ragged, (F, F, F, N), dict(BLOCK=512), {}),
    "rmsnorm": (rmsnorm, (B, B, B, N, "fp32"), dict(BLOCK=1024), {}),
    "softmax": (softmax, (F, F, N), dict(BLOCK=512), {}),
    "matmul": (matmul, (B, B, B, N, N, N, N), dict(BM=64, BN=64, BK=32), dict(num_stages=3)),
    "matmul_s8": (matmul_s8, (I8, I8, "*i32", N), dict(BM=32, BN=32, BK=64), dict(num_stages=2)),
    "scale_rows64": (scale_rows64, (F, F, N, N), dict(BLOCK=128), {}),
    "scale_rows32": (scale_rows32, (F, F, N, N), dict(BLOCK=128), {}),
    "sine": (sine, (F, F, N), dict(BLOCK=256), {}),
    "column_sums": (column_sums, (F, F, N), dict(BLOCK=128), {}),
}


def compile_all() -> dict[str, dict]:
    out = {}
    for name, (kernel, types, constants, options) in KERNELS.items():
        signature = dict(zip(kernel.arg_names, (*types, *("constexpr" for _ in constants))))
        aligned = [k for k, t in enumerate(types) if t[0] == "*" or (name.startswith("matmul") and t == N)]
        attributes = {(k,): [["tt.divisibility", 16]] for k in aligned}
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
        built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        out[name] = {"ptx": built.asm["ptx"], "shared": built.metadata.shared, "warps": built.metadata.num_warps}
    return out


if __name__ == "__main__":
    json.dump(compile_all(), sys.stdout)
