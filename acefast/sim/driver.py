"""A driver for a GPU that is not there: real launch code specialises and compiles, nothing runs.

    with dry_run(80) as launches:
        op(x, backend="triton")  # x on the CPU, on "meta" or fake: only shapes, dtypes and addresses matter
    launches[0].grid, launches[0].ptx, launches[0].kernel.metadata.shared

Within the block every ``kernel[grid](...)`` goes through Triton's own specialisation (divisible by 16, equal to 1) and
compiler for the chosen sm, exactly as on such a GPU, and is recorded; so is every launch of a CUDA kernel, which nvcc
compiles. What the GPU would refuse is refused: more shared memory than a block may have (Triton's OutOfResources,
CompileError), a grid beyond the hardware's limits. A running ``graph.check_step`` is told of every launch. Afterwards
Triton's driver is the one it was. Triton's active driver belongs to the process, so use it from one thread.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from acefast.backends import emulated
from acefast.cuda import loader, toolkit
from acefast.cuda.toolkit import CompileError
from acefast.sim.graph import note_launch

BLOCK_SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}  # bytes a block may ask
MULTIPROCESSORS = {80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}  # A100, A40, L40-class, H100, B200, RTX 5090
GRID_LIMIT = (2**31 - 1, 65535, 65535)
_LETTERS = {"u64": "l", "s64": "l", "b64": "l", "u32": "i", "s32": "i", "b32": "i", "f32": "f"}  # of loader.launch


@dataclass(frozen=True)
class Argument:
    """One argument of a launch, as Triton specialised it; no tensor is kept alive, ``address`` may outlive its own.

    Those of a CUDA kernel have the letter that ``loader.launch`` was given as their type.
    """

    type: str  # Triton's: "*bf16", "i32", "fp32"; "constexpr" also for a number that is 1 and for None
    value: Any = None  # of anything but a tensor
    shape: tuple[int, ...] | None = None  # of a tensor, as are the next two
    strides: tuple[int, ...] | None = None
    dtype: Any = None
    divisible_by_16: bool = False  # the address of a tensor, the value of an int
    address: int | None = None  # of a tensor's first element; on "meta" only what its offset makes of 0


@dataclass(frozen=True)
class Launch:
    """One ``kernel[grid](...)``, or one launch of a CUDA kernel: what would have run, and the compiled kernel."""

    name: str
    sm: int
    grid: tuple[int, int, int]
    arguments: dict[str, Argument]  # every parameter by name, constexprs included
    kernel: Any  # triton's CompiledKernel: .asm["ttgir" | "ptx" | "cubin" | ...], .metadata; of CUDA the like of it

    @property
    def constexprs(self) -> dict[str, Any]:
        return {name: a.value for name, a in self.arguments.items() if a.type == "constexpr"}

    @property
    def num_warps(self) -> int:
        return self.kernel.metadata.num_warps

    @property
    def num_stages(self) -> int:
        return self.kernel.metadata.num_stages

    @property
    def shared_bytes(self) -> int:
        return self.kernel.metadata.shared

    @property
    def ptx(self) -> str:
        return self.kernel.asm["ptx"]

    @property
    def cubin(self) -> bytes:
        return self.kernel.asm["cubin"]


@contextlib.contextmanager
def dry_run(sm: int = 80) -> Iterator[list[Launch]]:
    """Within the block, Triton compiles for ``sm`` and launches are recorded in the list this yields, not run.

    Raises:
        ValueError: ``sm`` is not one of ``BLOCK_SHARED_LIMIT``.
        RuntimeError: triton is not installed, or its kernels are interpreted in this process.
    """
    if sm not in BLOCK_SHARED_LIMIT:
        raise ValueError(f"dry_run: sm must be one of {', '.join(map(str, BLOCK_SHARED_LIMIT))}, got {sm}")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError("dry_run: TRITON_INTERPRET is set, so kernels would run instead of compile; unset it")
    try:
        from triton.runtime.driver import driver
    except ImportError as error:
        raise RuntimeError("dry_run: triton is not installed; pip install triton") from error
    before, stub = driver._active, _stub_driver()(sm)
    driver._active = stub  # set_active, without which a machine that has no driver could not be put back
    try:
        with emulated(sm), loader.recorded(_CudaRecorder(sm, stub.launches)):
            yield stub.launches
    finally:
        driver._active = before


@cache
def _stub_driver() -> type:
    """The driver class, which can only be defined once Triton is imported."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class StubDriver(DriverBase):
        def __init__(self, sm: int) -> None:
            self.sm = sm
            self.launches: list[Launch] = []
            self.utils = _Utils(sm)
            self.launcher_cls = _Recorder

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", self.sm, 32)

        def get_current_device(self) -> str:
            return f"dry run sm_{self.sm}"  # Triton keys its caches by this: never shared with a real device

        def set_current_device(self, device: object) -> None:
            pass

        def get_current_stream(self, device: object = None) -> int:
            return 0

        def get_active_torch_device(self) -> str:
            return "cpu"

        def map_python_to_cpp_type(self, ty: str) -> str:
            return ty

        def get_benchmarker(self) -> None:
            raise RuntimeError("dry_run: nothing to time without a GPU; choose the configuration from a static table")

    return StubDriver


