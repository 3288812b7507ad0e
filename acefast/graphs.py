"""CUDA graphs: what makes the same launches on the same memory every time is captured once and replayed from then on.

    graphs = Graphs(device)
    tile = graphs.kept("tile", (batch, frames), lambda: make_tile())   # static memory, the last few are kept
    tile.replay = graphs.replayed("tile", tile.launch)
    tile.replay()                                                     # launches, then captures; later calls replay

A key holds shapes, dtypes, devices and the backend in force, never a float: what a song brings along as numbers lies on
the device and is loaded between replays. Where there is no GPU, or graphs are turned off (``ACEFAST_GRAPHS=0``,
``acefast.load(..., graphs=False)``), every call launches: the bytes are the same.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

LIMIT = 8  # entries of one name that are kept
log = logging.getLogger("acefast")

_capturing = threading.Lock()  # a capture begins by waiting for the device, which no other capture may meet

T = TypeVar("T")


class Replayed:
    """A function of no arguments whose launches are the same at every call, on memory that stays where it is.

    The first call launches, which compiles and loads every kernel, and then captures, which runs nothing; later ones
    replay. A capture that fails is told in one line of the log, and every call launches.
    """

    def __init__(self, name: str, launch: Callable[[], None], graphs: Graphs) -> None:
        self.name, self.launch, self.graphs = name, launch, graphs
        self.graph: torch.cuda.CUDAGraph | None = None
        self.launched = not graphs.enabled  # for good

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph.replay()
            return
        self.launch()
        if not self.launched:
            self._capture()

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with _capturing, torch.cuda.graph(graph, pool=self.graphs.pool, capture_error_mode="thread_local"):
                self.launch()
        except RuntimeError as error:
            self.launched = True
            reason = " ".join(str(error).split())[:200]
            log.warning("%s cannot be captured as a CUDA graph and is launched each time: %s", self.name, reason)
            return
        self.graph = graph


class Graphs:
    """Static memory and graphs of one device, for work that never runs twice at once: all share a pool of memory."""

    def __init__(self, device: torch.device, *, enabled: bool | None = None, limit: int = LIMIT) -> None:
        """
        Args:
            enabled: None: unless ``$ACEFAST_GRAPHS`` is 0. Only on a GPU in any case.
            limit: entries of one name that are kept; the least recently used is forgotten.
        """
        wanted = os.environ.get("ACEFAST_GRAPHS", "1") != "0" if enabled is None else enabled
        self.device, self.enabled, self.limit = device, wanted and device.type == "cuda", limit
        self._kept: dict[str, OrderedDict[Hashable, object]] = {}
        self._pool = None

    @property
    def pool(self) -> tuple[int, int]:
        """Of memory that graphs of this object allocate from."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def kept(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` made for ``key`` the last time it was asked for, if it still is here; else made now."""
        entries = self._kept.setdefault(name, OrderedDict())
        if key not in entries:
            while len(entries) >= self.limit:
                entries.popitem(last=False)  # before the next one takes memory
            entries[key] = make()
        entries.move_to_end(key)
        return entries[key]

    def replayed(self, name: str, launch: Callable[[], None]) -> Replayed:
        """``launch``, captured at its first call and replayed from then on."""
        return Replayed(name, launch, self)

    def clear(self, name: str | None = None) -> None:
        """Forget what is kept under ``name``, or everything."""
        for entries in self._kept.values() if name is None else [self._kept.get(name, OrderedDict())]:
            entries.clear()
