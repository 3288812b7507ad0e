"""Weights that are views of a file: their memory goes back to the system once a song has read them.

A text encoder reads each weight once a prompt. On a CPU its tensors are views of the mapped checkpoint, whose pages the
system brings back from its own cache, so nobody has to keep them: without, they lie beside the transformer while a song
is made, 0.9 GB for Qwen3-Embedding-0.6B.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor, nn

Range = tuple[int, int]  # first address and the one after the last


def release_after_use(layers: Iterable[nn.Module], files: Iterable[Path]) -> None:
    """From now on, whenever one of ``layers`` has run, give back the memory of its weights that are views of ``files``.

    A weight that was written to since is kept, and one that was loaded in inference mode, where nobody counts that.
    Nothing happens where the system is not Linux.
    """
    mappings = _mappings({str(file.resolve()) for file in files})
    for layer in layers:
        weights = (tensor for tensor in layer.parameters() if not tensor.is_inference())
        views = [(tensor, tensor._version) for tensor in weights if _inside(tensor, mappings)]
        if views:
            layer.register_forward_hook(_give_back(views))


def _give_back(views: list[tuple[Tensor, int]]) -> Callable[..., None]:
    """A hook that holds the views, so that what it gives back is theirs."""
    libc = ctypes.CDLL(None, use_errno=True)

    def hook(*_: object) -> None:
        for tensor, version in views:
            begin, end = _pages(tensor)
            if end > begin and tensor._version == version:  # else the system would forget what was written
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)

    return hook


def _pages(tensor: Tensor) -> Range:
    """The pages that hold nothing else."""
    begin, page = tensor.data_ptr(), mmap.PAGESIZE
    return -(-begin // page) * page, (begin + tensor.nbytes) // page * page


def _inside(tensor: Tensor, mappings: list[Range]) -> bool:
    begin = tensor.data_ptr()
    return any(first <= begin and begin + tensor.nbytes <= last for first, last in mappings)


def _mappings(files: set[str]) -> list[Range]:
    """Where this process has files mapped."""
    if sys.platform != "linux":
        return []
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, file = line.split(maxsplit=5)
        if file in files:
            first, last = (int(address, 16) for address in addresses.split("-"))
            found.append((first, last))
    return found
