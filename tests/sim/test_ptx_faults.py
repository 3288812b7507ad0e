"""Each fault the simulator looks for, planted in PTX written by hand, beside a sound twin that passes."""

from __future__ import annotations

import numpy as np
import pytest

from acefast import sim
from tests.sim.snippets import kernel, run


def words(n: int = 256) -> np.ndarray:
    return np.arange(1, n + 1, dtype=np.float32)


def finds(kind: str, body: str, arrays=None, **options) -> sim.Finding:
    """Runs the body; it must stop with a finding of this kind, placed in this kernel."""
    with pytest.raises(sim.Finding) as found:
        run(body, arrays or [words(), sim.poisoned(256)], **options)
    assert found.value.kind == kind, found.value
    place = found.value.place
    assert place.kernel == "snippet" and place.ptx_line > 1 and place.text
    return found.value


LOAD = "mad.wide.u32 %d5, %r0, 4, %d0; ld.global.f32 %f1, [%d5];"
STORE = "mad.wide.u32 %d6, %r0, 4, %d1; st.global.f32 [%d6], %f2;"
# Threads write their own word of shared memory and read that of their mirror image, in the other warp.
WRITE = "mov.u32 %r5, buffer; mad.lo.u32 %r6, %r0, 4, %r5; st.shared.f32 [%r6], %f1;"
READ_OTHER = "sub.u32 %r7, 63, %r0; mad.lo.u32 %r8, %r7, 4, %r5; ld.shared.f32 %f2, [%r8];"
BARRIER = "bar.sync 0;"


def test_missing_barrier_between_write_and_read():
    y = sim.poisoned(64)
    run(LOAD + WRITE + BARRIER + READ_OTHER + STORE, [words(), y], shared=256)
    np.testing.assert_array_equal(y, words(64)[::-1])
    finding = finds("race", LOAD + WRITE + "bar.warp.sync 0xffffffff;" + READ_OTHER + STORE, shared=256)
    assert "read of what warp 1 wrote" in finding.detail and finding.place.warp == 0 and finding.place.lane == 0


def test_missing_barrier_between_read_and_overwrite():
    tail = "mov.f32 %f1, 0f00000000; st.shared.f32 [%r6], %f1;" + STORE
    run(LOAD + WRITE + BARRIER + READ_OTHER + BARRIER + tail, [words(), sim.poisoned(64)], shared=256)
    finding = finds("race", LOAD + WRITE + BARRIER + READ_OTHER + tail, shared=256)
    assert "write over what warp 1 read" in finding.detail


def test_missing_barrier_between_two_warps_writes():
    body = LOAD + "mov.u32 %r5, buffer; and.b32 %r6, %r0, 31; mad.lo.u32 %r6, %r6, 4, %r5; st.shared.f32 [%r6], %f1;"
    finds("race", body, shared=256)
    run(body, [words(), sim.poisoned(64)], block=32, shared=256)


def test_warps_of_a_block_may_write_the_same_value():
    """Triton does, where warps hold copies of a tensor; two writes that differ in time or value are still a race."""
    body = "mov.u32 %r5, buffer; and.b32 %r6, %r0, 31; mad.lo.u32 %r6, %r6, 4, %r5; {} st.shared.b32 [%r6], %r7;"
    run(body.format("mov.u32 %r7, %r2;"), [words(), sim.poisoned(1)], shared=256)
    finds("race", body.format("mov.u32 %r7, %r0;"), shared=256)
    later = "setp.lt.u32 %p1, %r0, 32; @%p1 st.shared.b32 [%r6], %r7; {} @!%p1 st.shared.b32 [%r6], %r7;"
    start = body.format("mov.u32 %r7, %r2;").split("st.shared")[0]
    run(start + later.format(""), [words(), sim.poisoned(1)], shared=256)
    finds("race", start + later.format("add.u32 %r7, %r7, 1;"), shared=256)


