"""setp, set, selp and slct."""

from __future__ import annotations

import numpy as np

from acefast.sim.bits import FLOATS, flush, widen
from acefast.sim.ptx import Group

PLAIN = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(name: str, is_float: bool):
    """A function of two arrays; ordered float comparisons are false where either is NaN."""
    if name in ("num", "nan"):
        either = lambda x, y: np.isnan(x) | np.isnan(y)  # noqa: E731
        return either if name == "nan" else lambda x, y: ~either(x, y)
    plain = PLAIN[UNORDERED.get(name, name)]
    if not is_float:
        return plain
    if name in UNORDERED:
        return lambda x, y: plain(x, y) | np.isnan(x) | np.isnan(y)
    return lambda x, y: plain(x, y) & ~(np.isnan(x) | np.isnan(y))


def _compare(m, instr, type_: str):
    a, b = (m.value(o, type_) for o in instr.operands[1:3])
    test = comparison(instr.mods[0], type_ in FLOATS)
    ftz = instr.has("ftz")
    read = lambda v: flush(widen(v(), type_)) if ftz else widen(v(), type_)  # noqa: E731
    combine = COMBINE.get(instr.mods[1]) if len(instr.operands) > 3 else None
    c = m.value(instr.operands[3], "pred") if combine else None
    return lambda: test(read(a), read(b)), combine, c


def _setp(m, index, instr):
    first, combine, c = _compare(m, instr, instr.type)
    out = instr.operands[0]
    targets = [m.target(o) for o in (out.items if isinstance(out, Group) else (out,))]
    packed = instr.type.endswith("x2")

    def run(active) -> None:
        p = first()
        results = [p[:, 0], p[:, 1]] if packed else [p, ~p]
        extra = c() if c else None
        for target, result in zip(targets, results):
            target.put(combine(result, extra) if combine else result, active)

    return run


def _set(m, index, instr):
    """set: like setp, but the answer is -1 or 1.0 in the first type."""
    first, combine, c = _compare(m, instr, instr.type)
    out, kind = m.target(instr.operands[0]), instr.mods[-2]

    def run(active) -> None:
        p = combine(first(), c()) if combine else first()
        if kind == "f32":
            out.put(p.astype(np.float32), active)
        elif kind in ("f16", "bf16"):
            out.put(np.where(p, np.uint16(0x3C00 if kind == "f16" else 0x3F80), np.uint16(0)), active)
        else:
            out.put(np.where(p, np.uint32(0xFFFFFFFF), np.uint32(0)), active)

    return run


def _selp(m, index, instr):
    out, t = m.target(instr.operands[0]), instr.type
    a, b, p = m.value(instr.operands[1], t), m.value(instr.operands[2], t), m.value(instr.operands[3], "pred")
    return lambda active: out.put(np.where(p(), a(), b()), active)


def _slct(m, index, instr):
    t, by = instr.mods[-2:]
    out = m.target(instr.operands[0])
    a, b, c = m.value(instr.operands[1], t), m.value(instr.operands[2], t), m.value(instr.operands[3], by)
    return lambda active: out.put(np.where(c() >= 0, a(), b()), active)


DECODERS = {"setp": _setp, "set": _set, "selp": _selp, "slct": _slct}
