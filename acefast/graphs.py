"""CUDA graphs: what makes the same launches on the same memory every time is captured once and replayed from then on.

    graphs = Graphs(device)
    tile = graphs.kept("tile", (batch, frames), lambda: make_tile())   # static memory, the last few are kept
    tile.replay = graphs.replayed("tile", tile.launch)
    tile.replay()                                                     # launches, then captures; later calls replay

A key holds shapes, dtypes, devices and the backend in force, never a float: what a song brings along as numbers lies on
the device and is loaded between replays. Where there is no GPU, or graphs are turned off (``ACEFAST_GRAPHS=0``,
``acefast.load(..., graphs=False)``), every call launches: the bytes are the same.

Entries of all sizes share one arena, of which a smaller one has the first bytes. So what an entry leaves there lasts
until another takes the arena, and may be read by that one as numbers it has not written: only floats lie there, and
only such as are written before they are read.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

LIMIT = 8  # entries of one name that are kept
log = logging.getLogger("acefast")
_capturing = threading.Lock()  # a capture begins with a wait for the whole device, which ends one of another thread

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
        if self.launched:
            return
        try:
            self.graph = captured(self.launch, self.graphs)
        except Exception as error:  # of the driver, of torch, of a kernel's launcher: the song has been launched
            self.launched = True
            self.graphs.failed.append(self.name)
            reason = " ".join(str(error).split())[:200]
            log.warning("%s cannot be captured as a CUDA graph and is launched each time: %s", self.name, reason)


def captured(launch: Callable[[], None], graphs: Graphs) -> torch.cuda.CUDAGraph:
    """The launches of ``launch`` as a graph; nothing runs."""
    graph, pool = torch.cuda.CUDAGraph(), graphs.pool
    # a capture that fails leaves its own stream the current one
    with _capturing, torch.cuda.stream(torch.cuda.current_stream()):
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                launch()
        except Exception:
            with contextlib.suppress(RuntimeError):  # and, before torch 2.12, the allocator as if it went on
                torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
            raise
    return graph


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
        self.failed: list[str] = []  # names of what could not be captured
        self._holds_pool: torch.cuda.CUDAGraph | None = None
        self._turn: tuple[torch.cuda.Stream, torch.cuda.Event] | None = None  # the last one's stream and end
        self._pinning = False
        self._begin()

    def _begin(self) -> None:
        self._kept: dict[str, OrderedDict[Hashable, object]] = {}
        self._pinned: set[tuple[str, Hashable]] = set()
        self._arena: Tensor | None = None
        self._holder: Callable[[], object] = lambda: None

    @property
    def pool(self) -> tuple[int, int]:
        """Of memory that graphs of this object allocate from.

        An empty graph holds it: torch allows no capture into a pool whose last graph is gone.
        """
        if self._holds_pool is None:
            graph = torch.cuda.CUDAGraph()
            with _capturing, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it is empty
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    pass
            self._holds_pool = graph
        return self._holds_pool.pool()

    def arena(self, size: int, name: str | None = None) -> Tensor:
        """The first ``size`` bytes of what entries share, for floats.

        As it grows, what is kept under ``name`` is forgotten; without one all is.

        A caller that has written there asks ``take`` whether it still is as it was.
        """
        if self._arena is None or len(self._arena) < size:
            self.clear(name)
            self._arena = None  # before the new one takes memory
            gc.collect()  # an entry and its graphs refer to each other
            with torch.inference_mode(False):  # memory that may be written within it and outside
                self._arena = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._arena[:size]

    @property
    def arena_bytes(self) -> int:
        """How large the arena is by now."""
        return 0 if self._arena is None else len(self._arena)

    def take(self, entry: object) -> bool:
        """``entry`` writes to the arena from here on. Whether nobody else has done so since it took it last."""
        held, self._holder = self._holder() is entry, weakref.ref(entry)
        return held

    def spoil(self) -> None:
        """Whoever takes the arena next writes all that it needs there anew: it was computed with other weights."""
        self._holder = lambda: None

    def kept(self, name: str, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` made for ``key`` the last time it was asked for, if it still is here; else made now."""
        entries = self._kept.setdefault(name, OrderedDict())
        if key not in entries:
            loose = [other for other in entries if (name, other) not in self._pinned]
            for other in loose[: max(len(loose) - self.limit + 1, 0)]:
                self._settle()
                del entries[other]  # before the next one takes memory
            with torch.inference_mode(False):
                entries[key] = make()
        if self._pinning:
            self._pinned.add((name, key))
        entries.move_to_end(key)
        return entries[key]

    def replayed(self, name: str, launch: Callable[[], None]) -> Replayed:
        """``launch``, captured at its first call and replayed from then on."""
        return Replayed(name, launch, self)

    @contextlib.contextmanager
    def pinning(self) -> Iterator[None]:
        """What is asked for within the block is never the least recently used; only a growing arena forgets it."""
        self._pinning = True
        try:
            yield
        finally:
            self._pinning = False

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Within the block all static memory is other memory: for a caller's code amid a song, which may make songs."""
        mine = self._kept, self._pinned, self._arena, self._holder
        self._begin()
        try:
            yield
        finally:
            self._kept, self._pinned, self._arena, self._holder = mine

    def clear(self, name: str | None = None) -> None:
        """Forget what is kept under ``name``; without one everything, and give the arena back."""
        self._settle()
        held = self._arena is not None or any(self._kept.values())
        for known in list(self._kept) if name is None else [name]:
            self._kept.get(known, OrderedDict()).clear()
            self._pinned = {pin for pin in self._pinned if pin[0] != known}
        if name is None and held:
            self._arena, self._holder = None, lambda: None
            gc.collect()  # an entry and its graphs refer to each other

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Within the block the current stream's work comes after what other streams have launched in such blocks."""
        if self.device.type != "cuda":
            yield
            return
        stream = torch.cuda.current_stream(self.device)
        if self._turn is not None and self._turn[0] != stream:
            stream.wait_event(self._turn[1])
        try:
            yield
        finally:
            self._turn = stream, stream.record_event()

    def _settle(self) -> None:
        """Wait for what was launched in turns: memory that is about to be forgotten may be another stream's."""
        if self._turn is not None:
            self._turn[1].synchronize()

    def __deepcopy__(self, memo: dict) -> Graphs:
        """A copy of a module that has these gets some of its own."""
        return Graphs(self.device, enabled=self.enabled, limit=self.limit)
