"""mov with packing, cvta, and cvt between all types of sm_80."""

from __future__ import annotations

import numpy as np

from acefast.sim.bits import (
    DTYPE,
    f32_to_bf16,
    f32_to_tf32,
    f64_to_bf16,
    flush,
    round_directed,
    unsigned,
    widen,
)
from acefast.sim.ptx import Group

TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
DIRECTED = ("rz", "rm", "rp")


def to_integer(x: np.ndarray, target: str, source: str) -> np.ndarray:
    """A rounded float -> integer: clamped to the range; NaN is 0, or the top bit where 64 bits are involved."""
    dtype = DTYPE[target]
    info, wide = np.iinfo(dtype), x.astype(np.float64)
    out = np.where(np.isnan(wide), 0, wide)
    high, low = out >= float(info.max), out <= float(info.min)
    out = np.where(high, info.max, np.where(low, info.min, np.where(high | low, 0, out).astype(dtype)))
    nan = 1 << (dtype.itemsize * 8 - 1) if dtype.itemsize == 8 or source == "f64" else 0
    bits = np.where(
        np.isnan(wide), np.array(nan, unsigned(dtype.itemsize)), out.astype(dtype).view(unsigned(dtype.itemsize))
    )
    return bits.view(dtype)


def to_float(x: np.ndarray, target: str, rounding: str) -> np.ndarray:
    """A number of any type -> the bits of a float type, rounded once."""
    if target == "tf32":
        return f32_to_tf32(x)
    wide = x if x.dtype in (np.float32, np.float64) or x.dtype.itemsize == 8 else x.astype(np.float64)
    if target in ("f16", "f32", "f64"):
        dtype = DTYPE[target]
        if rounding in DIRECTED and dtype.itemsize < 8:
            return round_directed(wide.astype(np.float64), dtype, rounding)
        return wide.astype(dtype)
    if rounding == "rz":  # the bits of the fp32 below, cut
        f = round_directed(wide.astype(np.float64), np.dtype(np.float32), "rz")
        return np.where(np.isnan(f), 0x7FFF, f.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return f32_to_bf16(wide) if wide.dtype == np.float32 else f64_to_bf16(wide)


def _cvt(m, index, instr):
    if instr.has("pack"):
        return _pack(m, instr)
    target, source = instr.mods[-2:]
    out = m.target(instr.operands[0])
    rounding = instr.first((*TO_INTEGER, *DIRECTED))
    relu, ftz = instr.has("relu"), instr.has("ftz")
    if target in ("f16x2", "bf16x2"):
        high, low = (m.value(o, "f32") for o in instr.operands[1:3])

        def both(active) -> None:
            halves = [to_float(_floor(v(), relu), target[:-2], rounding) for v in (low, high)]
            a, b = (np.asarray(h).view(np.uint16).astype(np.uint32) for h in halves)
            out.put(a | (b << np.uint32(16)), active)

        return both
    value = m.value(instr.operands[1], source)
    from_float, into_float = source in ("f16", "bf16", "f32", "f64"), target in ("f16", "bf16", "f32", "f64", "tf32")

    def run(active) -> None:
        x = widen(value(), source)
        if ftz and x.dtype == np.float32:
            x = flush(x)
        if from_float and rounding in TO_INTEGER:
            x = TO_INTEGER[rounding](x)
        if relu:
            x = _floor(x, True)
        if into_float:
            if instr.has("sat"):
                x = np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)
            y = to_float(x, target, rounding)
            out.put(flush(y) if ftz and y.dtype == np.float32 else y, active)
        elif from_float:
            out.put(to_integer(x, target, source), active)
        else:
            out.put(saturate(x, target) if instr.has("sat") else x.astype(DTYPE[target]), active)

    return run


def saturate(x: np.ndarray, target: str) -> np.ndarray:
    """An integer clamped to the range of a type of another width or signedness."""
    to, own = np.iinfo(DTYPE[target]), np.iinfo(x.dtype)
    return np.clip(x, x.dtype.type(max(to.min, own.min)), x.dtype.type(min(to.max, own.max))).astype(DTYPE[target])


def _floor(x, relu: bool):
    return np.where(x < 0, np.zeros_like(x), x) if relu else x


def _pack(m, instr):
    """cvt.pack.sat: two saturated integers side by side, above them the low bits of a third."""
    kind, _, *rest = [t for t in instr.mods if t in DTYPE]
    out = m.target(instr.operands[0])
    a, b = (m.value(o, "s32") for o in instr.operands[1:3])
    c = m.value(instr.operands[3], "b32") if rest else None
    bits = DTYPE[kind].itemsize * 8

    def run(active) -> None:
        x, y = (saturate(v(), kind).view(unsigned(bits // 8)).astype(np.uint32) for v in (a, b))
        packed = (x << np.uint32(bits)) | y
        out.put(packed | (c() << np.uint32(2 * bits)) if c else packed, active)

    return run


def _mov(m, index, instr):
    to, source = instr.operands[:2]
    size = DTYPE[instr.type].itemsize
    if isinstance(to, Group):
        part = unsigned(size // len(to.items))
        targets, value = m.targets(to), m.value(source, f"b{size * 8}")

        def unpack(active) -> None:
            x = value()
            for k, target in enumerate(targets):
                target.put((x >> x.dtype.type(part.itemsize * 8 * k)).astype(part), active)

        return unpack
    out = m.target(to)
    if isinstance(source, Group):
        step = size * 8 // len(source.items)
        values, word = m.values(source, f"b{step}"), unsigned(size)

        def pack(active) -> None:
            total = word.type(0)
            for k, value in enumerate(values):
                total = total | (value().astype(word) << word.type(step * k))
            out.put(total, active)

        return pack
    value = m.value(source, instr.type)
    return lambda active: out.put(value(), active)


def _cvta(m, index, instr):
    """Between an address in a space and the generic address of the same byte."""
    out, value = m.target(instr.operands[0]), m.value(instr.operands[1], instr.type)
    tag = DTYPE[instr.type].type(m.generic(instr.first(("shared", "local", "global", "const"))))
    if instr.has("param"):
        raise KeyError("cvta.param")
    return lambda active: out.put(value() - tag if instr.has("to") else value() + tag, active)


def _createpolicy(m, index, instr):
    """A cache hint: any number will do, nothing here looks at it."""
    out = m.target(instr.operands[0])
    return lambda active: out.put(np.uint64(0), active)


DECODERS = {"createpolicy": _createpolicy, "cvt": _cvt, "mov": _mov, "cvta": _cvta}
