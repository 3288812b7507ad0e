"""Integer, bit and conversion instructions against Python integers and numpy, edge cases first."""

from __future__ import annotations

import numpy as np
import pytest

from tests.sim.snippets import compute

RNG = np.random.default_rng(0)


def cases(dtype, n: int = 200) -> np.ndarray:
    """Edges, then random bits."""
    info = np.iinfo(dtype)
    edges = [0, 1, info.max, info.min, info.max - 1, info.min + 1, 2, 3, 7, 31, 32, 33]
    bits = np.frombuffer(RNG.bytes(n * info.dtype.itemsize), dtype)
    return np.concatenate([np.array(edges, dtype), bits, np.array(edges, dtype)])


def pairs(dtype) -> tuple[np.ndarray, np.ndarray]:
    x = cases(dtype)
    return x, RNG.permutation(x)


def wrap(values, dtype) -> np.ndarray:
    bits = np.dtype(dtype).itemsize * 8
    return np.array([int(v) & ((1 << bits) - 1) for v in values], f"u{bits // 8}").view(dtype)


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": lambda a, b, n: a + b, "sub": lambda a, b, n: a - b, "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: (a * b) >> n, "min": lambda a, b, n: min(a, b), "max": lambda a, b, n: max(a, b),
    "div": lambda a, b, n: quotient(a, b), "rem": lambda a, b, n: a - quotient(a, b) * b,
}  # fmt: skip


@pytest.mark.parametrize("type_", ("s16", "u16", "s32", "u32", "s64", "u64"))
@pytest.mark.parametrize("op", BINARY)
def test_arithmetic(op, type_):
    bits = int(type_[1:])
    dtype = np.dtype(f"{'i' if type_[0] == 's' else 'u'}{bits // 8}")
    x, y = pairs(dtype)
    if op in ("div", "rem"):
        y = np.where(y == 0, dtype.type(3), y)
    (out,) = compute(f"{op}.{type_} %o0, %i0, %i1;", [x, y], [dtype])
    np.testing.assert_array_equal(out, wrap([BINARY[op](int(a), int(b), bits) for a, b in zip(x, y)], dtype))


@pytest.mark.parametrize("type_", ("s16", "u16", "s32", "u32"))
def test_wide_products(type_):
    size = int(type_[1:]) // 8
    kind = "i" if type_[0] == "s" else "u"
    x, y = pairs(f"{kind}{size}")
    z = RNG.permutation(cases(f"{kind}{size * 2}"))
    mul, mad = compute(
        f"mul.wide.{type_} %o0, %i0, %i1; mad.wide.{type_} %o1, %i0, %i1, %i2;", [x, y, z], [z.dtype, z.dtype]
    )
    np.testing.assert_array_equal(mul, wrap([int(a) * int(b) for a, b in zip(x, y)], z.dtype))
    np.testing.assert_array_equal(mad, wrap([int(a) * int(b) + int(c) for a, b, c in zip(x, y, z)], z.dtype))


def test_carry_chains_make_128_bit_sums_and_differences():
    words = [RNG.permutation(cases(np.uint32)) for _ in range(8)]
    body = ""
    for op in ("add", "sub"):
        o = 0 if op == "add" else 4
        body += f"{op}.cc.u32 %o{o}, %i0, %i4;"
        body += "".join(f"{op}c{'.cc' if k < 3 else ''}.u32 %o{o + k}, %i{k}, %i{4 + k};" for k in (1, 2, 3))
    out = compute(body, words, [np.uint32] * 8)
    number = lambda ws, i: sum(int(w[i]) << 32 * k for k, w in enumerate(ws))  # noqa: E731
    for i in range(len(words[0])):
        a, b = number(words[:4], i), number(words[4:], i)
        assert number(out[:4], i) == (a + b) % 2**128
        assert number(out[4:], i) == (a - b) % 2**128


def test_madc_makes_a_96_bit_product():
    """As sin's range reduction does: 32 x 64 bits, low and high halves chained by the carry."""
    a, b0, b1 = (RNG.permutation(cases(np.uint32)) for _ in range(3))
    body = "mul.lo.u32 %o0, %i0, %i1; mul.hi.u32 %o1, %i0, %i1; mad.lo.cc.u32 %o1, %i0, %i2, %o1;"
    out = compute(body + "madc.hi.u32 %o2, %i0, %i2, 0;", [a, b0, b1], [np.uint32] * 3)
    for i in range(len(a)):
        product = int(a[i]) * (int(b0[i]) + (int(b1[i]) << 32))
        assert sum(int(o[i]) << 32 * k for k, o in enumerate(out)) == product


