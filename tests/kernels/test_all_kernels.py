"""Every case of every kernel: compiled at real size, simulated at a few tiles, within its limits and its budget.

``acefast kernels`` shows the same figures; with ``--write-budgets kernels/budgets.json`` it makes them the budgets,
with ``--family cuda --write-budgets csrc/budgets.json`` those of the CUDA kernels.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.cases import FAMILIES, Case, all_cases  # noqa: E402
from acefast.cuda import toolkit  # noqa: E402
from acefast.cuda.loader import Kernel  # noqa: E402
from acefast.kernel_config import Config, pick  # noqa: E402
from acefast.sim.budgets import over_budget, read_budgets  # noqa: E402
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run  # noqa: E402
from acefast.sim.resources import assemble  # noqa: E402
from acefast.sim.study import SIMULATED, study  # noqa: E402

ROOT = Path(__file__).parents[2]
BUDGETS = {"triton": read_budgets(ROOT / "kernels/budgets.json"), "cuda": read_budgets(ROOT / "csrc/budgets.json")}
NVCC = toolkit.find_nvcc()
COMPILERS = {"triton": triton.__version__, "cuda": NVCC and toolkit.nvcc_version(NVCC)}
MADE_WITH = {"triton": "3.9.0", "cuda": "13.0"}  # another compiler may allocate registers otherwise
CASES = {f"{family}-{case.name}": (family, case) for family in FAMILIES for case in all_cases(family)}
# Compiled and simulated. Launches for 89 are those for 86, and so is Triton's PTX, which is assembled for 89. CUDA
# kernels have the tables of 86 on 89 and of 80 on 100: tests/cuda/test_wheels.py has all their machine code.
SMS = {"triton": (80, 86, 90, 100, 120), "cuda": (80, 86, 90, 120)}
BUDGETED = {"triton": (80, 86, 89, 90, 100, 120), "cuda": SMS["cuda"]}
STUDIED = [
    pytest.param(family, case, sm, id=f"{name}-{sm}", marks=[] if sm == 80 else pytest.mark.slow)
    for name, (family, case) in CASES.items()
    for sm in SMS[family]
]

pytestmark = pytest.mark.filterwarnings("error:TRITON_DEFAULT_FP_FUSION is unset")


@functools.cache
def studied(case: Case, sm: int) -> dict[str, Any]:
    return study(case, sm)


@pytest.fixture
def row(family: str, case: Case, sm: int) -> dict[str, Any]:
    if COMPILERS[family] is None:
        pytest.skip("no nvcc here")
    return studied(case, sm)


@pytest.mark.parametrize(("family", "case", "sm"), STUDIED)
def test_case_keeps_its_limits(row, sm):
    assert row["faults"] == []
    assert (row["error"] is not None) == (sm in SIMULATED)


@pytest.mark.parametrize(("family", "case", "sm"), STUDIED)
def test_case_is_within_its_budget(row, family):
    if COMPILERS[family] != MADE_WITH[family]:
        pytest.skip(f"the budgets are of {MADE_WITH[family]}, this is {COMPILERS[family]}")
    assert over_budget(row, BUDGETS[family]) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for family, case in CASES.values() if family == "triton"], ids=lambda c: c.name)
def test_what_is_compiled_for_sm_86_is_within_its_budget_on_sm_89(case):
    with dry_run(86) as launches:
        case.launch(**case.real(torch.device("meta")))
    found = [assemble(one.ptx, 89, one.kernel.metadata.name) for one in launches]
    row = {
        "kernel": case.kernel,
        "config": case.config,
        "sm": 89,
        "launches": len(found),
        "registers": max(one.registers for one in found),
        "spill_bytes": max(one.stack_bytes + one.spill_store_bytes + one.spill_load_bytes for one in found),
        "shared_bytes": max(one.shared_bytes for one in launches),
    }
    assert row["spill_bytes"] == 0 and row["shared_bytes"] <= BLOCK_SHARED_LIMIT[89]
    if COMPILERS["triton"] != MADE_WITH["triton"]:
        pytest.skip(f"the budgets are of {MADE_WITH['triton']}, this is {COMPILERS['triton']}")
    assert over_budget(row, BUDGETS["triton"]) == []


@pytest.mark.parametrize(
    ("package", "near", "sm"), [*((p, 86, 89) for p in FAMILIES.values()), ("acefast.cuda", 80, 100)]
)
def test_a_gpu_that_is_not_compiled_for_has_the_tables_of_one_that_is(package, near, sm):
    tables = [table for room in rooms(package) for table in vars(room).values() if is_table(table)]
    assert len(tables) >= 9 and BLOCK_SHARED_LIMIT[near] <= BLOCK_SHARED_LIMIT[sm]
    for table in tables:
        for shape in {shape for shape, _ in table}:
            assert pick(table, shape, near) == pick(table, shape, sm), shape


def rooms(package: str) -> list[ModuleType]:
    found = importlib.import_module(package)
    return [importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(found.__path__)]


def is_table(found: object) -> bool:
    """Whether it is a table of launches, (shape class, sm) -> configuration."""
    return isinstance(found, dict) and any(isinstance(row, Config | Kernel) for row in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_budgets_are_those_of_the_cases_there_are(family):
    budgets = BUDGETS[family]
    assert sorted(budgets) == [case.name for case in all_cases(family)]
    assert all(list(of) == [str(sm) for sm in BUDGETED[family]] for of in budgets.values())
    assert not any(budget["spill_bytes"] for of in budgets.values() for budget in of.values())
