"""The interpreter: bf16 right where the stock one is wrong; each planted fault found, and none in its sound twin."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from acefast.backends import emulated_sm
from acefast.sim.interpreter import KernelFault, check_written, interpreted

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

import triton.language as tl
import triton.runtime.interpreter as stock
from triton.runtime.jit import JITFunction

from acefast.sim.driver import dry_run
from tests.sim import kernels_faulty as faulty
from tests.sim import kernels_sound as sound

BF16_ULP = 2**-8  # half of it is the error of one rounding


def add(kernel, n: int = 100, block: int = 32, programs: int = 4, **options) -> torch.Tensor:
    """x + y by ``kernel``, x and y next to each other in memory; the result less what it should be."""
    x, y = torch.randn(2, n)
    with interpreted(**options):
        out = torch.empty(n)
        kernel[(programs,)](x, y, out, n, BLOCK=block)
        check_written("out", out)
    return out - (x + y)


def mix(**options) -> tuple[torch.Tensor, torch.Tensor]:
    """bf16 arithmetic by the kernel, and by torch, which rounds as the GPU does."""
    x, y = torch.randn(2, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    with interpreted(**options):
        out, total = torch.empty_like(x), torch.empty(1, dtype=torch.bfloat16)
        sound.bf16_mix[(1,)](x, y, total, out, BLOCK=128)
    expected = torch.where(x < y, -x * y, torch.maximum(x, y) - 0.5)
    return torch.cat([out, total]), torch.cat([expected, x.max()[None]])


def test_bf16_arithmetic_is_right_repaired_and_wrong_in_the_stock_interpreter():
    actual, expected = mix()
    assert torch.equal(actual, expected)
    actual, expected = mix(repair_bf16=False)
    assert not torch.allclose(actual.float(), expected.float(), rtol=0.5, equal_nan=True)


@pytest.mark.parametrize("repaired", [True, False], ids=["repaired", "stock"])
def test_a_bf16_dot_is_right_repaired_and_wrong_in_the_stock_interpreter(repaired):
    M, N, K = 33, 40, 70  # ragged in each
    a, b = torch.randn(M, K).bfloat16(), torch.randn(K, N).bfloat16()
    with interpreted(repair_bf16=repaired):
        out = torch.empty(M, N, dtype=torch.bfloat16)
        sound.matmul[(3, 3)](a, b, out, M, N, K, BLOCK_M=16, BLOCK_N=16, BLOCK_K=32)
    exact = a.double() @ b.double()
    close = (out.double() - exact).abs() <= BF16_ULP * exact.abs() + 1e-5  # 1e-5: fp32 sums that cancel
    assert bool(close.all()) == repaired


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rms_norm_rounds_once(dtype):
    rows, D = 5, 100
    x, weight = torch.randn(rows, D).to(dtype), torch.randn(D).to(dtype)
    with interpreted():
        out = torch.empty_like(x)
        sound.rms_norm[(rows,)](x, weight, out, D, 1e-6, BLOCK=128)
    x, weight = x.double(), weight.double()
    exact = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    assert ((out.double() - exact).abs() <= torch.finfo(dtype).eps * 0.51 * exact.abs() + 1e-6).all()


def test_conversion_to_bf16_rounds_to_nearest_even():
    ties, limits = [0x3F808000, 0x3F818000, 0x3F808001], [0x7F7FFFFF, 0x00000001, 0x7F800000, 0x7FFFFFFF]  # to a NaN
    special = torch.tensor([*ties, *limits], dtype=torch.int32).view(torch.float32)
    x = torch.cat([special, -special, torch.randn(114)])
    with interpreted():
        out = torch.empty(128, dtype=torch.bfloat16)
        sound.add[(1,)](x, torch.zeros(128), out, 128, BLOCK=128)
    assert torch.equal(out.nan_to_num(7.0), x.bfloat16().nan_to_num(7.0))


def test_a_sound_kernel_passes_every_check():
    assert add(sound.add).abs().max() == 0


@pytest.mark.parametrize(
    "kernel, finding",
    [
        (
            faulty.add_without_load_mask,  # x[100] is y[0]: another argument's memory, and still out of bounds
            r"kernels_faulty\.py:\d+: out-of-bounds load by program \(3, 0, 0\), 28 of 32 lanes; "
            r"the first is x_ptr\[100\] of 100 elements",
        ),
        (faulty.add_without_store_mask, r"out-of-bounds store by program \(3, 0, 0\), 28 of 32 .* out_ptr\[100\]"),
        (faulty.add_all_but_last, r"out: 1 of 100 elements are NaN, .* the first is \[99\]"),
        (
            faulty.overlapping_blocks,
            r"write race: program \(1, 0, 0\) stores out_ptr\[31\], which program \(0, 0, 0\) stored",
        ),
    ],
    ids=lambda value: getattr(getattr(value, "fn", None), "__name__", ""),
)
def test_a_planted_fault_is_found(kernel, finding):
    with pytest.raises(KernelFault, match=finding):
        add(kernel)


def test_a_masked_lane_without_other_is_nan_and_not_zero():
    assert add(sound.add, block=128, programs=1).abs().max() == 0
    with pytest.raises(KernelFault, match="out: 100 of 100 elements are NaN"):
        add(faulty.add_without_other, block=128, programs=1)


@pytest.mark.parametrize("step, verb", [(1, "stores .* loaded"), (-1, "loads .* stored")], ids=["after", "before"])
def test_reading_what_another_program_writes_is_found(step, verb):
    x = torch.zeros(100)
    with interpreted():
        sound.shifted_in_place[(4,)](x, 100, BLOCK=32)
        assert bool((x == 1).all())
        with pytest.raises(KernelFault, match=f"read-write race: program .* {verb}"):
            faulty.smoothed_in_place[(4,)](x, 100, BLOCK=32, STEP=step)


def test_two_lanes_writing_one_address_are_found_unless_they_agree():
    out = torch.zeros(32)
    with interpreted():
        faulty.two_lanes_one_address[(1,)](torch.ones(64), out, BLOCK=64)
        assert bool((out == 1).all())
        with pytest.raises(KernelFault, match="write race between lanes of program"):
            faulty.two_lanes_one_address[(1,)](torch.randn(64), out, BLOCK=64)


def test_programs_may_meet_in_an_atomic_but_not_outside_the_tensor():
    with interpreted():
        out = torch.zeros(1)
        sound.total[(4,)](torch.ones(100), out, 100, BLOCK=32)
        assert out.item() == 100
        with pytest.raises(KernelFault, match=r"out-of-bounds atomic .* out_ptr\[0\] of 0 elements"):
            sound.total[(4,)](torch.ones(100), torch.zeros(0), 100, BLOCK=32)
        with pytest.raises(Exception, match="bf16 atomics"):
            sound.total[(1,)](torch.ones(32).bfloat16(), torch.zeros(1).bfloat16(), 32, BLOCK=32)


def test_views_are_held_to_their_own_elements():
    rows = torch.randn(3, 100)
    with interpreted():
        out = torch.empty(100)
        sound.add[(4,)](rows[1], rows[2], out, 100, BLOCK=32)
        assert torch.equal(out, rows[1] + rows[2])
        with pytest.raises(KernelFault, match=r"x_ptr\[50\] of 50 elements"):
            sound.add[(4,)](rows[1, :50], rows[2], out, 100, BLOCK=32)


def test_checks_can_be_left_out():
    with pytest.raises(KernelFault):
        add(faulty.overlapping_blocks, n=94, programs=3)
    assert add(faulty.overlapping_blocks, n=94, programs=3, races=False).abs().max() == 0
    x = torch.randn(2, 64)
    with interpreted(checks=False):
        out = torch.zeros(64)
        faulty.add_without_load_mask[(1,)](x[0], x[1, :1], out, 64, BLOCK=64)  # y is 1 long, its memory is not
    assert torch.equal(out, x[0] + x[1])


def test_an_op_may_choose_triton_within_the_block():
    with interpreted():
        assert emulated_sm() == 80
    assert emulated_sm() is None


def test_lanes_of_several_tensors_are_each_held_to_their_own():
    x, y = torch.randn(96).split((32, 64))  # next to each other in memory
    with interpreted():
        out = torch.empty(64)
        sound.alternate[(1,)](x, y, out, BLOCK=32)
        assert torch.equal(out[:32:2], x[::2]) and torch.equal(out[1:32:2], y[1:32:2])
        with pytest.raises(KernelFault, match=r"out-of-bounds load .* 16 of 64 lanes; the first is x_ptr\[32\]"):
            sound.alternate[(1,)](x, y, out, BLOCK=64)


def patched() -> list:
    builder = {name: value for name, value in vars(stock.InterpreterBuilder).items() if callable(value)}
    others = (stock.GridExecutor.__call__, stock.GridExecutor._init_args_hst, stock._implicit_cvt, stock._patch_lang)
    others += (stock.ReduceScanOpInterface.apply, JITFunction.run, JITFunction.__call__, tl.load, tl.core.load, tl.sum)
    switches = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    return [*builder.items(), *others, *switches]


def test_triton_and_torch_are_restored_and_kernels_compile_afterwards(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    before = patched()
    with interpreted():
        assert bool(torch.empty(3).isnan().all())
    with pytest.raises(KernelFault):
        add(faulty.add_without_load_mask)
    assert patched() == before
    x = torch.empty(5, 100, device="meta")
    with dry_run(80) as launches:
        sound.rms_norm[(5,)](x, x[0], x, 100, 1e-6, BLOCK=128)
    assert ".entry rms_norm" in launches[0].ptx


@pytest.mark.parametrize("shape", [(64,), (8, 16), (1, 4)], ids=str)
def test_the_one_assembly_that_kernels_use_is_the_sine_of_fp32(shape):
    rows, columns = shape if len(shape) == 2 else (1, *shape)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    with interpreted():
        out = torch.empty(rows, columns)
        sound.sine[(1,)](x, out, ROWS=rows, COLUMNS=columns, FLAT=len(shape) == 1)
        check_written("out", out)
    torch.testing.assert_close(out, x.sin() + 1, rtol=2**-22, atol=2**-22)
    with dry_run(80) as launches:
        sound.sine[(1,)](x, out, ROWS=rows, COLUMNS=columns, FLAT=len(shape) == 1, enable_fp_fusion=True)
    assert "sin.approx.f32" in launches[0].ptx


def test_any_other_assembly_is_refused_before_anything_is_written():
    x, out = torch.zeros(64), torch.full((64,), 7.0)
    with interpreted(), pytest.raises(Exception, match="inline_asm not supported in interpreter mode"):
        faulty.cosine_by_assembly[(1,)](x, out, BLOCK=64)
    assert bool((out == 7).all())


def test_what_cannot_work_is_one_sentence(monkeypatch):
    with interpreted(), pytest.raises(RuntimeError, match="already within"), interpreted():
        pass
    before = patched()
    with monkeypatch.context() as other_triton:
        other_triton.setattr(stock.InterpreterBuilder, "create_masked_load", lambda self, pointers, mask: None)
        with pytest.raises(RuntimeError, match=r"made for triton 3.9, got .*create_masked_load differs"), interpreted():
            pass
    with monkeypatch.context() as other_triton:
        other_triton.delattr(stock, "_implicit_cvt")
        with pytest.raises(RuntimeError, match="_implicit_cvt differs"), interpreted():
            pass
    assert patched() == before


def test_imports_no_triton_and_works_where_triton_itself_is_told_to_interpret(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = """
import sys, torch
import acefast.sim.driver, acefast.sim.resources
from acefast.sim.interpreter import KernelFault, interpreted
print("triton" in sys.modules)

from tests.sim import kernels_faulty as faulty, kernels_sound as sound
x, out = torch.randn(100).bfloat16(), torch.empty(2, 100).bfloat16()
with interpreted():
    sound.rms_norm[(1,)](x, torch.ones(100), out[0], 100, 1e-6, BLOCK=128)
    print((out[0].float().square().mean() - 1).abs().item() < 0.01)
    try:
        faulty.add_without_load_mask[(4,)](x, x, out[1], 100, BLOCK=32)
    except KernelFault as fault:
        print(fault)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported, right, fault = done.stdout.splitlines()
    assert (imported, right) == ("False", "True") and "out-of-bounds load" in fault
