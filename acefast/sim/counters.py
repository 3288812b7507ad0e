"""What a launch cost: instructions per warp, matrix products, sectors of global memory, wavefronts of shared memory."""

from __future__ import annotations

import numpy as np


def distinct(rows: np.ndarray) -> np.ndarray:
    """[rows, n] of unit numbers, -1 for idle lanes -> True at the first of each distinct unit, on sorted rows."""
    first = np.empty(rows.shape, np.bool_)
    first[:, 0] = rows[:, 0] >= 0
    first[:, 1:] = (rows[:, 1:] != rows[:, :-1]) & (rows[:, 1:] >= 0)
    return first


def rows_of(values: np.ndarray, lanes: np.ndarray, width: int, total: int) -> np.ndarray:
    """Values of some lanes -> sorted rows of ``width`` lanes each, -1 where a lane is idle; idle rows are left out."""
    full = np.full(total, -1, np.int64)
    full[lanes] = values
    rows = full.reshape(-1, width)
    rows = rows[(rows >= 0).any(1)]
    return rows if (rows[:, 1:] >= rows[:, :-1]).all() else np.sort(rows, axis=1)


def sectors(address: np.ndarray, lanes: np.ndarray, size: int, total: int) -> tuple[int, int, int]:
    """(warp requests, 32-byte sectors they touch, sectors that would hold the distinct bytes) of one instruction."""
    rows = rows_of(address // size, lanes, 32, total)
    units = distinct(rows).sum(1)
    touched = distinct(np.where(rows >= 0, rows * size // 32, -1))
    return len(rows), int(touched.sum()), int((-(-units * size // 32)).sum())


def wavefronts(address: np.ndarray, lanes: np.ndarray, size: int, total: int) -> tuple[int, int, int]:
    """(warp requests, wavefronts, the fewest possible) of one shared-memory instruction.

    There are 32 banks of 4 bytes; a bank serves one word per wavefront, to any number of lanes. Lanes that move 8 or 16
    bytes go in halves or quarters of a warp.
    """
    width = {16: 8, 8: 16}.get(size, 32)
    unit = max(size, 4)
    slots = 128 // unit
    requests = len(np.unique(lanes // 32))
    rows = rows_of(address // unit, lanes, width, total)
    first = distinct(rows)
    where = np.nonzero(first)
    load = np.bincount(where[0] * slots + rows[where] % slots, minlength=len(rows) * slots).reshape(-1, slots)
    return requests, int(load.max(1).sum()), int((-(-first.sum(1) // slots)).sum())


class Counters:
    """Per instruction: how often a warp ran it, and what its memory requests came to."""

    def __init__(self, program, module):
        self.code, self.source = program.code, module.source
        n = len(program.code)
        self.edges = np.zeros(n + 1, np.int64)
        self.memory = {space: np.zeros((n, 3), np.int64) for space in ("global", "shared")}  # requests, cost, minimum

    def ran(self, start: int, end: int, warps: int) -> None:
        self.edges[start] += warps
        self.edges[end] -= warps

    def touched(self, space: str, index: int, address, lanes, size: int, total: int) -> None:
        self.memory[space][index] += (sectors if space == "global" else wavefronts)(address, lanes, size, total)

    @property
    def executions(self) -> np.ndarray:
        return np.cumsum(self.edges)[:-1]

    def totals(self) -> dict[str, int]:
        (requests, cost, least), (s_requests, waves, s_least) = (self.memory[s].sum(0) for s in ("global", "shared"))
        return {
            "instructions": int(self.executions.sum()),
            "global_requests": int(requests), "sectors": int(cost), "sectors_min": int(least),
            "shared_requests": int(s_requests), "wavefronts": int(waves), "wavefronts_min": int(s_least),
        }  # fmt: skip

    def _sum(self, key) -> dict[str, int]:
        found: dict[str, int] = {}
        for instr, count in zip(self.code, self.executions):
            name = key(instr)
            if name and count:
                found[name] = found.get(name, 0) + int(count)
        return dict(sorted(found.items(), key=lambda kv: -kv[1]))

    def mix(self) -> dict[str, int]:
        """Warp instructions by opcode; memory and matrix instructions with their space or shape."""
        more = {"ld": 1, "st": 1, "atom": 1, "red": 1, "cp": 1}
        return self._sum(lambda i: ".".join([i.op, *i.mods[: more.get(i.op, 0)]]))

    def mma(self) -> dict[str, int]:
        """Matrix products by shape and types, as "m16n8k16.f32.bf16.bf16.f32"."""
        return self._sum(lambda i: ".".join(m for m in i.mods if m[-1:].isdigit()) if i.op == "mma" else "")

    def worst(self, space: str, n: int = 5) -> list[tuple[int, int, str, str]]:
        """The instructions furthest above their minimum: (cost, minimum, "file:line", text)."""
        _, cost, least = self.memory[space].T
        order = np.argsort(least - cost, kind="stable")[:n]
        return [(int(cost[i]), int(least[i]), self.source(self.code[i]), self.code[i].text) for i in order if cost[i]]
