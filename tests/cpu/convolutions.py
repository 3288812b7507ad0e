"""What tests of the CPU's convolutions share: the gate, results within memory that must stay as it is, threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

GATE = 4e-3  # relative L2 of bf16
SENTINEL = -77.0


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


def accurate(got: Tensor, want: Tensor, reference: Tensor) -> bool:
    """Whether bf16 ``got`` is as near to fp64 ``want`` as the gate and the reference ask for."""
    return relative(got, want) <= min(GATE, 1.1 * relative(reference, want))


def waves(C: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.rand(C, generator=rng) * 4 + 0.1, torch.rand(C, generator=rng) * 2


def snaked(y: Tensor, alpha: Tensor, inv_beta: Tensor) -> Tensor:
    """In fp64."""
    y = y.double()
    return y + inv_beta.double() * (alpha.double() * y).sin() ** 2


def between_sentinels(*shape: int) -> tuple[Tensor, Tensor]:
    """Rows for results, and the memory around them: a cache line of sentinels on either side."""
    memory = torch.full((64 + torch.Size(shape).numel(),), SENTINEL, dtype=torch.bfloat16)
    return memory[32:-32].view(shape), memory


def untouched(memory: Tensor) -> bool:
    """Whether the sentinels on either side are still there."""
    return bool((memory[:32] == SENTINEL).all() and (memory[-32:] == SENTINEL).all())


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
