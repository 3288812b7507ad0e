"""Triton kernel of acefast.ops.philox: the reference's bits, which other kernels may draw as well (``normal``).

Math    as the op's docstring has it: integer rounds in 32 bits, the rest in fp64, rounded as the reference rounds
Tiling  one program per BLOCK neighbouring elements of one song
Bytes   4 * B * n: the values written; seeds and stream stay in L2
Bound   fp64 arithmetic: 58 sums and products, a quotient and a root an element (counted in the PTX)

A product and a sum must stay two roundings: every kernel that calls ``normal`` is compiled with enable_fp_fusion=False.
Triton's fp64 quotient and root are div.rn and sqrt.rn.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.ops import philox as op

CONFIGS = {("normal", 80): Config({"BLOCK": 512}, num_warps=4, compiler={"enable_fp_fusion": False})}

_M0, _M1 = (tl.constexpr(m) for m in op.MULTIPLIERS)
_W0, _W1 = (tl.constexpr(w) for w in op.WEYL)
_ROUNDS = tl.constexpr(op.ROUNDS)
_ANGLE, _HALF_ANGLE = tl.constexpr(op.ANGLE), tl.constexpr(op.ANGLE / 2)
_UNIT, _HALF_UNIT = tl.constexpr(2.0**-32), tl.constexpr(2.0**-33)
_LN2, _INVERSE_PI = tl.constexpr(op.LN2), tl.constexpr(1.0 / math.pi)
_PI_HIGH, _PI_LOW = tl.constexpr(op.PI_HIGH), tl.constexpr(op.PI_LOW)
_SQRT_HALF, _SHIFT = tl.constexpr(op.SQRT_HALF), tl.constexpr(op.ONE - op.SQRT_HALF)
_MANTISSA = tl.constexpr(0x007FFFFF)
_ATANH, _ATANH_DEGREE = tl.constexpr(op.ATANH), tl.constexpr(len(op.ATANH) - 1)
_SINE, _SINE_DEGREE = tl.constexpr(op.SINE), tl.constexpr(len(op.SINE) - 1)


@triton.jit
def normal(seed, stream, element):
    """fp32 values of int64 elements of the song with this int64 seed (the bits of its 64), any shape."""
    c0, c1 = _rounds(seed, stream, element)
    u = (c0.to(tl.float32).to(tl.float64) * _UNIT + _HALF_UNIT).to(tl.float32)
    w = (c1.to(tl.float32).to(tl.float64) * _ANGLE + _HALF_ANGLE).to(tl.float32)
    return (tl.sqrt(_log(u) * -2.0) * _sin(w)).to(tl.float32)


@triton.jit
def _rounds(seed, stream, element):
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c2, c3 = element.to(tl.uint32), (element >> 32).to(tl.uint32)
    c0, c1 = tl.zeros_like(c2) + stream.to(tl.uint32), tl.zeros_like(c2) + (stream >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        high0, low0 = tl.umulhi(c0, _M0), c0 * _M0
        high1, low1 = tl.umulhi(c2, _M1), c2 * _M1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _W0, k1 + _W1
    return c0, c1


@triton.jit
def _log(u):
    bits = u.to(tl.int32, bitcast=True) + _SHIFT
    k = ((bits >> 23) - 127).to(tl.float64)
    m = ((bits & _MANTISSA) + _SQRT_HALF).to(tl.float32, bitcast=True).to(tl.float64)
    s = (m - 1.0) / (m + 1.0)
    return _polynomial(s * s, _ATANH, _ATANH_DEGREE) * s * 2.0 + k * _LN2


@triton.jit
def _sin(angle):
    w = angle.to(tl.float64)
    k = (w * _INVERSE_PI + 0.5).to(tl.int32).to(tl.float64)
    r = (w - k * _PI_HIGH) - k * _PI_LOW
    r = tl.where(k == 1.0, -r, r)
    return _polynomial(r * r, _SINE, _SINE_DEGREE) * r


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr):
    result = tl.zeros_like(x) + COEFFICIENTS[DEGREE]
    for i in tl.static_range(DEGREE):
        result = result * x + COEFFICIENTS[DEGREE - 1 - i]
    return result


@triton.jit
def _philox_kernel(seeds_ptr, stream_ptr, out_ptr, n, BLOCK: tl.constexpr):
    song = tl.program_id(1).to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = normal(tl.load(seeds_ptr + song), tl.load(stream_ptr), element)
    tl.store(out_ptr + song * n + element, value, mask=element < n)


def philox(seeds: Tensor, stream: Tensor, *, out: Tensor) -> None:
    """Launches the kernel.

    Args:
        seeds: int64 [B], and stream: int64 [1], the bits of unsigned 64-bit numbers.
        out: fp32 [B, ...], contiguous.
    """
    n = math.prod(out.shape[1:])
    config = pick(CONFIGS, "normal")
    _philox_kernel[(triton.cdiv(n, config["BLOCK"]), len(out))](seeds, stream, out, n, **config.options)


def _reference(seeds: Tensor, stream: Tensor, *, out: Tensor) -> tuple[Tensor, ...]:
    words = [word % 2**64 for word in (*seeds.tolist(), *stream.tolist())]
    return (op.philox_normal_reference(words[:-1], out.shape[1:], stream=words[-1]),)


def _arguments(B: int, T: int, device: torch.device | str = "cpu") -> Arguments:
    seeds = torch.tensor([42, -1, 2**40 + 3][:B], device=device)
    return {"seeds": seeds, "stream": torch.tensor([7], device=device), "out": torch.empty(B, T, 64, device=device)}


CASES = (
    Case(
        kernel="philox",
        config="normal",
        launch=philox,
        reference=_reference,
        real=lambda device: _arguments(1, 15000, device),  # 10 minutes
        small=lambda _: _arguments(2, 24),
        outputs=("out",),
        flops=lambda a: 240 * a["out"].numel(),  # in fp32's terms: an fp64 operation takes as long as four of an FMA's
        bytes=lambda a: a["out"].nbytes,
    ),
)
