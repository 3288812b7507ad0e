"""Every case of every kernel: compiled at real size, simulated at a few tiles, within its limits and its budget.

``acefast kernels`` shows the same figures; with ``--write-budgets kernels/budgets.json`` it makes them the budgets.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.cases import Case, all_cases  # noqa: E402
from acefast.sim.budgets import over_budget, read_budgets  # noqa: E402
from acefast.sim.study import SIMULATED, study  # noqa: E402

BUDGETS = read_budgets(Path(__file__).parents[2] / "kernels/budgets.json")
MADE_WITH = "3.9.0"  # another Triton may allocate registers otherwise
CASES = [pytest.param(case, id=case.name) for case in all_cases()]
GPUS = [80, *(pytest.param(sm, marks=pytest.mark.slow) for sm in (86, 89, 90, 100, 120))]

pytestmark = pytest.mark.filterwarnings("error:TRITON_DEFAULT_FP_FUSION is unset")


@functools.cache
def studied(case: Case, sm: int) -> dict[str, Any]:
    return study(case, sm)


@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize("case", CASES)
def test_case_keeps_its_limits(case, sm):
    row = studied(case, sm)
    assert row["faults"] == []
    assert (row["error"] is not None) == (sm in SIMULATED)


@pytest.mark.skipif(triton.__version__ != MADE_WITH, reason=f"the budgets are of Triton {MADE_WITH}")
@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize("case", CASES)
def test_case_is_within_its_budget(case, sm):
    assert over_budget(studied(case, sm), BUDGETS) == []


def test_budgets_are_those_of_the_cases_there_are():
    assert sorted(BUDGETS) == [case.name for case in all_cases()]
    assert all(list(of) == ["80", "86", "89", "90", "100", "120"] for of in BUDGETS.values())
    assert not any(budget["spill_bytes"] for of in BUDGETS.values() for budget in of.values())
