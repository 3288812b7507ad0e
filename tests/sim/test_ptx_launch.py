"""Arguments, shapes of grids and blocks, calls, tables and the order of blocks: what surrounds the instructions."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from acefast import sim
from acefast.sim.cfg import build
from acefast.sim.ptx import parse
from tests.sim.snippets import kernel, run

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"


def test_scalars_structs_and_null_pointers_arrive_as_bytes():
    text = (
        HEAD
        + """.visible .entry f(.param .u64 out, .param .f32 a, .param .s32 b, .param .align 8 .b8 c[16],
.param .u64 spare)
{ .reg .b64 %d<9>; .reg .f32 %f<9>; .reg .b32 %r<9>; .reg .pred %p<2>;
ld.param.u64 %d0, [out]; ld.param.f32 %f0, [a]; ld.param.b32 %r0, [b]; ld.param.u64 %d1, [c+8];
ld.param.u64 %d2, [spare];
ld.param.v2.b32 {%r1, %r2}, [c]; cvt.rn.f32.s32 %f1, %r0; cvt.rn.f32.s64 %f2, %d1; cvt.rn.f32.u64 %f3, %d2;
cvt.rn.f32.s32 %f4, %r2;
st.global.v4.f32 [%d0], {%f0, %f1, %f2, %f3}; st.global.f32 [%d0+16], %f4; ret; }"""
    )
    out = sim.poisoned(8)
    sim.launch(text, "f", [out, 1.5, -7, struct.pack("iiq", 3, 4, 5)], grid=1, block=1)
    np.testing.assert_array_equal(out[:5], [1.5, -7, 5, 0, 4])
    with pytest.raises(ValueError, match="takes 5 arguments, got 2"):
        sim.launch(text, "f", [out, 1.5], grid=1, block=1)
    with pytest.raises(ValueError, match="16 bytes, got 3"):
        sim.launch(text, "f", [out, 1.5, 1, b"abc"], grid=1, block=1)


def test_arrays_must_be_contiguous_and_must_not_overlap():
    x = np.zeros((8, 8), np.float32)
    with pytest.raises(ValueError, match="C-contiguous"):
        run("", [x[:, ::2]])
    with pytest.raises(ValueError, match="overlaps"):
        run("", [x, x[2:4]])
    run("", [x, x, sim.Pointer(x, 32)])


def test_one_array_twice_is_one_array():
    x = np.arange(32, dtype=np.float32)
    body = "mad.wide.u32 %d5, %r0, 4, %d0; ld.global.f32 %f1, [%d5]; mad.wide.u32 %d5, %r0, 4, %d1;"
    run(body + "add.f32 %f1, %f1, %f1; st.global.f32 [%d5], %f1;", [x, x], block=32)
    np.testing.assert_array_equal(x, 2 * np.arange(32))


@pytest.mark.parametrize("name", [None, "snippet", "snip"])
def test_kernels_are_found_by_name_or_part_of_it(name):
    sim.launch(kernel("", ["x"]), name, [np.zeros(1)], grid=1, block=32)
    with pytest.raises(ValueError, match="must name one entry"):
        sim.launch(kernel("", ["x"]), "other", [np.zeros(1)], grid=1, block=32)


@pytest.mark.parametrize("grid, block", [((3, 2, 2), (8, 4, 2)), ((5,), (33,)), ((2, 3), (7, 3))])
def test_grids_and_blocks_of_three_dimensions_and_ragged_warps(grid, block):
    axes = "xyz"
    body = "".join(
        f"mov.u32 %r{10 + k}, %tid.{a}; mov.u32 %r{13 + k}, %ctaid.{a}; mov.u32 %r{16 + k}, %ntid.{a};"
        for k, a in enumerate(axes)
    )
    body += "mov.u32 %r20, %nctaid.x; mov.u32 %r21, %nctaid.y; mad.lo.u32 %r22, %r15, %r21, %r14;"
    body += "mad.lo.u32 %r22, %r22, %r20, %r13;"
    body += "mad.lo.u32 %r23, %r12, %r17, %r11; mad.lo.u32 %r23, %r23, %r16, %r10;"
    body += "mul.lo.u32 %r24, %r16, %r17; mul.lo.u32 %r24, %r24, %r18;"
    body += "mad.lo.u32 %r25, %r22, %r24, %r23; mad.wide.u32 %d5, %r25, 4, %d0; st.global.u32 [%d5], %r25;"
    body += "bar.sync 0;"
    n = int(np.prod(grid) * np.prod(block))
    out = np.zeros(n, np.uint32)
    run(body, [out], grid=grid, block=block)
    np.testing.assert_array_equal(out, np.arange(n))


def test_functions_are_called_with_their_own_registers():
    text = (
        HEAD
        + """.func (.param .b32 result) twice_plus(.param .b32 a, .param .b32 b)
{ .reg .b32 %r<5>; .reg .pred %p<2>; ld.param.b32 %r1, [a]; ld.param.b32 %r2, [b]; setp.gt.s32 %p1, %r1, 5;
@%p1 bra $big;
add.u32 %r1, %r1, %r1; add.u32 %r1, %r1, %r2; st.param.b32 [result], %r1; ret;
$big: st.param.b32 [result], %r2; ret; }
.visible .entry f(.param .u64 out)
{ .reg .b64 %d<9>; .reg .b32 %r<9>; ld.param.u64 %d0, [out]; mov.u32 %r1, %tid.x; mov.u32 %r2, 100;
{ .param .b32 p0; st.param.b32 [p0], %r1; .param .b32 p1; st.param.b32 [p1], %r2; .param .b32 r0;
call.uni (r0), twice_plus, (p0, p1); ld.param.b32 %r3, [r0]; }
{ .param .b32 p0; st.param.b32 [p0], %r3; .param .b32 p1; st.param.b32 [p1], %r1; .param .b32 r0;
call.uni (r0), twice_plus, (p0, p1); ld.param.b32 %r4, [r0]; }
mad.wide.u32 %d1, %r1, 8, %d0; st.global.v2.b32 [%d1], {%r3, %r4}; ret; }"""
    )
    out = np.zeros((32, 2), np.uint32)
    sim.launch(text, "f", [out], grid=1, block=32)
    i = np.arange(32)
    np.testing.assert_array_equal(out[:, 0], np.where(i > 5, 100, 2 * i + 100))
    np.testing.assert_array_equal(out[:, 1], i)


def test_branch_tables_and_loops_of_unequal_length():
    body = """and.b32 %r3, %r0, 3; $t: .branchtargets $a, $b, $c, $c; mov.u32 %r5, 0; mov.u32 %r6, 0; brx.idx %r3, $t;
