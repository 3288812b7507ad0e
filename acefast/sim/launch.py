"""Launching a kernel in the simulator: arguments, grid, checks; then what was written and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acefast.sim.bits import DTYPE, unsigned
from acefast.sim.cfg import build
from acefast.sim.counters import Counters
from acefast.sim.machine import Machine, Options
from acefast.sim.memory import GlobalMemory, align
from acefast.sim.ptx import Module, Variable, parse


@dataclass(frozen=True)
class Pointer:
    """An argument that points ``offset`` bytes past the start of an array; it may point outside of it."""

    array: np.ndarray
    offset: int = 0


@dataclass
class Report:
    """A launch that ran to the end without a finding."""

    kernel: str
    counters: Counters
    _machine: Machine

    def untouched(self, array: np.ndarray) -> np.ndarray:
        """Flat indices of the elements of an argument that the kernel never wrote."""
        space = self._machine.space
        data = array.__array_interface__["data"]
        region = next(r for r in space.memory.regions if r.array.__array_interface__["data"] == data)
        offsets = space.untouched(region.start, region.start + array.nbytes)
        return np.unique(offsets // array.itemsize)

    def summary(self) -> dict[str, object]:
        """Totals, matrix products and instruction mix, as plain data."""
        return {"kernel": self.kernel, **self.counters.totals(), "mma": self.counters.mma(), "mix": self.counters.mix()}


def poisoned(shape, dtype=np.float32) -> np.ndarray:
    """An output array that starts as NaN (all ones in an integer or bf16 array)."""
    array = np.empty(shape, dtype)
    array.reshape(-1).view(np.uint8)[:] = 0xFF
    return array


def launch(
    ptx: str | Module,
    kernel: str | None,
    args: Sequence,
    *,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    shared: int = 0,
    races: bool = True,
    races_between_blocks: bool = True,
    registers: bool = False,
    approx: str = "value",
    seed: int = 0,
    max_blocks: int = 1_000_000,
) -> Report:
    """Runs one kernel of a PTX module; arrays among ``args`` are read, and written in place.

    Args:
        ptx: the text that Triton or nvcc emitted, or parse() of it.
        kernel: the entry's name, a part of it that only one entry has, or None if there is one entry.
        args: C-contiguous numpy arrays, Pointer, numbers, bytes for a struct. Trailing 64-bit parameters may be left
            out: they are null, as Triton's scratch pointers are.
        grid, block: up to three sizes, x first.
        shared: bytes of dynamic shared memory.
        races: report races within a block.
        races_between_blocks: report races between blocks; off for kernels that order blocks by their own atomics.
        registers: report registers read before they are written; else such a register holds all ones, a NaN.
        approx: "value" takes numpy's value of approximate functions; "low", "high" and "random" move it to the edge
            of, or within, the error that the PTX ISA documents.
        max_blocks: basic blocks that a wave may run before it counts as hung.
    Raises:
        Finding: the kernel does something it must not; says what and where.
        Unsupported: the kernel uses an instruction that is not modelled.
    """
    if approx not in ("value", "low", "high", "random"):
        raise ValueError(f"sim: approx must be value, low, high or random, got {approx!r}")
    module = parse(ptx) if isinstance(ptx, str) else ptx
    program = build(module, kernel)
    memory = GlobalMemory()
    values = [_place(memory, a, v.name) for a, v in zip(args, program.params)]
    spare = program.params[len(args) :]
    if len(args) > len(program.params) or any(DTYPE[v.type].itemsize != 8 for v in spare):
        raise ValueError(f"sim: {program.name} takes {len(program.params)} arguments, got {len(args)}")
    params = _pack(program.params, [*values, *(0 for _ in spare)])
    options = Options(races, races_between_blocks, registers, approx, seed, max_blocks)
    machine = Machine(module, program, memory, params, _three(grid), _three(block), shared, options)
    machine.run()
    memory.copy_back()
    return Report(program.name, machine.counters, machine)


def _three(size) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int | np.integer) else tuple(size)
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ValueError(f"sim: grid and block need 1 to 3 sizes of at least 1, got {size}")
    return (*(int(s) for s in sizes), 1, 1)[:3]


def _place(memory: GlobalMemory, argument, name: str):
    if isinstance(argument, Pointer):
        return memory.place(name, argument.array) + argument.offset
    return memory.place(name, argument) if isinstance(argument, np.ndarray) and argument.ndim else argument


def _pack(params: list[Variable], values: list) -> np.ndarray:
    """Argument values -> the bytes of parameter space."""
    out, top = [], 0
    for v, value in zip(params, values):
        dtype = DTYPE[v.type]
        start = align(top, v.align)
        out.append(np.zeros(start - top, np.uint8))
        if isinstance(value, bytes):
            raw = np.frombuffer(value, np.uint8)
        elif isinstance(value, float | np.floating) and dtype.itemsize >= 4:
            raw = np.array([value], f"f{dtype.itemsize}").view(np.uint8)
        elif isinstance(value, np.generic) and value.dtype.itemsize == dtype.itemsize:
            raw = np.array([value]).view(np.uint8)
        else:
            raw = np.array([int(value) & ((1 << 8 * dtype.itemsize) - 1)], unsigned(dtype.itemsize)).view(np.uint8)
        if len(raw) != v.count * dtype.itemsize:
            raise ValueError(f"sim: parameter {v.name} has {v.count * dtype.itemsize} bytes, got {len(raw)}")
        out.append(raw)
        top = start + len(raw)
    return np.concatenate([*out, np.zeros(16, np.uint8)])[: align(max(top, 1), 16)]
