"""Number formats of PTX as numpy arrays: dtypes, bf16 and tf32 as bit patterns, roundings numpy does not have."""

from __future__ import annotations

import numpy as np

DTYPE = {
    name: np.dtype(dtype)
    for names, dtype in {
        "s8": np.int8, "u8 b8": np.uint8, "s16": np.int16, "u16 b16 bf16": np.uint16, "f16": np.float16,
        "s32": np.int32, "u32 b32 f16x2 bf16x2 tf32": np.uint32, "f32": np.float32,
        "s64": np.int64, "u64 b64": np.uint64, "f64": np.float64, "pred": np.bool_,
    }.items()
    for name in names.split()
}  # fmt: skip
FLOATS = ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64")
TINY = np.float32(2.0**-126)  # the smallest normal fp32; .ftz flushes what is below


def unsigned(size: int) -> np.dtype:
    return np.dtype(f"u{size}")


def bf16_to_f32(bits) -> np.ndarray:
    """uint16 bit patterns -> their fp32 values."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x) -> np.ndarray:
    """fp32 -> bf16 bit patterns (uint16), round to nearest even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def f64_to_bf16(x) -> np.ndarray:
    """fp64 -> bf16 with one rounding: through fp32 rounded to odd, which keeps the ties apart."""
    x = np.asarray(x, np.float64)
    near = x.astype(np.float32)
    towards_zero = np.where(np.abs(near.astype(np.float64)) > np.abs(x), np.nextafter(near, np.float32(0)), near)
    bits = towards_zero.astype(np.float32).view(np.uint32)
    odd = np.where((near.astype(np.float64) != x) & np.isfinite(x), bits | np.uint32(1), bits)
    return f32_to_bf16(odd.astype(np.uint32).view(np.float32))


def round_directed(x, dtype: np.dtype, mode: str) -> np.ndarray:
    """fp64 -> dtype, towards zero ("rz"), minus ("rm") or plus infinity ("rp"), else to nearest even."""
    near = np.asarray(x).astype(dtype)
    if mode not in ("rz", "rm", "rp"):
        return near
    wide, inf = near.astype(np.float64), dtype.type(np.inf)
    up = (wide > x) & ((mode == "rm") | ((mode == "rz") & (np.asarray(x) > 0)))
    down = (wide < x) & ((mode == "rp") | ((mode == "rz") & (np.asarray(x) < 0)))
    return np.where(up, np.nextafter(near, -inf), np.where(down, np.nextafter(near, inf), near)).astype(dtype)


def flush(x: np.ndarray) -> np.ndarray:
    """Subnormal fp32 to zero of the same sign (.ftz)."""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


def f32_to_tf32(x) -> np.ndarray:
    """fp32 -> the nearest value with 10 mantissa bits, ties away from zero, as bits (cvt.rna.tf32)."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return np.where(np.isfinite(x), (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), bits).astype(np.uint32)


def widen(x, type_: str) -> np.ndarray:
    """Operand bits of a PTX float type -> fp32 (fp64 stays); packed types gain an axis of 2, low half first."""
    x = np.asarray(x)
    if type_ == "bf16":
        return bf16_to_f32(x)
    if type_ == "f16":
        return x.astype(np.float32)
    if type_ in ("f16x2", "bf16x2"):
        halves = np.ascontiguousarray(np.atleast_1d(x)).view(np.uint16).reshape(-1, 2)
        return bf16_to_f32(halves) if type_ == "bf16x2" else halves.view(np.float16).astype(np.float32)
    return x


def narrow(x: np.ndarray, type_: str) -> np.ndarray:
    """The inverse of widen, rounded once; takes fp32 or fp64."""
    if type_ in ("bf16", "bf16x2"):
        half = f64_to_bf16(x) if x.dtype == np.float64 else f32_to_bf16(x)
    elif type_ in ("f16", "f16x2"):
        half = x.astype(np.float16)
    else:
        return x.astype(DTYPE[type_])
    return np.ascontiguousarray(half).view(np.uint32)[:, 0] if type_.endswith("x2") else half