class _Utils:
    """What Triton asks of a device: its limits, and a place for the binary, which none is here."""

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def get_device_properties(self, device: object) -> dict[str, int]:
        return {
            "max_shared_mem": BLOCK_SHARED_LIMIT[self.sm],
            "max_num_regs": 65536,
            "multiprocessor_count": MULTIPROCESSORS[self.sm],
            "warpSize": 32,
        }

    def load_binary(self, name: str, cubin: bytes, shared: int, device: object) -> tuple:
        return None, None, 0, 0, 1024  # no module to unload later, no function; registers, spills, threads a block


class _Recorder:
    """Stands where Triton's launcher would: made once per compiled kernel, called once per launch."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.src = src

    def __call__(self, x: int, y: int, z: int, stream: int, function: None, packed: Any, *rest: Any) -> None:
        from triton.runtime.driver import driver

        name, stub = self.src.fn.__name__, driver.active
        if not isinstance(stub, _stub_driver()):
            raise RuntimeError(f"{name}: compiled in a dry run, cannot be launched after it")
        grid = (x, y, z)
        if not _has_blocks(name, grid):
            return
        values = rest[3:]  # after the launch's metadata and two hooks
        arguments = {n: self._argument(i, n, value) for i, (n, value) in enumerate(zip(self.src.fn.arg_names, values))}
        compiled = self.src.fn.device_caches[stub.get_current_device()][0].values()
        kernel = next(kernel for kernel in compiled if kernel.src is self.src)
        stub.launches.append(Launch(name, stub.sm, grid, arguments, kernel))
        note_launch(name, *(value for value in values if hasattr(value, "data_ptr")))

    def _argument(self, index: int, name: str, value: Any) -> Argument:
        type = self.src.signature[name]
        divisible = ["tt.divisibility", 16] in (self.src.attrs.get((index,)) or [])
        return _as_argument(type, value, divisible)


@dataclass(frozen=True)
class _CudaRecorder:
    """Stands where ``acefast.cuda.loader`` would launch."""

    sm: int
    launches: list[Launch]

    def __call__(
        self,
        source: str,
        entry: str,
        grid: tuple[int, int, int],
        threads: int,
        shared: int,
        arguments: Sequence[Any],
        types: str,
    ) -> None:
        if not _has_blocks(entry, grid):
            return
        if shared > BLOCK_SHARED_LIMIT[self.sm]:
            limit = f"a block of sm_{self.sm} has {BLOCK_SHARED_LIMIT[self.sm]}"
            raise CompileError(f"{entry}: out of resource: {shared} bytes of shared memory, {limit}")
        ptx, cubin = toolkit.compiled(source, entry, self.sm)
        _check_types(entry, ptx, types, arguments)
        metadata = SimpleNamespace(name=entry, num_warps=threads // 32, num_stages=1, shared=shared)
        kernel = SimpleNamespace(asm={"ptx": ptx, "cubin": cubin}, metadata=metadata)
        named = {f"argument {i}": _as_argument(*one) for i, one in enumerate(zip(types, arguments))}
        self.launches.append(Launch(entry, self.sm, grid, named, kernel))
        note_launch(entry, *(value for value in arguments if hasattr(value, "data_ptr")))


def _check_types(entry: str, ptx: str, types: str, arguments: Sequence[Any]) -> None:
    """Raise CompileError unless an entry's parameters are what ``types`` calls them, and every integer fits its own.

    A GPU would be handed the wrong bytes and not notice.
    """
    parameters = re.search(rf"\.entry {entry}\(([^)]*)\)", ptx)[1]
    have = "".join(_LETTERS.get(kind, "?") for kind in re.findall(r"\.param \.(\w+)", parameters))
    if have != types.replace("p", "l"):
        raise CompileError(f"{entry}: takes {have} (a pointer is an l), and is launched with {types}")
    for letter, value in zip(types, arguments):
        if letter == "i" and not -(2**31) <= value < 2**31:
            raise CompileError(f"{entry}: {value} is no int32")


def _has_blocks(name: str, grid: tuple[int, int, int]) -> bool:
    """Whether anything is launched: not with a size of 0, by Triton or acefast.cuda; ValueError beyond the limits."""
    if any(have > limit for have, limit in zip(grid, GRID_LIMIT)):
        raise ValueError(f"{name}: grid must be at most {GRID_LIMIT}, got {grid}")
    return 0 not in grid


def _as_argument(type: str, value: Any, divisible: bool = False) -> Argument:
    if not hasattr(value, "data_ptr"):
        return Argument(type, value, divisible_by_16=divisible)
    shape, strides = tuple(value.shape), tuple(value.stride())
    return Argument(type, None, shape, strides, value.dtype, divisible, value.data_ptr())
