"""A case's study: what a sound kernel needs and costs is there, and each planted fault is among its faults."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from acefast.sim import Finding
from acefast.sim import study as simulation
from acefast.sim.roofline import GPUS, floor_us, predicted_us

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.sim.driver import BLOCK_SHARED_LIMIT
from acefast.sim.study import compile_case, faults, simulate_case, study
from tests.sim.toy_cases import IN_PLACE, MATMUL, SCALE, with_fault

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")


def faults_of(case) -> list[str]:
    return faults(case, compile_case(case), simulate_case(case))


def test_a_sound_kernel_is_without_fault_and_counted():
    row = study(SCALE)
    rows, tile = 3, 256
    sectors = rows * (2 * tile * 2 + tile * 4) // 32  # x and out in bf16, the weight in fp32 for every row
    assert row["faults"] == [] and (row["kernel"], row["config"], row["sm"]) == ("scale", "narrow", 80)
    assert row["sectors"] == row["sectors_min"] == sectors
    assert row["sectors_once"] == sectors - (rows - 1) * tile * 4 // 32
    assert (row["launches"], row["spill_bytes"], row["local"], row["shared_bytes"], row["mma"]) == (1, 0, 0, 0, 0)
    assert 16 <= row["registers"] <= 64
    assert 0 < row["error"] <= row["torch_error"] * 1.1 < 2e-3
    assert 0 < row["floor_us"] < row["predicted_us"]


def test_a_product_uses_tensor_cores_and_asynchronous_copies():
    row = study(replace(MATMUL, loop_mix=6.0))
    assert row["faults"] == [] and row["mma"] > 0 and row["cp_async"] > 0
    assert row["loop_mma"] == 16 and row["loop_mix"] == row["loop_other"] / 16 < 6
    assert row["simulated_mma"] == 64 * 64 * 64 // (16 * 8 * 16)
    assert row["wavefronts"] == row["wavefronts_min"] > 0 and row["shared_bytes"] > 0


def test_outputs_in_place_and_of_integers_are_compared_and_launches_follow_each_other():
    row = study(IN_PLACE)
    assert row["faults"] == [] and row["launches"] == 2 and row["error"] < 1e-6


@pytest.mark.parametrize("sm", [86, 90])
def test_other_gpus_are_compiled_for_and_simulated_where_that_is_possible(sm):
    row = study(SCALE, sm)
    assert row["sm"] == sm and row["registers"] > 0 and row["shared_bytes"] == 0 and row["faults"] == []
    assert (row["sectors"] is None) == (sm == 90) == (row["error"] is None)


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (with_fault(MATMUL, maxnreg=32), "spills [1-9][0-9]* bytes, [1-9][0-9]* instructions on local memory"),
        (with_fault(MATMUL, num_stages=1), "a matrix product without cp_async"),
        (replace(SCALE, dots=True), "a matrix product without mma"),
        (with_fault(SCALE, wrong=1.01), r"relative L2 1.0.e-02 against fp64, .* at most 1.71e-03"),
        (replace(SCALE, tolerance=1e-3), r"at most 1.00e-03"),
        (
            with_fault(replace(MATMUL, loop_mix=6.0), BLOCK_K=16),
            "90 other instructions per 8 on tensor cores in the main",
        ),
        (
            replace(SCALE, loop_mix=100.0),
            "0 other instructions per 0 on tensor cores in the main loop; at most 100.000",
        ),
        (with_fault(SCALE, step=4), r"768 sectors, 4.000 times the fewest possible; at most 1.05"),
        (replace(SCALE, reference=lambda x, weight, out: (torch.zeros_like(x),)), "relative L2 "),
        (replace(IN_PLACE, reference=lambda x, total, count: (total + x, count)), "relative L2 1.00e[+]00"),
    ],
    ids=["spill", "no-cp-async", "no-mma", "wrong", "tolerance", "loop", "no-loop", "sectors", "zero", "integers"],
)
def test_a_planted_fault_is_found(case, fault):
    found = faults_of(case)
    assert any(re.search(fault, one) for one in found), found


def test_a_kernel_may_be_as_far_off_as_pytorch_in_bf16_and_a_tenth_more():
    def rounded_weight(x, weight, *, out):
        return (x * weight.bfloat16(),)

    own = simulate_case(replace(SCALE, plain=rounded_weight)).torch_errors[0]
    assert own > 2e-3 > simulate_case(SCALE).torch_errors[0]
    worse = with_fault(SCALE, wrong=1.0018)  # 2.4e-3 with the rounding
    assert faults_of(worse) and not faults_of(replace(worse, plain=rounded_weight))


def test_bank_conflicts_beyond_the_limit_are_found():
    simulated = simulate_case(MATMUL)
    counts = simulated.counts | {"wavefronts": 2 * simulated.counts["wavefronts_min"]}
    (found,) = faults(MATMUL, compile_case(MATMUL), replace(simulated, counts=counts))
    assert "wavefronts, 2.000 times the fewest possible; at most 1.1" in found


def test_shared_memory_beyond_a_block_is_found():
    compiled = compile_case(MATMUL)
    large = [replace(r, dynamic_shared=BLOCK_SHARED_LIMIT[80] + 1) for r in compiled.resources]
    (found,) = faults(MATMUL, replace(compiled, resources=tuple(large)))
    assert found == "166913 bytes of shared memory, a block has 166912"


def test_simulating_another_configuration_than_is_compiled_is_found():
    other = compile_case(with_fault(SCALE, num_stages=2))
    (found,) = faults(SCALE, other, simulate_case(SCALE))
    assert "simulated as scale_kernel with 1 warps and 3 stages, compiled as scale_kernel with 1 warps" in found


def test_output_that_is_not_written_is_nan_and_therefore_wrong():
    def half(x, weight, *, out):
        SCALE.launch(x[: len(x) // 2], weight, out=out[: len(x) // 2])

    (found,) = faults_of(replace(SCALE, launch=half))
    assert "relative L2 nan" in found


def test_a_fault_on_the_way_is_the_simulators_finding():
    def past_the_end(x, weight, *, out):
        SCALE.launch(
            torch.as_strided(x, (len(x) + 1, x.shape[1]), x.stride()) if x.is_meta else x, weight, out=out[:-1]
        )

    small = SCALE.small

    def short(generator):
        arguments = small(generator)
        return {**arguments, "out": arguments["out"][:2].clone()}

    with pytest.raises(Finding, match="out-of-bounds: global write"):
        simulate_case(replace(SCALE, small=short, reference=lambda x, weight, out: (x[:2] * weight,)))


def test_a_wrapper_that_allocates_is_refused():
    with pytest.raises(ValueError, match=r"scale_kernel: out_ptr is no argument of its wrapper, .* allocate nothing"):
        simulate_case(with_fault(SCALE, scratch=True))


def test_what_cannot_be_compared_is_refused():
    for reference, message in (
        (lambda x, weight, out: (x[:2],), r"outputs are \[\(3, 256\)\], the reference's \[\(2, 256\)\]"),
        (lambda x, weight, out: (x * torch.nan,), "the reference is NaN everywhere"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_case(replace(SCALE, reference=reference))
    with pytest.raises(ValueError, match="scale/narrow: its small arguments launch nothing"):
        simulate_case(replace(SCALE, launch=lambda **given: None))


def test_times_follow_the_peaks():
    assert floor_us(312e6, 0, 80, dots=True) == pytest.approx(1)
    assert floor_us(0, 1555e6, 80, dots=False) == pytest.approx(1000)
    assert floor_us(0, 15.55e6, 80, dots=False) == pytest.approx(10 / 2.5)  # fits in half of L2
    assert predicted_us(0, 1555e6, 80, dots=False, launches=2) == pytest.approx(1000 / 0.85 + 2 * 2)
    assert predicted_us(312e6, 0, 80, dots=True, attention=True) == pytest.approx(1 / 0.65 + 3)
    assert set(GPUS) == set(BLOCK_SHARED_LIMIT)


def test_the_same_code_for_another_gpu_is_not_run_again(monkeypatch):
    runs, real = [], simulation._simulate
    monkeypatch.setattr(simulation, "_simulate", lambda *given: runs.append(1) or real(*given))
    monkeypatch.setattr(simulation, "_known", {})
    found = [simulate_case(SCALE, sm) for sm in (86, 89)]
    assert len(runs) == 1 and found[0].row() == found[1].row()
    assert [one.launches[0].sm for one in found] == [86, 89]
    simulate_case(with_fault(SCALE, step=4), 89)  # other code
    simulate_case(SCALE, 89, seed=1)
    assert len(runs) == 3
