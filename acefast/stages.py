"""What surrounds every stage of the work: its progress, its seconds, and one sentence where memory runs out."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator

import torch

from acefast.request import RequestError

Progress = Callable[[str, int, int], None]  # stage, done, of how many
WayOut = str | Callable[[], str]

LOWER = "lower duration or the number of songs in the batch, or take memory='low' or dtype='bfloat16'"
_WANTED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(\w+)", re.IGNORECASE)
_FREE = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")
_SIGNS = (  # of plain RuntimeErrors
    *("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED", "bad_alloc"),
    "could not create a primitive",  # all that oneDNN says
)


class OutOfMemory(RequestError):
    """The device's memory, or the host's, was not enough."""


@contextlib.contextmanager
def stage(
    name: str,
    timings: dict[str, float],
    progress: Progress,
    total: int = 1,
    way_out: WayOut = LOWER,
    *,
    launches: bool = True,
) -> Iterator[Progress]:
    """Run the block as stage ``name`` and put its seconds into ``timings``. ``way_out``: of ``memory_told``.

    ``progress`` is told 0 of ``total`` before and all of the total after it. In between the block may tell more
    through the function that it is given, ``report(done, total)``; the last total told is the one that counts.
    ``launches``: work for a GPU, on the current stream, which is waited for at the end.
    """
    last = (0, total)

    def report(done: int, total: int) -> None:
        nonlocal last
        last = (done, total)
        progress(name, done, total)

    report(0, total)
    begun = time.perf_counter()
    with memory_told(name, way_out):
        yield report
        if launches and torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
    timings[name] = time.perf_counter() - begun
    if last[0] < last[1]:
        report(last[1], last[1])


@contextlib.contextmanager
def memory_told(name: str, way_out: WayOut = LOWER) -> Iterator[None]:
    """Turn running out of memory into one OutOfMemory: in which stage, how much was asked for, what to lower.

    ``way_out``: its last clause, or a function that is asked for it.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        plain = not isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if plain and not any(sign in text for sign in _SIGNS):
            raise
        way_out = way_out if isinstance(way_out, str) else way_out()
        raise OutOfMemory(f"{name} ran out of memory{_amount(text)}; {way_out}") from error


def _amount(text: str) -> str:
    """ " when 2.00 GiB more were asked for, with 8.06 MiB of 79.15 GiB free", as far as an allocator's message says."""
    wanted, free = _WANTED.search(text), _FREE.search(text)
    if wanted is None:
        return f" ({text[:100]})" if text else ""
    number, unit = wanted.groups()
    if unit.startswith("byte"):
        number, unit = f"{float(number) / 2**30:.2f}", "GiB"
    return f" when {number} {unit} more were asked for" + (f", with {free[2]} of {free[1]} free" if free else "")
