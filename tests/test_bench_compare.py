"""``bench/compare.py``: two reports side by side, and what it will not compare silently."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from acefast.bench.environment import SAME

SPEC = importlib.util.spec_from_file_location("bench_compare", Path(__file__).parents[1] / "bench/compare.py")
compare = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(compare)


def report(total: float = 1000.0, seconds: float = 30, mode: str = "fused", **environment) -> dict:
    about = dict.fromkeys(("cpu", "torch", "triton", "diffusers", "git", "python", "acefast", "kernel_tables"), "x")
    about |= {"cores": 2, "threads": 2, "device": "cpu"}
    facts = dict(model="turbo", weights="random", seconds=seconds, batch=1, steps=8, guidance=1.0, mode=mode)
    ms = {"prep": {"p50": 10.0}, "diffusion": {"p50": total / 2}, "total": {"p50": total}}
    row = {**facts, "dtype": "bfloat16", "unavailable": None, "ms": ms}
    told = {"schema": "acefast-bench/1", "complete": True, "forced": False, "procedure": {"runs": 20}}
    return {**told, "environment": about | environment, "cases": [row]}


@pytest.fixture
def run(tmp_path, capsys):
    """Exit code, output and errors of a comparison of two reports."""

    def go(a: dict, b: dict, *more: str) -> tuple[int, str, str]:
        for name, content in (("a", a), ("b", b)):
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        code = compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), *more])
        return code, *capsys.readouterr()

    return go


def test_rows_stand_side_by_side_with_ratios(run):
    code, out, _ = run(report(1000.0), report(400.0, git="y"))
    assert (
        code == 0
        and "| turbo, 30 s x 1, fused | 10 | 10 | 1.00 | 500 | 200 | 2.50 | - | - | - | 1000 | 400 | 2.50 |" in out
    )
    assert "- git: x in A, y in B" in out and "Different machines" not in out


def test_cases_of_one_report_alone_are_named(run):
    a, b = report(), report()
    a["cases"] += report(seconds=60)["cases"]
    b["cases"] += report(mode="eager")["cases"]
    b["cases"] += [{**b["cases"][0], "mode": "graph", "ms": None}]
    out = run(a, b)[1]
    assert "- only A has turbo, 60 s x 1, fused" in out and "- only B has turbo, 30 s x 1, eager" in out
    assert "graph" not in out


APART = {"cpu": ("EPYC", "Xeon"), "cores": (2, 4), "threads": (1, 2), "device": ("cuda", "cpu")}


@pytest.mark.parametrize("key", [*SAME, "device"])
def test_different_machines_are_not_compared_without_saying_so(run, key):
    first, second = APART.get(key, ("A100", "H100"))
    pair, told = (report(**{key: first}), report(**{key: second})), f"{key} {first} and {second}"
    code, out, err = run(*pair)
    assert (code, out) == (2, "") and f"the reports are of different machines ({told}); give --different" in err
    code, out, _ = run(*pair, "--different-machines")
    assert code == 0 and out.startswith(f"**Different machines**: {told}.\n")


def test_two_gpus_of_one_machine_by_number_are_the_same_device(run):
    assert run(report(device="cuda:0"), report(device="cuda:1"))[0] == 0


def test_forced_and_incomplete_reports_and_other_procedures_are_told(run):
    out = run({**report(), "forced": True}, {**report(), "complete": False, "procedure": {"runs": 1}})[1]
    assert "- A is not to be relied on" in out and "- B is incomplete" in out and "procedure: {'runs': 20} in A" in out


def test_what_is_no_report_or_has_nothing_in_common_is_refused(run, tmp_path):
    code, _, err = run({"schema": "acefast-bench/0"}, report())
    assert code == 2 and "its schema is 'acefast-bench/0', not 'acefast-bench/1'" in err
    assert "no measured case in common" in run(report(), report(seconds=5))[2]
    (tmp_path / "a.json").write_text("{")
    assert compare.main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
