"""csrc/apg.cu on fibers of a CPU: blocks that wait for one another, as many at a time as chance has it; then with a
fault put in. Built by g++ with the sanitizers.
"""

from __future__ import annotations

import pytest

from acefast.cuda.toolkit import text_of
from tests.csrc.programs import CHECKS, build, faulty, needs_compiler, run

pytestmark = needs_compiler
ENTRY = "apg_step_fp32"
SONGS, FRAMES, CHANNELS = 2, 300, 12  # two tiles each, ragged; with omega 12 blocks


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("sound"), "apg", *CHECKS, text=text_of("apg", ENTRY))


@pytest.mark.parametrize("omega", (0, 1), ids=["", "omega"])
@pytest.mark.parametrize("at_once, seed", [(1, 0), (3, 1), (12, 2)])
def test_any_order_and_number_of_blocks_gives_the_equations(program, at_once, seed, omega):
    assert run(program, SONGS, FRAMES, CHANNELS, omega, at_once, seed) == ""


FAULTS = {
    "no wait for the sums": ("      wait_for(done, tile.tiles);\n      g.guide", "      g.guide"),
    "a wait for too few": ("wait_for(done, 2 * tile.tiles)", "wait_for(done, tile.tiles)"),
    "a wait for blocks to come": ("wait_for(done, 2 * tile.tiles)", "wait_for(done, 3 * tile.tiles)"),
    "counters that do not wrap": ("hand_over(done, stages * tile.tiles)", "hand_over(done, 999)"),
    "handed over before others have written": (
        "u32 blocks) {\n  __syncthreads();",
        "u32 blocks) {",
    ),
    "no barrier behind a wait": ("ptx::pause();\n  __syncthreads();", "ptx::pause();"),
    "a ticket that is not waited for": ("  __syncthreads();\n  return", "  return"),
    "blocks by their index": ("return *shared;", "return blockIdx.x;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tmp_path):
    program = faulty(tmp_path, "apg", *FAULTS[fault], "-O1", entry=ENTRY)  # which runs in several orders
    assert any(run(program, SONGS, FRAMES, CHANNELS, 1, at_once, seed) for at_once in (3, 12) for seed in range(4))
