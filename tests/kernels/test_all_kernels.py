"""Every case of every kernel: compiled at real size, simulated at a few tiles, within its limits and its budget.

``acefast kernels`` shows the same figures; with ``--write-budgets kernels/budgets.json`` it makes them the budgets,
with ``--family cuda --write-budgets csrc/budgets.json`` those of the CUDA kernels.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.cases import FAMILIES, Case, all_cases  # noqa: E402
from acefast.cuda import toolkit  # noqa: E402
from acefast.sim.budgets import over_budget, read_budgets  # noqa: E402
from acefast.sim.study import SIMULATED, study  # noqa: E402

ROOT = Path(__file__).parents[2]
BUDGETS = {"triton": read_budgets(ROOT / "kernels/budgets.json"), "cuda": read_budgets(ROOT / "csrc/budgets.json")}
NVCC = toolkit.find_nvcc()
COMPILERS = {"triton": triton.__version__, "cuda": NVCC and toolkit.nvcc_version(NVCC)}
MADE_WITH = {"triton": "3.9.0", "cuda": "13.0"}  # another compiler may allocate registers otherwise
CASES = [pytest.param(family, case, id=f"{family}-{case.name}") for family in FAMILIES for case in all_cases(family)]
GPUS = [80, *(pytest.param(sm, marks=pytest.mark.slow) for sm in (86, 89, 90, 100, 120))]

pytestmark = pytest.mark.filterwarnings("error:TRITON_DEFAULT_FP_FUSION is unset")


@functools.cache
def studied(case: Case, sm: int) -> dict[str, Any]:
    return study(case, sm)


@pytest.fixture
def row(family: str, case: Case, sm: int) -> dict[str, Any]:
    if COMPILERS[family] is None:
        pytest.skip("no nvcc here")
    return studied(case, sm)


@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize(("family", "case"), CASES)
def test_case_keeps_its_limits(row, sm):
    assert row["faults"] == []
    assert (row["error"] is not None) == (sm in SIMULATED)


@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize(("family", "case"), CASES)
def test_case_is_within_its_budget(row, family):
    if COMPILERS[family] != MADE_WITH[family]:
        pytest.skip(f"the budgets are of {MADE_WITH[family]}, this is {COMPILERS[family]}")
    assert over_budget(row, BUDGETS[family]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_budgets_are_those_of_the_cases_there_are(family):
    budgets = BUDGETS[family]
    assert sorted(budgets) == [case.name for case in all_cases(family)]
    assert all(list(of) == ["80", "86", "89", "90", "100", "120"] for of in budgets.values())
    assert not any(budget["spill_bytes"] for of in budgets.values() for budget in of.values())
