"""Who touched what, and when: the state behind the race, missing-wait and uninitialised checks of one memory.

Memory is cut into granules, as wide as the narrowest access of the kernel. A granule remembers its last writer and its
readers since; "when" is the number of barriers the block has passed. Two accesses are ordered if they come from one
warp, or from one block with a barrier between; nothing orders two blocks.
"""

from __future__ import annotations

import numpy as np

NOBODY, BLOCKS = -1, -2  # never touched; touched by several blocks
PENDING = np.iinfo(np.int32).max  # written by a cp.async that has not been waited for


class Shadow:
    """Owners are warps of the whole grid (>= 0), NOBODY, BLOCKS, or -3 - b for several warps of block b."""

    def __init__(self, granules: int, granule: int, warps_per_block: int, what: str, within=True, between=True):
        self.granule, self.warps_per_block, self.what = granule, warps_per_block, what
        self.within, self.between = within, between  # races within a block, and between blocks, are faults
        self.writer, self.reader = (np.full(granules, NOBODY, np.int32) for _ in range(2))
        self.written_at, self.read_at = (np.zeros(granules, np.int32) for _ in range(2))
        self.atomic = np.zeros(granules, np.bool_)

    def forget(self) -> None:
        self.writer[:], self.reader[:], self.atomic[:] = NOBODY, NOBODY, False

    def spread(self, offsets: np.ndarray, size: int, *per_lane: np.ndarray) -> tuple[np.ndarray, ...]:
        """Byte offsets of accesses of ``size`` bytes -> granules, with per-lane values repeated to match."""
        n = -(-size // self.granule)
        first = offsets // self.granule
        if n == 1:
            return (first, *per_lane)
        return ((first[:, None] + np.arange(n)).ravel(), *(np.repeat(x, n) for x in per_lane))

    def _block(self, owner: np.ndarray) -> np.ndarray:
        return np.where(owner >= 0, owner // self.warps_per_block, -3 - owner)

    def _conflict(self, owner, at, warp, now) -> np.ndarray:
        """Touched by another warp, and no barrier since."""
        other = (owner != warp) & (owner != NOBODY)
        if not other.any():
            return other
        apart = (owner == BLOCKS) | (self._block(owner) != warp // self.warps_per_block)
        return other & np.where(apart, self.between, self.within & (at == now))

    def _report(self, bad, owner, warp, text: str):
        i = int(np.flatnonzero(bad)[0])
        between = owner[i] == BLOCKS or self._block(owner[i : i + 1])[0] != warp[i] // self.warps_per_block
        kind = "race-between-blocks" if between else "race"
        who = (
            "several blocks" if owner[i] == BLOCKS
            else f"block {self._block(owner[i : i + 1])[0]}" if between
            else f"warp {owner[i] % self.warps_per_block}" if owner[i] >= 0 else "several warps"
        )  # fmt: skip
        return kind, f"{self.what}: {text.format(who=who)}" + ("" if between else ", and no barrier between"), i

    def read(self, granules, warp, now, uninitialised: bool):
        """Records reads; returns (kind, detail, index into granules) of the first fault, or None."""
        owner, at = self.writer[granules], self.written_at[granules]
        if uninitialised and (owner == NOBODY).any():
            return "uninitialised-shared", f"{self.what} read before anything wrote it", int(np.argmax(owner == NOBODY))
        if (at == PENDING).any():
            bad = (at == PENDING) & (owner != NOBODY)
            if bad.any():
                detail = "read of data a cp.async is still bringing: no cp.async.wait since it was issued"
                return "async-not-waited", detail, int(np.flatnonzero(bad)[0])
        bad = self._conflict(owner, at, warp, now)
        if bad.any():
            return self._report(bad, owner, warp, "read of what {who} wrote")
        reader = self.reader[granules]
        if (reader != warp).any():
            self._join(self.reader, self.read_at, granules, reader, warp, now)
        self.read_at[granules] = now
        return None

    def _join(self, owners, when, granules, before, warp, now) -> None:
        """Adds warps to the owners of granules; those of the same block and an earlier barrier are forgotten."""
        block = warp // self.warps_per_block
        several = -3 - block
        same_block = self._block(before) == block
        new = np.where(same_block, np.where((when[granules] != now) | (before == warp), warp, several), BLOCKS)
        new = np.where(before == NOBODY, warp, new).astype(np.int32)
        owners[granules] = new
        for _ in range(2):  # two warps in one instruction: one overwrote the other above
            now_there = owners[granules]
            clash = now_there != new
            if not clash.any():
                return
            apart = self._block(now_there) != self._block(new)
            new = np.where(clash, np.where(apart | (now_there == BLOCKS) | (new == BLOCKS), BLOCKS, several), new)
            owners[granules[clash]] = new[clash]

    def write(self, granules, warp, now, same=None):
        """Records writes. ``same()`` tells where they leave the bytes as they are: warps of a block may repeat a value.

        Without ``same`` they are the destination of a cp.async.
        """
        owner, at = self.writer[granules], self.written_at[granules]
        if (at == PENDING).any():
            bad = (at == PENDING) & (owner != NOBODY)
            if bad.any():
                return "async-not-waited", "write over a cp.async that is still in flight", int(np.flatnonzero(bad)[0])
        bad = self._conflict(owner, at, warp, now)
        if same is not None and bad.any():
            bad &= ~same() | (owner == BLOCKS) | (self._block(owner) != warp // self.warps_per_block)
        if bad.any():
            return self._report(bad, owner, warp, "write over what {who} wrote")
        reader = self.reader[granules]
        bad = self._conflict(reader, self.read_at[granules], warp, now)
        if bad.any():
            return self._report(bad, reader, warp, "write over what {who} read")
        self.writer[granules] = warp
        self.written_at[granules] = now if same is not None else PENDING
        self.atomic[granules] = False
        last = self.writer[granules]
        bad = self._conflict(last, now, warp, now)
        if same is not None and bad.any():  # the store compares values; here only blocks count
            several = last // self.warps_per_block == warp // self.warps_per_block
            self.writer[granules[bad & several]] = -3 - warp[bad & several] // self.warps_per_block
            bad &= ~several
        if bad.any():
            return self._report(bad, last, warp, "write over what {who} writes at the same time")
        return None

    def arrive(self, granules, warp, now) -> None:
        """A cp.async has been waited for by the warp that issued it: from here on like a plain write."""
        self.writer[granules], self.written_at[granules] = warp, now

    def update(self, granules, warp, now):
        """Records atomics, which are ordered among themselves, but not with plain accesses."""
        owner, at = self.writer[granules], self.written_at[granules]
        bad = self._conflict(owner, at, warp, now) & ~self.atomic[granules]
        if bad.any():
            return self._report(bad, owner, warp, "atomic on what {who} wrote")
        reader = self.reader[granules]
        bad = self._conflict(reader, self.read_at[granules], warp, now)
        if bad.any():
            return self._report(bad, reader, warp, "atomic on what {who} read")
        self._join(self.writer, self.written_at, granules, owner, warp, now)
        self.written_at[granules], self.atomic[granules] = now, True
        return None
