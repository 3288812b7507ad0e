"""Registers and operands: each operand is bound once to a function that returns its current numpy values."""

from __future__ import annotations

import re

import numpy as np

from acefast.sim.bits import DTYPE, unsigned
from acefast.sim.memory import SHARED
from acefast.sim.ptx import Address, Group, Name, Number, Operand

REFUSED = ("%clock", "%globaltimer", "%smid", "%nsmid", "%warpid", "%nwarpid", "%gridid", "%pm", "%envreg", "%cluster")


class Target:
    """A register as destination; a narrower value is extended by its own signedness, a wider one cut."""

    def __init__(self, array: np.ndarray | None):
        self.array = array

    def _fit(self, value) -> np.ndarray:
        value = np.asarray(value)
        if value.dtype == self.array.dtype:
            return value
        if value.dtype.itemsize == self.array.dtype.itemsize and np.bool_ not in (value.dtype, self.array.dtype):
            return value.view(self.array.dtype)
        if value.dtype.kind == "f":
            value = value.view(unsigned(value.dtype.itemsize))
        return value.astype(self.array.dtype)

    def put(self, value, active) -> None:
        """``value`` holds every lane of the wave, or one value for all."""
        if self.array is None:
            return
        if active.mask is None:
            self.array[...] = self._fit(value)
        else:
            np.copyto(self.array, self._fit(value), where=active.mask)

    def scatter(self, lanes: np.ndarray, values) -> None:
        """``values`` holds only ``lanes``."""
        if self.array is not None:
            self.array[lanes] = self._fit(values)


class Operands:
    """The register file; a part of Machine."""

    def make_registers(self, dynamic_shared: int) -> None:
        self.registers = {r: np.zeros(self.total, DTYPE[t]) for r, t in self.program.regs.items()}
        self.assigned = {}
        if self.options.registers:
            self.assigned = {r: np.zeros(self.total, np.bool_) for r in self.program.maybe_unassigned}
        self.carry = np.zeros(self.total, np.bool_)
        thread = np.arange(self.total, dtype=np.uint32) % self.lanes_per_block
        x, y, z = self.block_shape
        lane = self.lane.astype(np.uint32)
        one = np.uint32(1) << lane
        static = self.space.static_shared
        self.special = {
            "%tid.x": thread % x, "%tid.y": thread // x % y, "%tid.z": thread // (x * y), "%laneid": lane,
            "%ctaid.x": np.zeros_like(lane), "%ctaid.y": np.zeros_like(lane), "%ctaid.z": np.zeros_like(lane),
            "%lanemask_eq": one, "%lanemask_lt": one - np.uint32(1), "%lanemask_le": one | (one - np.uint32(1)),
            "%lanemask_gt": ~(one | (one - np.uint32(1))), "%lanemask_ge": ~(one - np.uint32(1)),
        }  # fmt: skip
        self.constant = {
            "%ntid.x": x, "%ntid.y": y, "%ntid.z": z, "WARP_SZ": 32,
            **{f"%nctaid.{axis}": n for axis, n in zip("xyz", self.grid)},
            "%dynamic_smem_size": dynamic_shared, "%total_smem_size": static + dynamic_shared,
        }  # fmt: skip

    def start_wave(self, first: int) -> None:
        """Registers are all ones (a NaN in every float format) until written; block numbers are set."""
        for array in self.registers.values():
            array.view(np.uint8)[:] = 0 if array.dtype == np.bool_ else 0xFF
        for array in self.assigned.values():
            array[:] = False
        b = first + self.block_in_wave
        x, y, _ = self.grid
        for axis, value in zip("xyz", (b % x, b // x % y, b // (x * y))):
            self.special[f"%ctaid.{axis}"][:] = value

    def target(self, operand: Operand) -> Target:
        if not isinstance(operand, Name):
            raise KeyError(f"destination {operand}")
        return Target(None if operand.text == "_" else self.registers[operand.text])

    def targets(self, operand: Operand) -> list[Target]:
        return [self.target(o) for o in (operand.items if isinstance(operand, Group) else (operand,))]

    def values(self, operand: Operand, type_: str) -> list:
        return [self.value(o, type_) for o in (operand.items if isinstance(operand, Group) else (operand,))]

    def value(self, operand: Operand, type_: str):
        """A function of no arguments: the operand as numpy values of ``type_``, an array of all lanes or a scalar."""
        dtype = DTYPE[type_]
        if isinstance(operand, Number):
            constant = literal(operand.text, type_)
            return lambda: constant
        if isinstance(operand, Name) and operand.text in self.registers:
            return self._register(self.registers[operand.text], dtype, operand.negated)
        if isinstance(operand, Name):
            name = operand.text
            if name in self.special:
                special = self.special[name].view(dtype) if dtype.itemsize == 4 else None
                if special is not None:
                    return lambda: special
                return lambda: self.special[name].astype(dtype)
            if name.startswith(REFUSED):
                raise KeyError(f"{name} has no meaning without a GPU")
            known = self.constant.get(name, self.space.symbols.get(name))
            if known is not None:
                constant = np.array(known, dtype)
                return lambda: constant
        raise KeyError(f"operand {operand}")

    def _register(self, array: np.ndarray, dtype: np.dtype, negated: bool):
        if array.dtype == np.bool_ or dtype == np.bool_:
            return (lambda: ~array) if negated else (lambda: array)
        if array.dtype.itemsize == dtype.itemsize:
            view = array.view(dtype)
            return lambda: view
        low = unsigned(dtype.itemsize)  # the low bits of a wider register, or a narrower one zero-extended
        bits = array.view(unsigned(array.dtype.itemsize))
        return lambda: bits.astype(low).view(dtype)

    def address(self, operand: Address):
        """A function of no arguments: the addresses of all lanes as int64."""
        offset = operand.offset
        if operand.base is None:
            return lambda: np.full(self.total, offset, np.int64)
        wide = operand.base not in self.registers or self.registers[operand.base].dtype.itemsize == 8
        base = self.value(Name(operand.base), "u64" if wide else "u32")
        wrap = -1 if wide else 0xFFFFFFFF
        return lambda: np.broadcast_to((base().astype(np.int64) + offset) & wrap, (self.total,))

    def generic(self, name: str) -> int:
        """The tag that makes an address of a space generic."""
        return {"shared": SHARED, "local": SHARED * 2}.get(name, 0)


def literal(text: str, type_: str) -> np.ndarray:
    """A PTX literal as a scalar of ``type_``."""
    dtype = DTYPE[type_]
    size = dtype.itemsize
    if re.match(r"0[fF][0-9a-fA-F]{8}$", text):
        value = np.array(int(text[2:], 16), np.uint32).view(np.float32)
        return value if size == 4 and dtype.kind == "f" else value.view(np.uint32).astype(unsigned(size)).view(dtype)
    if re.match(r"0[dD][0-9a-fA-F]{16}$", text):
        value = np.array(int(text[2:], 16), np.uint64)
        return value.view(np.float64).astype(dtype) if dtype.kind == "f" else value.astype(dtype)
    if "." in text or (dtype.kind == "f" and "e" in text.lower() and not text.lower().startswith("0x")):
        return np.array(float(text), dtype)
    number = int(text.rstrip("U"), 0) if not re.match(r"-?0\d", text) else int(text.rstrip("U"), 8)
    if dtype == np.bool_:
        return np.array(bool(number))
    if type_ in ("f32", "f64"):
        return np.array(number, dtype)
    return np.array(number & ((1 << 8 * size) - 1), unsigned(size)).view(dtype)
