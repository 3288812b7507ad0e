"""csrc/conv_transpose1d.cu on fibers of a CPU, built by g++ with the sanitizers; then with a fault put in."""

from __future__ import annotations

import itertools

import pytest

from tests.csrc.programs import BACKWARDS, CHECKS, EAGER, FAIR, GREEDY, LATE, build, faulty, needs_compiler, run

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), "conv_transpose1d", *CHECKS)


@pytest.mark.parametrize("copies, order", list(itertools.product((LATE, EAGER), (FAIR, GREEDY, BACKWARDS))))
def test_any_order_gives_the_equation(program, copies, order):
    assert run(program, "n128_k64_bf16", 1, 70, 128, 64, 4, 3, copies, order) == ""


@pytest.mark.parametrize(
    "entry, songs, rows, cin, cout, stride, results",
    [
        ("n256_k64_fp16", 1, 129, 64, 128, 4, 2),  # two tiles, a row in the second; two channels' widths in a tile
        ("n256_k64_bf16", 2, 1, 64, 256, 2, 3),  # fewer steps than pieces
        ("n128_k64_fp16", 1, 128, 128, 128, 2, 1),
        ("n128_k32_bf16", 2, 65, 64, 64, 4, 3),
        ("n128_k32_fp16", 1, 1200, 64, 64, 4, 2),  # ten row tiles, more than a group
    ],
)
def test_every_tile_gives_the_equation_and_zero_guards(program, entry, songs, rows, cin, cout, stride, results):
    assert run(program, entry, songs, rows, cin, cout, stride, results, LATE, GREEDY) == ""


FAULTS = {
    "a wait that leaves a group too many": ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>", LATE, FAIR),
    "no barrier between two pieces": ("        __syncthreads();  ", "        ", EAGER, GREEDY),
    "results read before all are there": ("    __syncthreads();\n    to +=", "    to +=", LATE, GREEDY),
    "the second result before the first is read": (
        "__syncthreads();  // shared memory is free",
        "// shared memory is free",
        LATE,
        GREEDY,
    ),
    "rows beyond the song stored": ("if (first + r < rows)", "", LATE, FAIR),
    "rows beyond the song read": ("r < last ? r : last", "r", LATE, FAIR),
    "the tap before in the place of the one behind": ("-2 * Cin * SIZE", "0", LATE, FAIR),
    "no row 0 for late columns": ("late ? column + half", "late ? column - half", LATE, FAIR),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    old, new, copies, order = FAULTS[fault]
    program = faulty(tmp_path, "conv_transpose1d", old, new, "-fsanitize=address")
    assert run(program, "n128_k64_bf16", 1, 70, 128, 64, 4, 3, copies, order)
