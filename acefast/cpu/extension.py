"""The CPU's kernels as setup.py built them, ``acefast._cpu``: how they are called, and on how many threads."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from acefast.backends import BackendUnavailable, why_unavailable

K_STEP = 32  # of which the inner size of a product is a multiple


@functools.cache
def extension() -> ModuleType:
    """``acefast._cpu``; torch is there before it, whose OpenMP it takes.

    Raises:
        ImportError: it was not built; acefast.backends says so first.
        BackendUnavailable: ``$ACEFAST_ISA`` is none.
    """
    from acefast import _cpu

    try:
        _cpu.isa()  # reads the environment
    except ValueError as error:
        raise BackendUnavailable(f"backend='cpu' cannot run: {error}") from error
    return _cpu


def instructions() -> dict[str, str]:
    """Names of the ``instructions`` in use, of what is ``supported`` by CPU and compiler, and of the two engines;
    ``problem`` in their place where there is one."""
    if reason := why_unavailable("cpu"):
        return {"problem": reason}
    try:
        cpu = extension()
    except BackendUnavailable as error:
        return {"problem": str(error)}
    found = {"instructions": cpu.isa(), "supported": cpu.supported()}
    return {**found, "engine": cpu.engine(), "engine8": cpu.engine8()}


def threads() -> int:
    """How many threads a kernel may use: torch's."""
    return torch.get_num_threads()


def address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers begin; 0 stands for none."""
    return 0 if tensor is None else tensor.data_ptr()


def rows(tensor: Tensor) -> tuple[int, int]:
    """Number of rows of [..., C], and elements from one to the next; see acefast.checks.is_rows."""
    flat = tensor.view(-1, tensor.shape[-1])
    return len(flat), flat.stride(0)


def contiguous(*tensors: Tensor | None) -> bool:
    """Whether all are contiguous, None left out."""
    return all(t is None or t.is_contiguous() for t in tensors)


def is_bf16(*tensors: Tensor | None) -> bool:
    """Whether all are bf16 numbers in a CPU's memory, None left out."""
    return all(t is None or (t.dtype == torch.bfloat16 and t.device.type == "cpu") for t in tensors)
