"""Triton kernel of acefast.ops.self_attention with a window.

Math    softmax(q k^T / sqrt(D)) v over the keys with |i - j| <= WINDOW and j < length; rows from length on are zero
Tiling  one program per M rows of one key head: M / GROUP positions with all GROUP query heads that share it, so that
        each key is loaded once for the group. Blocks of KEYS keys: first those that every row sees whole, without
        comparisons, then those at the window's ends or the song's end (before the others they would cost spills)
Bytes   2 B S (heads + kv_heads) D itemsize: q, k, v in, out; keys and values come from L2 after the first time
Bound   tensor cores. Counted per KEYS keys of an M = 128 tile, sm_80: 1024 cycles of mma, 768 of shared memory, 575
        issue slots; 8 warps on 64 keys need 2304 of shared memory where mma needs 2048
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick

LOG2E = 1.4426950408889634
HIDDEN = tl.constexpr(-1e30)  # score of a key that a row does not see
LOWEST = tl.constexpr(-1e20)  # where a row's maximum starts: above any hidden score times the scale, so 2**(..) is 0
HIGHEST = tl.constexpr(1e30)  # where it starts in a row of padding, for which no key counts then


@triton.jit
def attend(q, k, v, high, total, acc, scale, visible, PRECISION: tl.constexpr):
    """Online softmax in base 2: one more block of keys; ``visible`` [M, KEYS] or None for all of it."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [M, KEYS]
    if visible is not None:
        s = tl.where(visible, s, HIDDEN)
    higher = tl.maximum(high, tl.max(s, 1) * scale)
    p = tl.exp2(tl.fma(s, scale, -higher[:, None]))
    shrink = tl.exp2(high - higher)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return higher, total, acc


@triton.jit
def _window_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, S, scale,
    q_batch, q_row, k_batch, v_batch, out_batch, out_row,
    k_row: tl.constexpr, v_row: tl.constexpr,  # constants of a model
    WINDOW: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, M: tl.constexpr, KEYS: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = M // GROUP
    start, head, b = tl.program_id(0) * ROWS, tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = S
    if lengths_ptr is not None:
        length = tl.minimum(tl.load(lengths_ptr + b).to(tl.int32), S)
    r, d, n = tl.arange(0, M), tl.arange(0, D), tl.arange(0, KEYS)
    i, column = start + r // GROUP, (head * GROUP + r % GROUP) * D
    q_ptrs = q_ptr + b * q_batch + (i * q_row + column)[:, None] + d[None, :]
    q = tl.load(q_ptrs, mask=(i < length)[:, None], other=0.0)
    k_head, v_head = k_ptr + b * k_batch + head * D, v_ptr + b * v_batch + head * D
    k_ptrs, v_ptrs = k_head + (n * k_row)[:, None] + d[None, :], v_head + (n * v_row)[:, None] + d[None, :]

    # Blocks 0..blocks of keys from low on; those from inner to outer are seen whole by every row.
    low = tl.maximum(start - WINDOW, 0)
    stop = tl.where(start < length, tl.minimum(start + ROWS + WINDOW, length), low)  # a tile of padding sees none
    blocks = tl.cdiv(tl.maximum(stop - low, 0), KEYS)
    inner = tl.minimum(tl.cdiv(tl.maximum(start + ROWS - 1 - WINDOW - low, 0), KEYS), blocks)
    outer = tl.maximum(inner, tl.maximum(tl.minimum(stop, start + WINDOW + 1) - low, 0) // KEYS)
    high, total = tl.where(i < length, LOWEST, HIGHEST), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for j in tl.range(low + inner * KEYS, low + outer * KEYS, KEYS, num_stages=STAGES):
        k, v = tl.load(k_ptrs + j * k_row), tl.load(v_ptrs + j * v_row)
        high, total, acc = attend(q, k, v, high, total, acc, scale, None, PRECISION)
    for edge in tl.range(0, inner + blocks - outer, num_stages=STAGES):
        j = low + tl.where(edge < inner, edge, edge - inner + outer) * KEYS
        live = n < length - j
        k = tl.load(k_head + ((j + n) * k_row)[:, None] + d[None, :], mask=live[:, None], other=0.0)
        v = tl.load(v_head + ((j + n) * v_row)[:, None] + d[None, :], mask=live[:, None], other=0.0)
        away = tl.where(live, j + n + WINDOW, 1 << 30)[None, :] - i[:, None]  # 0 to 2 WINDOW, or past either end
        visible = away.to(tl.uint32) <= 2 * WINDOW
        high, total, acc = attend(q, k, v, high, total, acc, scale, visible, PRECISION)

    start += tl.minimum(length, 0)  # 0, which the compiler does not know: it computes rows anew, holds no registers
    i, column = start + r // GROUP, (head * GROUP + r % GROUP) * D
    out = acc * (1.0 / tl.where(total > 0, total, float("inf")))[:, None]
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
    ("fp32-128", 90): Config({"M": 16, "KEYS": 16, "STAGES": 1}, num_warps=4),
    ("fp32-128", 100): Config({"M": 16, "KEYS": 16, "STAGES": 1}, num_warps=4),
    ("fp32-128", 120): Config({"M": 16, "KEYS": 16, "STAGES": 1}, num_warps=8),
    ("fp32-64", 80): Config({"M": 32, "KEYS": 32, "STAGES": 1}, num_warps=4),
    ("fp32-32", 80): Config({"M": 32, "KEYS": 32, "STAGES": 1}, num_warps=4),
    ("fp32-16", 80): Config({"M": 32, "KEYS": 32, "STAGES": 1}, num_warps=4),
}