@pytest.mark.parametrize("type_", ("s16", "u16", "s32", "u32", "s64", "u64"))
def test_shifts_past_the_width(type_):
    bits = int(type_[1:])
    x = cases(f"{'i' if type_[0] == 's' else 'u'}{bits // 8}")
    n = RNG.integers(0, 2 * bits, len(x)).astype(np.uint32)
    n[:4] = 0, bits - 1, bits, 2**32 - 1
    left, right = compute(f"shl.b{bits} %o0, %i0, %i1; shr.{type_} %o1, %i0, %i1;", [x, n], [x.dtype, x.dtype])
    np.testing.assert_array_equal(left, wrap([int(a) << min(int(b), 200) for a, b in zip(x, n)], x.dtype))
    np.testing.assert_array_equal(right, wrap([int(a) >> min(int(b), 200) for a, b in zip(x, n)], x.dtype))


@pytest.mark.parametrize("mode", ("l.wrap", "r.wrap", "l.clamp", "r.clamp"))
def test_funnel_shift(mode):
    low, high, n = (RNG.permutation(cases(np.uint32)) for _ in range(3))
    n = n % 40
    (out,) = compute(f"shf.{mode}.b32 %o0, %i0, %i1, %i2;", [low, high, n], [np.uint32])
    by = [int(k) & 31 if "wrap" in mode else min(int(k), 32) for k in n]
    both = [int(a) | int(b) << 32 for a, b in zip(low, high)]
    expected = [(v << k) >> 32 if mode[0] == "l" else v >> k for v, k in zip(both, by)]
    np.testing.assert_array_equal(out, wrap(expected, np.uint32))


@pytest.mark.parametrize("table", (0x00, 0x80, 0xE8, 0x96, 0xC0, 0x6A, 0xFF))
def test_lop3_is_its_truth_table(table):
    a, b, c = (RNG.permutation(cases(np.uint32)) for _ in range(3))
    (out,) = compute(f"lop3.b32 %o0, %i0, %i1, %i2, {table};", [a, b, c], [np.uint32])
    for bit in range(32):
        index = sum(((v >> np.uint32(bit)) & 1) << s for v, s in ((a, 2), (b, 1), (c, 0)))
        np.testing.assert_array_equal((out >> np.uint32(bit)) & 1, (table >> index) & 1)


def prmt_reference(a: int, b: int, c: int, mode: str) -> int:
    source, s = (a | b << 32).to_bytes(8, "little"), c & 3
    choose = {
        "": lambda k: c >> 4 * k & 15, "f4e": lambda k: s + k, "b4e": lambda k: (s - k) & 7, "rc8": lambda k: s,
        "ecl": lambda k: max(s, k), "ecr": lambda k: min(s, k), "rc16": lambda k: (s & 1) * 2 + (k & 1),
    }[mode]  # fmt: skip
    out = 0
    for k in range(4):
        nibble = choose(k)
        byte = source[nibble & 7]
        out |= (255 if byte > 127 else 0) << 8 * k if nibble & 8 else byte << 8 * k
    return out