def test_race_through_global_memory_within_a_block():
    body = LOAD + "add.f32 %f2, %f1, %f1;" + STORE + "{} sub.u32 %r7, 63, %r0; mad.wide.u32 %d7, %r7, 4, %d1;"
    body += "ld.global.f32 %f3, [%d7];"
    run(body.format(BARRIER), [words(), sim.poisoned(64)])
    finds("race", body.format(""))


ASYNC = "mov.u32 %r5, buffer; mad.lo.u32 %r6, %r0, 16, %r5; mad.wide.u32 %d5, %r0, 16, %d0;"
ASYNC += "cp.async.cg.shared.global [%r6], [%d5], 16; cp.async.commit_group;"
ASYNC_READ = "ld.shared.v4.f32 {%f1, %f2, %f3, %f4}, [%r6]; mad.wide.u32 %d6, %r0, 16, %d1;"
ASYNC_READ += "st.global.v4.f32 [%d6], {%f1, %f2, %f3, %f4};"


def test_missing_wait_for_an_async_copy():
    y = sim.poisoned(256)
    run(ASYNC + "cp.async.wait_group 0;" + ASYNC_READ, [words(), y], shared=1024)
    np.testing.assert_array_equal(y, words())
    run(ASYNC + "cp.async.wait_all;" + ASYNC_READ, [words(), y], shared=1024)
    finds("async-not-waited", ASYNC + ASYNC_READ, shared=1024)
    finding = finds("async-not-waited", ASYNC + "cp.async.wait_group 1;" + ASYNC_READ, shared=1024)
    assert finding.place.text.startswith("ld.shared")


def test_a_wait_without_a_barrier_is_for_the_own_warp_only():
    other = "xor.b32 %r7, %r0, 32; mad.lo.u32 %r6, %r7, 16, %r5;"
    run(ASYNC + "cp.async.wait_all;" + BARRIER + other + ASYNC_READ, [words(), sim.poisoned(256)], shared=1024)
    finds("race", ASYNC + "cp.async.wait_all;" + other + ASYNC_READ, shared=1024)


def test_write_over_an_async_copy_in_flight():
    over = "st.shared.v4.f32 [%r6], {%f1, %f1, %f1, %f1};"
    finds("async-not-waited", "mov.f32 %f1, 0f00000000;" + ASYNC + over, shared=1024)


def test_async_copy_fills_with_zeros_and_does_not_read_what_it_skips():
    """Threads from 60 on name bytes outside of the array, with a source size of 0; 59 takes 8 of its 16."""
    body = ASYNC.split("cp.async")[0] + "setp.lt.u32 %p1, %r0, 59; selp.u32 %r9, 16, 0, %p1; setp.eq.u32 %p2, %r0, 59;"
    body += (
        "selp.u32 %r9, 8, %r9, %p2; cp.async.cg.shared.global [%r6], [%d5], 16, %r9; cp.async.wait_all;" + ASYNC_READ
    )
    x, y = words(238), sim.poisoned(256)
    run(body, [x, y], shared=1024)
    np.testing.assert_array_equal(y, np.concatenate([x, np.zeros(18)]))
    finds("out-of-bounds", body, [words(237), y], shared=1024)


@pytest.mark.parametrize("n, kind", [(64, None), (63, "out-of-bounds")])
def test_out_of_bounds_load_and_store(n, kind):
    body = LOAD + "add.f32 %f2, %f1, %f1;" + STORE
    if kind is None:
        run(body, [words(n), sim.poisoned(n)])
        return
    load = finds(kind, body, [words(n), sim.poisoned(64)])
    assert load.place.text.startswith("ld.global") and (load.place.warp, load.place.lane) == (1, 31)
    assert "byte 252 of array0, which has 252" in load.detail
    store = finds(kind, body, [words(64), sim.poisoned(n)])
    assert store.place.text.startswith("st.global") and "write" in store.detail


def test_before_the_start_is_out_of_bounds_too():
    body = LOAD.replace("[%d5]", "[%d5+-8]")
    assert "8 bytes before array0" in finds("out-of-bounds", body).detail
    run(body, [sim.Pointer(words(), 8), sim.poisoned(1)])


