"""bench/predict.py: its launches are the code's, its counts the compiled kernels', its times what the formula says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.cases import all_cases
from acefast.sim.budgets import read_budgets
from acefast.sim.driver import dry_run
from bench import predict
from bench.calculator import counted, recorded, report
from bench.calculator.counted import case_of, count, issue_share, read_counts, seconds, tiled_flops
from bench.calculator.gpus import DEVICES
from bench.calculator.predicted import predict as predicted
from bench.calculator.recorded import Call, recorded_case, recorded_decode, recorded_step
from bench.calculator.song import MODELS, Job
from tests.sim.toy_cases import MATMUL, SCALE, scale, scale_kernel

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")

ROOT = Path(__file__).parents[1]
A100 = DEVICES["a100-40"]


@pytest.fixture(scope="module")
def counts():
    return read_counts()


@pytest.fixture
def toys(monkeypatch):
    """The cases there are: a stream and a product, with counts that are easy to reckon with."""
    for module in (recorded, counted):
        monkeypatch.setattr(module, "all_cases", lambda: (SCALE, MATMUL))
    return {
        "scale/narrow": {"80": {"loop_mma": 0, "sectors": 11, "sectors_min": 10, "sectors_once": 8}},
        "matmul/square": {
            "80": {
                **{"loop_mma": 10, "loop_other": 30, "sectors": 100, "sectors_min": 100, "simulated_mma": 2 * 128},
                **{"flops": 2 * 64**3, "operands": 6400},
            }
        },
    }


def launched(calls) -> int:
    return sum(len(call.launches) or call.library.launches for call in calls)


# -- launches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, launches", [("turbo", 292), ("xl-turbo", 388), ("base", 293), ("xl-base", 389)])
def test_a_step_is_as_many_launches_as_the_plan(model, launches):
    assert launched(recorded_step(Job(model, 120), 80)) == launches == launched(recorded_step(Job(model, 30, 2), 80))


@pytest.mark.parametrize("seconds, tiles", [(30, 2), (240, 6)])
def test_a_tile_is_28_launches_and_the_last_pass_two(seconds, tiles):
    frames = Job("turbo", seconds).frames
    found, tile, last = recorded_decode(frames, 1, A100)
    assert (found, launched(tile), launched(last)) == (tiles, 28, 2)


def test_the_last_pass_is_that_of_a_song():
    """Model.decode brings fp32 samples to their level in place."""
    _, _, (last,) = recorded_decode(750, 1, A100)
    given = last.arguments
    assert given["audio"] is given["out"] and given["audio"].dtype == torch.float32 and given["peaks"] is not None


@pytest.mark.parametrize("sm", (80, 86, 89, 90))
def test_every_call_has_a_proved_case_with_counts(sm, counts):
    device = next(d for d in DEVICES.values() if d.sm == sm)
    calls = [call for model in MODELS for call in recorded_step(Job(model, 30), sm)]
    calls += [call for part in recorded_decode(6000, 1, device)[1:] for call in part]
    names = {case_of(call, sm).name for call in calls if call.wrapper}
    assert names <= set(counts) and len(names) > 10


def test_what_is_written_down_is_what_a_dry_run_compiles():
    for case in (SCALE, MATMUL):
        real = case.real(torch.device("meta"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recorded, "all_cases", lambda: (SCALE, MATMUL))
            call = recorded_case(case, real, 80)
        with dry_run(80) as launches:
            case.launch(**real)
        assert [one.name for one in call.launches] == [one.name for one in launches]
        for mine, compiled in zip(call.launches, launches):
            assert mine.grid == compiled.grid
            assert {**compiled.constexprs, "num_warps": compiled.num_warps}.items() <= {
                "num_warps": 4,
                **mine.constants,
            }.items()
        assert call.arguments.keys() >= real.keys()


def test_a_launch_without_a_case_is_refused(toys):
    x = torch.empty(4, 256, dtype=torch.bfloat16, device="meta")
    outside = pytest.raises(RuntimeError, match="scale_kernel is launched outside of the wrappers that have cases")
    with outside, recorded.recorded(80):
        scale_kernel[(4,)](x, x, x, H=256, STEP=1, WRONG=1.0)
    call = recorded_case(MATMUL, MATMUL.real(torch.device("meta")), 80)
    other = replace(call.launches[0], constants={**call.launches[0].constants, "BLOCK_K": 64})
    with pytest.raises(LookupError, match="matmul: no case is compiled like"):
        case_of(Call(call.wrapper, call.arguments, [other]), 80)


# -- times -------------------------------------------------------------------------------------------------------------


def test_a_stream_takes_its_bytes_and_what_is_counted_beyond_them(toys):
    x = torch.empty(1 << 20, 256, dtype=torch.bfloat16, device="meta")
    launch = recorded_case(SCALE, SCALE.real(torch.device("meta")), 80).launches[0]
    call = Call(scale, {"x": x, "weight": x.new_empty(256), "out": x}, [launch])
    bytes = 2 * x.nbytes + 512
    found, name, bound = seconds(call, A100, toys)
    assert (name, bound) == ("scale/narrow", "memory")
    assert found == pytest.approx(bytes * 1.1 / (1555e9 * 0.85) + 2e-6)
    toys["scale/narrow"]["80"]["sectors_once"] = 3  # each byte is asked of L2 nearly four times
    assert seconds(call, A100, toys)[0] == pytest.approx(bytes * 11 / 3 / (1555e9 * 2.5) + 2e-6)


def test_a_product_takes_whole_tiles_and_waves_and_what_is_executed_beyond_it(toys):
    def call(rows):
        a, b = torch.empty(rows, 4096, device="meta").half(), torch.empty(4096, 4096, device="meta").half()
        return recorded_case(MATMUL, {"a": a, "b": b, "out": a.new_empty(rows, 4096)}, 80)

    each = 2 * 64 * 64 * 4096 * 2 / (312e12 / 108 * 0.46 * 1.0)  # a tile, executed twice
    found, name, bound = seconds(call(27 * 64), A100, toys)
    assert (name, bound) == ("matmul/square", "tensor cores")
    assert found == pytest.approx(16 * each + 3e-6)  # 64 * 27 tiles on 108 multiprocessors
    assert seconds(call(26 * 64 + 1), A100, toys)[0] == pytest.approx(found)
    assert seconds(call(27 * 64 + 1), A100, toys)[0] == pytest.approx(17 * each + 3e-6)
    toys["matmul/square"]["80"]["loop_other"] = 150  # 80 cycles of products beside 160 instructions
    assert seconds(call(27 * 64), A100, toys)[0] == pytest.approx(32 * each + 3e-6)
    toys["matmul/square"]["80"]["operands"] = 640  # each operand ten times over
    assert seconds(call(27 * 64), A100, toys)[2] == "L2"


def test_a_main_loop_is_bound_by_what_it_issues_only_where_products_are_fast():
    mix = {"loop_mma": 10, "loop_other": 150}
    shares = {key: issue_share(mix, DEVICES[key]) for key in ("a100-40", "4090", "l4", "h100")}
    assert shares == {"a100-40": 0.5, "4090": 1.0, "l4": 1.0, "h100": 1.0}
    assert issue_share({"loop_mma": 0, "loop_other": 0}, A100) == 1.0


# -- counts ------------------------------------------------------------------------------------------------------------


def test_committed_counts_are_those_of_a_fresh_study(counts):
    for name in ("sampler_step/euler-batch", "linear_swiglu/2b-few"):
        case = next(case for case in all_cases() if case.name == name)
        assert count(case, 80) == counts[name]["80"]


def test_counts_are_of_cases_that_exist_and_of_whole_tiles(counts):
    cases = {case.name: case for case in all_cases()}
    assert set(counts) <= set(cases) and all(list(of) == ["80", "86", "89"] for of in counts.values())
    for name, of in counts.items():
        for row in of.values():
            assert row["sectors"] >= row["sectors_min"] > 0
            if cases[name].dots:
                beyond = 1.15 if name.startswith("audio") else 1.0  # there 14 columns of 16 are taps
                assert row["simulated_mma"] * counted.MMA_FLOPS / row["flops"] == pytest.approx(beyond, abs=0.01), name


def test_whole_tiles_are_those_that_are_executed(counts):
    """Ragged ones too, and the blocks of keys that a window and a song's length leave."""
    for case in (case for case in all_cases() if case.dots and case.name in counts):
        call = recorded_case(case, case.small(torch.Generator().manual_seed(0)), 80)
        assert tiled_flops(case, call) == pytest.approx(counts[case.name]["80"]["flops"]), case.name


