"""Launch wrapper of csrc/snake.cu."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acefast.cases import Case
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.guarded import GUARD, whole
from acefast.kernel_config import pick

BYTES = 16 * 256  # that the threads of a block cover in one pass
PASSES = 4
KERNELS = {
    ("bfloat16", 80): Kernel("snake_bf16", threads=256),
    ("float16", 80): Kernel("snake_fp16", threads=256),
    ("float32", 80): Kernel("snake_fp32", threads=256),
}


def fits(x: Tensor) -> bool:
    """Whether a block's pass is whole rows of [B, L, C]."""
    return BYTES % (x.shape[2] * x.itemsize) == 0


def snake(x: Tensor, alpha: Tensor, inv_beta: Tensor, *, out: Tensor) -> None:
    """Launches the kernel on guarded rows; the op has checked the inputs."""
    B, L, C = x.shape
    kernel = pick(KERNELS, str(x.dtype).removeprefix("torch."), current_sm())
    rows = PASSES * (BYTES // (C * x.itemsize))
    arguments = whole(x), alpha, inv_beta, whole(out), L, C, GUARD
    launch("snake", kernel.entry, (-(-L // rows), 1, B), kernel.threads, 8 * C, arguments, "pppplii")


def cases() -> tuple[Case, ...]:
    """Those of the Triton kernel, launched here."""
    from acefast.kernels import snake as twin

    return tuple(replace(case, launch=snake) for case in twin.CASES if fits(case.real(torch.device("meta"))["x"]))
