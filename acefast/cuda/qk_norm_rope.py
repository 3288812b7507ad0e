"""Launch wrapper of csrc/qk_norm_rope.cu."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acefast.cases import Case
from acefast.checks import rows_start_at
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.kernel_config import pick

HEAD_DIM = 128
THREADS = 128
ROWS = THREADS // 16  # of a block
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


# 8 heads would read cos and sin less often and leave fewer blocks to a short song: on an H100 they took 5.0 us, not
# 4.4, at 30 s, 9.2, not 10.4, at 120 s, and 17.6, not 17.2, at 240 s.
KERNELS = {("heads", 80): Kernel("qk_norm_rope_h4", THREADS, tiles={"HEADS": 4})}


def fits(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    out: Tensor,
) -> bool:
    """Whether the kernel takes heads so wide, in groups of 4 that are all of queries or all of keys."""
    same, fp32 = (qkv, q_weight, k_weight, out), [t for t in (cos, sin) if t is not None]
    return (
        k_weight.shape[0] == HEAD_DIM
        and heads % 4 == kv_heads % 4 == 0
        and qkv.dtype in NAMES
        and all(t.dtype == qkv.dtype for t in same)
        and all(t.dtype == torch.float32 for t in fp32)
        and all(rows_start_at(t, 4 * t.itemsize) for t in (*same, *fp32))
    )


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    *,
    eps: float = 1e-6,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launches the kernel; the op has checked the inputs. ``out`` is [B, S, the queries and keys or more]."""
    B, S, _ = qkv.shape
    kernel = pick(KERNELS, "heads", current_sm())
    places = *qkv.stride()[:2], *out.stride()[:2], *(0 if t is None else t.stride(0) for t in (cos, sin))
    arguments = qkv, q_weight, k_weight, cos, sin, out, S, heads, *places, eps
    grid = -(-S // ROWS), (heads + kv_heads) // kernel["HEADS"], B
    launch("qk_norm_rope", f"{kernel.entry}_{NAMES[qkv.dtype]}", grid, THREADS, 0, arguments, "ppppppiillllllf")
    q, k = out[..., : (heads + kv_heads) * HEAD_DIM].unflatten(-1, (heads + kv_heads, -1)).split((heads, kv_heads), 2)
    return q, k, qkv[..., (heads + kv_heads) * HEAD_DIM :].unflatten(-1, (kv_heads, HEAD_DIM))


def cases() -> tuple[Case, ...]:
    """Those of the Triton kernel, launched here."""
    from acefast.kernels.qk_norm_rope import CASES

    return tuple(replace(case, launch=qk_norm_rope) for case in CASES)