def test_counts_are_as_new_as_the_budgets(counts):
    """A kernel that has changed since has other budgets: python bench/predict.py --count KERNEL."""
    budgets = read_budgets(ROOT / "kernels/budgets.json")
    for name, of in counts.items():
        for sm, row in of.items():
            mix = round(row["loop_other"] / row["loop_mma"], 3) if row["loop_mma"] else None
            found = {"registers": row["registers"], "sectors": row["sectors"], "loop_mix": mix}
            assert found == {key: budgets[name][sm].get(key) for key in found}, (name, sm)


def test_a_faulty_case_is_not_counted():
    with pytest.raises(RuntimeError, match="scale/narrow on sm_80: relative L2"):
        count(replace(SCALE, tolerance=1e-9), 80)


# -- songs -------------------------------------------------------------------------------------------------------------


def test_json_is_the_sum_of_its_kernels(capsys):
    assert predict.main(["--model", "turbo", "--seconds", "30", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predicted_ms"] == pytest.approx(sum(kernel["ms"] for kernel in found["kernels"]), abs=0.01)
    assert found["predicted_ms"] == pytest.approx(sum(s["predicted_ms"] for s in found["stages"].values()), abs=0.01)
    assert found["floor_ms"] < found["predicted_ms"] < found["compiled_ms"] < found["eager_ms"]
    assert found["launches"] == {"prep": 298, "dit": 8 * 292, "decode": 2 * 28, "finish": 2}
    assert "nothing was run on a GPU" in found["what"]


def test_table_says_that_it_is_predicted(capsys):
    assert predict.main(["--seconds", "30", "--device", "4090", "--kernels"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "turbo, 30 s, batch 1, RTX 4090; milliseconds, predicted"
    assert [line.split()[0] for line in rest[1:6]] == ["prep", "dit", "decode", "finish", "total"]
    assert any(line.split()[:2] == ["dit", "residual_norm/2b-full"] for line in rest)


def test_what_cannot_be_asked_is_refused(capsys):
    for words in (["--seconds", "601"], ["--batch", "0"], ["--device", "v100"], ["--model", "v1"]):
        with pytest.raises(SystemExit):
            predict.main(words)


@pytest.mark.parametrize("model, seconds, batch", [("turbo", 240, 1), ("turbo", 30, 1), ("xl-base", 30, 8)])
def test_the_committed_report_is_what_is_predicted_now(counts, model, seconds, batch):
    row = predicted(Job(model, seconds, batch), A100, counts)
    (line,) = list(report._songs([row]))[2:]
    assert line in report.FILE.read_text().splitlines()
    assert report.FILE.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "Nothing here was run on a GPU" in report.FILE.read_text()
