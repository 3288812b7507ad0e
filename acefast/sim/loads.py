"""ld and st of every space and vector width."""

from __future__ import annotations

import functools

import numpy as np

from acefast.sim.access import SPACES
from acefast.sim.bits import DTYPE, unsigned
from acefast.sim.ptx import Address, Group

STRONG = ("acquire", "release", "relaxed", "acq_rel", "mmio")  # ordered by the memory model, not by barriers


def _load(m, index, instr):
    dtype, targets = DTYPE[instr.type], m.targets(instr.operands[0])
    where, space = _where(m, instr, 1)
    size = dtype.itemsize * len(targets)
    mode = "strong" if instr.has(*STRONG) else "read"

    def run(active) -> None:
        lanes, address = active.lanes, where()[active.lanes]
        for name, part, at in m.space.resolve(space, address, instr):
            here = lanes if part is None else lanes[part]
            offset = m.space.locate(name, at, here, size, instr, "read")
            m.space.touch(name, offset, here, size, index, mode)
            memory = m.space.bytes[name].view(dtype)
            first = offset // dtype.itemsize
            for k, target in enumerate(targets):
                target.scatter(here, memory[first + k])

    return run


def _store(m, index, instr):
    dtype = unsigned(DTYPE[instr.type].itemsize)
    values = m.values(instr.operands[1], {1: "b8", 2: "b16", 4: "b32", 8: "b64"}[dtype.itemsize])
    if instr.type in ("f32", "f64"):
        values = [_bits(v, dtype) for v in m.values(instr.operands[1], instr.type)]
    where, space = _where(m, instr, 0)
    size = dtype.itemsize * len(values)
    mode = "strong" if instr.has(*STRONG) else "write"

    def run(active) -> None:
        lanes, address = active.lanes, where()[active.lanes]
        for name, part, at in m.space.resolve(space, address, instr):
            here = lanes if part is None else lanes[part]
            offset = m.space.locate(name, at, here, size, instr, "write")
            memory, first = m.space.bytes[name].view(dtype), offset // dtype.itemsize
            new = [np.broadcast_to(value(), (m.total,))[here] for value in values]
            same = functools.partial(_holds, memory, first, new)
            m.space.touch(name, offset, here, size, index, mode, same)
            for k, value in enumerate(new):
                memory[first + k] = value
            kept = same()
            if not kept.all():
                _clash(m, instr, name, offset, here, ~kept)

    return run


def _holds(memory, first, new) -> np.ndarray:
    """Per lane, whether memory holds its values."""
    return np.logical_and.reduce([memory[first + k] == value for k, value in enumerate(new)])


def _clash(m, instr, name: str, offset, lanes, lost) -> None:
    """Some lanes do not find what they just wrote: others of the same instruction wrote there too."""
    i = int(np.argmax(lost))
    others = lanes[(offset == offset[i]) & ~lost]
    warp = m.warp_in_wave[lanes[i]]
    within = (m.warp_in_wave[others] == warp).any() or not len(others)
    if within:
        m.fail("race-within-warp", f"lanes write different values to one {name} address", instr, int(lanes[i]))
    if m.options.races and (m.block_in_wave[others] == m.block_in_wave[lanes[i]]).any():
        detail = f"warps write different values to one {name} address, and no barrier between"
        m.fail("race", detail, instr, int(lanes[i]))


def _bits(value, dtype):
    return lambda: np.asarray(value()).view(dtype)


def _where(m, instr, position: int):
    operand = instr.operands[position]
    if not isinstance(operand, Address) or isinstance(operand, Group):
        raise KeyError(f"address {operand}")
    return m.address(operand), instr.first(SPACES)


DECODERS = {"ld": _load, "ldu": _load, "st": _store}
