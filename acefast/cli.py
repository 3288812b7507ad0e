"""The command ``acefast``, as it begins and ends; what it does is in acefast/commands.py.

Exit codes: 0 done, 1 a kernel with a fault, 2 a request that cannot work, 3 no usable checkpoint, 4 a GPU that is
throttled or shared and is not measured, 130 interrupted.

Nothing above ``main`` takes time to import: torch takes a second, in which Ctrl-C must already be heard.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from acefast.console import tell

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. What goes wrong is one line on standard error."""
    try:
        with _leaving_at_once():
            from acefast.commands import run
        return run(arguments)
    except KeyboardInterrupt:
        _tell_interrupted()
        return INTERRUPTED


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process in the block: an exception there may pass through C++ that aborts on it."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: Any) -> None:
    _tell_interrupted()
    os._exit(INTERRUPTED)


def _tell_interrupted() -> None:
    tell("interrupted; no unfinished file is left")


if __name__ == "__main__":
    sys.exit(main())