$a: mov.u32 %r5, 10; bra.uni $join; $b: mov.u32 %r5, 20; bra.uni $join; $c: mov.u32 %r5, 30;
$join: setp.ge.u32 %p1, %r6, %r0; @%p1 bra $done; add.u32 %r6, %r6, 1; add.u32 %r5, %r5, 1; bra $join;
$done: mad.wide.u32 %d5, %r0, 4, %d0; st.global.b32 [%d5], %r5;"""
    out = np.zeros(64, np.uint32)
    run(body, [out])
    i = np.arange(64)
    np.testing.assert_array_equal(out, np.choose(i % 4, [10, 20, 30, 30]) + i)


def test_blocks_are_ordered_so_that_joins_come_after_both_sides():
    body = """setp.lt.u32 %p1, %r2, 3; @%p1 bra $cold; $join: add.u32 %r3, %r0, 1; ret;
    $cold: clz.b32 %r4, %r0; bra.uni $join;"""
    program = build(parse(kernel(body)), "snippet")
    ops = [i.text for i in program.code]
    assert ops.index("clz.b32 %r4, %r0") < ops.index("add.u32 %r3, %r0, 1")


def test_inline_assembly_may_declare_one_register_many_times():
    body = "{ .reg .b32 t; mov.u32 t, 5; add.u32 %r5, t, %r0; } { .reg .f32 t; mov.f32 t, 0f3F800000;"
    body += "mov.f32 %f1, t; }"
    body += "mad.wide.u32 %d5, %r0, 4, %d0; st.global.b32 [%d5], %r5; mad.wide.u32 %d5, %r0, 4, %d1;"
    body += "st.global.f32 [%d5], %f1;"
    a, b = np.zeros(32, np.uint32), np.zeros(32, np.float32)
    run(body, [a, b], block=32)
    assert (a == np.arange(32) + 5).all() and (b == 1).all()


def test_tables_in_global_and_constant_memory():
    text = (
        HEAD
        + """.global .align 4 .b32 table[4] = {7, 0x10, -1, 4};
