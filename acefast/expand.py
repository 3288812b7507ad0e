"""The requests of a call: one value serves all songs of a batch, a list gives each its own."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

from acefast.options import check_names
from acefast.request import Request, options
from acefast.values import RequestError


def expand(prompt: Any, lyrics: Any = "", seed: Any = None, **others: Any) -> tuple[list[Request], bool]:
    """The requests of a batch, and whether the caller asked for several.

    ``prompt``, ``lyrics`` and ``seed`` may each be one value or a list, ``noise`` one [T, 64] or a batch [B, T, 64];
    single values serve all songs, other options always do. ``prompt`` may also be a Request or a list of them, alone.
    Seeds not given are drawn, 32 bits each.

    Raises:
        RequestError: a list is empty, lists differ in length, or one of the requests cannot work.
    """
    given = list(prompt) if _is_list(prompt) else [prompt]
    if any(isinstance(one, Request) for one in given):
        if not all(isinstance(one, Request) for one in given) or others or lyrics != "" or seed is not None:
            raise RequestError("a Request holds its prompt and all options; give requests alone, one or a list of them")
        return [_drawn(one) for one in given], _is_list(prompt)
    check_names(others, options())
    shared: dict[str, Any] = {"prompt": prompt, "lyrics": lyrics, "seed": seed, **others}
    lists = {name: list(v) for name in ("prompt", "lyrics", "seed") if _is_list(v := shared[name])}
    noise = shared.get("noise")
    if getattr(noise, "ndim", 0) == 3 and noise.shape[0] != 1:
        lists["noise"] = list(noise)
    sizes = {name: len(values) for name, values in lists.items()}
    for name, size in sizes.items():
        if not size:
            raise RequestError(f"{name} is an empty list; give at least one entry")
        if size != next(iter(sizes.values())):
            first = next(iter(sizes))
            raise RequestError(
                f"{first} has {sizes[first]} entries and {name} {size}; make them equally long or give one"
            )
    songs = []
    for i in range(max(sizes.values(), default=1)):
        songs.append(_drawn(Request(**shared | {name: values[i] for name, values in lists.items()})))
    return songs, bool(lists)


def _drawn(request: Request) -> Request:
    """The request with the seeds that it leaves open."""
    names = ["seed"] if request.seed is None else []
    names += ["variation_seed"] if request.variation and request.variation_seed is None else []
    return dataclasses.replace(request, **{name: secrets.randbits(32) for name in names}) if names else request


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
