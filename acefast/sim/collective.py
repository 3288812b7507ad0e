"""Barriers and what the lanes of a warp do together: shuffles, votes, matches, reductions."""

from __future__ import annotations

import numpy as np

from acefast.sim.ptx import Group, Number

MASKED = {"shfl": -1, "vote": -1, "match": -1, "redux": -1}  # where the member mask is among the operands
ALIGNED = ("mma", "ldmatrix", "movmatrix", "wmma")


def bits_of(mask: np.ndarray) -> np.ndarray:
    """[lanes] bool -> per warp, the mask of its lanes as uint32."""
    return np.packbits(mask.reshape(-1, 32), axis=1, bitorder="little").view(np.uint32)[:, 0]


def group_of(m, instr):
    """For an instruction that waits for others: a function (lanes present) -> lanes whose group is complete."""
    if instr.op in ("bar", "barrier") and not instr.has("warp"):
        return lambda present: _block_complete(m, present)
    if instr.op in ALIGNED:
        return lambda present: np.repeat(present.reshape(-1, 32).all(1), 32)
    if instr.op in ("bar", "barrier"):
        members = m.value(instr.operands[0], "u32")
    elif instr.op in MASKED and instr.has("sync"):
        members = m.value(instr.operands[MASKED[instr.op]], "u32")
    else:
        return None

    def complete(present: np.ndarray) -> np.ndarray:
        here, alive = (np.repeat(bits_of(x), 32) for x in (present, m.pc < m.end))
        return present & (members() & alive & ~here == 0)

    return complete


def _block_complete(m, present: np.ndarray) -> np.ndarray:
    alive = (m.pc < m.end).reshape(m.wave, -1).sum(1)
    return np.repeat(present.reshape(m.wave, -1).sum(1) == alive, m.lanes_per_block)


def _barrier(m, index, instr):
    if instr.has("warp"):
        return None  # orders lanes of a warp, which run in step here
    if instr.has("arrive"):
        raise KeyError("a barrier that does not wait")
    reduction = instr.first(("popc", "and", "or"))
    numbers = instr.operands[1:-1] if reduction else instr.operands
    if len(numbers) > 1 and not (isinstance(numbers[1], Number) and int(numbers[1].text, 0) == m.threads):
        raise KeyError("a barrier for a part of the block")
    if reduction:
        out, p = m.target(instr.operands[0]), m.value(instr.operands[-1], "pred")

    def run(active) -> None:
        m.barriers[np.unique(m.block_in_wave[active.lanes])] += 1
        if reduction:
            votes = np.broadcast_to(p(), (m.total,)) if active.mask is None else p() & active.mask
            count = np.repeat(votes.reshape(m.wave, -1).sum(1), m.lanes_per_block)
            size = m.total if active.mask is None else active.mask
            present = np.repeat(
                np.broadcast_to(size, (m.total,)).reshape(m.wave, -1).astype(bool).sum(1), m.lanes_per_block
            )
            result = {"popc": count.astype(np.uint32), "or": count > 0, "and": count == present}[reduction]
            out.put(result, active)

    return run


def _shuffle(m, index, instr):
    mode = instr.first(("up", "down", "bfly", "idx"))
    to = instr.operands[0]
    out, valid = [*m.targets(to), None][:2] if isinstance(to, Group) else (m.target(to), None)
    value, by, clamp = (
        m.value(instr.operands[1], "b32"),
        m.value(instr.operands[2], "u32"),
        m.value(instr.operands[3], "u32"),
    )

    def run(active) -> None:
        lane = m.lane
        n, c = (np.broadcast_to(v(), (m.total,)).astype(np.int64) & mask for v, mask in ((by, 31), (clamp, 0x1F1F)))
        segment = c >> 8
        low, high = lane & segment, (lane & segment) | (c & 31 & ~segment)
        source = {"up": lane - n, "down": lane + n, "bfly": lane ^ n, "idx": low | (n & ~segment)}[mode]
        inside = source >= high if mode == "up" else source <= high
        source = np.where(inside, source, lane) + m.warp_in_wave * 32
        if active.mask is not None:
            bad = active.mask & ~active.mask[source]
            if bad.any():
                i = int(np.argmax(bad))
                detail = f"reads lane {source[i] % 32}, which does not take part"
                m.fail("divergent-collective", detail, instr, i)
        out.put(np.broadcast_to(value(), (m.total,))[source], active)
        if valid is not None:
            valid.put(inside, active)

    return run


def _present(m, active, members) -> np.ndarray:
    """Per warp, the lanes that take part; the mask may split a warp into parts that vote on their own."""
    here = bits_of(np.ones(m.total, np.bool_) if active.mask is None else active.mask)
    return np.repeat(here, 32) & members()


def _vote(m, index, instr):
    out, mode = m.target(instr.operands[0]), instr.first(("all", "any", "uni", "ballot"))
    p, members = m.value(instr.operands[1], "pred"), m.value(instr.operands[-1], "u32")

    def run(active) -> None:
        present = _present(m, active, members)
        yes = np.repeat(bits_of(np.broadcast_to(p(), (m.total,))), 32) & present
        result = {"ballot": yes, "any": yes != 0, "all": yes == present, "uni": (yes == 0) | (yes == present)}[mode]
        out.put(result, active)

    return run


def _match(m, index, instr):
    to, kind = instr.operands[0], instr.type
    targets = m.targets(to)
    value, members = m.value(instr.operands[1], kind), m.value(instr.operands[2], "u32")

    def run(active) -> None:
        present = _present(m, active, members)
        x = np.broadcast_to(value(), (m.total,)).reshape(-1, 32)
        same = bits_of((x[:, :, None] == x[:, None, :]).reshape(-1)) & present
        if instr.has("any"):
            targets[0].put(same, active)
            return
        agree = same == present
        targets[0].put(np.where(agree, present, np.uint32(0)), active)
        if len(targets) > 1:
            targets[1].put(agree, active)

    return run


def _reduce(m, index, instr):
    out, t = m.target(instr.operands[0]), instr.type
    value, members = m.value(instr.operands[1], t), m.value(instr.operands[2], "u32")
    operation = instr.first(("add", "min", "max", "and", "or", "xor"))
    functions = {"add": np.add, "min": np.minimum, "max": np.maximum}
    functions |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}

    def run(active) -> None:
        x = np.broadcast_to(value(), (m.total,)).reshape(-1, 32)
        present = _present(m, active, members).reshape(-1, 32)
        result = np.empty_like(x)
        inside = (present[:, :, None] >> np.arange(32, dtype=np.uint32)) & 1 != 0  # [warp, lane, member]
        info = np.iinfo(x.dtype)
        idle = {"add": 0, "or": 0, "xor": 0, "and": ~x.dtype.type(0), "min": info.max, "max": info.min}[operation]
        rows = np.where(inside, x[:, None, :], x.dtype.type(idle))
        result = functions[operation].reduce(rows, axis=2, dtype=x.dtype)
        out.put(result.reshape(-1), active)

    return run


def _activemask(m, index, instr):
    out = m.target(instr.operands[0])
    everyone = np.uint32(0xFFFFFFFF)
    return lambda active: out.put(everyone if active.mask is None else np.repeat(bits_of(active.mask), 32), active)


DECODERS = {
    "bar": _barrier, "barrier": _barrier, "shfl": _shuffle, "vote": _vote, "match": _match, "redux": _reduce,
    "activemask": _activemask,
}  # fmt: skip