def test_shared_and_local_out_of_bounds():
    finds("out-of-bounds", LOAD + WRITE, shared=252)
    run(LOAD + WRITE, [words(), sim.poisoned(1)], shared=256)
    local = ".local .align 4 .b8 depot[16]; mov.u64 %d7, depot; st.local.f32 [%d7+{}], %f1;"
    run(LOAD + local.format(12), [words(), sim.poisoned(1)])
    finds("out-of-bounds", LOAD + local.format(16))


def test_misaligned_access():
    body = "mad.wide.u32 %d5, %r0, {}, %d0; ld.global.v2.f32 {{%f1, %f2}}, [%d5];"
    run(body.format(8), [words(), sim.poisoned(1)])
    finding = finds("misaligned", body.format(4))
    assert finding.place.lane == 1
    finds("misaligned", "mov.u32 %r5, buffer; st.shared.b32 [%r5+2], %r0;", block=32, shared=256)


def test_race_between_programs():
    own = "mad.lo.u32 %r3, %r1, 64, %r0; mad.wide.u32 %d6, %r3, 4, %d1; st.global.u32 [%d6], %r3;"
    run(own, [words(), sim.poisoned(256)], grid=4)
    same = own.replace("%r1, 64", "%r1, 63")  # the last element of a block is the next block's first
    finds("race-between-blocks", same, grid=4)
    run(same, [words(), sim.poisoned(256)], grid=4, races_between_blocks=False)
    read_next = own.replace("64", "32") + "ld.global.u32 %r4, [%d6+4];"
    finds("race-between-blocks", read_next, [words(), sim.poisoned(257)], grid=4, block=32)


def test_race_between_programs_of_different_waves():
    own = "mad.lo.u32 %r3, %r1, {}, %r0; mad.wide.u32 %d6, %r3, 4, %d1; st.global.u32 [%d6], %r3;"
    y = sim.poisoned(20_000)
    run(own.format(1000), [words(), y], grid=20, block=1000)
    np.testing.assert_array_equal(y.view(np.uint32), np.arange(20_000))
    finds("race-between-blocks", own.format(999), [words(), sim.poisoned(20_000)], grid=20, block=1000)


def test_lanes_of_a_warp_that_write_different_values_to_one_address():
    finds("race-within-warp", "st.global.u32 [%d1], %r0;", block=32)
    run("mov.u32 %r3, 7; st.global.u32 [%d1], %r3;", [words(), sim.poisoned(1)], block=32)


def test_uninitialised_shared_memory():
    read = "mov.u32 %r5, buffer; mad.lo.u32 %r6, %r0, 4, %r5; ld.shared.f32 %f2, [%r6];"
    finds("uninitialised-shared", read + STORE, shared=256)
    half = "setp.lt.u32 %p1, %r0, 63; mov.u32 %r5, buffer; mad.lo.u32 %r6, %r0, 4, %r5;"
    half += "@%p1 st.shared.b32 [%r6], %r0;"
    finding = finds("uninitialised-shared", half + read, shared=256)
    assert (finding.place.warp, finding.place.lane) == (1, 31)


def test_a_reader_among_many_does_not_hide_the_others():
    """All warps, then all blocks, read one word in one instruction; the last of them overwrites it."""
    first = "mov.u32 %r5, buffer; setp.eq.u32 %p1, %r0, 63; st.shared.b32 [%r5], %r5; bar.sync 0;"
    first += "ld.shared.b32 %r6, [%r5];"
    last = "{} @%p1 st.shared.b32 [%r5], %r0;"
    run(first + last.format(BARRIER), [words(), sim.poisoned(1)], shared=256)
    finds("race", first + last.format(""), shared=256)
    blocks = "ld.global.b32 %r6, [%d0]; setp.eq.u32 %p1, %r1, 3; setp.eq.and.u32 %p2, %r0, 31, %p1;"
    run(blocks, [words(), sim.poisoned(1)], grid=4, block=32)
    finds("race-between-blocks", blocks + "@%p2 st.global.b32 [%d0], %r0;", grid=4, block=32)


