"""What the simulator raises: a finding about the kernel, or a sentence about what it cannot run."""

from __future__ import annotations

from dataclasses import dataclass


class SimError(RuntimeError):
    """Base of everything acefast.sim raises about a kernel."""


class Unsupported(SimError):
    """The PTX holds something that is not modelled, and guessing would be worse than stopping."""


@dataclass
class Place:
    """Where in a launch something happened. Lanes are counted in their warp, warps in their block."""

    kernel: str
    text: str  # the instruction as written
    ptx_line: int
    source: str  # "file.py:12" from .loc, or ""
    block: tuple[int, int, int] | None = None
    warp: int | None = None
    lane: int | None = None

    def __str__(self) -> str:
        where = f"{self.kernel}, PTX line {self.ptx_line}"
        if self.source:
            where += f" ({self.source})"
        if self.block is not None:
            where += f", block {self.block}, warp {self.warp}, lane {self.lane}"
        return f"{where}: {self.text}"


class Finding(SimError):
    """A fault of the kernel. ``kind`` is one of KINDS; ``place`` says where; ``detail`` says what."""

    KINDS = (
        "out-of-bounds",
        "misaligned",
        "race",
        "race-between-blocks",
        "race-within-warp",
        "uninitialised-shared",
        "uninitialised-register",
        "async-not-waited",
        "divergent-barrier",
        "divergent-collective",
        "trap",
        "no-progress",
    )

    def __init__(self, kind: str, detail: str, place: Place):
        assert kind in self.KINDS, kind
        self.kind, self.detail, self.place = kind, detail, place
        super().__init__(f"{kind}: {detail}\n  at {place}")
