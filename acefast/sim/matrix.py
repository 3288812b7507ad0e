"""ldmatrix, movmatrix and mma.sync: the fragments as the PTX ISA lays them out over the lanes of a warp.

Lane = 4 * g + t. A register holds E elements (2 of 16 bits, 4 of 8 bits, 1 of tf32 or f64):
    A [M, K]   register r, element e at row g + 8 * (r % 2), column t * E + e + 4 * E * (r // 2)
    B [K, 8]   register r, element e at row t * E + e + 4 * E * r, column g
    C [M, 8]   element i at row g + 8 * (i // 2), column 2 * t + i % 2
Products are exact, sums are fp32 (s32, fp64) in numpy's order; fp16 accumulators round once at the end.
"""

from __future__ import annotations

import re

import numpy as np

from acefast.sim.bits import DTYPE, bf16_to_f32

LANE = np.arange(32)
G, T = LANE // 4, LANE % 4
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "s8": 8, "u8": 8, "s4": 4, "u4": 4, "f64": 64}


def a_position(rows: int, per: int, registers: int):
    """(row, column), each [registers, 32, per], of the elements of A."""
    r, lane, e = np.meshgrid(np.arange(registers), LANE, np.arange(per), indexing="ij")
    row_halves = 2 if rows == 16 else 1
    return G[lane] + 8 * (r % row_halves), T[lane] * per + e + 4 * per * (r // row_halves)


def b_position(per: int, registers: int):
    r, lane, e = np.meshgrid(np.arange(registers), LANE, np.arange(per), indexing="ij")
    return T[lane] * per + e + 4 * per * r, G[lane]


def c_position(rows: int):
    """(row, column), each [elements, 32], of C and D."""
    i, lane = np.meshgrid(np.arange(4 if rows == 16 else 2), LANE, indexing="ij")
    return G[lane] + 8 * (i // 2), 2 * T[lane] + i % 2


def elements(words: np.ndarray, kind: str) -> np.ndarray:
    """[..., 32] registers -> [..., 32, E] numbers to multiply."""
    if kind == "f64":
        return words[..., None]
    words = np.ascontiguousarray(words)[..., None]
    if kind == "tf32":
        return (words & np.uint32(0xFFFFE000)).view(np.float32)
    if kind == "f16":
        return words.view(np.float16).astype(np.float32)
    if kind == "bf16":
        return bf16_to_f32(words.view(np.uint16))
    if kind in ("s8", "u8"):
        return words.view(np.int8 if kind == "s8" else np.uint8).astype(np.float64)  # exact up to 2**53
    nibbles = (words >> (4 * np.arange(8, dtype=np.uint32))) & np.uint32(15)
    signed = nibbles.astype(np.float64)
    return np.where(signed > 7, signed - 16, signed) if kind == "s4" else signed


def _mma(m, index, instr):
    shape = re.match(r"m(\d+)n8k(\d+)$", instr.first([x for x in instr.mods if x.startswith("m") and x[1:2].isdigit()]))
    rows, depth = (int(x) for x in shape.groups())
    d_kind, a_kind, b_kind, c_kind = instr.mods[-4:]
    if instr.has("sp", "and", "xor") or not instr.has("row") or BITS[a_kind] != BITS[b_kind]:
        raise KeyError("this mma")
    per = max(1, 32 // BITS[a_kind])
    word = "f64" if a_kind == "f64" else "b32"
    a, b = m.values(instr.operands[1], word), m.values(instr.operands[2], word)
    if len(a) * per * 32 != rows * depth or len(b) * per * 32 != depth * 8:
        raise KeyError(f"{len(a)} and {len(b)} registers for {shape.group()}")
    a_at, b_at, c_at = a_position(rows, per, len(a)), b_position(per, len(b)), c_position(rows)
    halves = c_kind == "f16"
    sums = {"f16": np.float32, "f32": np.float32, "s32": np.int64, "f64": np.float64}[c_kind]
    c = m.values(instr.operands[3], "b32" if halves else c_kind)
    out = m.targets(instr.operands[0])
    rows_of = lambda v, warps: np.broadcast_to(v(), (m.total,)).reshape(-1, 32)[warps]  # noqa: E731

    def run(active) -> None:
        warps = active.rows()
        x, y = (elements(np.stack([rows_of(v, warps) for v in vs], 1), k) for vs, k in ((a, a_kind), (b, b_kind)))
        left = np.zeros((len(warps), rows, depth), x.dtype)
        right = np.zeros((len(warps), depth, 8), y.dtype)
        left[:, a_at[0], a_at[1]], right[:, b_at[0], b_at[1]] = x, y
        product = np.matmul(left, right)[:, c_at[0], c_at[1]]  # [warps, elements, 32]
        before = np.stack([rows_of(v, warps) for v in c], 1)
        if halves:
            pair = np.ascontiguousarray(before)[..., None].view(np.float16).astype(np.float32)  # [warps, 2, 32, 2]
            before = np.moveaxis(pair, 3, 2).reshape(product.shape)
        total = product.astype(sums) + before
        if halves:
            total = np.moveaxis(total.astype(np.float16).reshape(*pair.shape[:2], 2, 32), 2, 3)
            total = np.ascontiguousarray(total).view(np.uint32)[..., 0]
        elif d_kind == "s32":
            low, high = -(2**31), 2**31 - 1
            total = (np.clip(total, low, high) if instr.has("satfinite") else total).astype(np.int32)
        lanes = (warps[:, None] * 32 + LANE).ravel()
        for k, target in enumerate(out):
            target.scatter(
                lanes, np.ascontiguousarray(total[:, k]).reshape(-1).astype(DTYPE["b32" if halves else d_kind])
            )

    return run


def _ldmatrix(m, index, instr):
    """Each of 8 lanes names a row of 16 bytes; 1, 2 or 4 such matrices are dealt out as fragments."""
    if not instr.has("m8n8") or instr.type != "b16":
        raise KeyError("this ldmatrix")
    n = {"x1": 1, "x2": 2, "x4": 4}[instr.first(("x1", "x2", "x4"))]
    out, where, transposed = m.targets(instr.operands[0]), m.address(instr.operands[1]), instr.has("trans")

    def run(active) -> None:
        warps = active.rows()
        lanes = (warps[:, None] * 32 + np.arange(8 * n)).ravel()
        for name, _, at in m.space.resolve(instr.first(("shared",)), where()[lanes], instr):
            if name != "shared":
                m.fail("out-of-bounds", f"ldmatrix from {name} memory", instr, int(lanes[0]))
            offset = m.space.locate("shared", at, lanes, 16, instr, "ldmatrix read")
        m.space.touch("shared", offset, lanes, 16, index, "read")
        rows = m.space.bytes["shared"].view(np.uint16).reshape(-1, 8)[offset // 16].reshape(len(warps), n, 8, 8)
        matrix = (np.swapaxes(rows, 2, 3) if transposed else rows).astype(np.uint32)
        all_lanes = (warps[:, None] * 32 + LANE).ravel()
        for k, target in enumerate(out):
            target.scatter(all_lanes, (matrix[:, k, G, 2 * T] | (matrix[:, k, G, 2 * T + 1] << np.uint32(16))).ravel())

    return run


def _movmatrix(m, index, instr):
    out, value = m.target(instr.operands[0]), m.value(instr.operands[1], "b32")

    def run(active) -> None:
        warps = active.rows()
        words = np.ascontiguousarray(np.broadcast_to(value(), (m.total,)).reshape(-1, 32)[warps])
        matrix = np.swapaxes(words.view(np.uint16).reshape(-1, 8, 8), 1, 2)
        lanes = (warps[:, None] * 32 + LANE).ravel()
        out.scatter(lanes, np.ascontiguousarray(matrix).reshape(len(warps), 64).view(np.uint32).ravel())

    return run


DECODERS = {"mma": _mma, "ldmatrix": _ldmatrix, "movmatrix": _movmatrix}
