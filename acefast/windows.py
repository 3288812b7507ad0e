"""Where a task that works on a source writes: the window of a repaint or lego, the parts an extend adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from acefast.values import RequestError, refusal

if TYPE_CHECKING:
    from acefast.request import Request

FRAME = 0.04  # seconds of one latent frame: times that differ by less mean the same
V1_FRAME = 4096 / 44100  # v1's, by which its songs may be shorter than asked for: one of 5 seconds is a source too


class Window(NamedTuple):
    """Where a source task writes, in seconds of the finished song.

    ``before`` and ``after`` are the seconds of silence added to the source, ``regions`` the (start, end) pairs that are
    made anew, in order and apart, ``seconds`` the finished length.
    """

    before: float
    after: float
    regions: tuple[tuple[float, float], ...]
    seconds: float


def place_window(request: Request, source_seconds: float) -> Window:
    """The window of a request on a source of ``source_seconds``.

    Extend makes the added parts and keeps the source; a ``start`` inside the source, or an ``end`` inside it beside a
    ``start`` below 0, has that much of the source made anew as well, so that the seam can move off a bad place.

    Raises:
        RequestError: the window lies outside the source, nothing is added, or the song gets shorter than 5 or longer
            than 600 seconds.
    """
    song, start, end = float(source_seconds), request.start, request.end
    if not song >= FRAME:
        raise RequestError(f"source lasts {song:.3g} seconds and {FRAME} is the least; give a longer recording")
    if request.task == "extend":
        window = _extension(request, song)
    else:
        first, last = start or 0.0, song if end is None else end
        for name, outside in (("start", first >= song), ("end", last > song + FRAME)):
            if outside:
                needs = f"within the source, which lasts {song:.2f} seconds"
                raise refusal(name, needs, getattr(request, name), "task='extend' goes past the end")
        window = Window(0.0, 0.0, ((first, min(last, song)),), song)
    if not 5 - V1_FRAME <= window.seconds <= 600 + FRAME:
        raise RequestError(
            f"source makes a song of {window.seconds:.2f} seconds in task={request.task!r} and 5 to 600 are possible; "
            "take a longer or shorter one"
        )
    return window


def _extension(request: Request, song: float) -> Window:
    start, end, duration = request.start, request.end, request.duration
    if start is not None and (abs(start) < FRAME or start > song + FRAME):
        needs = f"-{FRAME} seconds or less, or inside the source, in task='extend'"
        raise refusal("start", needs, start, "leave it out to keep the source")
    before = max(0.0, -(start or 0.0))
    after = max(0.0, end - song) if end is not None else 0.0
    if duration is not None:  # never beside end
        after = duration - before - song
    if after < 0 or max(before, after) < FRAME:
        name, length = ("end", song) if duration is None else ("duration", before + song)
        raise refusal(name, f"past the {length:.2f} seconds there are without it", getattr(request, name))
    inside = start is not None and start >= 0
    before, after = (seconds if seconds >= FRAME else 0.0 for seconds in (before, after))
    seconds, regions = before + song + after, []
    if before:
        regions.append((0.0, before + (end if end is not None and end < song else 0.0)))
    if after:
        regions.append((before + (min(start, song) if inside else song), seconds))
    return Window(before, after, tuple(regions), seconds)
