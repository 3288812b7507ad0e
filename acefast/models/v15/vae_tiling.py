"""How the audio autoencoder cuts a song into tiles of one length, and how long those are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from acefast.backends import kernels_take
from acefast.guarded import elements
from acefast.models.v15.vae_tile import padded

if TYPE_CHECKING:
    from acefast.models.v15.vae import Decoder, Encoder

TILE_FRAMES = {"decode": 128, "encode": 256}  # on the references
KERNEL_FRAMES = (128, 256, 512, 1024)  # on a GPU's kernels, up to what takes at most SHARE of the memory
SHARE = 1 / 6
STEP = 32  # of which a tile's length is a multiple there, so that songs of like lengths have tiles of one length
FIRST_FRAMES = 25  # that a song's first tile decodes: its first second is heard before the next ones are begun


class Window(NamedTuple):
    """A tile of a song, in latent frames."""

    start: int
    size: int
    first: int  # to keep
    end: int  # of those


def windows(
    length: int, size: int, halo: int, first: int = 0, keep: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """Cover ``length`` rows by windows of ``size`` rows: (start of the window, first row to keep, end of those).

    Kept rows are at least ``halo`` away from a window's edge, unless that is an end of the whole. All windows have
    the same size, the last one ends where the whole ends; a single one of ``length`` rows if that is enough.

    Args:
        first: row to begin with.
        keep: the most rows that the first window keeps; each later one may keep twice as many as the one before it.
    """
    size = min(size, length)
    while first < length:
        start = min(max(first - halo, 0), length - size)
        end = length if start + size == length else start + size - halo
        if keep:
            end, keep = min(end, first + keep), 2 * keep
        yield start, first, end
        first = end


def growing(length: int, sizes: tuple[int, ...], halo: int, first: int, stop: int) -> Iterator[Window]:
    """Cover rows ``first`` to ``stop`` of ``length``, by windows whose sizes are the first, the second and so on.

    The last one has the shortest size that reaches so far.
    """
    for i in itertools.count(1):
        start = max(first - halo, 0)
        left = min(stop + halo, length) - start
        size = min(next((size for size in sizes[:i] if size >= left), sizes[:i][-1]), length)
        start = min(start, length - size)
        end = length if start + size == length else start + size - halo
        yield Window(start, size, first, min(end, stop))
        first = end
        if first >= stop:
            return


def even_size(length: int, largest: int, halo: int) -> int:
    """Rows of a window, a multiple of STEP, where ``length`` is covered by as few as possible, of one length.

    A window cannot be longer than the song, at whose ends a convolution sees zeros: one that STEP does not divide is
    two windows, unless it is too short for them.
    """
    within = length - 2 * halo
    fewest = max(-(-within // (largest - 2 * halo)), 1)
    for count in (fewest, fewest + 1):
        size = -(-(-(-within // count) + 2 * halo) // STEP) * STEP
        if size <= min(length, largest):
            return size
    return length


def on_kernels(coder: Decoder | Encoder) -> bool:
    """Whether tiles are a list of launches on static memory, of weights that are for these."""
    return not coder.spectral and kernels_take(coder.conv1.weight.dtype, coder.conv1.weight.device)


def tiles(
    what: str,
    coder: Decoder | Encoder,
    batch: int,
    frames: int,
    tile_frames: int | None,
    keep: tuple[int, int] | None = None,
    *,
    soon: bool = False,
) -> list[Window]:
    """The tiles of ``batch`` songs; ``tile_frames`` is how long they shall be, None leaves it to this module.

    Args:
        keep: first frame that is wanted and the one after the last; None: all.
        soon: on a GPU's kernels, the first tile shall be a short one.
    Raises:
        ValueError: a tile is no longer than its overlaps.
    """
    halo = coder.halo
    if tile_frames is not None and tile_frames <= 2 * halo:
        raise ValueError(f"{what}: tile_frames must be at least {2 * halo + 1}, got {tile_frames}")
    begin, stop = keep or (0, frames)
    size, first = tile_frames or TILE_FRAMES[what], FIRST_FRAMES if what == "decode" and not tile_frames else None
    if tile_frames is None and on_kernels(coder):  # a tile is computed whole, however little of it is kept
        device, first = coder.conv1.weight.device, None
        if device.type == "cuda":
            size = frames_that_fit(coder, batch, torch.cuda.get_device_properties(device).total_memory)
        if soon:
            return [*growing(frames, tuple(n for n in KERNEL_FRAMES if n <= size), halo, begin, stop)]
        size = even_size(frames, size, halo)
    found = [w for w in windows(frames, size, halo, begin, first) if w[1] < stop]
    return [Window(start, min(size, frames), first, min(end, stop)) for start, first, end in found]


def frames_that_fit(coder: Decoder | Encoder, batch: int, memory: int) -> int:
    """How long a tile is on a GPU of so many bytes."""
    dtype = coder.conv1.weight.dtype
    fit = [n for n in KERNEL_FRAMES if arena_bytes(coder.levels(n), batch, dtype) <= SHARE * memory]
    return fit[-1] if fit else KERNEL_FRAMES[0]


def arena_bytes(levels: list[tuple[int, int]], batch: int, dtype: torch.dtype) -> int:
    """Memory of a tile's activations: 1.5 GB for a song's tile of 1024 frames."""
    return 3 * max(elements(batch, rows, padded(width)) for rows, width in levels) * dtype.itemsize
