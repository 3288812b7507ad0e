"""csrc/linear_int8.cu on fibers of a CPU, built by g++ with the sanitizers; then with a fault put in.

What threads of a GPU may do in any order, and copies at any moment, is done in several: see fibers.h.
"""

from __future__ import annotations

import itertools

import pytest

from tests.csrc.programs import BACKWARDS, CHECKS, EAGER, FAIR, GREEDY, LATE, build, faulty, needs_compiler, run

pytestmark = needs_compiler
PLAIN, BIAS, SWIGLU, ADD = range(4)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), "linear_int8", *CHECKS)


@pytest.mark.parametrize("copies, order", list(itertools.product((LATE, EAGER), (FAIR, GREEDY, BACKWARDS))))
def test_any_order_gives_the_equation(program, copies, order):
    assert run(program, "m128_n128_bf16", 70, 512, 128, ADD, copies, order) == ""


@pytest.mark.parametrize(
    "entry, rows, K, outputs, form",
    [
        ("m128_n256_bf16", 129, 640, 256, PLAIN),  # two row tiles, one row in the second
        ("m128_n256_fp16", 1, 128, 512, SWIGLU),  # fewer pieces than the ring has
        ("m128_n128_fp16", 127, 384, 256, SWIGLU),
        ("m128_n128_bf16", 128, 256, 128, BIAS),
    ],
)
def test_every_tile_gives_the_equation(program, entry, rows, K, outputs, form):
    assert run(program, entry, rows, K, outputs, form, LATE, GREEDY) == ""


FAULTS = {
    "rows beyond the last read": ("(rows, live - 1)", "(rows, M)", LATE, FAIR, PLAIN),
    "rows beyond the last stored": (
        "      if (row >= live) break;\n      T* const to",
        "      T* const to",
        LATE,
        FAIR,
        PLAIN,
    ),
    "a gate's row forgotten": ("*step * gate_row", "0", LATE, FAIR, ADD),
    "gates and ups beside each other": ("swiglu ? width : 32}", "32}", LATE, FAIR, SWIGLU),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    old, new, copies, order, form = FAULTS[fault]
    program = faulty(tmp_path, "linear_int8", old, new, *CHECKS)
    assert run(program, "m128_n128_bf16", 100, 512, 128, form, copies, order)