def test_atomics_race_with_plain_writes_only():
    plain = "setp.lt.u32 %p1, %r0, 32; mov.u32 %r7, 5; red.global.add.u32 [%d1], %r7; bar.sync 0;"
    plain += "@%p1 st.global.b32 [%d1], %r7; {} @!%p1 red.global.add.u32 [%d1], %r7;"
    run(plain.format(BARRIER), [words(), np.zeros(1, np.uint32)])
    finds("race", plain.format(""), [words(), np.zeros(1, np.uint32)])


def test_shared_memory_of_one_wave_does_not_serve_the_next():
    body = "setp.lt.u32 %p1, %r1, 6; mov.u32 %r5, buffer; mad.lo.u32 %r6, %r0, 4, %r5; @%p1 st.shared.b32 [%r6], %r0;"
    read = "@%p1 ld.shared.f32 %f2, [%r6];"
    run(body + read, [words(), sim.poisoned(1)], grid=12, block=1024, shared=4096)
    finding = finds("uninitialised-shared", body + read.replace("@%p1 ", ""), grid=12, block=1024, shared=4096)
    assert finding.place.block == (6, 0, 0)


def test_shared_memory_of_one_block_does_not_serve_the_next():
    body = "setp.eq.u32 %p1, %r1, 0; mov.u32 %r5, buffer; mad.lo.u32 %r6, %r0, 4, %r5; @%p1 st.shared.b32 [%r6], %r0;"
    finding = finds("uninitialised-shared", body + "ld.shared.f32 %f2, [%r6];", grid=2, shared=256)
    assert finding.place.block == (1, 0, 0)


def test_uninitialised_register_is_nan_or_a_finding():
    body = "setp.lt.u32 %p1, %r0, 5; @%p1 mov.f32 %f2, 0f3F800000;" + STORE
    y = np.zeros(64, np.float32)
    run(body, [words(), y])
    assert (y[:5] == 1).all() and np.isnan(y[5:]).all()
    assert finds("uninitialised-register", body, registers=True).place.lane == 5
    run(body.replace("@%p1", ""), [words(), y], registers=True)


def test_divergent_barrier():
    body = "setp.lt.u32 %p1, %r0, {}; @!%p1 bra $past; bar.sync 0; $past: add.u32 %r3, %r0, 1;"
    run(body.format(64), [words(), sim.poisoned(1)])
    finding = finds("divergent-barrier", body.format(40) + BARRIER)
    assert "40 of 64 lanes" in finding.detail
    finds("divergent-barrier", "setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 0; @!%p1 bar.sync 0;")


def test_threads_that_left_do_not_hold_up_a_barrier():
    run("setp.ge.u32 %p1, %r0, 32; @%p1 exit; bar.sync 0;", [words(), sim.poisoned(1)])


def test_divergent_collective():
    shuffle = "shfl.sync.bfly.b32 %r3, %r0, 1, 0x1f, {};"
    body = "setp.lt.u32 %p1, %r2, 16; @!%p1 bra $past; {} $past: add.u32 %r3, %r0, 1;"
    run(body.format(shuffle.format("0xffff")), [words(), sim.poisoned(1)])
    finds("divergent-collective", body.format(shuffle.format(-1)))
    over = "shfl.sync.idx.b32 %r3, %r0, 20, 0x1f, 0xffff;"
    assert "reads lane 20" in finds("divergent-collective", body.format(over)).detail
    matrices = "mov.u32 %r5, buffer; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{%r4}}, [%r5];"
    finds("divergent-collective", body.format(matrices.replace("{{", "{").replace("}}", "}")), shared=256)


def test_lanes_meet_again_after_a_branch_before_a_collective():
    """The slow side lies at the end of the text, after the collective, as compilers place cold code."""
    body = """setp.lt.u32 %p1, %r2, 3; mov.u32 %r3, 1; @%p1 bra $cold;
    $join: shfl.sync.bfly.b32 %r4, %r3, 1, 0x1f, 0xffffffff; mad.wide.u32 %d6, %r0, 4, %d1; st.global.b32 [%d6], %r4;
    ret; $cold: mov.u32 %r3, 2; bra.uni $join;"""
    y = sim.poisoned(64, np.uint32)
    report = run(body, [words(), y])
    np.testing.assert_array_equal(y[:6], [2, 2, 1, 2, 1, 1])
    assert report.counters.mix()["shfl"] == 2  # one per warp: the warp was whole again


