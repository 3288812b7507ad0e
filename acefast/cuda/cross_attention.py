"""Launch wrapper of csrc/cross_attention.cu."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from acefast.cases import Case
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.cuda.self_attention import LOG2E, NAMES, SHARED, D, fits, words_of
from acefast.kernel_config import pick

__all__ = ["KERNELS", "cases", "cross_attention", "fits"]
KERNELS = {("half-128", 80): Kernel("cross_attention", threads=128, shared=SHARED, tiles={"ROWS": 128})}


def cross_attention(
    q: Tensor,
    q_weight: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    eps: float = 1e-6,
    out: Tensor,
) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    B, S, width = q.shape
    shared, kv_heads, E, _ = k.shape[0] == 1, *k.shape[1:]
    group = width // (kv_heads * D)
    kernel = pick(KERNELS, f"half-{D}", current_sm())
    rows = q.stride(1), k.stride(2), v.stride(2), out.stride(1)
    keys = [stride for t in (k, v) for stride in (0 if shared else t.stride(0), t.stride(1))]
    numbers = S, E, group.bit_length() - 1, eps, D**-0.5 * LOG2E, 0 if shared else words_of(lengths)
    arguments = q, q_weight, k, v, lengths, out, *numbers, *rows, q.stride(0), *keys, out.stride(0)
    grid = -(-S // (kernel["ROWS"] // group)), kv_heads, B
    entry = f"{kernel.entry}_{NAMES[q.dtype]}"
    types = "pppppp" + "iii" + "ff" + "i" + "iiii" + "llllll"
    launch("cross_attention", entry, grid, kernel.threads, kernel.shared, arguments, types)
    return out


def cases() -> tuple[Case, ...]:
    """Those of the Triton kernel, launched here."""
    from acefast.kernels import cross_attention as twin

    found = (case for case in twin.CASES if case.config in ("2b", "xl"))
    return tuple(replace(case, launch=cross_attention, sector_limit=1.05, loop_mix=7.0) for case in found)
