"""cp.async and its groups. The bytes land in shared memory when the wait completes their group, not before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Copy:
    """One cp.async of some lanes that has not arrived."""

    lanes: np.ndarray
    group: np.ndarray  # per lane: the number of the group it belongs to
    offset: np.ndarray  # into the bytes of shared memory
    data: np.ndarray  # [lanes, size]

    def take(self, which: np.ndarray) -> Copy:
        return Copy(self.lanes[which], self.group[which], self.offset[which], self.data[which])


def _copy(m, index, instr):
    if instr.has("commit_group"):
        return lambda active: _commit(m, active)
    if instr.has("wait_group", "wait_all"):
        keep = int(instr.operands[0].text, 0) if instr.has("wait_group") else 0
        return lambda active: _wait(m, active, keep, instr.has("wait_all"))
    if instr.has("bulk", "mbarrier") or not instr.has("shared"):
        raise KeyError("only cp.async.ca and .cg to shared memory")
    to, source, size_operand, *rest = instr.operands
    if instr.has("L2::cache_hint"):
        rest = rest[:-1]
    size = int(size_operand.text, 0)
    where, origin = m.address(to), m.address(source)
    filled = m.value(rest[0], "u32") if rest else None
    if filled and np.asarray(filled()).dtype == np.bool_:
        raise KeyError("an ignore-src predicate")

    def run(active) -> None:
        lanes = active.lanes
        offset = m.space.locate("shared", where()[lanes], lanes, size, instr, "cp.async write")
        m.space.touch("shared", offset, lanes, size, index, "pending")
        data = np.zeros((len(lanes), size), np.uint8)
        amount = np.broadcast_to(filled(), (m.total,))[lanes] if filled else np.full(len(lanes), size)
        if (amount > size).any():
            detail = f"source size {amount.max()} is more than the {size} bytes of the copy"
            m.fail("out-of-bounds", detail, instr, int(lanes[np.argmax(amount)]))
        address = origin()[lanes]
        for n in np.unique(amount[amount > 0]):
            some = amount == n
            _fetch(m, index, instr, address[some], lanes[some], int(n), size, data, np.flatnonzero(some))
        m.pending.append(Copy(lanes, m.committed[lanes], offset, data))

    return run


def _fetch(m, index, instr, address, lanes, n: int, size: int, data, rows) -> None:
    bad = address & (size - 1) != 0
    if bad.any():
        lane = int(lanes[np.argmax(bad)])
        m.fail("misaligned", f"cp.async of {size} bytes from global address {address[bad][0]:#x}", instr, lane)
    start = m.space.locate("global", address, lanes, 1, instr, "cp.async read")
    outside = m.space.memory.outside(start, n)
    if outside is not None:
        i = int(np.argmax(outside))
        near = m.space.memory.describe(int(start[i]))
        m.fail("out-of-bounds", f"global cp.async read of {n} bytes at {near}", instr, int(lanes[i]))
    m.space.touch("global", start, lanes, n, index, "read")
    data[rows[:, None], np.arange(n)] = m.space.bytes["global"][start[:, None] + np.arange(n)]


def _commit(m, active) -> None:
    m.committed[active.lanes] += 1


def _wait(m, active, keep: int, everything: bool) -> None:
    """Completes all but the last ``keep`` committed groups of each lane; wait_all also what is not committed."""
    waits = np.ones(m.total, np.bool_) if active.mask is None else active.mask
    if everything:
        m.committed[active.lanes] += 1
    left = []
    for copy in m.pending:
        done = waits[copy.lanes] & (copy.group < m.committed[copy.lanes] - keep)
        if not done.any():
            left.append(copy)
            continue
        if not done.all():
            left.append(copy.take(~done))
            copy = copy.take(done)
        _arrive(m, copy)
    m.pending = left


def _arrive(m, copy: Copy) -> None:
    size = copy.data.shape[1]
    m.space.bytes["shared"].reshape(-1, size)[copy.offset // size] = copy.data
    shadow = m.space.shadow["shared"]
    warp, now = m.warp[copy.lanes], m.barriers[m.block_in_wave[copy.lanes]]
    shadow.arrive(*shadow.spread(copy.offset, size, warp, now))


DECODERS = {"cp": _copy}
