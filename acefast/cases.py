"""The kernel configurations that are proved: each room in ``kernels/`` lists its own as ``CASES``, each in
``acefast/cuda/`` gives its own as ``cases()``, which may be made of those of its twin in ``kernels/``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One kernel configuration: compiled at real size, run in the simulator at a few tiles.

    Outputs are compared in the order of ``outputs``, a None within a tuple left out; where the reference is NaN an
    element has no meaning and is not looked at. An output that shares memory with an input, or that the reference
    reads, is one in place; any other starts as NaN.
    """

    kernel: str  # the op's name
    config: str  # "h2048-gate-modulate", "2b-window"
    launch: Callable[..., Any]  # the wrapper in kernels/ or acefast/cuda/, which allocates nothing
    reference: Callable[..., tuple[Tensor, ...]]  # same keyword arguments; what the outputs mean, at their precision
    real: Callable[[torch.device], Arguments]  # keyword arguments at real size; integer tensors have their values
    small: Callable[[torch.Generator], Arguments]  # the same at a few tiles, on the CPU
    outputs: tuple[str, ...]  # which keyword arguments the launch writes; each a tensor or a tuple of them
    flops: Callable[[Arguments], float]  # counted at given arguments, as are the bytes
    bytes: Callable[[Arguments], float]
    dots: bool = False  # has matrix products: tensor cores and asynchronous copies must be in use
    sector_limit: float = 1.05  # sectors over the fewest that hold what is asked for
    wavefront_limit: float = 1.1
    loop_mix: float | None = None  # most other instructions per tensor-core one in the main loop, on sm_80
    tolerance: float = 4e-3  # relative L2 against fp64, bf16
    plain: Callable[..., tuple[Tensor, ...]] | None = None  # what PyTorch makes of it in bf16; None: the reference
    ordered: bool = False  # programs hand data over by their own atomics: no search for races between them

    @property
    def name(self) -> str:
        return f"{self.kernel}/{self.config}"

    @property
    def family(self) -> str:
        """Of the kernel, "triton" or "cuda": where its wrapper is."""
        return "cuda" if self.launch.__module__.startswith(FAMILIES["cuda"]) else "triton"


FAMILIES = {"triton": "acefast.kernels", "cuda": "acefast.cuda"}


def all_cases(family: str = "triton") -> tuple[Case, ...]:
    """Every case of every kernel of a family, by name; imports triton.

    Raises:
        ImportError: triton is not installed, or these sources are not (``pip install -e .``).
        ValueError: two cases have one name.
    """
    package = importlib.import_module(FAMILIES[family])
    rooms = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    listed = [getattr(room, "CASES", ()) if family == "triton" else getattr(room, "cases", tuple)() for room in rooms]
    found = sorted((case for cases in listed for case in cases), key=lambda case: case.name)
    names = [case.name for case in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two cases are called {twice}")
    return tuple(found)
