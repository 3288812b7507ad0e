"""The table of kernels that exist twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from acefast.cases import all_cases
from acefast.orders import FIRST
from acefast.sim import twins
from acefast.sim.study import blocks_per_sm

TABLE = Path(__file__).parents[2] / twins.TABLE


@pytest.mark.parametrize(
    "sm, warps, registers, shared, held",
    [
        (80, 4, 224, 79360, 2),  # shared memory
        (80, 4, 128, 1024, 4),  # registers
        (86, 4, 224, 79360, 1),
        (86, 8, 32, 1024, 6),  # threads
    ],
)
def test_blocks_on_a_multiprocessor(sm, warps, registers, shared, held):
    launch = SimpleNamespace(sm=sm, num_warps=warps, shared_bytes=shared)
    assert blocks_per_sm(launch, registers) == held


def test_the_committed_table_has_every_twin_there_is():
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    text = TABLE.read_text("utf-8")
    assert text.startswith(twins.HEAD)
    theirs = {case.name for case in all_cases()}
    lines = [line.split(" | ")[:2] for line in text.removeprefix(twins.HEAD).strip().splitlines()]
    names = [case.name for case in all_cases("cuda") if case.name in theirs]
    assert lines == [[f"| {name}", family] for name in names for family in ("Triton", "CUDA")]


def test_kernels_go_in_the_tables_order():
    assert twins.orders(twins.read(TABLE.read_text("utf-8"))) == FIRST


def table(**times):
    """Predicted and measured times, as read, of "op/config": (Triton's, CUDA's) each."""
    return {
        (name, family): pair for name, pairs in times.items() for family, pair in zip(twins.FAMILIES.values(), pairs)
    }


def test_a_measurement_goes_before_a_prediction_and_each_twin_counts_alike():
    both = {"op/a": (("10.0", "8.0"), ("9.0", "9.0")), "op/b": (("1.0", "-"), ("0.5", "-"))}
    alike = {"same/a": (("7.0", "-"), ("7.0", "-"))}
    slower = {"slow/a": (("1.0", "-"), ("1.2", "-")), "slow/b": (("90.0", "-"), ("80.0", "-"))}
    assert twins.orders(table(**both, **alike, **slower)) == {
        "op": {80: "cuda", 90: "triton"},
        "same": {80: "triton", 90: "triton"},
        "slow": {80: "triton", 90: "triton"},
    }


def test_a_class_may_have_an_order_of_its_own(monkeypatch):
    monkeypatch.setattr(twins, "BY_CLASS", ("op",))
    both = {"op/wide-a": (("2.0", "-"), ("1.0", "-")), "op/narrow": (("1.0", "-"), ("2.0", "-"))}
    assert {row: by_sm[80] for row, by_sm in twins.orders(table(**both)).items()} == {
        "op/narrow": "triton",
        "op/wide": "cuda",
    }


def test_every_cuda_twin_goes_first_somewhere():
    """One that loses everywhere is to be deleted, not kept."""
    assert [row for row, by_sm in FIRST.items() if "cuda" not in by_sm.values()] == []


def test_a_tables_times_are_read_and_measured_ones_put_in(tmp_path):
    case = {"name": "op/a", "family": "CUDA", "instructions": 5, "sectors": 6, "wavefronts": 7, "simulated_mma": 8}
    case |= {"loop_mix": None, "registers": 32, "spill_bytes": 0, "shared_bytes": 1024, "blocks": 4, "megabytes": 12}
    case |= {"predicted_us": 3.21}
    file = tmp_path / "times.json"
    told = {"kernel": "op", "config": "a", "family": "cuda", "measured_us": 4.56}
    file.write_text(json.dumps({"sm": 90, "kernels": [told]}))
    one = twins.line(case, twins.measured_of(file))
    assert one == "| op/a | CUDA | 5 | 6 | 7 | 8 | - | 32 | 0 | 1.0 | 4 | 12 | 3.2 | 4.6 |"
    assert twins.read(f"{twins.HEAD}\n{one}\n") == {("op/a", "CUDA"): ("3.2", "4.6")}
    file.write_text(json.dumps({"sm": 80, "kernels": [told]}))
    with pytest.raises(SystemExit, match=r"is of sm_80; the table's measurements are of sm_90"):
        twins.measured_of(file)


@pytest.mark.parametrize(
    "mma, wavefronts, instructions, us",
    [
        (1000, 0, 0, 2048 * 2 / (108 * 1.41)),  # of 1000 * 4096 flops, twice at real size; in thousands of cycles
        (1000, 4000, 0, 2048 * 4 / (108 * 1.41)),
        (1000, 0, 16000, 2048 * 4 / (108 * 1.41)),
        (1000, 2000, 0, 2048 * 2 ** (1 + 1 / 6) / (108 * 1.41)),  # two units that are as busy
    ],
)
def test_the_busiest_unit_is_the_time(mma, wavefronts, instructions, us):
    case = SimpleNamespace(
        kernel="op",
        real=lambda device: 0,
        small=lambda rng: 0,
        flops=lambda given: 4096 * 2048e3,
        bytes=lambda given: 1,
        dots=True,
    )
    counted = {"simulated_mma": mma, "wavefronts": wavefronts, "instructions": instructions, "sectors": 0}
    assert twins.predicted_us(case, {**counted, "launches": 1}, 80) == pytest.approx(us + 3, rel=5e-3)
