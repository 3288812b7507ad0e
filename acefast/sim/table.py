"""The studies of all cases as ``acefast kernels`` shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from acefast.sim.study import SIMULATED

COLUMNS = {
    "regs": "registers",
    "spill": "spill_bytes",
    "shared": "shared_bytes",
    "mma": "mma",
    "cp.async": "cp_async",
    "loop mix": "loop_mix",
    "sectors": "sectors",
    "x min": "sectors_min",
    "wavefronts": "wavefronts",
    "x min ": "wavefronts_min",
    "error": "error",
    "predicted us": "predicted_us",
}


def lines(rows: Iterable[dict[str, Any]], sm: int, names: Iterable[str]) -> Iterator[str]:
    """A heading, a line for each row as it comes, and what a row's faults are below it."""
    width = max([len("kernel/config"), *map(len, names)])
    ran = "simulated at a few tiles (sectors, wavefronts, error)" if sm in SIMULATED else "not simulated"
    yield f"sm_{sm}: compiled at real size, {ran}; times are predicted"
    yield "  ".join([f"{'kernel/config':{width}}", *(f"{title.strip():>{_width(title)}}" for title in COLUMNS)])
    for row in rows:
        cells = (f"{_cell(row, key):>{_width(title)}}" for title, key in COLUMNS.items())
        yield "  ".join([f"{row['kernel'] + '/' + row['config']:{width}}", *cells])
        yield from (f"  fault: {fault}" for fault in row["faults"])


def _width(title: str) -> int:
    return max(len(title), 7)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    if key in ("sectors_min", "wavefronts_min"):
        return f"{row[key.removesuffix('_min')] / value:.3f}" if value else "-"
    places = {"error": ".1e", "predicted_us": ".1f", "loop_mix": ".3f"}
    return format(value, places.get(key, ""))
