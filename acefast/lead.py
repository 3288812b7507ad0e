"""How a thread hands over what it makes: at most some seconds ahead of who takes it, stopped at any time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Stopped(Exception):
    """Raised in the thread at work when nobody waits for it any more."""


class Lead:
    """A queue bounded by seconds between one thread that makes (``run``, ``put``, ``check``) and one that takes."""

    def __init__(self, ahead: float) -> None:
        """``ahead``: seconds from which on ``put`` waits until some are taken; it always lets one item in."""
        self.ahead = ahead
        self._changed = threading.Condition()
        self._items: deque[tuple[Any, float]] = deque()
        self._seconds = 0.0
        self._error: BaseException | None = None
        self._ended = self._stopped = False

    def run(self, work: Callable[[], None]) -> None:
        """The thread's whole life: an exception of ``work`` goes to who takes, after what was put before it."""
        error = None
        try:
            work()
        except Stopped:
            pass
        except BaseException as failure:
            error = failure
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def check(self) -> None:
        """Raise ``Stopped`` after ``stop``."""
        if self._stopped:
            raise Stopped

    def put(self, item: Any, seconds: float) -> None:
        """Add an item that lasts so long; waits for room. Raises ``Stopped`` after ``stop``."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or not self._items or self._seconds < self.ahead)
            self.check()
            self._items.append((item, seconds))
            self._seconds += seconds
            self._changed.notify_all()

    def get(self) -> Any:
        """The next item; None after the last one. Raises what ended the work."""
        with self._changed:
            while not (self._items or self._ended or self._stopped):
                self._changed.wait(1.0)  # not for ever: on some systems Ctrl-C is heard between two waits only
            if self._items:
                item, seconds = self._items.popleft()
                self._seconds = self._seconds - seconds if self._items else 0.0
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def stop(self) -> None:
        """Drop what is there and have the thread end at its next ``put`` or ``check``."""
        with self._changed:
            self._stopped, self._seconds = True, 0.0
            self._items.clear()
            self._changed.notify_all()