@pytest.mark.parametrize("mode", ("", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"))
def test_prmt(mode):
    a, b, c = (RNG.permutation(cases(np.uint32)) for _ in range(3))
    (out,) = compute(f"prmt.b32{'.' + mode if mode else ''} %o0, %i0, %i1, %i2;", [a, b, c], [np.uint32])
    np.testing.assert_array_equal(out, [prmt_reference(int(x), int(y), int(z), mode) for x, y, z in zip(a, b, c)])


@pytest.mark.parametrize("type_", ("u32", "s32", "u64", "s64"))
def test_bit_field_extract(type_):
    bits = int(type_[1:])
    x = cases(f"{'i' if type_[0] == 's' else 'u'}{bits // 8}")
    position, length = (RNG.integers(0, bits + 8, len(x)).astype(np.uint32) for _ in range(2))
    position[:3], length[:3] = (0, bits - 1, 5), (bits, 1, 0)
    (out,) = compute(f"bfe.{type_} %o0, %i0, %i1, %i2;", [x, position, length], [x.dtype])
    expected = []
    for value, p, n in zip(x, position, length):
        raw, p, n = int(value) & ((1 << bits) - 1), int(p), int(n)
        sign = 0 if type_[0] == "u" or n == 0 else raw >> min(p + n - 1, bits - 1) & 1
        expected.append(sum((raw >> p + i & 1 if i < n and p + i < bits else sign) << i for i in range(bits)))
    np.testing.assert_array_equal(out, wrap(expected, x.dtype))


@pytest.mark.parametrize("bits", (32, 64))
def test_bit_field_insert(bits):
    x, into = pairs(f"u{bits // 8}")
    position, length = (RNG.integers(0, bits + 8, len(x)).astype(np.uint32) for _ in range(2))
    (out,) = compute(f"bfi.b{bits} %o0, %i0, %i1, %i2, %i3;", [x, into, position, length], [x.dtype])
    expected = []
    for a, b, p, n in zip(*(map(int, v) for v in (x, into, position, length))):
        mask = ((1 << n) - 1) << p & ((1 << bits) - 1)
        expected.append(b & ~mask | (a << p) & mask)
    np.testing.assert_array_equal(out, wrap(expected, x.dtype))


@pytest.mark.parametrize("bits", (32, 64))
def test_counting_bits(bits):
    x = cases(f"u{bits // 8}")
    body = f"popc.b{bits} %o0, %i0; clz.b{bits} %o1, %i0; brev.b{bits} %o2, %i0; bfind.u{bits} %o3, %i0;"
    body += f"bfind.s{bits} %o4, %i0; bfind.shiftamt.u{bits} %o5, %i0;"
    popc, clz, brev, find, find_signed, amount = compute(body, [x], [np.uint32, np.uint32, x.dtype] + [np.uint32] * 3)
    ints = [int(v) for v in x]
    signed = [int(v) for v in x.view(f"i{bits // 8}")]
    np.testing.assert_array_equal(popc, [v.bit_count() for v in ints])
    np.testing.assert_array_equal(clz, [bits - v.bit_length() for v in ints])
    np.testing.assert_array_equal(brev, [int(f"{v:0{bits}b}"[::-1], 2) for v in ints])
    np.testing.assert_array_equal(find, [(v.bit_length() - 1) % 2**32 for v in ints])
    np.testing.assert_array_equal(find_signed, [((~v if v < 0 else v).bit_length() - 1) % 2**32 for v in signed])
    np.testing.assert_array_equal(amount, [bits - v.bit_length() if v else 2**32 - 1 for v in ints])


def test_mad24_sad_abs_neg_dp4a_and_saturation():
    a, b, c = (RNG.permutation(cases(np.int32)) for _ in range(3))
    body = "mad24.lo.s32 %o0, %i0, %i1, %i2; sad.s32 %o1, %i0, %i1, %i2; abs.s32 %o2, %i0; neg.s32 %o3, %i0;"
    body += "dp4a.s32.u32 %o4, %i0, %i1, %i2; add.sat.s32 %o5, %i0, %i1; mul24.hi.u32 %o6, %i0, %i1;"
    out = compute(body, [a, b, c], [np.int32] * 7)
    ints = [tuple(map(int, t)) for t in zip(a, b, c)]
    low = lambda v: ((v & 0xFFFFFF) ^ 0x800000) - 0x800000  # noqa: E731
    np.testing.assert_array_equal(out[0], wrap([low(x) * low(y) + z for x, y, z in ints], np.int32))
    np.testing.assert_array_equal(out[1], wrap([abs(x - y) + z for x, y, z in ints], np.int32))
    np.testing.assert_array_equal(out[2], wrap([abs(x) for x, _, _ in ints], np.int32))
    np.testing.assert_array_equal(out[3], wrap([-x for x, _, _ in ints], np.int32))
    dots = (a.view(np.int8).reshape(-1, 4).astype(int) * b.view(np.uint8).reshape(-1, 4)).sum(1) + c
    np.testing.assert_array_equal(out[4], wrap(dots, np.int32))
    np.testing.assert_array_equal(out[5], [max(-(2**31), min(2**31 - 1, x + y)) for x, y, _ in ints])
    high = [(x & 0xFFFFFF) * (y & 0xFFFFFF) >> 16 for x, y, _ in ints]
    np.testing.assert_array_equal(out[6], wrap(high, np.int32))


def test_fns_finds_the_nth_bit():
    mask = np.array([0b1011_0000, 0b1011_0000, 0b1011_0000, 0, 0xFFFFFFFF], np.uint32)
    (out,) = compute("fns.b32 %o0, %i0, 4, 2;", [mask], [np.uint32])
    np.testing.assert_array_equal(out, [5, 5, 5, 2**32 - 1, 5])


@pytest.mark.parametrize("type_", ("s32", "u32", "s64", "u64", "s16", "u16"))
@pytest.mark.parametrize("test", ("eq", "ne", "lt", "le", "gt", "ge"))
def test_comparisons(test, type_):
    x, y = pairs(f"{'i' if type_[0] == 's' else 'u'}{int(type_[1:]) // 8}")
    y[:20] = x[:20]
    body = f"setp.{test}.{type_} %p1|%p2, %i0, %i1; selp.u32 %o0, 1, 0, %p1; selp.u32 %o1, 1, 0, %p2;"
    body += f"setp.{test}.and.{type_} %p3, %i0, %i1, !%p1; selp.u32 %o2, 1, 0, %p3;"
    yes, no, never = compute(body, [x, y], [np.uint32] * 3)
    expected = getattr(np, {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal"}.get(
        test, "greater" if test == "gt" else "greater_equal"))(x, y)  # fmt: skip
    np.testing.assert_array_equal(yes, expected)
    np.testing.assert_array_equal(no, ~expected)
    assert not never.any()


@pytest.mark.parametrize("target", ("s8", "u8", "s16", "u16", "s32", "u32", "s64"))
@pytest.mark.parametrize("source", ("s32", "u32", "s64", "s16"))
def test_integer_conversions_cut_extend_and_saturate(source, target):
    x = cases(f"{'i' if source[0] == 's' else 'u'}{int(source[1:]) // 8}")
    to = np.dtype(f"{'i' if target[0] == 's' else 'u'}{int(target[1:]) // 8}")
    register = np.dtype(f"{to.kind}{max(2, to.itemsize)}")
    cut, clamped = compute(
        f"cvt.{target}.{source} %o0, %i0; cvt.sat.{target}.{source} %o1, %i0;", [x], [register, register]
    )
    ints = [int(v) for v in x]
    np.testing.assert_array_equal(cut, wrap(ints, to).astype(register))
    info = np.iinfo(to)
    np.testing.assert_array_equal(clamped, np.array([min(max(v, info.min), info.max) for v in ints], to))


def test_pack_saturates_four_bytes():
    a, b = pairs(np.int32)
    (out,) = compute("cvt.pack.sat.s8.s32.b32 %o0, %i0, %i1, 7;", [a, b], [np.uint32])
    clip = lambda v: np.clip(v, -128, 127).astype(np.int8).view(np.uint8).astype(np.uint32)  # noqa: E731
    np.testing.assert_array_equal(out, 7 << 16 | clip(a) << 8 | clip(b))


def test_mov_packs_and_unpacks():
    x = cases(np.uint32)
    body = "mov.b32 {%h1, %h2}, %i0; mov.b32 %o0, {%h2, %h1}; mov.b64 %o1, {%i0, %r4}; mov.b64 {%r5, %o2}, %o1;"
    swapped, wide, index = compute(body, [x], [np.uint32, np.uint64, np.uint32])
    np.testing.assert_array_equal(swapped, x >> 16 | x << np.uint32(16))
    np.testing.assert_array_equal(wide, x.astype(np.uint64) | np.arange(len(x), dtype=np.uint64) << np.uint64(32))
    np.testing.assert_array_equal(index, np.arange(len(x)))


@pytest.mark.parametrize("space", ("global", "shared", ""))
@pytest.mark.parametrize("op", ("add", "min", "max", "and", "or", "xor", "exch", "inc", "dec"))
def test_integer_atomics_return_what_was_there(op, space):
    """Two lanes per address, in lane order."""
    from tests.sim.snippets import run

    x, old, after = RNG.integers(0, 50, 64).astype(np.uint32), np.zeros(64, np.uint32), np.full(32, 20, np.uint32)
    where = "shr.u32 %r3, %r0, 1; mad.wide.u32 %d5, %r3, 4, %d2;"
    back = ""
    if space == "shared":
        where = "shr.u32 %r3, %r0, 1; mov.u32 %r5, buffer; mad.lo.u32 %r6, %r3, 4, %r5; cvt.u64.u32 %d5, %r6;"
        where += "mov.u32 %r7, 20; atom.shared.exch.b32 %r8, [%d5], %r7; bar.sync 0;"
        back = "bar.sync 0; ld.shared.b32 %r9, [%d5]; setp.eq.u32 %p1, %r2, 0; mad.wide.u32 %d8, %r3, 4, %d2;"
        back += "st.global.b32 [%d8], %r9;"
    type_ = "b32" if op in ("and", "or", "xor", "exch") else "u32"
    body = f"mad.wide.u32 %d6, %r0, 4, %d0; ld.global.u32 %r10, [%d6]; {where} "
    body += f"atom{'.' + space if space else ''}.{op}.{type_} %r11, [%d5], %r10;"
    body += f"mad.wide.u32 %d7, %r0, 4, %d1; st.global.b32 [%d7], %r11; {back}"
    run(body, [x, old, after], block=64, shared=128)
    step = {
        "add": lambda o, v: o + v, "min": min, "max": max, "and": lambda o, v: o & v, "or": lambda o, v: o | v,
        "xor": lambda o, v: o ^ v, "exch": lambda o, v: v, "inc": lambda o, v: 0 if o >= v else o + 1,
        "dec": lambda o, v: v if o == 0 or o > v else o - 1,
    }[op]  # fmt: skip
    cells = [20] * 32
    for i, v in enumerate(x):
        assert old[i] == cells[i // 2]
        cells[i // 2] = step(cells[i // 2], int(v))
    np.testing.assert_array_equal(after, cells)
