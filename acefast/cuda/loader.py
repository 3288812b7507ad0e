"""Loading and launching the kernels of csrc/, by one of two paths.

ahead of time  ``acefast._cuda``, which nvcc builds when acefast is installed: machine code for all GPUs, and a launcher
at first use   CuPy's NVRTC compiles the same sources for exactly this GPU; the result is kept on disk

    launch("residual_unit", "residual_unit_c128_r128_bf16", (tiles, 1, songs), 128, 65536, arguments, 13 * "p" + "iii")

A launch goes to the current GPU and torch's current stream on it. Nothing here needs a driver or a GPU to be imported.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acefast.backends import emulated_sm
from acefast.cuda import toolkit

Value = Tensor | int | float | None
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int32, "l": ctypes.c_int64, "f": ctypes.c_float}
NO_GPU = "torch sees no CUDA GPU"
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

_allowed: dict[tuple[str, int], int] = {}  # bytes of dynamic shared memory, by entry point and GPU
_lock = threading.Lock()
_recorder: contextvars.ContextVar[Callable[..., None] | None] = contextvars.ContextVar("acefast_cuda", default=None)


@dataclass(frozen=True)
class Kernel:
    """One entry point of a source, and how it is launched: a row of a launch table, see acefast.kernel_config.pick."""

    entry: str
    threads: int
    shared: int = 0  # bytes of dynamic shared memory
    tiles: Mapping[str, int] = field(default_factory=dict)  # sizes that the entry is compiled for

    def __getitem__(self, tile: str) -> int:
        return self.tiles[tile]


def launch(
    source: str,
    entry: str,
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
    arguments: Sequence[Value],
    types: str,
) -> None:
    """Launch an entry point of csrc/<source>.cu on the current GPU and stream.

    Args:
        grid: blocks; none are launched where a size is 0.
        threads: of a block, a multiple of 32.
        shared: bytes of dynamic shared memory.
        arguments: as the entry takes them; a tensor is the address of its first element, None a null pointer.
        types: one letter per argument: p pointer, i int32, l int64, f fp32.
    Raises:
        RuntimeError: it cannot be compiled, loaded or launched; says which kernel, on which shapes and which GPU.
    """
    if len(arguments) != len(types) or threads % 32:
        raise ValueError(f"{entry}: {len(arguments)} arguments of types {types!r}, {threads} threads")
    if recorder := _recorder.get():
        recorder(source, entry, grid, threads, shared, arguments, types)
        return
    if 0 in grid:
        return
    where = "no GPU"
    try:
        device = torch.cuda.current_device()
        where = f"cuda:{device}"
        driver, function = _function(source, entry, shared, device)
        values = [a.data_ptr() if isinstance(a, Tensor) else a or 0 for a in arguments]
        stream = torch.cuda.current_stream(device).cuda_stream
        driver.launch(device, function, grid, threads, shared, stream, types, values)
    except Exception as error:
        given = ", ".join(str(list(a.shape)) if isinstance(a, Tensor) else str(a) for a in arguments)
        sizes = f"grid {grid}, {threads} threads, {shared} bytes of shared memory"
        raise RuntimeError(f"{source}: {entry} failed on {where} with ({given}), {sizes}: {_line(error)}") from error


@contextlib.contextmanager
def recorded(recorder: Callable[..., None]) -> Iterator[None]:
    """Within the block launches go to ``recorder``, with the arguments of ``launch``, and to no GPU."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def recording() -> bool:
    """Whether launches go to a recorder and need no GPU."""
    return _recorder.get() is not None


def current_sm() -> int:
    """The compute capability that launches go to, 80 for an A100."""
    return emulated_sm() or sm_of(torch.cuda.current_device())


@functools.cache
def sm_of(device: int) -> int:
    """The compute capability of a GPU by its index."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


# -- paths -------------------------------------------------------------------------------------------------------------


def paths(sm: int | None) -> dict[str, str]:
    """Each path by name: that it is in force on a GPU of ``sm``, or why it is not; without a GPU, ``sm`` is None."""
    ahead, later = why_not_ahead(sm), why_not_at_first_use()
    if not later:
        later = "" if sm else NO_GPU
    if not ahead:
        later = f"not needed{f', and not possible: {later}' if later else ''}"
    kept = f"in force, kept in {toolkit.cache_folder()}"
    return {"ahead of time": ahead or "in force", "at first use": later or kept}


def why_not_ahead(sm: int | None) -> str:
    """Why the kernels built ahead of time cannot run on the GPU of ``sm`` here; empty where they can."""
    try:
        from acefast import _cuda
    except ImportError:
        return "acefast was installed without nvcc"
    if _cuda.sources != {name: toolkit.fingerprint(name) for name in toolkit.sources()}:
        return "acefast._cuda was built from other sources than those that are here; install acefast again"
    if sm is None:
        return NO_GPU
    built, driver = _cuda.cuda_version, _cuda.driver_version()
    versions = f"acefast._cuda was built with CUDA {_release(built)}, the driver is of CUDA {_release(driver)}"
    if not driver:
        return "there is no CUDA driver"
    if any(arch // 10 == sm // 10 and arch <= sm for arch in _cuda.archs):  # machine code: of the same major release
        return versions if built // 1000 > driver // 1000 else ""
    if max(_cuda.archs) <= sm:  # PTX, which the driver itself compiles
        return versions if built > driver else ""
    return f"acefast._cuda was built for sm_{', sm_'.join(map(str, _cuda.archs))} and the GPU is sm_{sm}"


def why_not_at_first_use() -> str:
    """Why kernels cannot be compiled at first use on this machine; empty where they can."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except ImportError as error:
        missing = error.name in ("cupy", "cupy.cuda")
        return "CuPy is not installed" if missing else f"CuPy cannot be imported: {_line(error)}"
    except Exception as error:  # RuntimeError where NVRTC's own library is missing
        return f"CuPy finds no NVRTC: {_line(error)}"
    return ""


