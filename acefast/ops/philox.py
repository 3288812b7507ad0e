"""Philox 4x32-10: noise that depends on a seed and a position only, with the same bits on every device.

Element ``e`` of a song with seed ``s`` is a function of ``(s, stream, e)`` and nothing else: not of the song's length,
its neighbours in the batch, the device, the number of threads or what was drawn before. ``e`` counts row-major over one
song's shape, so with [T, 64] a longer song starts with the noise of the shorter one.

    key     = (s mod 2^32, s div 2^32)
    counter = (stream mod 2^32, stream div 2^32, e mod 2^32, e div 2^32)
    c0, c1  = first two lanes of ten Philox rounds
    u = c0 * 2^-32 + 2^-33,  w = c1 * (2 pi 2^-32) + 2 pi 2^-33      each rounded once to fp32
    value   = sqrt(-2 ln u) * sin w                                  fp64, rounded once to fp32

With stream 0 this is what ``torch.randn(..., device="cuda", dtype=torch.float32)`` draws first for the same seed (to
1e-6), as long as the tensor is no larger than the GPU's grid; beyond that torch's values depend on the GPU model, and
these do not.

Same bits everywhere: after the integer rounds only +, -, *, / and sqrt in fp64 are used, which IEEE 754 rounds in one
way; ln and sin are polynomials built from them, since the libraries' own differ in the last bit. Every torch call is
one kernel, so no compiler can contract a product and a sum into one rounding; kernels/philox.py forbids it too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from acefast.backends import choose_backend

OP = "philox"
ORDER = ("triton",)

_MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
ROUNDS = 10
_CPU_CHUNK = 1 << 14  # elements: temporaries stay in cache, and no loop is long enough for torch to start threads

ANGLE = float.fromhex("0x1.921fb6p-30")  # 2 pi 2^-32 rounded to fp32, as the GPU generator has it
LN2 = math.log(2.0)
PI_HIGH = 3.1415926534682512  # pi's first 33 bits, so that a small multiple is exact; PI_LOW is the rest
PI_LOW = 1.2154201013012385e-10
SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2) in fp32
ONE = 0x3F800000  # the bits of 1.0
ATANH = tuple(1.0 / (2 * n + 1) for n in range(9))  # atanh(s) / s in powers of s^2
SINE = tuple((-1.0) ** n / math.factorial(2 * n + 1) for n in range(10))  # sin(r) / r in powers of r^2


def philox_normal_reference(
    seeds: Sequence[int], shape: Sequence[int], *, stream: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """What the op means; see ``philox_normal``."""
    device = torch.device(device)
    # Other devices may have no fp64, and the values must not depend on that.
    place = device if device.type in ("cpu", "cuda") else torch.device("cpu")
    elements = math.prod(shape)
    chunk = _CPU_CHUNK if place.type == "cpu" else max(elements, 1)
    values = torch.empty(len(seeds), elements, dtype=torch.float32, device=place)
    square, sine = torch.empty(2, elements, dtype=torch.float64, device=place)
    for row, seed in zip(values, seeds):
        for begin in range(0, elements, chunk):
            part = slice(begin, min(begin + chunk, elements))
            index = torch.arange(part.start, part.stop, dtype=torch.int64, device=place)
            square[part], sine[part] = _box_muller(*philox_bits(seed, stream, index))
        row.copy_(square.sqrt_().mul_(sine))  # once per song, since torch starts threads for short roots too
    return values.view(len(seeds), *shape).to(device)


def philox_normal(
    seeds: Sequence[int],
    shape: Sequence[int],
    *,
    stream: int = 0,
    device: torch.device | str = "cpu",
    backend: str | None = None,
) -> Tensor:
    """Standard normal noise, one independent song per seed.

    Args:
        seeds: one per song, 0 to 2**64 - 1.
        shape: of one song, such as (T, 64).
        stream: which of a seed's 2**64 independent draws, 0 to 2**64 - 1.
        device: where the result shall lie; its values do not depend on it.
        backend: "triton" or "reference"; None leaves the choice to acefast.backends.
    Returns:
        fp32, [len(seeds), *shape], contiguous. No element exceeds 6.8 in size.
    Raises:
        ValueError: a seed, the stream or a size is out of range.
        BackendUnavailable: the backend named cannot run here.
    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    seeds = [_uint64("seeds", seed) for seed in seeds]
    stream = _uint64("stream", stream)
    shape = tuple(operator.index(size) for size in shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"{OP}: shape must hold sizes of 0 or more, got {shape}")
    if choose_backend(OP, backend, torch.device(device), ORDER) == "triton":
        from acefast.kernels.philox import philox

        words = torch.tensor([int64_of(word) for word in (*seeds, stream)], dtype=torch.int64, device=device)
        out = torch.empty(len(seeds), *shape, dtype=torch.float32, device=device)
        philox(words[:-1], words[-1:], out=out)
        return out
    return philox_normal_reference(seeds, shape, stream=stream, device=device)


