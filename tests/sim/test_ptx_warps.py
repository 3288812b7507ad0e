"""What the lanes of a warp do together: shuffles, votes, matches, reductions, ldmatrix, and mma of every shape."""

from __future__ import annotations

import numpy as np
import pytest

from acefast import sim
from acefast.sim import f32_to_bf16
from tests.sim.snippets import kernel, run

RNG = np.random.default_rng(2)
LANES = np.arange(64)


def per_lane(body: str, x: np.ndarray, outputs: int = 1) -> list[np.ndarray]:
    """Runs on 64 lanes with %r10 = x[lane]; the results are %r20, %r21, ..."""
    out = [sim.poisoned(64, np.uint32) for _ in range(outputs)]
    load = "mad.wide.u32 %d9, %r0, 4, %d0; ld.global.b32 %r10, [%d9];"
    store = "".join(f"mad.wide.u32 %d9, %r0, 4, %d{k + 1}; st.global.b32 [%d9], %r{20 + k};" for k in range(outputs))
    run(load + body + store, [x, *out])
    return out


@pytest.mark.parametrize("width", (32, 16, 8, 4))
@pytest.mark.parametrize("mode", ("up", "down", "bfly", "idx"))
def test_shuffles(mode, width):
    """As __shfl_*_sync(value, 3, width) sets the clamp."""
    x = RNG.integers(0, 2**32, 64, dtype=np.uint32)
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    body = f"shfl.sync.{mode}.b32 %r20|%p1, %r10, 3, {clamp}, 0xffffffff; selp.u32 %r21, 1, 0, %p1;"
    out, valid = per_lane(body, x, 2)
    inner = LANES % width
    source = {"up": inner - 3, "down": inner + 3, "bfly": inner ^ 3, "idx": 0 * inner + 3}[mode]
    inside = (source >= 0) & (source < width)
    np.testing.assert_array_equal(out, x[LANES - inner + np.where(inside, source, inner)])
    np.testing.assert_array_equal(valid, inside)


def test_votes_match_and_masks():
    x = (LANES % 3 == 0).astype(np.uint32)
    body = "setp.ne.u32 %p1, %r10, 0; vote.sync.ballot.b32 %r20, %p1, -1; vote.sync.any.pred %p2, %p1, -1;"
    body += "vote.sync.all.pred %p3, %p1, -1; selp.u32 %r21, 1, 0, %p2; selp.u32 %r22, 1, 0, %p3;"
    body += "match.any.sync.b32 %r23, %r10, -1; match.all.sync.b32 %r24|%p4, %r10, -1; activemask.b32 %r25;"
    ballot, some, every, match, agreed, active = per_lane(body, x, 6)
    shifts = np.arange(32, dtype=np.uint64)
    bits = lambda v: np.repeat((v.reshape(2, 32).astype(np.uint64) << shifts).sum(1), 32)  # noqa: E731
    np.testing.assert_array_equal(ballot, bits(x))
    assert some.all() and not every.any() and not agreed.any() and (active == 0xFFFFFFFF).all()
    np.testing.assert_array_equal(match, np.where(x, bits(x), bits(1 - x)))


def test_votes_of_half_a_warp():
    body = "mov.u32 %r20, 0; setp.lt.u32 %p1, %r2, 16; setp.lt.u32 %p2, %r2, 3; activemask.b32 %r21;"
    body += "@%p1 vote.sync.ballot.b32 %r20, %p2, 0xffff; @%p1 activemask.b32 %r21;"
    ballot, active = per_lane(body, np.zeros(64, np.uint32), 2)
    np.testing.assert_array_equal(ballot, np.where(LANES % 32 < 16, 7, 0))
    np.testing.assert_array_equal(active, np.where(LANES % 32 < 16, 0xFFFF, 0xFFFFFFFF))


