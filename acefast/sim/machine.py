"""Runs a Program: every lane of a wave of blocks is one element of numpy arrays, lanes at the lowest position go first.

A wave is as many blocks as fit ``LANES`` lanes. Lanes that reach a barrier or a warp collective before the rest of
their group are parked until it is complete; if everything that is left is parked, that is a finding. Lanes that sleep
let all others go first, so that a loop which waits for another block ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acefast.sim import async_copy, atomics, collective, compare, convert, floating, integer, loads, matrix
from acefast.sim.access import Space
from acefast.sim.cfg import ENDS, Program, targets, written_and_read
from acefast.sim.counters import Counters
from acefast.sim.errors import Finding, Place, Unsupported
from acefast.sim.memory import GlobalMemory
from acefast.sim.operands import Operands
from acefast.sim.ptx import Instr, Module

LANES = 8192  # per wave: a register is 32 KB, and an operation on it costs more than calling numpy
FAMILIES = (integer, floating, compare, convert, loads, atomics, async_copy, collective, matrix)
DECODERS = {op: decoder for family in FAMILIES for op, decoder in family.DECODERS.items()}
NOTHING = ("membar", "fence", "prefetch", "prefetchu", "discard", "applypriority", "griddepcontrol")


@dataclass
class Options:
    """What a launch checks. ``approx`` moves approximate functions to the edge of their documented error."""

    races: bool = True
    races_between_blocks: bool = True
    registers: bool = False  # report registers read before they are written; else they are all ones (NaN)
    approx: str = "value"  # "value", "low", "high" or "random"
    seed: int = 0
    max_blocks: int = 1_000_000  # basic blocks a wave may run before it counts as hung


class Active:
    """The lanes an instruction runs for: ``mask`` is None when it is all of them."""

    __slots__ = ("_lanes", "mask", "total")

    def __init__(self, mask: np.ndarray | None, total: int):
        self.mask = None if mask is None or mask.all() else mask
        self.total, self._lanes = total, None

    @property
    def lanes(self) -> np.ndarray:
        if self._lanes is None:
            self._lanes = np.arange(self.total) if self.mask is None else np.flatnonzero(self.mask)
        return self._lanes

    def rows(self) -> np.ndarray:
        """Numbers of the warps with an active lane."""
        if self.mask is None:
            return np.arange(self.total // 32)
        return np.flatnonzero(self.mask.reshape(-1, 32).any(1))


class Machine(Operands):
    """One launch. Instruction families read ``value`` and ``target``, and report through ``fail``."""

    def __init__(
        self,
        module: Module,
        program: Program,
        memory: GlobalMemory,
        params: np.ndarray,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        dynamic_shared: int,
        options: Options,
    ):
        self.module, self.program, self.options = module, program, options
        self.grid, self.block_shape = grid, block
        self.threads = block[0] * block[1] * block[2]
        self.lanes_per_block = -(-self.threads // 32) * 32
        self.warps_per_block = self.lanes_per_block // 32
        blocks = grid[0] * grid[1] * grid[2]
        waves = -(-blocks * self.lanes_per_block // LANES)
        self.wave = max(1, -(-blocks // waves))
        self.total = self.wave * self.lanes_per_block
        self.random = np.random.default_rng(options.seed)
        i = np.arange(self.total)
        self.lane, self.block_in_wave, self.warp_in_wave = i % 32, i // self.lanes_per_block, i // 32
        self.exists = i % self.lanes_per_block < self.threads
        self.barriers = np.zeros(self.wave, np.int32)  # each block has passed
        self.counters = Counters(program, module)
        self.space = Space(self, memory, params, dynamic_shared)
        self.make_registers(dynamic_shared)
        self.first_block = 0
        self.pending: list[async_copy.Copy] = []
        self.committed = np.zeros(self.total, np.int64)  # cp.async groups of each lane
        self.end = len(program.code)
        self.block_at = np.zeros(self.end, np.int64)
        for start, b in program.blocks.items():
            self.block_at[start : b.end] = start
        self.sync = [collective.group_of(self, i) for i in program.code]
        self.steps = [self._decode(k, i) for k, i in enumerate(program.code)]

    def fail(self, kind: str, detail: str, instr: Instr, lane: int | None = None) -> None:
        """Raises a Finding about one lane of the wave."""
        place = Place(self.program.name, instr.text, instr.line, self.module.source(instr))
        if lane is not None:
            b = self.first_block + int(self.block_in_wave[lane])
            x, y, _ = self.grid
            place.block = (b % x, b // x % y, b // (x * y))
            place.warp, place.lane = int(self.warp_in_wave[lane] % self.warps_per_block), int(self.lane[lane])
        raise Finding(kind, detail, place)

    def unsupported(self, instr: Instr, why: str = "is not modelled") -> Unsupported:
        place = Place(self.program.name, instr.text, instr.line, self.module.source(instr))
        return Unsupported(f"sim: {instr.op} {why}\n  at {place}")

    @property
    def warp(self) -> np.ndarray:
        """Of each lane, counted over the whole grid."""
        return (self.warp_in_wave + self.first_block * self.warps_per_block).astype(np.int32)

    def _decode(self, index: int, instr: Instr):
        if instr.op in ENDS or instr.op in NOTHING:
            return None
        if instr.op == "nanosleep":
            return self._predicated(instr, self._sleep) if instr.pred else self._sleep
        if instr.op in ("trap", "brkpt", "call"):
            what = "device assert failed" if instr.op == "call" else "trap reached"
            step = lambda active: self.fail("trap", what, instr, int(active.lanes[0]))  # noqa: E731
        elif instr.op not in DECODERS or any("cluster" in m for m in instr.mods):
            raise self.unsupported(instr)
        else:
            try:
                step = DECODERS[instr.op](self, index, instr)
            except (KeyError, IndexError) as error:
                raise self.unsupported(instr, f"has a form that is not modelled ({error})") from error
        if step is None:
            return None
        if self.options.registers:
            step = self._register_check(instr, step)
        return self._predicated(instr, step) if instr.pred else step

    def _sleep(self, active: Active) -> None:
        """From the end of the basic block on, until all others have ended, wait or sleep as well."""
        self.slept[active.lanes] = True

    def _predicated(self, instr: Instr, step):
        pred = self.value(instr.pred, "pred")

        def run(active: Active) -> None:
            mask = pred()
            mask = mask if active.mask is None else mask & active.mask
            if mask.any():
                step(Active(mask, self.total))

        return run

    def _register_check(self, instr: Instr, step):
        written, read = written_and_read(instr, self.program.regs)
        read = [r for r in read if r in self.assigned]
        written = [r for r in written if r in self.assigned]

        def run(active: Active) -> None:
            for r in read:
                bad = ~self.assigned[r][active.lanes]
                if bad.any():
                    lane = int(active.lanes[np.argmax(bad)])
                    self.fail("uninitialised-register", f"{r} read before anything wrote it", instr, lane)
            step(active)
            for r in written:
                self.assigned[r][active.lanes] = True

        return run if read or written else step

    # ---- the scheduler

    def run(self) -> None:
        """All blocks of the grid, wave after wave."""
        blocks = self.grid[0] * self.grid[1] * self.grid[2]
        with np.errstate(all="ignore"):
            for first in range(0, blocks, self.wave):
                self.first_block = first
                self.start_wave(first)
                self.barriers[:] = 0
                self.space.start_wave()
                self._run_wave(self.exists & (first + self.block_in_wave < blocks))

    def _run_wave(self, exists: np.ndarray) -> None:
        self.pc = np.where(exists, 0, self.end)
        self.parked = np.zeros(self.total, np.bool_)
        self.slept = np.zeros(self.total, np.bool_)  # lanes that others may pass
        for _ in range(self.options.max_blocks):
            at = int(np.where(self.parked | self.slept, self.end, self.pc).min())
            if at >= self.end and self.slept.any():
                self.slept[:] = False
            elif at >= self.end:
                if self.parked.any():
                    self._stuck()
                return
            else:
                self._run_block(at, (self.pc == at) & ~self.parked & ~self.slept)
        lane = int(np.argmin(self.pc))
        detail = f"still running after {self.options.max_blocks} basic blocks"
        self.fail("no-progress", detail, self.program.code[int(self.pc[lane])], lane)

    def _run_block(self, at: int, mask: np.ndarray) -> None:
        """Runs the lanes of ``mask`` from ``at`` to the end of the basic block that holds it."""
        block = self.program.blocks[int(self.block_at[at])]
        active = Active(mask, self.total)
        since = at
        for i in range(at, block.end):
            if self.sync[i] is not None:
                gathered = self._gather(i, mask, active)
                if gathered is not mask:
                    self._count(since, i, active)
                    mask, since = gathered, i
                    if not mask.any():
                        return
                    active = Active(mask, self.total)
            if self.steps[i] is not None:
                self.steps[i](active)
        self._count(since, block.end, active)
        self._leave(block, mask)

    def _count(self, start: int, end: int, active: Active) -> None:
        self.counters.ran(start, end, len(active.rows()))

    def _gather(self, i: int, mask: np.ndarray, active: Active) -> np.ndarray:
        """At a barrier or collective: takes in who waits here, parks who must wait, returns who goes on."""
        instr = self.program.code[i]
        if active.mask is None and instr.pred is None:
            return mask
        waiting = self.parked & (self.pc == i)
        joined = mask | waiting
        self.parked &= ~waiting
        taking_part = joined & self.value(instr.pred, "pred")() if instr.pred else joined
        late = taking_part & ~self.sync[i](taking_part)
        self.pc[late] = i
        self.parked |= late
        if not late.any() and not waiting.any():
            return mask
        return joined & ~late

    def _leave(self, block, mask: np.ndarray) -> None:
        """Moves the lanes on from the end of a basic block."""
        instr = self.program.code[block.end - 1]
        after = block.next if block.next >= 0 else self.end
        if instr.op not in ENDS:
            self.pc[mask] = after
            return
        taken = mask & self.value(instr.pred, "pred")() if instr.pred else mask
        self.pc[mask] = after
        if instr.op in ("ret", "exit"):
            self.pc[taken] = self.end
        else:
            goals = np.array([self.program.labels.get(t, self.end) for t in targets(instr, self.program.tables)])
            if instr.op == "bra":
                self.pc[taken] = goals[0]
            else:
                self.pc[taken] = goals[np.broadcast_to(self.value(instr.operands[0], "u32")(), self.total)[taken]]

    def _stuck(self) -> None:
        """Everything left waits for lanes that will not come."""
        lane = int(np.argmin(np.where(self.parked, self.pc, self.end)))
        at = int(self.pc[lane])
        instr = self.program.code[at]
        barrier = instr.op in ("bar", "barrier") and not instr.has("warp")
        group = self.block_in_wave if barrier else self.warp_in_wave
        peers = group == group[lane]
        here = peers & (self.pc == at)
        elsewhere = {int(p) for p in self.pc[peers & (self.pc != at)]}
        others = [f"PTX line {self.program.code[p].line}" if p < self.end else "the end" for p in sorted(elsewhere)]
        detail = (
            f"{here.sum()} of {peers.sum()} lanes of the {'block' if barrier else 'warp'} wait here for the others, "
            f"which are at {', '.join(others) or 'other members'}"
        )
        self.fail("divergent-barrier" if barrier else "divergent-collective", detail, instr, lane)