def philox_bits(seed: int, stream: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Lanes 0 and 1, each a 32-bit integer held in int64, of the elements ``index`` (int64, any shape)."""
    k0, k1 = seed & _MASK, seed >> 32
    c0, c1 = torch.full_like(index, stream & _MASK), torch.full_like(index, stream >> 32)
    c2, c3 = index & _MASK, (index >> 32) & _MASK
    for _ in range(ROUNDS):
        # int64 products wrap, which leaves all 64 bits of the unsigned product in place: the low word is p & MASK and
        # the high one (p >> 32) & MASK, whatever the sign says.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1.bitwise_and_(_MASK), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + WEYL[0]) & _MASK, (k1 + WEYL[1]) & _MASK
    return c0, c1


def _box_muller(c0: Tensor, c1: Tensor) -> tuple[Tensor, Tensor]:
    """-2 ln u and sin w of two 32-bit lanes, in fp64."""
    u = _fp32_of(c0).mul_(2.0**-32).add_(2.0**-33).float()
    w = _fp32_of(c1).mul_(ANGLE).add_(ANGLE / 2).float()
    return _log(u).mul_(-2.0), _sin(w)


def _fp32_of(lane: Tensor) -> Tensor:
    """A 32-bit integer rounded to fp32's 24 bits, in fp64: what follows is then exact up to its own rounding."""
    return lane.double().float().double()


def _log(u: Tensor) -> Tensor:
    """ln of fp32 u > 0, in fp64: u = m 2^k with m around 1, and ln m = 2 atanh((m - 1) / (m + 1))."""
    bits = u.view(torch.int32) + (ONE - SQRT_HALF)
    k = (bits >> 23) - 127
    m = ((bits & 0x007FFFFF) + SQRT_HALF).view(torch.float32).double()  # [sqrt(1/2), sqrt(2))
    s = (m - 1.0).div_(m + 1.0)
    return _polynomial(s * s, ATANH).mul_(s).mul_(2.0).add_(k.double().mul_(LN2))


def _sin(w: Tensor) -> Tensor:
    """Sine of fp32 w in [0, 2 pi], in fp64: w = r + k pi with r around 0, and sin w = (-1)^k sin r."""
    w = w.double()
    k = (w * (1.0 / math.pi)).add_(0.5).int().double()  # 0, 1 or 2
    r = (w - k * PI_HIGH).sub_(k * PI_LOW)
    r = torch.where(k == 1.0, -r, r)
    return _polynomial(r * r, SINE).mul_(r)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result.mul_(x).add_(coefficient)
    return result


def int64_of(value: int) -> int:
    """The signed integer with the bits of an unsigned one."""
    return value - (value >> 63 << 64)


def _uint64(name: str, value: int) -> int:
    value = operator.index(value)
    if not 0 <= value < 2**64:
        raise ValueError(f"{OP}: {name} must be 0 to 2**64 - 1, got {value}")
    return value
