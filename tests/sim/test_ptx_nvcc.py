"""PTX that nvcc emits for sm_80 from tests/sim/kernels.cu, against numpy; then with a fault put in."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from acefast import sim
from acefast.sim import bf16_to_f32, f32_to_bf16


@pytest.fixture(scope="module")
def ptx(tmp_path_factory) -> str:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on the PATH")
    out = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
    source = Path(__file__).with_name("kernels.cu")
    command = ["nvcc", "-std=c++17", "-O3", "-arch=sm_80", "-lineinfo", "-ptx", source, "-o", out]
    subprocess.run(command, check=True, capture_output=True)
    return out.read_text()


def rmsnorm(ptx: str):
    x = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32)
    y = sim.poisoned(x.shape)
    report = sim.launch(ptx, "rmsnorm", [x, y, 1000, 1e-6], grid=3, block=256)
    return report, y, x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-6)


def test_rmsnorm_matches_numpy(ptx):
    report, y, expected = rmsnorm(ptx)
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-6)
    assert not len(report.untouched(y))
    totals = report.counters.totals()
    assert totals["sectors"] == totals["sectors_min"] and totals["wavefronts"] == totals["wavefronts_min"]


def test_rmsnorm_without_its_barrier_is_a_race_at_the_line_that_reads(ptx):
    with pytest.raises(sim.Finding, match="race") as found:
        rmsnorm(re.sub(r"\tbar\.sync[^\n]*", "", ptx))
    assert re.search(r"kernels\.cu:\d+$", found.value.place.source)


def matmul(ptx: str):
    rng = np.random.default_rng(0)
    a, b = (f32_to_bf16(rng.standard_normal(s).astype(np.float32)) for s in ((16, 32), (8, 32)))
    c = sim.poisoned((16, 8))
    report = sim.launch(ptx, "small_matmul", [a, b, c], grid=1, block=32)
    return report, c, bf16_to_f32(a).astype(np.float64) @ bf16_to_f32(b).T


def test_small_matmul_matches_numpy_and_shows_its_bank_conflicts(ptx):
    report, c, expected = matmul(ptx)
    np.testing.assert_allclose(c, expected, rtol=1e-5, atol=1e-5)
    assert report.counters.mma() == {"m16n8k16.f32.bf16.bf16.f32": 2}
    reads = [row for row in report.counters.worst("shared") if "ldmatrix" in row[3]]
    assert reads[0][0] == 4 * reads[0][1]  # rows of 64 bytes without a swizzle: 4 of 8 rows in the same banks


def test_small_matmul_without_its_wait_is_found(ptx):
    with pytest.raises(sim.Finding, match="async-not-waited"):
        matmul(re.sub(r"cp\.async\.wait_group 0;", "", ptx))


def test_small_matmul_with_swapped_fragments_gives_a_wrong_product(ptx):
    swapped = re.sub(r"(mma\.sync[^{]*\{[^}]*\},\s*)\{(%\w+), ?(%\w+),", r"\1{\3, \2,", ptx)
    assert swapped != ptx
    _, c, expected = matmul(swapped)
    assert np.abs(c - expected).max() > 0.1


def test_calls_switches_and_doubles_match_numpy(ptx):
    n, divisor = 300, 7_000_000_011 % 1000 + 2**33
    x = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    y, positive = sim.poisoned(n, np.float64), np.zeros(1, np.uint32)
    sim.launch(ptx, "mixed", [x, y, positive, n, divisor], grid=3, block=128)
    i = np.arange(n)
    r = (np.sqrt(np.abs(x)) + i.astype(np.float32)).astype(np.float64)
    cases = [r + 1, r * 2, -r, r / 3, r * r, 1 / (r + 1), 0 * r]
    np.testing.assert_allclose(y, np.choose(i % 7, cases) + np.sin(x).astype(np.float64), rtol=1e-5, atol=1e-6)
    assert positive[0] == (x > 0).sum()
