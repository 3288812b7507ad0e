"""csrc/residual_norm.cu on fibers of a CPU, built by g++ with the sanitizers; then with a fault put in."""

from __future__ import annotations

import pytest

from tests.csrc.programs import BACKWARDS, CHECKS, FAIR, GREEDY, build, faulty, needs_compiler, run

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), "residual_norm", *CHECKS)


@pytest.mark.parametrize("order", (FAIR, GREEDY, BACKWARDS))
@pytest.mark.parametrize("in_place", (0, 1))
@pytest.mark.parametrize("entry, songs, rows", [("h2048_bf16", 2, 3), ("h2560_bf16", 1, 2)])
def test_any_order_gives_the_equation(program, entry, songs, rows, in_place, order):
    assert run(program, entry, songs, rows, in_place, order) == ""


@pytest.mark.parametrize("rows", (1, 2))
def test_an_fp32_stream_gives_the_equation(program, rows):
    assert run(program, "h2560_fp32_fp16", 1, rows, 1, BACKWARDS) == ""


FAULTS = {
    "no barrier": ("  __syncthreads();\n", "", GREEDY),
    "a warp too few": ("warp = 1; warp < WARPS", "warp = 2; warp < WARPS", FAIR),
    "a row in another's place": ("h + r * h_row", "h", FAIR),
    "another row of the tables": ("step ? *step : 0", "0", FAIR),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    old, new, order = FAULTS[fault]
    assert run(faulty(tmp_path, "residual_norm", old, new), "h2048_bf16", 1, 3, 0, order)
