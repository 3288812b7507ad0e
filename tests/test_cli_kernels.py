"""``acefast kernels``: a table for people, a list for programs, budgets; and one sentence where it cannot work."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from acefast import cases, kernels_command
from acefast.cli import main
from acefast.cuda import toolkit
from acefast.sim.driver import BLOCK_SHARED_LIMIT

KEYS = {
    *("kernel", "config", "sm", "registers", "spill_bytes", "shared_bytes", "mma", "cp_async"),
    *("loop_mma", "loop_other", "loop_mix"),
    *("sectors", "sectors_min", "wavefronts", "wavefronts_min", "predicted_us"),
}


@pytest.fixture
def toys(monkeypatch):
    """The kernels there are: a sound one of two configurations; returns how to put others in their place."""
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from tests.sim.toy_cases import MATMUL, SCALE

    def put(*found):
        monkeypatch.setattr(cases, "all_cases", lambda family: found)

    put(MATMUL, SCALE)
    return put


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
def test_json_is_a_list_with_every_key(toys, capsys):
    assert main(["kernels", "--json"]) == 0
    product, scale = json.loads(capsys.readouterr().out)
    assert product.keys() == scale.keys() >= KEYS
    assert (product["kernel"], scale["kernel"], scale["config"], scale["sm"]) == ("matmul", "scale", "narrow", 80)
    assert product["mma"] > 0 < product["cp_async"] and scale["sectors"] == scale["sectors_min"] > 0


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
def test_table_reads_well(toys, capsys):
    assert main(["kernels", "scale", "--sm", "90"]) == 0
    about, heading, row = capsys.readouterr().out.splitlines()
    assert about == "sm_90: compiled at real size, not simulated; times are predicted"
    assert heading.split()[:4] == ["kernel/config", "regs", "spill", "shared"] and len(heading) == len(row)
    assert row.split()[0] == "scale/narrow" and row.split()[6] == "-"  # sm_90 is compiled, not simulated


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
@pytest.mark.parametrize("fault", ["wasteful", "out-of-bounds", "too-large"])
def test_a_fault_is_told_and_is_exit_code_1(toys, fault, capsys, tmp_path):
    from tests.sim.toy_cases import MATMUL, SCALE, with_fault

    def short(generator):
        arguments = SCALE.small(generator)
        return {**arguments, "out": arguments["out"][:2].clone()}

    case, sentence = {
        "wasteful": (with_fault(SCALE, step=4), "fault: 768 sectors, 4.000 times the fewest possible"),
        "out-of-bounds": (
            replace(SCALE, small=short, reference=lambda x, weight, out: (x[:2] * weight,)),
            "fault: out-of-bounds: global write",
        ),
        "too-large": (
            with_fault(MATMUL, BLOCK_K=256, num_stages=5),
            "fault: does not compile: out of resource: shared memory",
        ),
    }[fault]
    toys(case)
    budgets = tmp_path / "budgets.json"
    assert main(["kernels", "--write-budgets", str(budgets)]) == 1
    out, err = capsys.readouterr()
    assert sentence in out and "1 of 1 have a fault; no budget is written" in err and not budgets.exists()


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")
def test_budgets_are_written(toys, capsys, tmp_path):
    path = tmp_path / "budgets.json"
    path.write_text('{"gone/away": {"80": {}}, "matmul/square": {"80": {"registers": 1}}}')
    assert main(["kernels", "scale", "--write-budgets", str(path)]) == 0
    budgets = json.loads(path.read_text())
    assert list(budgets) == ["matmul/square", "scale/narrow"] and budgets["matmul/square"] == {"80": {"registers": 1}}
    assert budgets["scale/narrow"]["80"]["sectors"] == 192


@pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
def test_cuda_kernels_are_studied_as_tritons_are(capsys):
    assert main(["kernels", "snake", "--family", "cuda", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    row = {row["config"]: row for row in rows}["c128-bf16"]
    assert row.keys() >= KEYS and row["shared_bytes"] == 1024 and row["sectors"] == row["sectors_min"] > 0


def test_without_nvcc_it_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(toolkit, "find_nvcc", lambda: None)
    assert main(["kernels", "--family", "cuda"]) == 2
    assert "nvcc compiles CUDA kernels and is not here; pip install nvidia-cuda-nvcc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "kernels: there is none called 'nothing'; there are matmul, scale"),
        (["--sm", "70"], "invalid choice: 70 (choose from 80, 86"),
        (["--family", "metal"], "invalid choice: 'metal'"),
        (["--write-budgets", "no/such/folder.json"], "folder 'no/such' does not exist"),
        (["--jsn"], "unknown option --jsn; the nearest known one is --json"),
        (["--kernl"], "unknown option --kernl; 'acefast kernels --help' lists all"),  # kernel has no flag
    ],
)
def test_what_cannot_work_is_one_sentence(toys, arguments, sentence, capsys):
    assert main(["kernels", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and err.count("\n") == 1


@pytest.mark.parametrize("missing", ["triton", "acefast.kernels"])
def test_without_triton_it_says_how_to_get_it(missing, monkeypatch, capsys):
    def all_cases(family):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cases, "all_cases", all_cases)
    assert main(["kernels"]) == 2
    assert f"kernels: {missing} is not installed; pip install acefast[gpu]" in capsys.readouterr().err


@pytest.mark.parametrize("reason", ["", "no nvcc and no CuPy"])
def test_both_families_are_measured_where_both_run(toys, monkeypatch, capsys, reason):
    monkeypatch.setattr(kernels_command, "why_unavailable", lambda name: reason)
    monkeypatch.setattr(cases, "all_cases", lambda family: (family,))
    assert kernels_command._all_that_run() == (("triton",) if reason else ("triton", "cuda"))
    assert capsys.readouterr().err == (f"acefast: bench: CUDA kernels are not measured: {reason}\n" if reason else "")


def test_the_gpus_offered_are_those_that_are_compiled_for():
    assert tuple(BLOCK_SHARED_LIMIT) == kernels_command.GPUS
