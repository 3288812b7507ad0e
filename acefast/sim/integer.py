"""Integer and bit instructions, and the carry chain. Floating types of the same opcodes go on to floating."""

from __future__ import annotations

import numpy as np

from acefast.sim import floating
from acefast.sim.bits import DTYPE, FLOATS

WIDER = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


def multiply_high(x, y):
    """The upper half of the product, for 16, 32 and 64 bits."""
    dtype = x.dtype
    bits = dtype.itemsize * 8
    if bits < 64:
        wide = np.dtype(f"{dtype.kind}{dtype.itemsize * 2}")
        return ((x.astype(wide) * y.astype(wide)) >> wide.type(bits)).astype(dtype)
    a, b, low = x.astype(np.uint64), y.astype(np.uint64), np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = ((a0 * b0) >> half) + ((a1 * b0) & low) + ((a0 * b1) & low)
    high = a1 * b1 + ((a1 * b0) >> half) + ((a0 * b1) >> half) + (middle >> half)
    if dtype.kind == "i":
        zero = np.uint64(0)
        high = high - np.where(x < 0, b, zero) - np.where(y < 0, a, zero)
    return high.astype(dtype)


def divide(x, y):
    """Towards zero; by zero all ones, as GPUs happen to."""
    safe = np.where(y == 0, y.dtype.type(1), y)
    quotient = (x - np.fmod(x, safe)) // safe
    return np.where(y == 0, ~y.dtype.type(0), quotient).astype(x.dtype)


def remainder(x, y):
    safe = np.where(y == 0, y.dtype.type(1), y)
    return np.where(y == 0, x, np.fmod(x, safe)).astype(x.dtype)


def shift(x, n, left: bool):
    """Amounts past the width give 0, or the sign for an arithmetic right shift."""
    bits = x.dtype.itemsize * 8
    amount = np.minimum(n, bits - 1).astype(x.dtype)
    out = np.left_shift(x, amount) if left else np.right_shift(x, amount)
    far = np.right_shift(x, x.dtype.type(bits - 1)) if x.dtype.kind == "i" and not left else x.dtype.type(0)
    return np.where(n >= bits, far, out).astype(x.dtype)


def funnel(low, high, n, left: bool, wrap: bool):
    n = np.where(wrap, n & 31, np.minimum(n, 32)).astype(np.uint64)
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    return ((both << n) >> np.uint64(32) if left else both >> n).astype(np.uint32)


def lookup3(a, b, c, table: int):
    out = np.uint32(0)
    for k in range(8):
        if table >> k & 1:
            out = out | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
    return out


