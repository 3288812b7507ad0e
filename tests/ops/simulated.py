"""Launch wrappers on CPU tensors, run as PTX in the simulator."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from acefast import sim
from acefast.sim.driver import dry_run
from acefast.sim.tensors import Arrays, tensors_of


def simulated(launch: Callable[..., Any], arguments: dict[str, Any], change: Callable[[str], str] = str, **options):
    """The reports of a wrapper's launches for sm_80, whose outputs among the arguments are then written.

    ``change`` rewrites each launch's PTX, to plant a fault; ``options`` are of ``sim.launch``.
    """
    arrays = Arrays(tensors_of(arguments))
    with dry_run(80) as launches:
        launch(**arguments)
    reports = []
    for one in launches:
        given = [a for a in one.arguments.values() if a.type != "constexpr"]
        values = [a.value or 0 if a.address is None else arrays.at(a.address) for a in given]
        sizes = {"grid": one.grid, "block": 32 * one.num_warps, "shared": one.shared_bytes}
        reports.append(sim.launch(change(one.ptx), one.name, values, **sizes, **options))
    return reports


def exact(ptx: str) -> str:
    """The PTX, of which every operation on floats rounds once, and none can be contracted with another by ptxas.

    Contracting fp64 operations would change one fp32 result in a hundred million: no comparison of values finds it.
    """
    loose = re.findall(r"\b(?:fma|mad)\.[\w.]*f(?:32|64)|\b(?:mul|add|sub)\.f(?:32|64)|approx|\.full\.|\.ftz", ptx)
    assert not loose, loose
    return ptx
