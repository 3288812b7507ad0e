"""Budgets: figures that grow are named, those that shrink pass, and rewriting one sm leaves the others."""

from __future__ import annotations

import pytest

from acefast.sim.budgets import over_budget, read_budgets, write_budgets

ROW = {
    **{"kernel": "scale", "config": "narrow", "sm": 80, "launches": 1, "registers": 30, "spill_bytes": 0},
    **{"shared_bytes": 64, "mma": 8, "loop_mix": 1.25, "sectors": 192, "wavefronts": 16, "error": 1e-3},
}


def written(path, *rows, cases=("scale/narrow",)):
    write_budgets(path, rows, cases)
    return read_budgets(path)


def test_a_row_is_within_the_budget_made_of_it_and_so_is_a_leaner_one(tmp_path):
    budgets = written(tmp_path / "b.json", ROW)
    assert over_budget(ROW, budgets) == over_budget(ROW | {"registers": 28, "sectors": 190}, budgets) == []


@pytest.mark.parametrize(
    "name", ["launches", "registers", "spill_bytes", "shared_bytes", "mma", "loop_mix", "sectors", "wavefronts"]
)
def test_each_figure_that_grows_is_named(tmp_path, name):
    budgets = written(tmp_path / "b.json", ROW)
    (found,) = over_budget(ROW | {name: ROW[name] + 1}, budgets)
    assert found == f"{ROW[name] + 1} {name.replace('_', ' ')}, the budget is {ROW[name]}"


def test_a_case_or_gpu_without_a_budget_is_named(tmp_path):
    budgets = written(tmp_path / "b.json", ROW)
    assert over_budget(ROW | {"config": "wide"}, budgets) == ["no budget for scale/wide on sm_80"]
    assert over_budget(ROW | {"sm": 90}, budgets) == ["no budget for scale/narrow on sm_90"]


def test_rewriting_replaces_what_was_studied_and_drops_cases_that_are_gone(tmp_path):
    path, on_90 = tmp_path / "b.json", ROW | {"sm": 90, "sectors": None, "wavefronts": None}
    both = ("scale/narrow", "scale/wide")
    written(path, ROW, ROW | {"config": "wide"}, cases=both)
    budgets = written(path, on_90, ROW | {"registers": 29}, cases=both)
    assert list(budgets) == list(both) and list(budgets["scale/narrow"]) == ["80", "90"]
    assert budgets["scale/narrow"]["80"]["registers"] == 29 and budgets["scale/wide"]["80"]["registers"] == 30
    assert "sectors" not in budgets["scale/narrow"]["90"]  # not simulated
    assert list(written(path, ROW)) == ["scale/narrow"]
    assert path.read_text().count("\n") == 6  # a line for each case and sm
