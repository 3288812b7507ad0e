"""Two reports of ``acefast bench --json`` side by side, with ratios.

    python bench/compare.py before.json after.json
    python bench/compare.py a100.json h100.json --different-machines

A ratio above 1: the second is that many times as fast. Different machines are not compared unless that is asked for,
and then it is said; what else differs (versions, revision, how often was measured) is listed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acefast.bench.environment import SAME
from acefast.bench.report import machine, read, title
from acefast.request import RequestError

KEYS = ("model", "weights", "seconds", "batch", "steps", "guidance", "mode", "dtype")
STAGES = {"prep": "prep", "diffusion": "DiT", "decode": "decode", "total": "total"}


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What tells two machines apart, a phrase each; empty where it is one machine as far as the reports know."""
    first, second = a["environment"], b["environment"]
    kinds = {name: first.get(name) != second.get(name) for name in SAME}
    kinds["device"] = first["device"].split(":")[0] != second["device"].split(":")[0]
    return [f"{name} {first.get(name)} and {second.get(name)}" for name, differs in kinds.items() if differs]


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown: a row for each case of both, then what only one has and what else differs."""
    cases = [{tuple(row[key] for key in KEYS): row for row in report["cases"]} for report in (a, b)]
    both = [key for key in cases[0] if key in cases[1] and all(each[key].get("ms") for each in cases)]
    if not both:
        raise RequestError("the two reports have no measured case in common")
    columns = [f"{name} {side}" for name in STAGES.values() for side in ("A", "B", "A/B")]
    lines = ["| case, ms | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for key in both:
        cells = [title(cases[0][key])]
        for stage in STAGES:
            times = [each[key]["ms"].get(stage, {}).get("p50") for each in cases]
            known = None not in times and times[1] > 0
            cells += [
                *("-" if t is None else f"{t:.4g}" for t in times),
                f"{times[0] / times[1]:.2f}" if known else "-",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    notes = []
    for name, own in zip("AB", cases):
        notes += [f"only {name} has {title(own[k])}" for k in own if own[k].get("ms") and k not in both]
    for name, report in zip("AB", (a, b)):
        notes += [f"{name} is not to be relied on: it was reported by force"] if report["forced"] else []
        notes += [f"{name} is incomplete"] if not report["complete"] else []
    first, second = a["environment"], b["environment"]
    for name in ("torch", "triton", "diffusers", "python", "acefast", "git", "kernel_tables", "cuda", "driver"):
        if first.get(name) != second.get(name):
            notes.append(f"{name}: {first.get(name)} in A, {second.get(name)} in B")
    if a["procedure"] != b["procedure"]:
        notes.append(f"procedure: {a['procedure']} in A, {b['procedure']} in B")
    return [*lines, "", *(f"- {note}" for note in notes)]


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison; 2 with a sentence where there is none to make."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--different-machines", action="store_true", help="compare them, and say so")
    args = parser.parse_args(arguments)
    try:
        reports = [read(path) for path in (args.a, args.b)]
        apart = differing(*reports)
        if apart and not args.different_machines:
            way_out = "give --different-machines to compare them all the same"
            raise RequestError(f"the reports are of different machines ({'; '.join(apart)}); {way_out}")
        lines = compare(*reports)
    except RequestError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    if apart:
        print(f"**Different machines**: {'; '.join(apart)}.\n")
    for name, path, report in zip("AB", (args.a, args.b), reports):
        print(f"{name}: {path}, {machine(report['environment'])}\n")
    print("\n".join(lines).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