def test_an_endless_loop_is_no_hang():
    finds("no-progress", "$again: add.u32 %r3, %r0, 1; bra $again;", max_blocks=100)


def test_races_that_are_not_wanted_are_left_out_but_the_rest_is_still_seen():
    body = LOAD + WRITE + READ_OTHER + STORE  # a race, but in lockstep every warp has written before one reads
    y = sim.poisoned(64)
    report = run(body, [words(), y], shared=256, races=False)
    np.testing.assert_array_equal(y, words(64)[::-1])
    assert not len(report.untouched(y))
    finds("uninitialised-shared", LOAD + "mov.u32 %r5, buffer;" + READ_OTHER, shared=256, races=False)


def test_cache_hints_change_nothing():
    body = "createpolicy.fractional.L2::evict_last.b64 %d9, 1.0; mad.wide.u32 %d5, %r0, 4, %d0;"
    body += "ld.global.L1::evict_last.L2::cache_hint.f32 %f2, [%d5], %d9;" + STORE
    y = sim.poisoned(64)
    run(body, [words(), y])
    np.testing.assert_array_equal(y, words(64))
    hinted = ASYNC.replace("shared.global", "shared.global.L2::cache_hint").replace("], 16;", "], 16, %d9;")
    run("mov.u64 %d9, 0;" + hinted + "cp.async.wait_all;" + ASYNC_READ, [words(), sim.poisoned(256)], shared=1024)


def test_trap_is_reached_only_by_who_takes_it():
    finding = finds("trap", "setp.eq.u32 %p1, %r0, 37; @%p1 trap;")
    assert (finding.place.warp, finding.place.lane) == (1, 5)
    run("setp.eq.u32 %p1, %r0, 64; @%p1 trap;", [words(), sim.poisoned(1)])


@pytest.mark.parametrize(
    "body",
    [
        "mov.u32 %r3, %clock;",
        "mov.u64 %d3, %globaltimer;",
        "wgmma.fence.sync.aligned;",
        "ld.shared::cluster.b32 %r3, [%r4];",
        "mov.u32 %r3, %smid;",
    ],
)
def test_what_has_no_meaning_here_is_refused_before_anything_runs(body):
    with pytest.raises(sim.Unsupported, match=r"PTX line \d+"):
        run(body, [words(), sim.poisoned(1)])


def test_findings_name_the_line_of_the_source():
    source = ".loc 1 12 3\nld.global.f32 %f1, [%d0+4096];\n"
    with pytest.raises(sim.Finding) as found:
        text = kernel(source, ["x"]) + '.file 1 "snake.py"\n'
        sim.launch(text, "snippet", [words()], grid=1, block=32)
    assert found.value.place.source == "snake.py:12"


def test_a_loop_that_waits_for_another_block_ends_if_it_sleeps():
    """Block 0 waits for block 1, at whose code it would arrive later in the text."""
    body = """mov.u32 %r3, %ctaid.x; setp.ne.u32 %p1, %r3, 0; @%p1 bra $writes;
    $again: nanosleep.u32 32; ld.acquire.gpu.global.u32 %r4, [%d1]; setp.eq.u32 %p2, %r4, 0; @%p2 bra $again; ret;
    $writes: mov.u32 %r5, 7; atom.release.gpu.global.exch.b32 %r6, [%d1], %r5; ret;"""
    y = np.zeros(1, np.uint32)
    run(body, [words(), y], grid=2, races_between_blocks=False, max_blocks=1000)
    assert y[0] == 7
    options = {"grid": 2, "races_between_blocks": False, "max_blocks": 1000}
    finds("no-progress", body.replace("nanosleep.u32 32;", ""), [words(), np.zeros(1, np.uint32)], **options)
    finds("no-progress", body.replace("%r5, 7", "%r5, 0"), [words(), np.zeros(1, np.uint32)], **options)
