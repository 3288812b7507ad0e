"""Measured times of kernels make the judged constants of acefast/sim/roofline.py: ``acefast bench --calibrate``.

The fit minimises the squares of ln(predicted / measured), so that a kernel of 3 us counts as much as one of 3 ms. What
no kernel depends on keeps its judged value; ``l2_share``, a threshold, always does.

Measurements are JSON, as acefast/sim/kernel_times.py makes it on a GPU:

    {"schema": "acefast-kernel-times/1", "sm": 80, "gpu": "NVIDIA A100-SXM4-40GB", "kernels": [
      {"kernel": "snake", "family": "triton", "config": "c128", "measured_us": 31.2, "flops": 0, "bytes": 4e7,
       "dots": false, "attention": false, "launches": 1}]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from acefast.request import RequestError
from acefast.sim.roofline import GPUS, JUDGED, Judged, floor_us, predicted_us

TIMES, CONSTANTS = "acefast-kernel-times/1", "acefast-judged/1"
BOUNDS = {  # of what is fitted: nothing exceeds its peak
    **dict.fromkeys(("attention", "matmul", "fp32", "memory"), (0.01, 1.0)),
    **{"l2_gain": (1.0, 10.0), "launch_us": (0.05, 50.0), "matmul_launch_us": (0.05, 50.0)},
}
_ROUNDS = 200
_NUDGE = 1e-4  # relative, of the slope
_SOFT = 6  # power of the mean that stands in for the larger of two times at first


@dataclass(frozen=True)
class Fit:
    judged: Judged
    kept: tuple[str, ...]  # constants that no kernel tells of
    before: float  # root mean square of ln(predicted / measured)
    after: float


def read_times(path: Path) -> dict[str, Any]:
    """Measured kernels; RequestError where the file has none that can be used."""
    found = _read(path, TIMES)
    if found.get("sm") not in GPUS:
        raise RequestError(f"{str(path)!r}: sm must be one of {', '.join(map(str, GPUS))}, got {found.get('sm')!r}")
    kernels = found.get("kernels")
    if not isinstance(kernels, list) or not kernels:
        raise RequestError(f"{str(path)!r} holds no measured kernels")
    for k in kernels:
        for key in ("measured_us", "flops", "bytes"):
            value = k.get(key) if isinstance(k, dict) else None
            number = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
            if not number or (key == "measured_us" and not value):
                name = k.get("kernel") if isinstance(k, dict) else k
                raise RequestError(f"{str(path)!r}: kernel {name!r} needs a number as {key}, got {value!r}")
    return found


def read_judged(path: Path) -> Judged:
    """Constants that ``as_file`` wrote; RequestError where they are not."""
    found = _read(path, CONSTANTS).get("judged")
    known = {f.name for f in fields(Judged)}
    if not isinstance(found, dict) or found.keys() != known:
        raise RequestError(f"{str(path)!r}: judged must have {', '.join(sorted(known))}")
    return Judged(**found)


def as_file(fitted: Fit, times: dict[str, Any]) -> str:
    """What ``read_judged`` reads."""
    told = {
        "schema": CONSTANTS,
        "sm": times["sm"],
        "gpu": times.get("gpu"),
        "kernels": len(times["kernels"]),
        "kept": list(fitted.kept),
        "error_before": fitted.before,
        "error_after": fitted.after,
        "judged": asdict(fitted.judged),
    }
    return json.dumps(told, indent=1) + "\n"


def predict(kernel: dict[str, Any], sm: int, judged: Judged = JUDGED) -> float:
    """Microseconds of one measured kernel as predicted."""
    words = {"dots": bool(kernel.get("dots")), "attention": bool(kernel.get("attention"))}
    return predicted_us(
        kernel["flops"], kernel["bytes"], sm, **words, launches=kernel.get("launches") or 1, judged=judged
    )


def fastest(kernels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of kernels that exist twice the one that took less time: what a good kernel reaches is fitted to it."""
    best: dict[tuple[Any, Any], dict[str, Any]] = {}
    for k in sorted(kernels, key=lambda k: -k["measured_us"]):
        best[k.get("kernel"), k.get("config")] = k
    return [k for k in kernels if best[k.get("kernel"), k.get("config")] is k]


