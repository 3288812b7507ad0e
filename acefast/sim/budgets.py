"""Committed budgets of the proved cases: what each may need and move, so that a kernel that grows is noticed.

    write_budgets(path, rows, names)  # rows of acefast.sim.study, names of all cases
    over_budget(row, read_budgets(path))  # one sentence for each figure that is worse

The file is JSON, {"kernel/config": {"80": {"registers": 64, ...}}}, made with one version of Triton: another one may
allocate registers otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

AT_MOST = ("launches", "registers", "spill_bytes", "shared_bytes", "mma", "loop_mix", "sectors", "wavefronts")
Budgets = dict[str, dict[str, dict[str, int | float]]]


def read_budgets(path: Path) -> Budgets:
    return json.loads(path.read_text())


def write_budgets(path: Path, rows: Iterable[dict[str, Any]], cases: Iterable[str]) -> None:
    """Make the rows' figures their budgets; those of other sm's and of other ``cases`` that exist stay."""
    found = read_budgets(path) if path.exists() else {}
    for row in rows:
        found.setdefault(_name(row), {})[str(row["sm"])] = {k: row[k] for k in AT_MOST if row.get(k) is not None}
    path.write_text(_text({name: found[name] for name in sorted(set(cases) & set(found))}))


def over_budget(row: dict[str, Any], budgets: Budgets) -> list[str]:
    """Which figures of a row are worse than its budget, one sentence each."""
    budget = budgets.get(_name(row), {}).get(str(row["sm"]))
    if budget is None:
        return [f"no budget for {_name(row)} on sm_{row['sm']}"]
    return [
        f"{row[name]} {name.replace('_', ' ')}, the budget is {most}"
        for name, most in budget.items()
        if row.get(name) is not None and row[name] > most
    ]


def _name(row: dict[str, Any]) -> str:
    return f"{row['kernel']}/{row['config']}"


def _number(item: tuple[str, Any]) -> int:
    return int(item[0])


def _text(budgets: Budgets) -> str:
    """A line for each case and sm, so that a diff shows what changed."""
    cases = []
    for name, of in budgets.items():
        lines = ",\n".join(
            f"  {json.dumps(sm)}: {json.dumps(figures)}" for sm, figures in sorted(of.items(), key=_number)
        )
        cases.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(cases) + "\n}\n"
