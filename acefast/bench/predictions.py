"""What was predicted for a case, beside what was measured.

A ``Predictor`` takes a case as plain data (acefast.bench.cases.Case) and answers with a mapping, or None where it has
nothing to say:

    predicted_ms  milliseconds of the stages prep, diffusion, step, decode, copy and total, those that are predicted; a
                  number alone is the total
    floor_ms      the same at the peaks of the machine, optional
    flops, bytes  of one run, counted, optional
    launches      of one step, counted, optional
    device        which machine it is for, optional

``read(path)`` makes one of a JSON file, such as ``python bench/predict.py --json`` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from acefast.locate import NAMES, variant_of
from acefast.request import RequestError

Prediction = Mapping[str, Any]
Predictor = Callable[[Mapping[str, Any]], Prediction | None]

LIMIT = 1.35  # of measured over predicted, for each of the stages below: the pass rule
JUDGED_STAGES = ("diffusion", "decode", "total")
KEYS = ("model", "seconds", "batch", "steps", "mode", "dtype")  # that must agree where a prediction names them
_NAMES = {  # of stages, as others may call them
    **{"dit": "diffusion", "per_step": "step", "per step": "step", "conditions": "prep", "text": "prep"},
    **{"vae": "decode", "sum": "total"},
}


def read(path: Path) -> Predictor:
    """Predictions in a JSON file: a list of them, one alone, or a list under "cases", "rows" or "predictions".

    One is for every case whose model, seconds, batch, steps, mode and dtype are those that it names; what it does not
    name may be anything, but without a mode it is for the modes fused and graph only.

    Raises:
        RequestError: the file cannot be read or holds no prediction.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"it is no JSON: {error}"
        raise RequestError(f"predicted: {str(path)!r} cannot be read: {reason}") from error
    shared = {k: v for k, v in found.items() if not isinstance(v, list)} if isinstance(found, dict) else {}
    if isinstance(found, dict):
        lists = (found[key] for key in ("cases", "rows", "predictions") if isinstance(found.get(key), list))
        found = next(lists, [found])
    entries = [{**shared, **e} for e in found if isinstance(e, dict)] if isinstance(found, list) else []
    entries = [plain for e in entries for plain in _plain(e)]
    if not entries:
        raise RequestError(f"predicted: {str(path)!r} holds no prediction; 'predicted_ms' is the key of its times")

    def predict(case: Mapping[str, Any]) -> Prediction | None:
        return next((e for e in entries if _is_for(e, case)), None)

    return predict


def _plain(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """A prediction as ``Predictor`` gives it; of what bench/predict.py prints, one for each mode."""
    stages = {name: times for name, times in (entry.get("stages") or {}).items() if isinstance(times, Mapping)}
    launches, steps, found = entry.get("launches"), entry.get("steps"), []
    if isinstance(launches, Mapping):
        launches = launches["dit"] / steps if "dit" in launches and steps else None

    def times(key: str) -> dict[str, float]:
        told = _stages({name: each.get(key) for name, each in stages.items()}) | _stages(entry.get(key))
        return told | (
            {"step": told["diffusion"] / steps} if steps and "diffusion" in told and "step" not in told else {}
        )

    for key, mode in (("predicted_ms", entry.get("mode")), ("compiled_ms", "compile"), ("eager_ms", "eager")):
        ours = key == "predicted_ms"
        if told := times(key):
            more = {"floor_ms": times("floor_ms") or None, "launches": launches if ours else None}
            found.append(entry | more | {"mode": mode, "predicted_ms": told})
    return found


def beside(ms: Mapping[str, Mapping[str, float]], prediction: Prediction | None) -> dict[str, Any]:
    """Predicted times and measured over predicted, and what follows from counts: rates, share of the floor, verdict."""
    p = prediction or {}
    predicted, floor = _stages(p.get("predicted_ms")), _stages(p.get("floor_ms"))
    total = ms["total"]["p50"]
    ratios = {s: ms[s]["p50"] / t for s, t in predicted.items() if s in ms and t > 0}
    judged = [ratios[s] for s in JUDGED_STAGES if s in ratios]
    return {
        "predicted_for": p.get("device"),
        "predicted_ms": predicted or None,
        "measured_over_predicted": ratios or None,
        "passes": max(judged) <= LIMIT if judged else None,
        "floor_share": floor["total"] / total if "total" in floor else None,
        "tflops": p["flops"] / total / 1e9 if p.get("flops") else None,
        "gb_s": p["bytes"] / total / 1e6 if p.get("bytes") else None,
        "launches": p.get("launches"),
    }


def _stages(found: Any) -> dict[str, float]:
    """Milliseconds by our names of the stages; several that are one stage here are added."""
    if _is_time(found):
        return {"total": float(found)}
    stages: dict[str, float] = {}
    for name, ms in found.items() if isinstance(found, Mapping) else ():
        if _is_time(ms):
            ours = _NAMES.get(name.lower(), name.lower())
            stages[ours] = stages.get(ours, 0.0) + float(ms)
    return stages


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_for(entry: Prediction, case: Mapping[str, Any]) -> bool:
    named = {key: entry[key] for key in KEYS if entry.get(key) is not None}
    if "model" in named:
        named["model"] = _model(named["model"])
    if "mode" not in named and case["mode"] not in ("fused", "graph"):
        return False
    return all(value == (_model(case[key]) if key == "model" else case[key]) for key, value in named.items())


def _model(name: Any) -> str:
    variant = variant_of(str(name))
    return NAMES[variant] if variant else str(name)
