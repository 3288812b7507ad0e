"""Sectors, wavefronts, instruction mix: counts that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from acefast import sim
from tests.sim.snippets import run


@pytest.mark.parametrize(
    "address, width, cost, least",
    [
        ("mad.wide.u32 %d5, %r0, 4, %d0;", "f32", 4, 4),  # neighbours
        ("mad.wide.u32 %d5, %r0, 8, %d0;", "f32", 8, 4),  # every other word
        ("mad.wide.u32 %d5, %r0, 32, %d0;", "f32", 32, 4),  # a sector each
        ("mov.u64 %d5, %d0;", "f32", 1, 1),  # all the same
        ("mad.wide.u32 %d5, %r0, 4, %d0; add.u64 %d5, %d5, 4;", "f32", 5, 4),  # one word past a sector's start
        ("mad.wide.u32 %d5, %r0, 16, %d0;", "v4.f32", 16, 16),
    ],
)
def test_sectors(address, width, cost, least):
    to = "{%f1, %f2, %f3, %f4}" if width.startswith("v4") else "%f1"
    report = run(f"{address} ld.global.{width} {to}, [%d5];", [np.zeros(512, np.float32)], block=32)
    totals = report.counters.totals()
    assert (totals["global_requests"], totals["sectors"], totals["sectors_min"]) == (1, cost, least)


@pytest.mark.parametrize(
    "stride, width, cost, least",
    [
        (4, "b32", 1, 1),
        (8, "b32", 2, 1),
        (128, "b32", 32, 1),
        (132, "b32", 1, 1),
        (0, "b32", 1, 1),
        (2, "b16", 1, 1),
        (8, "v2.b32", 2, 2),
        (16, "v4.b32", 4, 4),
        (32, "v4.b32", 8, 4),
        (128, "v4.b32", 32, 4),
    ],
)
def test_wavefronts(stride, width, cost, least):
    zero = "{%r9, %r9}" if "v2" in width else "{%r9, %r9, %r9, %r9}" if "v4" in width else "%r9"
    zero = "%h1" if width == "b16" else zero
    body = f"mov.u32 %r9, 0; mov.b16 %h1, 0; mov.u32 %r5, buffer; mad.lo.u32 %r6, %r0, {stride}, %r5;"
    report = run(f"{body} st.shared.{width} [%r6], {zero};", [np.zeros(1)], block=32, shared=8192)
    totals = report.counters.totals()
    assert (totals["shared_requests"], totals["wavefronts"], totals["wavefronts_min"]) == (1, cost, least)


@pytest.mark.parametrize("swizzled, cost", [(True, 4), (False, 32)])
def test_a_removed_swizzle_shows_in_the_wavefronts_of_ldmatrix(swizzled, cost):
    """A tile of rows of 128 bytes; each of 8 lanes names a row, 16 bytes of it, XORed with the row or not."""
    chunk = "and.b32 %r7, %r2, 7;" if swizzled else "mov.u32 %r7, 0;"
    fill = "mov.u32 %r5, buffer; mov.u32 %r9, 0; mad.lo.u32 %r6, %r2, 128, %r5;"
    fill += "".join(f"st.shared.v4.b32 [%r6+{k}], {{%r9, %r9, %r9, %r9}};" for k in range(0, 128, 16))
    read = f"{chunk} mad.lo.u32 %r8, %r7, 16, %r6;"
    read += "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r8];"
    report = run(fill + read, [np.zeros(1)], block=32, shared=4096)
    rows = [row for row in report.counters.worst("shared", 20) if row[3].startswith("ldmatrix")]
    assert rows[0][:2] == (cost, 4)


def test_instructions_are_counted_per_warp_that_runs_them():
    body = "setp.lt.u32 %p1, %r0, 40; @!%p1 bra $past; popc.b32 %r3, %r0; $past: clz.b32 %r4, %r0;"
    mix = run(body, [np.zeros(1)], block=96).counters.mix()
    assert mix["popc"] == 2 and mix["clz"] == 3 and mix["bra"] == 3


def test_loops_count_each_turn():
    body = "mov.u32 %r3, 0; $again: add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, 10; @%p1 bra $again;"
    assert run(body, [np.zeros(1)], block=32).counters.mix()["add"] == 10


def test_summary_is_plain_data():
    import json

    report = run("add.u32 %r3, %r0, 1;", [np.zeros(1)], block=32)
    assert json.loads(json.dumps(report.summary()))["kernel"] == "snippet"


def test_untouched_counts_elements_of_the_array():
    y = sim.poisoned((4, 20))
    report = run("mad.wide.u32 %d6, %r0, 8, %d0; st.global.u32 [%d6], %r0;", [y], block=32)
    np.testing.assert_array_equal(report.untouched(y), [*range(1, 64, 2), *range(64, 80)])
