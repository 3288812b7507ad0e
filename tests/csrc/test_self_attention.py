"""csrc/self_attention.cu and common/attention.cuh on fibers of a CPU, built by g++ with the sanitizers; then with a
fault put in.

What threads of a GPU may do in any order, and copies at any moment, is done in several: see fibers.h.
"""

from __future__ import annotations

import itertools

import pytest

from tests.csrc.programs import BACKWARDS, CHECKS, EAGER, FAIR, GREEDY, LATE, build, faulty, needs_compiler, run

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), "self_attention", *CHECKS)


@pytest.mark.parametrize("copies, order", list(itertools.product((LATE, EAGER), (FAIR, GREEDY, BACKWARDS))))
def test_any_order_gives_the_equation(program, copies, order):
    """One tile, whose five pieces of keys go around the ring; scores that grow, so that sums are scaled anew."""
    assert run(program, "bf16", 1, 150, 1, 100, 150, 1, copies, order) == ""


@pytest.mark.parametrize(
    "dtype, songs, rows, group, window, length, growing",
    [
        ("fp16", 2, 66, 2, 16, 66, 0),  # two tiles, two positions in the second; unequal lengths
        ("fp16", 1, 40, 4, 300, 33, 1),  # everything is seen; the second tile has one live position
        ("bf16", 1, 40, 8, 0, 40, 0),  # nothing but itself
        ("bf16", 1, 70, 4, 5, 20, 0),  # a tile of padding
        ("bf16", 1, 1, 1, 128, 1, 0),
    ],
)
def test_every_group_gives_the_equation_and_zero_padding(program, dtype, songs, rows, group, window, length, growing):
    assert run(program, dtype, songs, rows, group, window, length, growing, LATE, GREEDY) == ""


FAULTS = {
    "a wait that leaves a group too many": ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>", LATE, FAIR),
    "no barrier between two pieces": ("      __syncthreads();           ", "      ", EAGER, GREEDY),
    "no barrier behind the last piece": ("    __syncthreads();\n    finish", "    finish", LATE, BACKWARDS),
    "q overwritten before it is taken": (
        "take(ring + PIECE);\n    __syncthreads();",
        "take(ring + PIECE);",
        EAGER,
        GREEDY,
    ),
    "rows of padding among the keys": (
        "chunk * 8, row < length);\n        ptx",
        "chunk * 8, true);\n        ptx",
        LATE,
        FAIR,
    ),
    "a window one too far": ("i + window + 1 : length", "i + window + 2 : length", LATE, FAIR),
    "sums not scaled anew": ("total[i][h] *= shrink;", "", LATE, FAIR),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    old, new, copies, order = FAULTS[fault]
    program = faulty(tmp_path, "self_attention", old, new)
    assert run(program, "bf16", 1, 150, 1, 100, 145, 1, copies, order)
