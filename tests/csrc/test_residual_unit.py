"""csrc/residual_unit.cu on fibers of a CPU, built by g++ with the sanitizers; then with a fault put in.

What threads of a GPU may do in any order, and copies at any moment, is done in several: see fibers.h.
"""

from __future__ import annotations

import itertools

import pytest

from tests.csrc.programs import BACKWARDS, CHECKS, EAGER, FAIR, GREEDY, LATE, build, faulty, needs_compiler, run

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), "residual_unit", *CHECKS)


@pytest.mark.parametrize("copies, order", list(itertools.product((LATE, EAGER), (FAIR, GREEDY, BACKWARDS))))
def test_any_order_gives_the_equation(program, copies, order):
    assert run(program, "c128_r128_bf16", 1, 70, 3, 1, 1, copies, order) == ""


@pytest.mark.parametrize(
    "entry, songs, rows, dilation, keep, wave",
    [
        ("c128_r128_fp16", 2, 130, 9, 1, 1),  # two tiles a song, two rows in the second
        ("c128_r128_bf16", 1, 1, 1, 1, 0),
        ("c128_r128_bf16", 1, 257, 9, 0, 1),
        ("c256_r128_fp16", 1, 128, 10, 1, 0),  # as far as the guards reach
        ("c256_r64_bf16", 2, 65, 1, 0, 1),
    ],
)
def test_every_tile_gives_the_equation_and_zero_guards(program, entry, songs, rows, dilation, keep, wave):
    assert run(program, entry, songs, rows, dilation, keep, wave, LATE, GREEDY) == ""


FAULTS = {
    "a wait that leaves a group too many": ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>", LATE, FAIR),
    "no barrier between two pieces": ("        __syncthreads();  ", "        ", EAGER, GREEDY),
    "no barrier behind h": (
        "inv_beta2);\n  __syncthreads();\n  unit.begin",
        "inv_beta2);\n  unit.begin",
        LATE,
        BACKWARDS,
    ),
    "no barrier behind the first rows": ("<STAGES - 1>();\n  __syncthreads();", "<STAGES - 1>();", LATE, FAIR),
    "rows beyond the song stored": ("if (row(i) < live) store16(y", "store16(y", LATE, FAIR),
    "a shift that forgets the dilation": ("tap * dilation", "tap", LATE, FAIR),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    old, new, copies, order = FAULTS[fault]
    assert run(faulty(tmp_path, "residual_unit", old, new), "c128_r128_bf16", 1, 100, 3, 1, 1, copies, order)
