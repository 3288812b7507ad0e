"""Lanes: work of one kind, done by one thread at a time, while another thread does work of another kind."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

import torch


class Lane:
    """What a thread is in while it works on memory that all work of a kind shares; who came first goes first.

    On a GPU a thread leaves once all that it launched is done. Memory that was made or written in a lane is therefore
    at rest for whoever comes next, in this lane or another, on whatever stream; nobody has to wait for an event.
    A thread may enter a lane that it is in already.
    """

    def __init__(self, device: torch.device, *, beside: bool = False) -> None:
        """``beside``: on a GPU, launch on a stream of the lane's own, beside what other lanes have launched."""
        self.device = device
        self.stream = torch.cuda.Stream(device) if beside and device.type == "cuda" else None
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._owner: int | None = None
        self._depth = 0

    @contextlib.contextmanager
    def work(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Within the block the lane is this thread's, and its stream the current one.

        Args:
            waiting: called ten times a second while others are at work; may raise to give up.
        """
        with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream), self.held(waiting):
            yield

    @contextlib.contextmanager
    def held(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """``work`` on whatever stream is the current one."""
        self._enter(waiting)
        try:
            yield
        finally:
            try:
                self._rest()
            finally:
                self._leave()

    @property
    def mine(self) -> bool:
        """Whether this thread is in the lane."""
        with self._changed:
            return self._owner == threading.get_ident()

    def give_way(self) -> None:
        """Between two pieces of work: whoever waits goes first. Nothing may be left in the lane's shared memory."""
        with self._changed:
            wanted = bool(self._line) and self._owner == threading.get_ident() and self._depth == 1
        if wanted:
            with self.left():
                pass

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Within the block the lane is not this thread's, if it was before: whoever waits goes first.

        For what waits for another lane, so that no two threads wait for each other. Nothing may be left in the lane's
        shared memory.
        """
        with self._changed:
            depth = self._depth if self._owner == threading.get_ident() else 0
        if not depth:
            yield
            return
        self._rest()
        with self._changed:
            self._owner, self._depth = None, 0
            self._changed.notify_all()
        try:
            yield
        finally:
            self._enter(None)
            self._depth = depth

    def _enter(self, waiting: Callable[[], None] | None) -> None:
        me, turn = threading.get_ident(), object()
        with self._changed:
            if self._owner != me:
                self._line.append(turn)
                try:
                    while self._owner is not None or self._line[0] is not turn:
                        self._changed.wait(0.1)  # not for ever: on some systems Ctrl-C is heard between two waits only
                        if waiting is not None:
                            waiting()
                finally:
                    self._line.remove(turn)
                    self._changed.notify_all()
                self._owner = me
            self._depth += 1

    def _leave(self) -> None:
        with self._changed:
            if self._owner == threading.get_ident():  # not one that gave way and was interrupted before its turn
                self._depth -= 1
                if self._depth == 0:
                    self._owner = None
                    self._changed.notify_all()

    def _rest(self) -> None:
        """Wait for what this thread has launched."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
