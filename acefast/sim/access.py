"""Finding an access in memory: space, bounds, alignment, races and counters, before any byte is read or written."""

from __future__ import annotations

import numpy as np

from acefast.sim.bits import DTYPE
from acefast.sim.memory import GLOBAL, LOCAL, SHARED, GlobalMemory, align, initial_value, layout
from acefast.sim.ptx import Instr
from acefast.sim.shadow import NOBODY, Shadow

SPACES = ("global", "shared", "local", "const", "param")


def access_size(instr: Instr) -> int:
    """Bytes one lane moves."""
    if instr.op == "ldmatrix":
        return 16
    if instr.op == "cp":
        return int(instr.operands[2].text, 0) if len(instr.operands) > 2 else 16
    return DTYPE[instr.type].itemsize * {"v2": 2, "v4": 4, "v8": 8}.get(instr.first(("v2", "v4", "v8")), 1)


def _granule(code: list[Instr], space: str) -> int:
    """The narrowest access to a space: accesses are aligned, so all are whole numbers of it."""
    sizes = [16]
    for i in code:
        if i.op in ("ld", "st", "atom", "red", "ldmatrix"):
            if i.first(SPACES, space) == space:
                sizes.append(access_size(i))
        elif i.op == "cp" and len(i.operands) > 2:
            sizes.append(access_size(i))
    return min(sizes)


class Space:
    """All memory of a launch, and the one way to it."""

    def __init__(self, machine, memory: GlobalMemory, params: np.ndarray, dynamic_shared: int):
        self.machine, self.memory = machine, memory
        program, options = machine.program, machine.options
        variables = list(program.variables.values())
        of = lambda *spaces: [v for v in variables if v.space in spaces]  # noqa: E731
        self.shared_at, self.static_shared = layout(of("shared"))
        self.local_at, local = layout(of("local", "param"))
        self.param_at, _ = layout(program.params)
        self.symbols = {**self.shared_at, **self.local_at, **self.param_at}
        self.symbols |= {v.name: memory.place(v.name, initial_value(v)) for v in of("global", "const")}
        memory.commit()
        self.shared_size = align(self.static_shared + dynamic_shared, 16)
        self.shared_limit = self.static_shared + dynamic_shared
        self.local_size = align(max(local, 1), 16)
        self.bytes = {
            "global": memory.bytes,
            "shared": np.zeros(machine.wave * self.shared_size, np.uint8),
            "local": np.zeros(machine.total * self.local_size, np.uint8),
            "param": params,
        }
        warps = machine.warps_per_block
        granule = {s: _granule(program.code, s) for s in ("global", "shared")}
        sizes = {"shared": machine.wave * self.shared_size, "global": len(memory.bytes)}
        self.shadow = {
            s: Shadow(
                n // granule[s] + 1, granule[s], warps, f"{s} memory", options.races, options.races_between_blocks
            )
            for s, n in sizes.items()
        }

    def start_wave(self) -> None:
        self.bytes["shared"][:] = 0xFF
        self.bytes["local"][:] = 0xFF
        self.shadow["shared"].forget()
        self.machine.pending = []

    def resolve(self, name: str, address: np.ndarray, instr: Instr):
        """Splits generic addresses by space: yields (space, which of them or None for all, address in that space)."""
        if name == "const":
            name = "global"
        if (
            name == "param"
            and instr.operands
            and any(getattr(o, "base", None) in self.local_at for o in instr.operands)
        ):
            name = "local"  # a parameter of a call that was inlined
        if name:
            yield name, None, address
            return
        space = (address >= SHARED).astype(np.int8) + (address >= LOCAL)
        for k, (each, tag) in enumerate((("global", 0), ("shared", SHARED), ("local", LOCAL))):
            here = space == k
            if here.all():
                yield each, None, address - tag
            elif here.any():
                yield each, here, address[here] - tag

    def locate(self, name: str, address: np.ndarray, lanes: np.ndarray, size: int, instr: Instr, what: str):
        """Checks bounds and alignment; addresses in one space -> offsets into its bytes."""
        m = self.machine
        bad = address & (size - 1) != 0
        if bad.any():
            i = int(np.argmax(bad))
            m.fail("misaligned", f"{what} of {size} bytes at {name} address {address[i]:#x}", instr, int(lanes[i]))
        if name == "global":
            offset = address - GLOBAL
            bad = self.memory.outside(offset, size)
            if bad is not None:
                i = int(np.argmax(bad))
                near = self.memory.describe(int(offset[i]))
                m.fail("out-of-bounds", f"global {what} of {size} bytes at {near}", instr, int(lanes[i]))
            return offset
        limit = {"shared": self.shared_limit, "local": self.local_size, "param": len(self.bytes["param"])}[name]
        bad = (address < 0) | (address + size > limit)
        if bad.any():
            i = int(np.argmax(bad))
            detail = f"{name} {what} of {size} bytes at byte {address[i]} of {limit}"
            m.fail("out-of-bounds", detail, instr, int(lanes[i]))
        if name == "shared":
            return address + m.block_in_wave[lanes] * self.shared_size
        return address + lanes * self.local_size if name == "local" else address

    def touch(self, name: str, offset, lanes, size: int, index: int, mode: str, same=None) -> None:
        """Records a "read", "write", "pending" or "atomic" access, reports what it races with, and counts its cost.

        ``same()`` is for a "write": per lane, whether memory already holds what it writes.
        """
        if name not in self.shadow:
            return
        m = self.machine
        m.counters.touched(name, index, offset, lanes, size, m.total)
        shadow = self.shadow[name]
        granules, warp, now = shadow.spread(offset, size, m.warp[lanes], m.barriers[m.block_in_wave[lanes]])
        if mode == "strong":
            return
        if mode == "read":
            found = shadow.read(granules, warp, now, uninitialised=name == "shared")
        elif mode == "atomic":
            found = shadow.update(granules, warp, now)
        else:
            spread = same and (lambda: np.repeat(same(), len(granules) // len(lanes)))
            found = shadow.write(granules, warp, now, spread)
        if found:
            kind, detail, i = found
            m.fail(kind, detail, m.program.code[index], int(lanes[i * len(lanes) // len(granules)]))

    def untouched(self, start: int, end: int) -> np.ndarray:
        """Offsets of the granules of a stretch of global memory that nothing wrote."""
        shadow = self.shadow["global"]
        first = start // shadow.granule
        nobody = shadow.writer[first : -(-end // shadow.granule)] == NOBODY
        return np.flatnonzero(nobody) * shadow.granule