.const .align 4 .f32 scale[2] = {0f40000000, 0f3F000000};
.visible .entry f(.param .u64 out) { .reg .b64 %d<9>; .reg .b32 %r<9>; .reg .f32 %f<4>; ld.param.u64 %d0, [out];
mov.u32 %r1, %tid.x; mov.u64 %d1, table; mad.wide.u32 %d2, %r1, 4, %d1; ld.global.b32 %r2, [%d2];
ld.const.f32 %f1, [scale+4];
mad.wide.u32 %d3, %r1, 8, %d0; mov.b32 %r3, %f1; st.global.v2.b32 [%d3], {%r2, %r3}; ret; }"""
    )
    out = np.zeros((4, 2), np.uint32)
    sim.launch(text, "f", [out], grid=1, block=4)
    np.testing.assert_array_equal(out[:, 0].view(np.int32), [7, 16, -1, 4])
    assert (out[:, 1].view(np.float32) == 0.5).all()


def test_generic_addresses_reach_every_space():
    body = ".local .align 8 .b8 depot[8]; mov.u32 %r5, buffer; cvt.u64.u32 %d5, %r5; cvta.shared.u64 %d5, %d5;"
    body += "mov.u64 %d6, depot; cvta.local.u64 %d6, %d6; cvta.to.local.u64 %d7, %d6; st.b32 [%d6+4], %r0;"
    body += "ld.local.b32 %r6, [%d7+4];"
    body += "mad.wide.u32 %d8, %r0, 4, %d5; st.b32 [%d8], %r6; mad.wide.u32 %d9, %r0, 4, %d0; ld.b32 %r7, [%d8];"
    body += "setp.lt.u32 %p1, %r0, 16; selp.b64 %d10, %d8, %d9, %p1; add.u32 %r7, %r7, 1;"
    body += "st.b32 [%d10], %r7; ld.b32 %r8, [%d10];"
    out = np.zeros(32, np.uint32)
    run(body + "st.b32 [%d9], %r8;", [out], block=32, shared=128)
    np.testing.assert_array_equal(out, np.arange(1, 33))


def test_the_package_brings_in_neither_triton_nor_a_toolkit():
    code = "import sys; from acefast import sim; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "acefast/sim/README.md").read_text("utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    body = """mov.u32 %r3, %ntid.x; mad.lo.u32 %r4, %r1, %r3, %r0; ld.param.u32 %r5, [n]; setp.ge.u32 %p1, %r4, %r5;
@%p1 exit; mad.wide.u32 %d5, %r4, 4, %d0; mad.wide.u32 %d6, %r4, 4, %d1; ld.global.f32 %f1, [%d5];
add.f32 %f1, %f1, 0f3F800000; st.global.f32 [%d6], %f1;"""
    ptx = kernel(body).replace("snippet(", "add_one(").replace(".param .u64 y)", ".param .u64 y, .param .u32 n)")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "add.ptx").write_text(ptx)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "1009]" in printed and "'sectors': 250" in printed
    (tmp_path / "add.ptx").write_text(ptx.replace("setp.ge.u32 %p1, %r4, %r5", "setp.gt.u32 %p1, %r4, %r5"))
    exec(example, {})
    assert "out-of-bounds: global read of 4 bytes at byte 4000 of x, which has 4000" in capsys.readouterr().out
