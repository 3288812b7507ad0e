"""csrc/conv1d.cu and common/gemm.cuh on fibers of a CPU, built by g++ with the sanitizers; then with a fault put in."""

from __future__ import annotations

import itertools

import pytest

from tests.csrc.programs import BACKWARDS, CHECKS, EAGER, FAIR, GREEDY, LATE, build, faulty, needs_compiler, run

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), "conv1d", *CHECKS)


@pytest.mark.parametrize("copies, order", list(itertools.product((LATE, EAGER), (FAIR, GREEDY, BACKWARDS))))
def test_any_order_gives_the_equation(program, copies, order):
    assert run(program, "n128_k64_bf16", 1, 70, 64, 128, 7, 1, 3, 1, 3, copies, order) == ""


@pytest.mark.parametrize(
    "entry, songs, rows, cin, cout, taps, stride, dilation, residual, results",
    [
        ("n256_k64_fp16", 1, 129, 64, 256, 7, 1, 9, 0, 2),  # two tiles, a row in the second
        ("n256_k64_bf16", 2, 20, 64, 512, 1, 1, 1, 0, 3),  # fewer steps than pieces; two tiles of channels
        ("n128_k64_fp16", 1, 1, 128, 128, 1, 1, 1, 1, 1),
        ("n128_k32_bf16", 2, 65, 64, 128, 4, 2, 1, 0, 1),
        ("n128_k32_fp16", 1, 1200, 64, 128, 1, 1, 1, 1, 3),  # ten row tiles, more than a group
    ],
)
def test_every_tile_gives_the_equation_and_zero_guards(
    program, entry, songs, rows, cin, cout, taps, stride, dilation, residual, results
):
    words = entry, songs, rows, cin, cout, taps, stride, dilation, residual, results
    assert run(program, *words, LATE, GREEDY) == ""


FAULTS = {
    "a wait that leaves a group too many": ("cp_async_wait<STAGES - 2>", "cp_async_wait<STAGES - 1>", LATE, FAIR),
    "no barrier between two pieces": ("        __syncthreads();  ", "        ", EAGER, GREEDY),
    "no barrier behind the first piece": ("    __syncthreads();\n    load(0)", "    load(0)", LATE, FAIR),
    "rows beyond the song stored": ("if (gemm.row(i) < live) store16(y", "store16(y", LATE, FAIR),
    "rows beyond the song read": ("r < last ? r : last", "r", LATE, FAIR),
    "taps without their distance": ("first += apart, left", "left", LATE, FAIR),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    old, new, copies, order = FAULTS[fault]
    program = faulty(tmp_path, "conv1d", old, new, "-fsanitize=address")
    assert run(program, "n128_k64_bf16", 1, 70, 64, 128, 7, 1, 3, 1, 3, copies, order)
