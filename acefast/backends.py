"""Which implementation of an op runs: argument > ``use_backend`` > ``$ACEFAST_BACKEND`` > auto.

A backend asked for by name runs or raises ``BackendUnavailable`` with the reason. Auto takes, on a GPU, the fastest of
the op's kernels that is available, see acefast.orders; on a CPU ``cpu`` where the op has it; else the reference.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import torch

from acefast.orders import FIRST, fastest_first

OLDEST_SM = 80  # of the GPUs that kernels are made for: before it there is no bf16 and too little shared memory
BACKENDS = ("reference", "triton", "cuda", "cpu")

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("acefast_backend", default=None)
_emulated: contextvars.ContextVar[int | None] = contextvars.ContextVar("acefast_emulated", default=None)


class BackendUnavailable(RuntimeError):
    """A backend asked for by name cannot run here or cannot take this input."""


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block, ops run on backend ``name``: "reference", "triton", "cuda", "cpu" or "auto".

    Raises:
        BackendUnavailable: ``name`` is not a backend, or it cannot run on this machine.
    """
    _check_name(name)
    if name != "auto" and (reason := why_unavailable(name)):
        raise BackendUnavailable(f"backend={name!r} cannot run: {reason}; try backend='reference'")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def choose_backend(
    op: str, backend: str | None, device: torch.device, order: Sequence[str] = (), shape_class: str = ""
) -> str:
    """The backend that op ``op`` runs on.

    Args:
        backend: the op's own ``backend=`` argument.
        device: where the op's input lies.
        order: the op's kernels that fit this input; "reference" always fits and is left out. What acefast.orders does
            not know goes in this order.
        shape_class: of the input, where acefast.orders tells an op's classes apart.
    Raises:
        BackendUnavailable: the backend asked for cannot run, or ``op`` has no such kernel for this input.
    """
    name = named_backend(backend)
    _check_name(name)
    if name == "reference":
        return name
    if name == "auto":
        able = [b for b in order if (b == "cpu") == (device.type == "cpu")]
        able = [b for b in able if not (why_unavailable(b) or _why_elsewhere(b, device))]
        if len(able) > 1 and {op, f"{op}/{shape_class}"} & FIRST.keys():
            able = fastest_first(op, able, emulated_sm() or _sm(torch.cuda.current_device()), shape_class)
        return able[0] if able else "reference"
    reason = why_unavailable(name) or (_why_elsewhere(name, device) if name in order else "")
    if not reason and name not in order:
        # Only an op's own argument insists on this op: a model under use_backend("triton") may contain ops that
        # have no Triton kernel, and those run on the reference.
        if backend is None:
            return "reference"
        reason = f"it has no {name} kernel for this input"
    if reason:
        raise BackendUnavailable(f"{op}: backend={name!r} cannot run: {reason}; try backend='reference'")
    return name


def named_backend(backend: str | None = None) -> str:
    """The backend asked for: by an op's own argument, ``use_backend`` or the environment; "auto" if by none."""
    return backend or _chosen.get() or os.environ.get("ACEFAST_BACKEND") or "auto"


@contextlib.contextmanager
def emulated(sm: int = 80) -> Iterator[None]:
    """Within the block Triton kernels count as able to run without a GPU, which is taken for one of ``sm``.

    Entered by whatever stands in for the GPU, on tensors of the CPU or of "meta": ``acefast.sim``'s dry run, which
    compiles and records launches, those of CUDA kernels too, and its interpreter.
    """
    token = _emulated.set(sm)
    try:
        yield
    finally:
        _emulated.reset(token)


def emulated_sm() -> int | None:
    """The sm that an ``emulated`` block stands for; 80 where Triton interprets its kernels; else None."""
    return _emulated.get() or (80 if os.environ.get("TRITON_INTERPRET") == "1" else None)


def why_unavailable(name: str) -> str:
    """Why backend ``name`` cannot run on this machine, in a few words; empty when it can."""
    if name == "cuda" and _without_gpu(name):
        return ""  # nvcc compiles what is recorded, neither path is taken
    if reason := _why_not_installed(name):
        return reason
    if name in ("reference", "cpu") or _without_gpu(name):
        return ""
    if not _sees_gpu():
        return "torch sees no CUDA GPU"
    return _why_not_loaded(_sm(torch.cuda.current_device())) if name == "cuda" else ""


