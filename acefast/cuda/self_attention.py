"""Launch wrapper of csrc/self_attention.cu."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acefast.cases import Case
from acefast.checks import rows_start_at
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.kernel_config import pick

D = 128  # channels of a head
LOG2E = 1.4426950408889634
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
SHARED = 3 * 2 * 32 * D * 2  # three pieces of 32 keys and their values

# Two blocks on a multiprocessor, by registers as by shared memory, wherever there are 100 KB.
KERNELS = {("half-128", 80): Kernel("self_attention", threads=128, shared=SHARED, tiles={"ROWS": 128})}


def fits(*tensors: Tensor, head_dim: int, group: int) -> bool:
    """Whether there is a kernel for these heads, ``group`` to a key head, and these rows, each from 16 bytes on."""
    dtype = tensors[0].dtype
    return (
        dtype in NAMES
        and head_dim == D
        and group in (1, 2, 4, 8)
        and all(t.dtype == dtype and rows_start_at(t, 16) for t in tensors)
    )


def words_of(lengths: Tensor | None) -> int:
    """Numbers of 32 bits from one length to the next in memory."""
    return 0 if lengths is None else lengths.stride(0) * (lengths.itemsize // 4)


def self_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, lengths: Tensor | None = None, *, out: Tensor
) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    B, S, heads, _ = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    kernel = pick(KERNELS, f"half-{D}", current_sm())
    rows, batches = ([t.stride(n) for t in (q, k, v, out)] for n in (1, 0))
    numbers = S, group.bit_length() - 1, window, D**-0.5 * LOG2E, words_of(lengths), *rows, *batches
    grid = -(-S // (kernel["ROWS"] // group)), kv_heads, B
    entry = f"{kernel.entry}_{NAMES[q.dtype]}"
    types = "ppppp" + "iiif" + "i" + "iiii" + "llll"
    launch("self_attention", entry, grid, kernel.threads, kernel.shared, (q, k, v, lengths, out, *numbers), types)
    return out


def cases() -> tuple[Case, ...]:
    """Those of the Triton kernel, launched here."""
    from acefast.kernels import self_attention as twin

    # its main loop has in it what few of its passes do: comparing, and scaling sums anew
    found = (case for case in twin.CASES if case.config in ("2b-window", "xl-window"))
    return tuple(replace(case, launch=self_attention, sector_limit=1.05, loop_mix=7.0) for case in found)