def fit(kernels: Sequence[dict[str, Any]], sm: int, start: Judged = JUDGED) -> Fit:
    """The constants that predict these kernels best: Levenberg and Marquardt's least squares, in logarithms."""
    names = list(BOUNDS)
    low, high = (np.log([BOUNDS[name][i] for name in names]) for i in (0, 1))
    measured = np.log([k["measured_us"] for k in kernels])

    def judged(x: np.ndarray) -> Judged:
        return replace(start, **dict(zip(names, np.exp(x).tolist())))

    def off(x: np.ndarray, soft: bool = False) -> np.ndarray:
        j = judged(x)
        return np.log([_softly(k, sm, j) if soft else predict(k, sm, j) for k in kernels]) - measured

    def slopes(x: np.ndarray, soft: bool) -> np.ndarray:
        columns = [(off(x + d, soft) - off(x - d, soft)) / (2 * _NUDGE) for d in _NUDGE * np.eye(len(x))]
        return np.stack(columns, axis=1)

    x = begin = np.log([getattr(start, name) for name in names])
    for soft in (True, False):  # a bound that the start does not see has no slope but in the soft one
        damping, error = 1e-3, off(x, soft)
        for _ in range(_ROUNDS):
            j = slopes(x, soft)
            moved = np.clip(x - np.linalg.solve(j.T @ j + damping * np.eye(len(x)), j.T @ error), low, high)
            better = off(moved, soft)
            if better @ better < error @ error:
                x, error, damping = moved, better, max(damping / 3, 1e-9)
            elif (damping := damping * 4) > 1e6:
                break
    still = np.abs(slopes(x, False)).max(axis=0) < 1e-6
    x = np.where(still, begin, x)  # moved by the soft bound alone
    before, after = (float(np.sqrt(np.mean(off(each) ** 2))) for each in (begin, x))
    if after >= before:
        return Fit(start, tuple(names), before, before)
    found = {name: getattr(start, name) for name, kept in zip(names, still) if kept}  # to the last bit
    return Fit(replace(judged(x), **found), tuple(found), before, after)


def lines(kernels: Sequence[dict[str, Any]], sm: int, fitted: Fit, start: Judged = JUDGED) -> list[str]:
    """The constants and every kernel's prediction, before and after, as Markdown."""
    told = [f"Fitted to {len(fastest(kernels))} kernels measured on sm_{sm}; predictions were off by a factor of "
            f"{math.exp(fitted.before):.2f} (root mean square) and are by {math.exp(fitted.after):.2f}.",
            "", "| constant | before | after |", "|---|---|---|"]  # fmt: skip
    for name in BOUNDS:
        after = "no kernel tells" if name in fitted.kept else f"{getattr(fitted.judged, name):.3g}"
        told.append(f"| {name} | {getattr(start, name):.3g} | {after} |")
    columns = ("kernel", "measured us", "floor us", "% compute", "% memory", "before us", "after us")
    columns += ("measured/before", "measured/after", "registers", "blocks/SM")
    told += ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for k in kernels:
        us, before, after = k["measured_us"], predict(k, sm, start), predict(k, sm, fitted.judged)
        floor = floor_us(k["flops"], k["bytes"], sm, dots=bool(k.get("dots")))
        compute, memory = (f"{100 * share:.0f}" for share in shares(k, sm))
        name = "/".join(filter(None, (k.get("kernel"), k.get("config")))) + " in CUDA" * (k.get("family") == "cuda")
        times = f"{before:.2f} | {after:.2f} | {us / before:.2f} | {us / after:.2f}"
        held = f"{k.get('registers', '-')} | {k.get('blocks_per_sm', '-')}"
        told.append(f"| {name} | {us:.2f} | {floor:.2f} | {compute} | {memory} | {times} | {held} |")
    return told


def shares(kernel: dict[str, Any], sm: int) -> tuple[float, float]:
    """What a measured kernel reaches of the peak of its arithmetic and of memory's; above 1 what lay in L2."""
    gpu, us = GPUS[sm], kernel["measured_us"]
    peak = gpu.bf16 if kernel.get("dots") else gpu.fp32
    return kernel["flops"] / (us * 1e6 * peak), kernel["bytes"] / (us * 1e3 * gpu.bandwidth)


def _softly(kernel: dict[str, Any], sm: int, judged: Judged) -> float:
    """The prediction with a smooth stand-in for the larger of its two times, which has a slope in both."""
    launch = predict({**kernel, "flops": 0, "bytes": 0}, sm, judged)
    parts = [predict({**kernel, **none}, sm, judged) - launch for none in ({"bytes": 0}, {"flops": 0})]
    largest = max(parts)
    return launch + (largest * sum((p / largest) ** _SOFT for p in parts) ** (1 / _SOFT) if largest > 0 else 0.0)


def _read(path: Path, schema: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is no JSON: {error}"
        raise RequestError(f"{str(path)!r} cannot be read: {reason}") from error
    got = found.get("schema") if isinstance(found, dict) else None
    if got != schema:
        raise RequestError(f"{str(path)!r}: its schema is {got!r}, not {schema!r}")
    return found
