"""Layers that look at a few rows of a song only, run piece by piece: the rows of a piece are those of the whole song.

A ``Step`` says how far its layer looks; ``run`` works out, from the last step back to the first, which rows a piece of
the result depends on, and gives every layer these and no others. A layer pads at the ends of what it is given. At the
song's true ends that is the padding it shall see; elsewhere the rows near the cut come out wrong, and they are exactly
those that the next crop drops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """A layer from [B, rows, ...] to [B, rows * up // down, ...]; one of ``up`` and ``down`` is 1."""

    run: Callable[[Tensor], Tensor]
    reach: int = 0  # rows on either side that a row depends on, counted where they are denser
    up: int = 1
    down: int = 1

    def needs(self, first: int, end: int) -> tuple[int, int]:
        """The rows that the results ``first`` to ``end`` are made of, the ends of the song aside."""
        if self.up > 1:
            return (first - self.reach) // self.up, -(-(end + self.reach) // self.up)
        first, end, by = first * self.down - self.reach, end * self.down + self.reach, self.down
        return first // by * by, -(-end // by) * by  # a stride falls on the song's own grid

    def rows(self, rows: int) -> int:
        """How many rows become of ``rows``."""
        return rows * self.up // self.down


class Rows(NamedTuple):
    """A part of a song's rows."""

    x: Tensor  # [B, rows, ...]
    start: int  # its first row within the song
    total: int  # rows of the song

    def crop(self, first: int, end: int) -> Rows:
        """Rows ``first`` to ``end``, as far as the song has them."""
        first = max(first, 0)
        return Rows(self.x[:, first - self.start : end - self.start], first, self.total)


def needs(steps: Sequence[Step], first: int, end: int) -> tuple[int, int]:
    """The rows before all ``steps`` that the rows ``first`` to ``end`` after them depend on, the song's ends aside."""
    for step in reversed(steps):
        first, end = step.needs(first, end)
    return first, end


def halo(steps: Sequence[Step], rate: int) -> int:
    """Rows before ``steps`` on either side of its own that one row's ``rate`` results depend on."""
    first, end = needs(steps, 0, rate)
    return max(-first, end - 1)


def run(steps: Sequence[Step], rows: Rows, first: int, end: int) -> Rows:
    """Rows ``first`` to ``end`` after all steps, of the rows before them, which hold at least what ``needs`` says."""
    wanted = [(first, end)]
    for step in reversed(steps):
        wanted.insert(0, step.needs(*wanted[0]))
    for step, (lo, hi) in zip(steps, wanted):
        x, start, total = rows.crop(lo, hi)
        rows = Rows(step.run(x.contiguous()), step.rows(start), step.rows(total))
    return rows.crop(first, end)


def pieces(first: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of ``size`` rows, the last one shorter."""
    for lo in range(first, end, size):
        yield lo, min(lo + size, end)
