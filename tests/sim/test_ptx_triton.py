"""PTX that Triton emits for sm_80, run in the simulator against numpy; then the same PTX with a fault put in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acefast import sim
from acefast.sim import bf16_to_f32, f32_to_bf16


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict]:
    """Compiled in a process of its own."""
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    script = Path(__file__).with_name("triton_kernels.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def run(kernel: dict, args, grid, ptx: str | None = None, **options) -> sim.Report:
    return sim.launch(
        ptx or kernel["ptx"], None, args, grid=grid, block=32 * kernel["warps"], shared=kernel["shared"], **options
    )


def random(*shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_ragged_add_writes_n_elements_and_no_more(kernels):
    x, y, out = random(1000), random(1000, seed=1), sim.poisoned(1010)
    report = run(kernels["add_ragged"], [x, y, out, 1000], 2)
    np.testing.assert_array_equal(out[:1000], x + y)
    np.testing.assert_array_equal(report.untouched(out), np.arange(1000, 1010))
    # A thread has 4 neighbouring elements. With n of unknown divisibility Triton loads them one by one, 16 bytes apart
    # from lane to lane, so each sector is asked for 4 times.
    assert report.counters.totals()["sectors"] == 4 * 3 * 125


def test_n_too_large_is_out_of_bounds_with_the_source_line(kernels):
    with pytest.raises(sim.Finding, match="out-of-bounds") as found:
        run(kernels["add_ragged"], [random(1000), random(1000), sim.poisoned(1000), 1001], 2)
    place = found.value.place
    assert place.kernel == "add_ragged" and place.block == (1, 0, 0)
    assert re.match(r".*triton_kernels\.py:\d+$", place.source)


def test_rmsnorm_matches_numpy(kernels):
    x, w, y = f32_to_bf16(random(3, 1000)), f32_to_bf16(random(1000)), sim.poisoned((3, 1000), np.uint16)
    run(kernels["rmsnorm"], [x, w, y, 1000, 1e-6], 3)
    wide = bf16_to_f32(x).astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-6) * bf16_to_f32(w)
    assert relative(bf16_to_f32(y), expected) < 4e-3


@pytest.mark.parametrize("approx", ("value", "low", "high", "random"))
def test_softmax_holds_at_the_edge_of_ex2_approx(kernels, approx):
    x, y = random(2, 500), sim.poisoned((2, 500))
    run(kernels["softmax"], [x, y, 500], 2, approx=approx)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    assert relative(y, e / e.sum(1, keepdims=True)) < 2e-6


def matmul_args(M=128, N=64, K=128):
    a, b = f32_to_bf16(random(M, K)), f32_to_bf16(random(K, N, seed=1))
    return a, b, sim.poisoned((M, N), np.uint16)


def test_pipelined_matmul_matches_numpy_and_its_counts(kernels):
    a, b, c = matmul_args()
    assert "cp.async" in kernels["matmul"]["ptx"]
    report = run(kernels["matmul"], [a, b, c, 128, 128, 64, 64], (2, 1))
    expected = bf16_to_f32(a).astype(np.float64) @ bf16_to_f32(b)
    assert relative(bf16_to_f32(c), expected) < 4e-3
    assert not len(report.untouched(c))
    mma = report.counters.mma()
    assert mma == {"m16n8k16.f32.bf16.bf16.f32": 128 * 64 * 128 // (16 * 8 * 16)}
    totals = report.counters.totals()
    assert totals["sectors"] == totals["sectors_min"]
    assert totals["wavefronts"] <= 1.1 * totals["wavefronts_min"]


@pytest.mark.parametrize(
    "pattern, kinds",
    [
        (r"\tcp\.async\.wait_group[^\n]*\n", {"async-not-waited"}),
        (r"\tcp\.async\.commit_group[^\n]*\n", {"async-not-waited", "race"}),
        (r"\tbar\.sync[^\n]*\n", {"race"}),
    ],
)
def test_matmul_without_its_waits_or_barriers_is_found(kernels, pattern, kinds):
    ptx, n = re.subn(pattern, "\n", kernels["matmul"]["ptx"])
    assert n
    with pytest.raises(sim.Finding) as found:
        run(kernels["matmul"], [*matmul_args(), 128, 128, 64, 64], (2, 1), ptx=ptx)
    assert found.value.kind in kinds


def test_each_single_barrier_of_the_matmul_is_needed(kernels):
    """Deleting any one bar.sync is a race, except where another stands beside it."""
    ptx = kernels["matmul"]["ptx"]
    places = [m.span() for m in re.finditer(r"\tbar\.sync[^\n]*\n", ptx)]
    found = 0
    for start, end in places:
        try:
            run(kernels["matmul"], [*matmul_args(), 128, 128, 64, 64], (2, 1), ptx=ptx[:start] + "\n" + ptx[end:])
        except sim.Finding as finding:
            assert finding.kind == "race"
            found += 1
    assert found >= len(places) - 1


def test_matmul_with_a_wrong_stride_is_found(kernels):
    with pytest.raises(sim.Finding, match="out-of-bounds"):
        run(kernels["matmul"], [*matmul_args(), 128, 144, 64, 64], (2, 1))
    with pytest.raises(sim.Finding, match=r"race-within-warp|race: "):
        run(kernels["matmul"], [*matmul_args(), 128, 128, 64, 16], (2, 1))


def test_programs_that_write_the_same_elements_are_found(kernels):
    ptx = kernels["add_ragged"]["ptx"].replace("%ctaid.x", "0")
    with pytest.raises(sim.Finding, match="race-between-blocks"):
        run(kernels["add_ragged"], [random(1000), random(1000), sim.poisoned(1000), 1000], 2, ptx=ptx)


def test_int8_matmul_is_exact(kernels):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (32, 128), dtype=np.int8) for _ in range(2))
    c = sim.poisoned((32, 32), np.int32)
    report = run(kernels["matmul_s8"], [a, b, c, 128], 1)
    np.testing.assert_array_equal(c, a.astype(np.int32) @ b.T.astype(np.int32))
    assert set(report.counters.mma()) == {"m16n8k32.s32.s8.s8.s32"}


def test_int64_offsets_pass_where_int32_offsets_overflow(kernels):
    """Row 3 of rows 2**30 elements apart; the pointer is moved so that only that row is in the array."""
    x, y = random(100), sim.poisoned((4, 100))
    stride = 1 << 30
    start = sim.Pointer(x, -3 * stride * 4)
    only_row_3 = lambda ptx: ptx.replace("%ctaid.x", "3")  # noqa: E731
    run(kernels["scale_rows64"], [start, y, stride, 100], 1, ptx=only_row_3(kernels["scale_rows64"]["ptx"]))
    np.testing.assert_array_equal(y[3], 2 * x)
    with pytest.raises(sim.Finding, match="out-of-bounds"):
        run(kernels["scale_rows32"], [start, y, stride, 100], 1, ptx=only_row_3(kernels["scale_rows32"]["ptx"]))


def test_sine_reduces_small_and_huge_arguments(kernels):
    """The huge ones take the Payne-Hanek path: local memory, mad with carry, a loop that some lanes run."""
    x = np.concatenate([random(200) * 10, random(40) * 1e6, random(40) * 1e30, [0.0, np.inf, np.nan]]).astype(
        np.float32
    )
    y = sim.poisoned(len(x))
    run(kernels["sine"], [x, y, len(x)], 2)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(y, np.sin(x.astype(np.float64)), atol=2e-7)


def test_atomics_from_several_programs_are_no_race(kernels):
    x, y = random(5, 100), np.zeros(100, np.float32)
    run(kernels["column_sums"], [x, y, 100], 5)
    np.testing.assert_allclose(y, x.sum(0), atol=1e-5)
