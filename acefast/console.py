"""Lines for people: results on standard output, what goes wrong on standard error; neither ends in a traceback."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str) -> None:
    """``text`` on standard output, where a reader that has left is no failure. Raises OSError for any other."""
    try:
        _write(text, sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise


def out(text: str, way_out: str = "send it elsewhere") -> None:
    """As ``say``; raises RequestError with ``way_out`` where it cannot be written."""
    from acefast.request import RequestError

    try:
        say(text)
    except OSError as error:
        raise RequestError(f"standard output cannot be written: {error.strerror}; {way_out}") from error


def tell(text: str) -> None:
    """``text`` as a line of acefast on standard error, as far as that takes it."""
    try:
        _write(f"acefast: {text}", sys.stderr)
    except OSError:
        _silence(sys.stderr)


def _write(text: str, stream: TextIO | None) -> None:
    if stream is not None:  # the caller has closed it
        encoding = stream.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def _silence(stream: TextIO) -> None:
    """What could not be written would be tried again, and complained of, when Python ends: it goes nowhere instead."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
