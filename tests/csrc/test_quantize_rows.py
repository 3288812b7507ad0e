"""csrc/quantize_rows.cu on fibers of a CPU, built by g++ with the sanitizers; then with a fault put in."""

from __future__ import annotations

import pytest

from tests.csrc.programs import BACKWARDS, CHECKS, FAIR, GREEDY, build, faulty, needs_compiler, run

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), "quantize_rows", *CHECKS)


@pytest.mark.parametrize("order", (FAIR, GREEDY, BACKWARDS))
@pytest.mark.parametrize("dtype, K", [("bf16", 2560), ("fp16", 8), ("fp32", 1024)])
def test_any_order_gives_the_equation(program, dtype, K, order):
    assert run(program, dtype, 3, K, order) == ""


FAULTS = {
    "no barrier between warps": ("  __syncthreads();\n", ""),
    "one warp's maximum": ("lane < warps ? ptx::load_shared4(of_warps + lane * 4) : 0", "most"),
    "elements beyond a row read": ("if (k < K) load8", "load8"),
    "elements beyond a row written": ("if (k < K) *reinterpret_cast", "*reinterpret_cast"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    assert run(faulty(tmp_path, "quantize_rows", *FAULTS[fault], *CHECKS), "bf16", 3, 2560, GREEDY)
