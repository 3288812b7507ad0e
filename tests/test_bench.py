"""The op benchmarks: each counts what it moves, and shows floor and target beside what it measured."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

ROOT = Path(__file__).parents[1]
BENCHES = sorted((ROOT / "bench/ops").glob("bench_*.py"))


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.stem)
def test_every_benchmark_counts_bytes_and_is_held_to_the_reference(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    runs = [call for call in calls if getattr(call.func, "id", "") == "op_benchmark"]
    assert runs and all({"reference", "backend", "bytes"} <= {k.arg for k in run.keywords} for run in runs)


def test_floor_and_target_stand_beside_the_measured_time(tmp_path):
    record = tmp_path / "record.json"
    words = ["bench/ops/bench_fsq.py", "-k", "30", "-rs", "--device", "cpu", "-p", "no:cacheprovider"]
    timed = ["--benchmark-json", str(record), "--benchmark-max-time", "0.01", "--benchmark-min-rounds", "1"]
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}  # a worker of it times nothing
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *timed],
        cwd=ROOT,
        env={**ours, "TRITON_INTERPRET": "1"},  # Triton counts as there, and fsq has no such kernel
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (one,) = json.loads(record.read_text())["benchmarks"]
    floor, target = (one["extra_info"][f"A100 {name}, us (predicted)"] for name in ("floor", "target"))
    assert 0 <= floor < target and one["extra_info"]["backend"] == "reference"
    heading, row = [line for line in run.stdout.split("predicted, in us")[1].splitlines() if line.strip("= ")][:2]
    assert heading.split() == ["measured", "floor", "target"] and row.split()[0] == one["name"]
    assert float(row.split()[-1]) == pytest.approx(target, abs=0.06) and float(row.split()[1]) > 0
