"""Global, shared, local and parameter memory of a launch, as bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acefast.sim.bits import DTYPE
from acefast.sim.ptx import Variable

SHARED, LOCAL = 1 << 48, 1 << 49  # tags that make a shared or local offset a generic address
GLOBAL = 0x7000_0000_0000  # address of the first byte of global memory
GUARD = 4096  # bytes between two arrays that nobody may touch


def align(n: int, to: int) -> int:
    return (n + to - 1) // to * to


@dataclass
class Region:
    name: str
    start: int  # offset into the bytes of global memory
    end: int
    array: np.ndarray


class GlobalMemory:
    """Arrays at 256-byte aligned addresses with guard zones between; each is written back by copy_back."""

    def __init__(self):
        self.regions: list[Region] = []
        self.bytes = np.zeros(0, np.uint8)
        self.top = GUARD

    def place(self, name: str, array: np.ndarray) -> int:
        """Reserves room and returns the address; the same memory twice is one region."""
        if not array.flags.c_contiguous:
            raise ValueError(f"sim: {name} must be C-contiguous; pass its base with Pointer(base, byte_offset)")
        for region in self.regions:
            same_start = region.array.__array_interface__["data"] == array.__array_interface__["data"]
            if same_start and region.array.nbytes == array.nbytes:
                return GLOBAL + region.start
            if array.nbytes and np.may_share_memory(region.array, array):
                raise ValueError(f"sim: {name} overlaps {region.name}; pass one base with Pointer(base, byte_offset)")
        start = align(self.top, 256)
        self.regions.append(Region(name, start, start + array.nbytes, array))
        self.top = start + array.nbytes + GUARD
        return GLOBAL + start

    def commit(self) -> None:
        """Allocates the bytes and copies the arrays in."""
        self.bytes = np.full(align(self.top, 256), 0xFF, np.uint8)
        for r in self.regions:
            self.bytes[r.start : r.end] = r.array.reshape(-1).view(np.uint8)

    def copy_back(self) -> None:
        for r in self.regions:
            if r.array.flags.writeable:
                r.array.reshape(-1).view(np.uint8)[:] = self.bytes[r.start : r.end]

    def outside(self, offset: np.ndarray, size: int) -> np.ndarray | None:
        """Which accesses are not inside one region, or None if all are."""
        low, high = offset.min(), offset.max() + size
        if any(r.start <= low and high <= r.end for r in self.regions):
            return None
        inside = np.zeros(len(offset), np.bool_)
        for r in self.regions:
            inside |= (offset >= r.start) & (offset + size <= r.end)
        return None if inside.all() else ~inside

    def describe(self, offset: int) -> str:
        """An address in words: which array it is near, and how far out."""
        if not self.regions:
            return "there is no array"
        far = lambda r: max(r.start - offset, offset - r.end, 0)  # noqa: E731
        r = min(self.regions, key=far)
        if offset < r.start:
            return f"{r.start - offset} bytes before {r.name} ({r.end - r.start} bytes)"
        return f"byte {offset - r.start} of {r.name}, which has {r.end - r.start}"


def layout(variables: list[Variable]) -> tuple[dict[str, int], int]:
    """Offsets of variables in one space, and the bytes they take; unsized (dynamic) ones share the end."""
    offsets, top = {}, 0
    for v in (v for v in variables if v.count):
        top = align(top, v.align)
        offsets[v.name] = top
        top += v.count * DTYPE[v.type].itemsize
    dynamic = [v for v in variables if not v.count]
    if dynamic:
        top = align(top, max(v.align for v in dynamic))
        offsets |= {v.name: top for v in dynamic}
    return offsets, top


def initial_value(v: Variable) -> np.ndarray:
    """The contents of a .global or .const variable."""
    dtype = DTYPE[v.type]
    bits = np.zeros(v.count, np.dtype(f"u{dtype.itemsize}"))
    for i, text in enumerate(v.init):
        if text[:2].lower() in ("0f", "0d"):
            bits[i] = int(text[2:], 16)
        elif text.lstrip("-")[:1].isdigit():
            bits[i] = int(text.rstrip("U"), 0) & ((1 << 8 * dtype.itemsize) - 1)
        else:
            raise ValueError(f"sim: {v.name} is initialised with {text!r}, an address, which is not modelled")
    return bits.view(dtype)
