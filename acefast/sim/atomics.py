"""atom and red on global, shared and generic addresses. Lanes on one address take turns in lane order."""

from __future__ import annotations

import numpy as np

from acefast.sim.access import SPACES
from acefast.sim.bits import DTYPE, FLOATS, narrow, unsigned, widen
from acefast.sim.floating import larger, smaller

OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


def combine(operation: str, type_: str, old, new):
    """Memory's next value, as the type holds it."""
    if operation == "exch":
        return new
    if operation in ("inc", "dec"):
        one = old.dtype.type(1)
        if operation == "inc":
            return np.where(old >= new, old.dtype.type(0), old + one)
        return np.where((old == 0) | (old > new), new, old - one)
    if type_ in FLOATS:
        function = {"add": np.add, "min": smaller, "max": larger}[operation]
        return narrow(function(widen(old, type_), widen(new, type_)), type_)
    names = {"add": np.add, "min": np.minimum, "max": np.maximum}
    names |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    return names[operation](old, new)


def turns(offset: np.ndarray):
    """Splits lanes into rounds in which no two share an address, in lane order."""
    order = np.argsort(offset, kind="stable")
    ordered = offset[order]
    fresh = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    starts = np.flatnonzero(fresh)
    rank = np.arange(len(order)) - starts[np.cumsum(fresh) - 1]
    for k in range(int(rank.max()) + 1):
        yield order[rank == k]


def _atomic(m, index, instr):
    operands = instr.operands
    out = m.target(operands[0]) if instr.op == "atom" else None
    if instr.op == "atom":
        operands = operands[1:]
    operation, t = instr.first(OPERATIONS), instr.type
    where, space = m.address(operands[0]), instr.first(SPACES)
    dtype = DTYPE[t]
    values = [m.value(o, t) for o in operands[1 : 3 if operation == "cas" else 2]]  # what follows is a cache hint

    def run(active) -> None:
        lanes, address = active.lanes, where()[active.lanes]
        for name, part, at in m.space.resolve(space, address, instr):
            here = lanes if part is None else lanes[part]
            offset = m.space.locate(name, at, here, dtype.itemsize, instr, "atomic")
            m.space.touch(name, offset, here, dtype.itemsize, index, "atomic")
            memory, cell = m.space.bytes[name].view(dtype), offset // dtype.itemsize
            given = [np.broadcast_to(v(), (m.total,))[here] for v in values]
            before = np.empty(len(here), dtype)
            for turn in turns(cell):
                old = memory[cell[turn]]
                before[turn] = old
                if operation == "cas":
                    same = old.view(unsigned(dtype.itemsize)) == given[0][turn].view(unsigned(dtype.itemsize))
                    memory[cell[turn]] = np.where(same, given[1][turn], old)
                else:
                    memory[cell[turn]] = combine(operation, t, old, given[0][turn])
            if out is not None:
                out.scatter(here, before)

    return run


DECODERS = {"atom": _atomic, "red": _atomic}