def permute(a, b, selector, mode: str):
    """prmt: four bytes chosen from the eight of {b, a}."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    out = np.uint32(0)
    s = selector & np.uint32(3)
    modes = {
        "f4e": lambda k: s + np.uint32(k), "b4e": lambda k: (s - np.uint32(k)) & np.uint32(7),
        "rc8": lambda k: s, "ecl": lambda k: np.maximum(s, np.uint32(k)), "ecr": lambda k: np.minimum(s, np.uint32(k)),
        "rc16": lambda k: (s & np.uint32(1)) * np.uint32(2) + np.uint32(k & 1),
    }  # fmt: skip
    for k in range(4):
        nibble = modes[mode](k) if mode else (selector >> np.uint32(4 * k)) & np.uint32(15)
        byte = (both >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint32(255), np.uint32(0))
        byte = np.where(nibble & np.uint32(8), sign, byte.astype(np.uint32))
        out = out | (byte << np.uint32(8 * k))
    return np.asarray(out, np.uint32)


def extract(x, position, length):
    """bfe: bits past the top are zero, or the sign."""
    bits = x.dtype.itemsize * 8
    word = np.dtype(f"u{x.dtype.itemsize}")
    position, length = (v.astype(np.int64) & 255 for v in (position, length))
    raw = x.view(word)
    mask = low_bits(length, word)
    out = shift(raw, position, left=False) & mask
    if x.dtype.kind == "i":
        top = np.minimum(position + length - 1, bits - 1)
        negative = (length > 0) & (shift(raw, top, left=False) & word.type(1) != 0)
        held = low_bits(np.minimum(length, np.maximum(bits - position, 0)), word)  # the bits that x really has
        out = np.where(negative, out | ~held, out)
    return np.where(length == 0, word.type(0), out).astype(word).view(x.dtype)


def low_bits(n, word: np.dtype):
    """A mask of the low ``n`` bits."""
    one = np.broadcast_to(word.type(1), np.shape(n))
    return np.where(n >= word.itemsize * 8, ~word.type(0), shift(one, n, True) - word.type(1)).astype(word)


def insert(x, into, position, length):
    """bfi: the low ``length`` bits of x, at ``position`` of ``into``."""
    position, length = (v.astype(np.int64) & 255 for v in (position, length))
    mask = shift(low_bits(length, into.dtype), position, True)
    return (into & ~mask) | (shift(x, position, True) & mask)


def highest(x, shift_amount: bool):
    """bfind: the position of the highest bit that is not the sign, or how far left it can move; -1 if none."""
    bits = x.dtype.itemsize * 8
    y = np.where(x < 0, ~x, x).astype(f"u{x.dtype.itemsize}") if x.dtype.kind == "i" else x
    found = leading(y).astype(np.int64)
    out = found if shift_amount else bits - 1 - found
    return np.where(y == 0, 0xFFFFFFFF, out).astype(np.uint32)


def leading(x):
    """clz."""
    y = x.view(f"u{x.dtype.itemsize}").copy()
    bits = x.dtype.itemsize * 8
    for n in (1, 2, 4, 8, 16, 32):
        if n < bits:
            y = y | (y >> y.dtype.type(n))
    return (bits - np.bitwise_count(y).astype(np.int64)).astype(np.uint32)


def reverse(x):
    size = x.dtype.itemsize
    bits = np.unpackbits(np.ascontiguousarray(np.atleast_1d(x)).view(np.uint8).reshape(-1, size)[:, ::-1], axis=1)
    return np.ascontiguousarray(np.packbits(bits[:, ::-1], axis=1)[:, ::-1]).view(x.dtype)[:, 0]


def dot4(a, b, c, signs: tuple[bool, bool]):
    """dp4a: four products of bytes, summed."""
    x, y = (
        np.ascontiguousarray(np.atleast_1d(v)).view(np.int8 if signed else np.uint8).reshape(-1, 4).astype(np.int64)
        for v, signed in zip((a, b), signs)
    )
    return ((x * y).sum(1) + c).astype(c.dtype)


def nth_set(mask, base, offset):
    """fns: the position of the |offset|-th set bit from ``base`` up (offset > 0) or down."""
    out = []
    for m, b, n in zip(*(np.broadcast_arrays(*map(np.atleast_1d, (mask, base, offset))))):
        m, b, n = int(m), int(b), int(n)
        if n == 0:
            out.append(b if m >> b & 1 else 0xFFFFFFFF)
            continue
        places = [p for p in (range(b, 32) if n > 0 else range(b, -1, -1)) if m >> p & 1]
        out.append(places[abs(n) - 1] if len(places) >= abs(n) else 0xFFFFFFFF)
    return np.array(out, np.uint32)


def _add(m, i, instr):
    if instr.type in FLOATS:
        return floating.arithmetic(m, i, instr)
    return _with_carry(m, instr, len(instr.operands) - 1)


def _with_carry(m, instr, sources: int):
    """add, sub, and the last addition of mad, with .cc and the carry-in of addc, subc and madc."""
    t, out = instr.type, m.target(instr.operands[0])
    a, b = m.value(instr.operands[1], t), m.value(instr.operands[2], t)
    c = m.value(instr.operands[3], t) if sources == 3 else None
    minus, takes, gives = "sub" in instr.op, instr.op.endswith("c") and instr.op != "mac", instr.has("cc")
    dtype = DTYPE[t]
    word = np.dtype(f"u{dtype.itemsize}")

    def run(active) -> None:
        x, y = a(), b()
        if c is not None:
            x, y = (multiply_high(x, y) if instr.has("hi") else x * y), c()
        if not (takes or gives or instr.has("sat")):
            out.put(x - y if minus else x + y, active)
            return
        if instr.has("sat"):
            wide = x.astype(np.int64) - y if minus else x.astype(np.int64) + y
            out.put(np.clip(wide, -(2**31), 2**31 - 1).astype(np.int32), active)
            return
        x, y = (np.broadcast_to(v, (m.total,)).view(word) for v in (x, y))
        carry = m.carry.astype(word) if takes else word.type(0)
        if minus:
            total = x - y - carry
            overflow = (x < y) | ((x == y) & (carry != 0))
        else:
            total = x + y + carry
            overflow = (total < x) | ((total == x) & (carry != 0))
        out.put(total.view(dtype), active)
        if gives:
            np.copyto(m.carry, overflow, where=True if active.mask is None else active.mask)

    return run


def _multiply(m, i, instr):
    t = instr.type
    if t in FLOATS:
        return floating.arithmetic(m, i, instr)
    if instr.op in ("mad", "madc") and not instr.has("wide"):
        return _with_carry(m, instr, 3)
    out = m.target(instr.operands[0])
    a, b = m.value(instr.operands[1], t), m.value(instr.operands[2], t)
    if not instr.has("wide"):
        return lambda active: out.put(multiply_high(a(), b()) if instr.has("hi") else a() * b(), active)
    wide = DTYPE[WIDER[t]]
    c = m.value(instr.operands[3], WIDER[t]) if instr.op == "mad" else lambda: wide.type(0)
    return lambda active: out.put(a().astype(wide) * b().astype(wide) + c(), active)


def _multiply24(m, i, instr):
    out, values = m.target(instr.operands[0]), [m.value(o, instr.type) for o in instr.operands[1:]]
    signed = DTYPE[instr.type].kind == "i"
    low = lambda x: (x.astype(np.int64) << 40) >> 40 if signed else x.astype(np.int64) & 0xFFFFFF  # noqa: E731

    def run(active) -> None:
        x, y, *c = (v() for v in values)
        product = low(x) * low(y)
        product = product >> 16 if instr.has("hi") else product
        out.put((product + (c[0].astype(np.int64) if c else 0)).astype(DTYPE[instr.type]), active)

    return run


def _plain(function, types=None):
    """An instruction whose operands all have its own type; ``types`` replaces them from the second source on."""

    def decode(m, i, instr):
        if instr.type in FLOATS:
            return floating.arithmetic(m, i, instr)
        out = m.target(instr.operands[0])
        kinds = [instr.type, *(types or [])]
        values = [m.value(o, kinds[min(k, len(kinds) - 1)]) for k, o in enumerate(instr.operands[1:])]
        return lambda active: out.put(function(instr, *(v() for v in values)), active)

    return decode


def _logic(m, i, instr):
    out = m.target(instr.operands[0])
    values = [m.value(o, instr.type) for o in instr.operands[1:]]
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}[instr.op]
    return lambda active: out.put(function(*(v() for v in values)), active)


def _insert(m, i, instr):
    t, out = instr.type, m.target(instr.operands[0])
    x, into, position, length = (m.value(o, k) for o, k in zip(instr.operands[1:], (t, t, "u32", "u32")))
    return lambda active: out.put(insert(x(), into(), position(), length()), active)


def _lookup3(m, i, instr):
    out, values = m.target(instr.operands[0]), [m.value(o, "b32") for o in instr.operands[1:4]]
    table = int(instr.operands[4].text, 0)
    return lambda active: out.put(lookup3(*(v() for v in values), table), active)


def _dot4(m, i, instr):
    out, signs = m.target(instr.operands[0]), [t[0] == "s" for t in instr.mods[-2:]]
    kind = "s32" if any(signs) else "u32"
    a, b, c = (m.value(o, k) for o, k in zip(instr.operands[1:], ("u32", "u32", kind)))
    return lambda active: out.put(dot4(a(), b(), c(), signs), active)


def _difference(instr, a, b, c):
    return np.where(a > b, a - b, b - a).astype(c.dtype) + c


def _prmt(instr, a, b, c):
    return permute(a, b, c, instr.first(("f4e", "b4e", "rc8", "ecl", "ecr", "rc16")))


def _shf(instr, low, high, n):
    return funnel(low, high, n, instr.has("l"), instr.has("wrap"))


def _absolute(instr, x):
    return np.where(x < 0, -x, x).astype(x.dtype)


DECODERS = {
    "add": _add, "sub": _add, "addc": _add, "subc": _add,
    "mul": _multiply, "mad": _multiply, "madc": _multiply, "mul24": _multiply24, "mad24": _multiply24,
    "div": _plain(lambda _, x, y: divide(x, y)), "rem": _plain(lambda _, x, y: remainder(x, y)),
    "min": _plain(lambda _, x, y: np.minimum(x, y)), "max": _plain(lambda _, x, y: np.maximum(x, y)),
    "neg": _plain(lambda _, x: -x), "abs": _plain(_absolute), "sad": _plain(_difference),
    "and": _logic, "or": _logic, "xor": _logic, "not": _logic,
    "cnot": _plain(lambda _, x: (x == 0).astype(x.dtype)),
    "shl": _plain(lambda _, x, n: shift(x, n, True), ["u32"]),
    "shr": _plain(lambda _, x, n: shift(x, n, False), ["u32"]),
    "shf": _plain(_shf), "lop3": _lookup3, "prmt": _plain(_prmt),
    "bfe": _plain(lambda _, x, p, n: extract(x, p, n), ["u32"]), "bfi": _insert,
    "bfind": _plain(lambda i, x: highest(x, i.has("shiftamt"))), "clz": _plain(lambda _, x: leading(x)),
    "popc": _plain(lambda _, x: np.bitwise_count(x).astype(np.uint32)), "brev": _plain(lambda _, x: reverse(x)),
    "fns": _plain(lambda _, mask, base, n: nth_set(mask, base, n), ["u32", "s32"]), "dp4a": _dot4,
}  # fmt: skip