def _without_gpu(name: str) -> bool:
    """Whether something stands in for the GPU that kernels of this kind need."""
    return bool(emulated_sm()) if name == "triton" else name == "cuda" and bool(_cuda_loader().recording())


@functools.cache
def _why_not_loaded(sm: int) -> str:
    return _cuda_loader().why_unavailable(sm)


def _cuda_loader() -> ModuleType:
    from acefast.cuda import loader  # which needs this module

    return loader


def _why_elsewhere(name: str, device: torch.device) -> str:
    """Why a GPU's kernels cannot run on a tensor of ``device``: they are launched on the current GPU, nowhere else."""
    if name not in ("triton", "cuda") or _without_gpu(name):
        return ""
    if device.type != "cuda":
        return f"its kernels need CUDA tensors and the input is on {device.type!r}"
    if not _sees_gpu():
        return ""
    current = torch.cuda.current_device()
    if device.index not in (None, current):
        way_out = f"call it within torch.cuda.device({device.index})"
        return f"its input is on {device}, the current GPU is cuda:{current}; {way_out}"
    if (sm := _sm(current)) < OLDEST_SM:
        return f"its kernels are for GPUs of sm_{OLDEST_SM} or later and cuda:{current} is sm_{sm}"
    return ""


@functools.cache
def _sm(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@functools.cache
def _sees_gpu() -> bool:
    return torch.cuda.is_available()


@functools.cache
def _why_not_installed(name: str) -> str:
    if name == "triton":
        if not _triton_kernels():
            return "this version has no Triton kernels"
        return "" if importlib.util.find_spec("triton") else "triton is not installed"
    if name == "cuda":
        found = any(map(importlib.util.find_spec, ("acefast._cuda", "cupy")))
        return "" if found else "acefast was installed without nvcc, and CuPy is not installed"
    if name == "cpu":
        if not importlib.util.find_spec("acefast._cpu"):
            return "acefast was installed without its C++ kernels for the CPU"
        try:
            importlib.import_module("acefast._cpu")
        except ImportError as error:
            return f"acefast._cpu cannot be loaded: {error}"
    return ""


def kernels_take(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether Triton's kernels are in force for an autoencoder, whose dtype has to have 16 bits."""
    fits = dtype in (torch.float16, torch.bfloat16)
    return choose_backend("vae", None, device, ("triton",) if fits else ()) == "triton"


def cpu_kernels_take(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the CPU's kernels are in force for a layer of this dtype; they take bf16."""
    return choose_backend("cpu", None, device, ("cpu",) if dtype == torch.bfloat16 else ()) == "cpu"


@functools.cache
def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of a 16-bit ``dtype`` faster than fp32 ones.

    On x86 only those with AMX tiles for it do, and AMD's with AVX-512 BF16, whose dot products run at twice the rate of
    fp32 (measured, 2 cores of a Zen 4: 430 against 180 GFLOP/s); Intel's run at half. Where nothing is known of an x86
    CPU the answer is no: fp32 is never far behind there, emulated 16 bits are.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return True  # Arm and others
    vendor, flags = _cpu_vendor_and_flags()
    if dtype == torch.bfloat16:
        return "amx_bf16" in flags or (vendor == "AuthenticAMD" and "avx512_bf16" in flags)
    return "amx_fp16" in flags


def _cpu_vendor_and_flags() -> tuple[str, set[str]]:
    """What Linux says of the first CPU; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "", set()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return facts.get("vendor_id", ""), set(facts.get("flags", "").split())


def _triton_kernels() -> list[str]:
    found = importlib.util.find_spec("acefast.kernels")  # None in a source tree that is not installed
    return [m.name for m in pkgutil.iter_modules(found.submodule_search_locations)] if found else []


def _check_name(name: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise BackendUnavailable(f"backend={name!r} is unknown; it is one of {', '.join(BACKENDS)} or auto")