def shape_class(q: Tensor, head_dim: int) -> str:
    """Row of the table: fp32 multiplies without tensor cores."""
    return f"{'fp32' if q.dtype == torch.float32 else 'half'}-{head_dim}"


def self_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, lengths: Tensor | None = None, *, out: Tensor
) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    B, S, heads, D = q.shape
    group = heads // k.shape[2]
    config = pick(CONFIGS, shape_class(q, D))
    grid = (triton.cdiv(S, config["M"] // group), k.shape[2], B)
    _window_kernel[grid](
        *(q, k, v, lengths, out, S, D**-0.5 * LOG2E),
        *q.stride()[:2],
        *(k.stride(0), v.stride(0)),
        *out.stride()[:2],
        *(k.stride(1), v.stride(1)),
        WINDOW=window,
        GROUP=group,
        D=D,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **config.options,
    )
    return out


def _reference(
    q: Tensor, k: Tensor, v: Tensor, window: int, lengths: Tensor | None = None, *, out: Tensor
) -> tuple[Tensor, ...]:
    i = torch.arange(q.shape[1], device=q.device)
    padded = i >= lengths[:, None]  # [B, S]
    q, k, v = (t.masked_fill(padded[..., None, None], 0).transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    seen = ((i[:, None] - i).abs() <= window) & ~padded[:, None, None]
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
    return (found.masked_fill(padded[..., None], 0),)


def _pairs(rows: int, window: int) -> int:
    """Rows and the keys they see."""
    reach = min(window, rows - 1)
    return (2 * reach + 1) * rows - reach * (reach + 1)


def _case(config: str, real: Arguments, small: Arguments) -> Case:
    def arguments(
        heads: int, kv_heads: int, D: int, window: int, S: int, lengths: list[int], device=None, generator=None
    ) -> Arguments:
        shape = (len(lengths), S, (heads + 2 * kv_heads) * D)
        qkv = torch.empty(shape, device=device) if generator is None else torch.randn(shape, generator=generator)
        q, k, v = qkv.bfloat16().unflatten(-1, (-1, D)).split((heads, kv_heads, kv_heads), 2)
        if generator is not None:
            for t, length in zip(q._base, lengths):
                t[length:] = torch.nan
        counts = torch.tensor(lengths, dtype=torch.int32, device=device)
        out = q.new_empty(*shape[:2], heads * D)
        return {"q": q, "k": k, "v": v, "window": window, "lengths": counts, "out": out}

    return Case(
        kernel="self_attention",
        config=config,
        launch=self_attention,
        reference=_reference,
        real=lambda device: arguments(**real, device=device),
        small=lambda generator: arguments(**small, generator=generator),
        outputs=("out",),
        flops=lambda a: 4 * a["out"].shape[-1] * a["q"].shape[0] * _pairs(a["q"].shape[1], a["window"]),
        bytes=lambda a: sum(a[name].numel() * a[name].itemsize for name in ("q", "k", "v", "out")),
        dots=True,
        sector_limit=1.15,
        loop_mix=3.9 if real["D"] == 128 else None,
    )


# 120 s. Small: a tile with keys on both sides, one cut by the length, one of padding only; the padding is NaN.
CASES = (
    _case(
        "2b-window",
        {"heads": 16, "kv_heads": 8, "D": 128, "window": 128, "S": 1536, "lengths": [1500]},
        {"heads": 2, "kv_heads": 1, "D": 128, "window": 128, "S": 272, "lengths": [231]},
    ),
    _case(
        "xl-window",
        {"heads": 32, "kv_heads": 8, "D": 128, "window": 128, "S": 1536, "lengths": [1500]},
        {"heads": 4, "kv_heads": 1, "D": 128, "window": 128, "S": 208, "lengths": [171]},
    ),
    _case(
        "tiny-window",
        {"heads": 4, "kv_heads": 2, "D": 16, "window": 16, "S": 64, "lengths": [40]},
        {"heads": 4, "kv_heads": 2, "D": 16, "window": 16, "S": 80, "lengths": [61, 80]},
    ),
)