def why_unavailable(sm: int) -> str:
    """Why no kernel of csrc/ can run on the GPU here, which is of ``sm``; empty where one of the paths is open."""
    ahead, later = why_not_ahead(sm), why_not_at_first_use()
    return f"{ahead}, and {later}" if ahead and later else ""


@functools.cache
def _function(source: str, entry: str, shared: int, device: int) -> tuple[Any, int]:
    """The driver in force, and an entry point loaded on a GPU and allowed so much dynamic shared memory.

    The driver has one limit for an entry point, which must not fall: others may have been allowed more.
    """
    with _lock:
        driver, module = _module(source, entry, device)
        most = max(shared, _allowed.get((entry, device), 0))
        function = driver.function(module, entry, most)
        _allowed[entry, device] = most  # now that the driver has agreed
        return driver, function


@functools.cache
def _module(source: str, entry: str, device: int) -> tuple[Any, int]:
    """The driver in force, and what has an entry point loaded on a GPU."""
    sm = sm_of(device)
    if not (ahead := why_not_ahead(sm)):
        from acefast import _cuda

        return _cuda, _ahead(source, device)
    if reason := why_not_at_first_use():
        raise RuntimeError(f"{ahead}, and {reason}")
    driver = _CuPyDriver()
    return driver, driver.load(device, compiled_by_nvrtc(source, entry, sm))


@functools.cache
def _ahead(source: str, device: int) -> int:
    """A source's module of ``acefast._cuda``, loaded on a GPU."""
    from acefast import _cuda

    return _cuda.load(device, _cuda.image(source))


def compiled_by_nvrtc(source: str, entry: str, sm: int) -> bytes:
    """Machine code of an entry point, or of all where it is "", for one GPU, by CuPy's NVRTC; kept on disk.

    Raises:
        CompileError: NVRTC refuses.
    """
    from cupy.cuda import nvrtc

    def make(to: Path) -> None:
        program = nvrtc.createProgram(toolkit.text_of(source, entry), f"{source}.cu", [], [])
        try:
            nvrtc.compileProgram(program, ["-std=c++17", f"-arch=sm_{sm}"])
            to.write_bytes(nvrtc.getCUBIN(program) + b"\0")  # CuPy leaves out the last byte, a high one of a size
        except nvrtc.NVRTCError as error:
            raise toolkit.CompileError(f"{source}: {nvrtc.getProgramLog(program).strip()}") from error
        finally:
            nvrtc.destroyProgram(program)

    major, minor = nvrtc.getVersion()
    return toolkit.kept(source, entry, sm, f"nvrtc{major}.{minor}", "cubin", make)


class _CuPyDriver:
    """What ``acefast._cuda`` does, through CuPy's binding of the driver."""

    def load(self, device: int, image: bytes) -> int:
        from cupy.cuda import driver, runtime

        runtime.setDevice(device)
        return driver.moduleLoadData(image)

    def function(self, module: int, entry: str, shared: int) -> int:
        from cupy.cuda import driver

        found = driver.moduleGetFunction(module, entry)
        driver.funcSetAttribute(found, _MAX_DYNAMIC_SHARED, shared)
        return found

    def launch(
        self,
        device: int,
        function: int,
        grid: tuple[int, int, int],
        threads: int,
        shared: int,
        stream: int,
        types: str,
        values: Sequence[int | float],
    ) -> None:
        from cupy.cuda import driver, runtime

        runtime.setDevice(device)  # whose context a thread may not have yet
        packed = [TYPES[letter](value) for letter, value in zip(types, values)]
        addresses = (ctypes.c_void_p * len(packed))(*map(ctypes.addressof, packed))
        driver.launchKernel(function, *grid, threads, 1, 1, shared, stream, ctypes.addressof(addresses), 0)


def _release(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
