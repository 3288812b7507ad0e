"""Triton kernel of acefast.ops.cross_attention.

Math    u = q rsqrt(mean(q²) + eps) w per head; softmax(u k^T / sqrt(D)) v over the keys j < length
Tiling  one program per M rows of one key head: M / GROUP positions with all GROUP query heads that share it. Blocks of
        KEYS keys without comparisons, then the last one if it is ragged
Bytes   2 B S heads D + 2 B E kv_heads D, times itemsize: q in and out, keys and values, which stay in L2
Bound   tensor cores; counted as in self_attention
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.kernels.self_attention import LOG2E, LOWEST, attend, shape_class


@triton.jit
def _cross_kernel(
    q_ptr, weight_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, S, E, eps, scale,
    q_batch, q_row, k_batch, k_head, v_batch, v_head, length_batch, out_batch, out_row,
    k_row: tl.constexpr, v_row: tl.constexpr,  # constants of a model
    GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = M // GROUP
    head, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = E
    if lengths_ptr is not None:
        length = tl.minimum(tl.load(lengths_ptr + b * length_batch).to(tl.int32), E)
    r, d, n = tl.arange(0, M), tl.arange(0, D), tl.arange(0, KEYS)
    start = tl.program_id(0) * ROWS
    i, column = start + r // GROUP, (head * GROUP + r % GROUP) * D
    q_ptrs = q_ptr + b * q_batch + (i * q_row + column)[:, None] + d[None, :]
    x = tl.load(q_ptrs, mask=(i < S)[:, None], other=0.0).to(tl.float32)  # [M, D]
    weight = tl.load(weight_ptr + d).to(tl.float32) * scale  # the softmax's scale rides on the norm's weight
    norm = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
    q = (x * norm[:, None] * weight[None, :]).to(q_ptr.dtype.element_ty)
    k_ptrs = k_ptr + b * k_batch + head * k_head + (n * k_row)[:, None] + d[None, :]
    v_ptrs = v_ptr + b * v_batch + head * v_head + (n * v_row)[:, None] + d[None, :]

    high, total = tl.full([M], LOWEST, tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    whole = length // KEYS * KEYS
    for j in tl.range(0, whole, KEYS, num_stages=STAGES):
        k, v = tl.load(k_ptrs + j * k_row), tl.load(v_ptrs + j * v_row)
        high, total, acc = attend(q, k, v, high, total, acc, 1.0, None, PRECISION)
    for j in tl.range(whole, length, KEYS, num_stages=STAGES):
        live = n < length - j
        k = tl.load(k_ptrs + j * k_row, mask=live[:, None], other=0.0)
        v = tl.load(v_ptrs + j * v_row, mask=live[:, None], other=0.0)
        high, total, acc = attend(q, k, v, high, total, acc, 1.0, live[None, :], PRECISION)

    out = acc * (1.0 / tl.where(total > 0, total, float("inf")))[:, None]  # no key at all: zero
    start += tl.minimum(length, 0)  # 0, which the compiler does not know: it computes rows anew, holds no registers
    i, column = start + r // GROUP, (head * GROUP + r % GROUP) * D
    out_ptrs = out_ptr + b * out_batch + (i * out_row + column)[:, None] + d[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=(i < S)[:, None])


CONFIGS = {
    ("half-128", 80): Config({"M": 128, "KEYS": 32, "STAGES": 3}, num_warps=4),
    ("half-128", 86): Config({"M": 128, "KEYS": 32, "STAGES": 2}, num_warps=8),
    ("half-128", 89): Config({"M": 128, "KEYS": 32, "STAGES": 2}, num_warps=8),
    ("half-128", 90): Config({"M": 64, "KEYS": 32, "STAGES": 3}, num_warps=4),
    ("half-128", 120): Config({"M": 128, "KEYS": 32, "STAGES": 2}, num_warps=8),
    ("half-64", 80): Config({"M": 128, "KEYS": 32, "STAGES": 2}, num_warps=4),
    ("half-32", 80): Config({"M": 64, "KEYS": 32, "STAGES": 2}, num_warps=4),
    ("half-16", 80): Config({"M": 64, "KEYS": 32, "STAGES": 2}, num_warps=4),
    ("fp32-128", 80): Config({"M": 32, "KEYS": 32, "STAGES": 1}, num_warps=8),
    ("fp32-128", 90): Config({"M": 16, "KEYS": 16, "STAGES": 1}, num_warps=8),
    ("fp32-128", 100): Config({"M": 16, "KEYS": 16, "STAGES": 1}, num_warps=4),
    ("fp32-128", 120): Config({"M": 16, "KEYS": 16, "STAGES": 1}, num_warps=8),
    ("fp32-64", 80): Config({"M": 32, "KEYS": 32, "STAGES": 1}, num_warps=4),
    ("fp32-32", 80): Config({"M": 32, "KEYS": 32, "STAGES": 1}, num_warps=4),
    ("fp32-16", 80): Config({"M": 32, "KEYS": 32, "STAGES": 1}, num_warps=4),
}


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
    shared, kv_heads, E, D = k.shape[0] == 1, *k.shape[1:]
    group = width // (kv_heads * D)
    config = pick(CONFIGS, shape_class(q, D))
    grid = (triton.cdiv(S, config["M"] // group), kv_heads, B)
    _cross_kernel[grid](
        *(q, q_weight, k, v, lengths, out, S, E, eps, D**-0.5 * LOG2E),
        *q.stride()[:2],
        *(stride for t in (k, v) for stride in (0 if shared else t.stride(0), t.stride(1))),
        0 if shared or lengths is None else lengths.stride(0),
        *out.stride()[:2],
        *(k.stride(2), v.stride(2)),
        GROUP=group,
        D=D,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **config.options,
    )
    return out


def _reference(
    q: Tensor,
    q_weight: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    eps: float = 1e-6,
    out: Tensor,
) -> tuple[Tensor, ...]:
    D = k.shape[-1]
    u = F.rms_norm(q.unflatten(-1, (-1, D)), (D,), q_weight, eps).transpose(1, 2)
    live = torch.arange(k.shape[2], device=q.device) < lengths[:, None]  # [B or 1, E]
    k, v = (t.masked_fill(~live[:, None, :, None], 0) for t in (k, v))
    k, v = (t.repeat_interleave(u.shape[1] // t.shape[1], 1).expand(len(q), -1, -1, -1) for t in (k, v))
    found = F.scaled_dot_product_attention(u, k, v, attn_mask=live[:, None, None])
    return (found.transpose(1, 2).flatten(2),)


def _case(config: str, real: Arguments, small: Arguments) -> Case:
    def arguments(
        heads: int, kv_heads: int, D: int, S: int, E: int, lengths: list[int], device=None, generator=None
    ) -> Arguments:
        def make(*shape: int) -> Tensor:
            t = torch.empty(shape, device=device) if generator is None else torch.randn(shape, generator=generator)
            return t.bfloat16()

        B, cache = len(lengths), make(len(lengths), kv_heads, E, 2, D)
        if generator is not None:
            for t, length in zip(cache, lengths):
                t[:, length:] = torch.nan
        q, (k, v) = make(B, S, heads * D), cache.unbind(3)
        counts = torch.tensor(lengths, dtype=torch.int32, device=device)
        return {"q": q, "q_weight": make(D), "k": k, "v": v, "lengths": counts, "out": torch.empty_like(q)}

    return Case(
        kernel="cross_attention",
        config=config,
        launch=cross_attention,
        reference=_reference,
        real=lambda device: arguments(**real, device=device),
        small=lambda generator: arguments(**small, generator=generator),
        outputs=("out",),
        flops=lambda a: 4 * a["q"].numel() * a["k"].shape[2],
        bytes=lambda a: sum(a[name].numel() * a[name].itemsize for name in ("q", "k", "v", "out")),
        dots=True,
        sector_limit=1.15,
        loop_mix=3.6 if real["D"] == 128 else None,
    )


# 120 s on 512 conditions. Small: a ragged last tile of rows and a ragged last block of keys, NaN behind it.
CASES = (
    _case(
        "2b",
        {"heads": 16, "kv_heads": 8, "D": 128, "S": 1536, "E": 512, "lengths": [501]},
        {"heads": 2, "kv_heads": 1, "D": 128, "S": 80, "E": 128, "lengths": [75]},
    ),
    _case(
        "xl",
        {"heads": 32, "kv_heads": 8, "D": 128, "S": 1536, "E": 512, "lengths": [501]},
        {"heads": 4, "kv_heads": 1, "D": 128, "S": 48, "E": 128, "lengths": [75]},
    ),
    _case(
        "tiny",
        {"heads": 4, "kv_heads": 2, "D": 16, "S": 64, "E": 64, "lengths": [50]},
        {"heads": 4, "kv_heads": 2, "D": 16, "S": 48, "E": 64, "lengths": [50, 64]},
    ),
)