@pytest.mark.parametrize("op, type_", [("add", "u32"), ("min", "s32"), ("max", "u32"), ("and", "b32"), ("xor", "b32")])
def test_redux(op, type_):
    x = RNG.integers(0, 2**32, 64, dtype=np.uint32)
    (out,) = per_lane(f"redux.sync.{op}.{type_} %r20, %r10, -1;", x)
    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "xor": np.bitwise_xor}[op]
    typed = x.view(np.int32 if type_ == "s32" else np.uint32).reshape(2, 32)
    np.testing.assert_array_equal(out, np.repeat(function.reduce(typed, axis=1, dtype=typed.dtype).view(np.uint32), 32))


def test_barrier_reductions():
    body = "setp.lt.u32 %p1, %r0, 37; bar.red.popc.u32 %r20, 0, %p1; bar.red.or.pred %p2, 0, %p1;"
    body += "bar.red.and.pred %p3, 0, %p1; selp.u32 %r21, 1, 0, %p2; selp.u32 %r22, 1, 0, %p3;"
    count, some, every = per_lane(body, np.zeros(64, np.uint32), 3)
    assert (count == 37).all() and some.all() and not every.any()


@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("n", (1, 2, 4))
def test_ldmatrix(n, transposed):
    tiles = RNG.integers(0, 2**16, (n, 8, 8)).astype(np.uint16)
    memory = np.zeros((4, 8, 8), np.uint16)
    memory[:n] = tiles
    out = [sim.poisoned(32, np.uint32) for _ in range(n)]
    body = "mov.u32 %r5, buffer; mad.lo.u32 %r6, %r2, 16, %r5; mad.wide.u32 %d9, %r2, 16, %d0;"
    body += "ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%d9];"
    body += "st.shared.v4.b32 [%r6], {%r10, %r11, %r12, %r13}; bar.sync 0;"
    registers = ", ".join(f"%r{20 + k}" for k in range(n))
    body += f"ldmatrix.sync.aligned.m8n8.x{n}{'.trans' * transposed}.shared.b16 {{{registers}}}, [%r6];"
    body += "".join(f"mad.wide.u32 %d9, %r2, 4, %d{k + 1}; st.global.b32 [%d9], %r{20 + k};" for k in range(n))
    run(body, [memory, *out], block=32, shared=512)
    for tile, got in zip(tiles, out):
        expected = tile.T if transposed else tile
        np.testing.assert_array_equal(got.view(np.uint16).reshape(8, 8), expected)


def test_movmatrix_transposes():
    x = RNG.integers(0, 2**32, 64, dtype=np.uint32)
    (out,) = per_lane("movmatrix.sync.aligned.m8n8.trans.b16 %r20, %r10;", x)
    tiles = x.view(np.uint16).reshape(2, 8, 8)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(2, 8, 8), tiles.swapaxes(1, 2))


MMA = [
    (16, 16, "f32", "bf16"), (16, 8, "f32", "bf16"), (16, 16, "f32", "f16"), (16, 8, "f32", "f16"), 
    (16, 16, "f16", "f16"),
    (16, 8, "f16", "f16"), (16, 8, "f32", "tf32"), (16, 4, "f32", "tf32"), (16, 32, "s32", "s8"), (16, 16, "s32", "s8"),
    (16, 32, "s32", "u8"), (8, 16, "s32", "s8"), (8, 4, "f64", "f64"), (16, 64, "s32", "s4"),
]  # fmt: skip


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """[..., E] small integers -> the register that holds them."""
    if kind == "f64":
        return values[..., 0].astype(np.float64)
    if kind == "s4":
        return (values.astype(np.int64) & 15 << 0).astype(np.uint32) @ (
            np.uint32(1) << (4 * np.arange(8, dtype=np.uint32))
        )
    part = {
        "bf16": f32_to_bf16, "f16": lambda v: v.astype(np.float16), "tf32": lambda v: v.astype(np.float32),
        "s8": lambda v: v.astype(np.int8), "u8": lambda v: v.astype(np.uint8),
    }[kind](values.astype(np.float32))  # fmt: skip
    return np.ascontiguousarray(part).view(np.uint32)[..., 0]


