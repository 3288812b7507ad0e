"""The stub driver: real launches specialise and compile for any sm, are recorded and leave Triton as it was."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from acefast.backends import emulated_sm
from acefast.kernel_config import current_sm
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.graph import check_step

triton = pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from triton.runtime.driver import driver  # noqa: E402
from triton.runtime.errors import OutOfResources  # noqa: E402

from tests.sim import kernels_sound as sound  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION is unset")


def launch_add(x: torch.Tensor, block: int = 128, grid: tuple[int, ...] | None = None) -> torch.Tensor:
    """A launch wrapper as an op has it."""
    out = torch.empty_like(x)
    grid = grid or (triton.cdiv(x.numel(), block),)
    sound.add[grid](x, x, out, x.numel(), BLOCK=block, num_warps=2)
    return out


def launch_matmul(tile: tuple[int, int, int], num_stages: int) -> None:
    a = torch.empty(1024, 1024, dtype=torch.bfloat16, device="meta")
    sizes = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), tile))
    sound.matmul[(1,)](a, a, a, 1024, 1024, 1024, **sizes, num_stages=num_stages)


def test_a_launch_is_recorded_in_full_and_not_run():
    x = torch.ones(1000)
    with dry_run(80) as launches:
        out = launch_add(x).fill_(7.0)
    (launch,) = launches
    assert (launch.name, launch.sm, launch.grid) == ("add", 80, (8, 1, 1))
    assert (launch.constexprs, launch.num_warps, launch.num_stages) == ({"BLOCK": 128}, 2, 3)
    x_ptr = launch.arguments["x_ptr"]
    assert (x_ptr.type, x_ptr.shape, x_ptr.strides, x_ptr.dtype) == ("*fp32", (1000,), (1,), torch.float32)
    assert (launch.arguments["n"].type, launch.arguments["n"].value) == ("i32", 1000)
    assert ".target sm_80" in launch.ptx and launch.cubin.startswith(b"\x7fELF") and launch.shared_bytes == 0
    assert bool((out == 7.0).all())


def test_a_graph_check_is_told_of_every_launch_and_its_tensors():
    x = torch.empty(1000, device="meta")
    with dry_run(80):
        report = check_step(lambda: launch_add(x))
    assert report.launches == {"add": 1} and [text.split(" at ")[0] for text in report.undeclared] == [
        "torch.float32 [1000]"
    ]


def test_tensors_far_larger_than_memory_cost_nothing():
    n = 30_000_000_000  # 120 GB each; more than int32 holds
    with dry_run(80) as launches:
        launch_add(torch.empty(n, device="meta"), block=1024)
    assert launches[0].grid == (29296875, 1, 1)
    assert launches[0].arguments["n"].type == "i64"


@pytest.mark.parametrize("kind", ["cpu", "meta", "fake"])
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_every_kind_of_tensor_is_specialised_as_on_a_gpu(kind):
    with dry_run(80) as launches, FakeTensorMode() if kind == "fake" else torch.device(kind):
        buffer = torch.empty(1025)
        launch_add(buffer[:1024])
        launch_add(buffer[1:])  # 4 bytes off: no vector loads
        launch_add(buffer[:1000])  # 1000 is no multiple of 16
        launch_add(buffer[:1])  # a 1 becomes part of the code
    specialised = [(x.arguments["x_ptr"].divisible_by_16, x.arguments["n"].divisible_by_16) for x in launches]
    assert specialised[:3] == [(True, True), (False, True), (True, False)]
    assert [x.arguments["n"].type for x in launches] == ["i32", "i32", "i32", "constexpr"]
    assert "ld.global.v2" in launches[0].ptx.replace("ld.global.v4", "ld.global.v2")
    assert "ld.global.v" not in launches[1].ptx


@pytest.mark.parametrize("sm", BLOCK_SHARED_LIMIT)
def test_compiles_for_every_sm(sm):
    with dry_run(sm) as launches:
        launch_add(torch.empty(1024, device="meta"))
        assert emulated_sm() == current_sm() == sm  # what a launch wrapper chooses its tiles by
    assert f".target sm_{sm}" in launches[0].ptx and launches[0].sm == sm
    assert emulated_sm() is None


def test_more_shared_memory_than_a_block_has_is_refused_as_on_that_gpu():
    tile, num_stages = (64, 64, 128), 5  # four buffers of 32 KiB
    with dry_run(80) as launches:
        launch_matmul(tile, num_stages)
    assert BLOCK_SHARED_LIMIT[86] < launches[0].shared_bytes < BLOCK_SHARED_LIMIT[80]
    with dry_run(86) as launches, pytest.raises(OutOfResources, match="shared memory"):
        launch_matmul(tile, num_stages)
    assert launches == []


def test_a_grid_beyond_the_limits_is_refused_and_an_empty_one_launches_nothing():
    x = torch.empty(1024, device="meta")
    with dry_run(80) as launches:
        launch_add(x, grid=(70_000, 1))
        launch_add(x, grid=(0,))
        assert [launch.grid for launch in launches] == [(70_000, 1, 1)]
        with pytest.raises(ValueError, match=r"add: grid must be at most .*, got \(1, 70000, 1\)"):
            launch_add(x, grid=(1, 70_000))


def test_triton_is_restored_after_the_block_after_an_error_and_when_nested():
    before = driver._active
    with dry_run(80) as outer:
        stub = driver._active
        with pytest.raises(ZeroDivisionError), dry_run(90) as inner:
            launch_add(torch.empty(1024, device="meta"))
            raise ZeroDivisionError
        assert driver._active is stub is not before
        launch_add(torch.empty(1024, device="meta"))
    assert driver._active is before
    assert [launch.sm for launch in (*outer, *inner)] == [80, 90]


def test_an_error_of_the_compiler_comes_through_and_restores_triton():
    before, x = driver._active, torch.empty(1024, device="meta")
    with pytest.raises(triton.CompilationError), dry_run(80):
        sound.add[(1,)](x, x, x, 1024, BLOCK=100)  # no power of two
    assert driver._active is before


def test_tuning_by_time_is_refused_with_the_way_out():
    configs = [triton.Config({"BLOCK": size}) for size in (128, 256)]
    tuned = triton.autotune(configs=configs, key=["n"])(sound.add)
    x = torch.empty(1024)
    with dry_run(80) as launches:
        triton.autotune(configs=configs[:1], key=["n"])(sound.add)[(8,)](x, x, x, 1024)
        with pytest.raises(RuntimeError, match=r"nothing to time without a GPU; choose .* static table"):
            tuned[(8,)](x, x, x, 1024)
    assert launches[0].constexprs == {"BLOCK": 128}


def test_what_cannot_work_is_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="sm must be one of 80, 86, 89, 90, 100, 120, got 75"), dry_run(75):
        pass
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"), dry_run(80):
        pass