def mma(rows: int, depth: int, acc: str, kind: str, swap=None):
    """Lays out A, B and C by the PTX ISA's own formulas, lane by lane, runs one mma, and gathers D."""
    low, high = (0, 8) if kind == "u8" else (-4, 4)
    a, b = RNG.integers(low, high, (rows, depth)), RNG.integers(low, high, (depth, 8))
    c = RNG.integers(-9, 9, (rows, 8))
    per = {"f64": 1, "tf32": 1, "bf16": 2, "f16": 2, "s8": 4, "u8": 4, "s4": 8}[kind]
    count_a, count_b = rows * depth // (32 * per), depth * 8 // (32 * per)
    lane = np.arange(32)
    g, t = lane >> 2, lane & 3
    registers_a, registers_b = [], []
    for r in range(count_a):  # rows g and g + 8 take turns, then the next columns
        i, first = (g + 8 * (r % 2), 4 * per * (r // 2)) if rows == 16 else (g, 4 * per * r)
        registers_a.append(encode(np.stack([a[i, first + t * per + e] for e in range(per)], -1), kind))
    for r in range(count_b):
        registers_b.append(encode(np.stack([b[4 * per * r + t * per + e, g] for e in range(per)], -1), kind))
    if swap:
        registers_a[swap[0]], registers_a[swap[1]] = registers_a[swap[1]], registers_a[swap[0]]
    spots = [(g + 8 * (i // 2), 2 * t + i % 2) for i in range(4 if rows == 16 else 2)]
    flat = [c[s] for s in spots]
    if acc == "f16":
        c_words = [np.stack(flat[k : k + 2], -1).astype(np.float16).view(np.uint32)[:, 0] for k in (0, 2)]
    else:
        c_words = [np.asarray(v, {"f32": np.float32, "s32": np.int32, "f64": np.float64}[acc]) for v in flat]
    out = [sim.poisoned(32, w.dtype) for w in c_words]
    inputs = [*registers_a, *registers_b, *c_words]
    names, body = [], ""
    for k, x in enumerate(inputs):
        prefix = (
            {"float32": "%f", "float64": "%g"}.get(x.dtype.name, "%r")
            if k >= count_a + count_b or kind == "f64"
            else "%r"
        )
        names.append(f"{prefix}{(10 if prefix == '%r' else 0) + k}")
        kind_of_load = "f64" if x.itemsize == 8 else "b32"
        body += f"mad.wide.u32 %d19, %r2, {x.itemsize}, %d{k}; ld.global.{kind_of_load} {names[-1]}, [%d19];"
    d_names = names[count_a + count_b :]  # in place, as compilers write it
    groups = [d_names, names[:count_a], names[count_a : count_a + count_b], names[count_a + count_b :]]
    operands = ", ".join("{" + ", ".join(group) + "}" for group in groups)
    body += f"mma.sync.aligned.m{rows}n8k{depth}.row.col.{acc}.{kind}.{kind}.{acc} {operands};"
    for k, x in enumerate(out):
        kind_of_store = "f64" if x.itemsize == 8 else "b32"
        body += f"mad.wide.u32 %d19, %r2, {x.itemsize}, %d{len(inputs) + k};"
        body += f"st.global.{kind_of_store} [%d19], {d_names[k]};"
    arrays = [*inputs, *out]
    text = kernel(body, [f"p{k}" for k in range(len(arrays))])
    report = sim.launch(text, "snippet", arrays, grid=1, block=32)
    if acc == "f16":
        pairs = [w.view(np.float16).reshape(32, 2) for w in out]
        out = [pairs[0][:, 0], pairs[0][:, 1], pairs[1][:, 0], pairs[1][:, 1]]
    d = np.zeros((rows, 8))
    for spot, values in zip(spots, out):
        d[spot] = values
    return report, d, a @ b + c


@pytest.mark.parametrize("rows, depth, acc, kind", MMA)
def test_mma_of_every_shape(rows, depth, acc, kind):
    report, d, expected = mma(rows, depth, acc, kind)
    np.testing.assert_array_equal(d, expected)
    assert report.counters.mma() == {f"m{rows}n8k{depth}.{acc}.{kind}.{kind}.{acc}": 1}


def test_swapped_fragments_give_a_wrong_product():
    _, d, expected = mma(16, 16, "f32", "bf16", swap=(1, 2))
    assert (d != expected).mean() > 0.5
