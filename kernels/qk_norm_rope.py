"""Triton kernel of acefast.ops.qk_norm_rope (K02).

Math    u = x * rsqrt(mean(x**2) + eps) * weight; of its halves cat(u1 * cos - u2 * sin, u2 * cos + u1 * sin)
Tiling  one program per ROWS tokens and HEADS heads, all of queries or all of keys; a head as its two halves, so that
        the partner of a value is in the same thread. A thread has one token and 4 neighbouring values of every head,
        so that cos and sin are read once for all of them; nothing goes through shared memory
Bytes   2 * R * (heads + kv_heads) * D * itemsize: queries and keys in and out; values are not touched
Bound   memory, or latency below about 200 s of song
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.ops.qk_norm_rope import qk_norm_rope_reference, rope_table

CONFIGS = {
    ("d128", 80): Config({"ROWS": 8}, num_warps=4),  # heads of 128 or more
    ("d64", 80): Config({"ROWS": 16}, num_warps=4),
    ("narrow", 80): Config({"ROWS": 16}, num_warps=1),  # tiny models
}
MOST_HEADS = 4  # of a program: more read cos and sin less often, and leave too few programs for a short song


@triton.jit(do_not_specialize=["S", "heads"])
def _qk_norm_rope(
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    S,
    heads,
    qkv_batch,
    qkv_row,
    out_batch,
    out_row,
    cos_row,
    sin_row,
    D: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
):
    HALF: tl.constexpr = D // 2
    batch = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) * HEADS  # the first of this program's; keys follow queries
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[None, :, None].to(tl.int64)  # position within the song
    columns = tl.max_contiguous(tl.arange(0, HALF), min(HALF, 4))[None, None, :]
    within = (head + tl.arange(0, HEADS))[:, None, None] * D + columns
    live = rows < S

    x = qkv_ptr + batch * qkv_batch + rows * qkv_row + within
    a = tl.load(x, mask=live, other=0.0).to(tl.float32)  # [HEADS, ROWS, HALF]
    b = tl.load(x + HALF, mask=live, other=0.0).to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(a * a + b * b, 2, keep_dims=True) / D + EPS)
    weight_ptr = q_weight_ptr if head < heads else k_weight_ptr
    a *= inverse_rms * tl.load(weight_ptr + columns).to(tl.float32)
    b *= inverse_rms * tl.load(weight_ptr + HALF + columns).to(tl.float32)
    first, second = a, b
    if cos_ptr is not None:
        cos = tl.load(cos_ptr + rows * cos_row + columns, mask=live, other=0.0).to(tl.float32)  # [1, ROWS, HALF]
        sin = tl.load(sin_ptr + rows * sin_row + columns, mask=live, other=0.0).to(tl.float32)
        first = a * cos - b * sin
        second = b * cos + a * sin
    out = out_ptr + batch * out_batch + rows * out_row + within
    tl.store(out, first.to(out_ptr.dtype.element_ty), mask=live)
    tl.store(out + HALF, second.to(out_ptr.dtype.element_ty), mask=live)


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
    D = k_weight.shape[0]
    group = math.gcd(heads, kv_heads)
    group = min(group & -group, MOST_HEADS)  # a power of two that divides both kinds of heads
    config = pick(CONFIGS, "d128" if D >= 128 else "d64" if D == 64 else "narrow")
    _qk_norm_rope[(triton.cdiv(S, config["ROWS"]), (heads + kv_heads) // group, B)](
        qkv,
        q_weight,
        k_weight,
        cos,
        sin,
        out,
        S,
        heads,
        *qkv.stride()[:2],
        *out.stride()[:2],
        0 if cos is None else cos.stride(0),
        0 if sin is None else sin.stride(0),
        D=D,
        EPS=eps,
        HEADS=group,
        **config.options,
    )
    q, k = out[..., : (heads + kv_heads) * D].unflatten(-1, (heads + kv_heads, D)).split((heads, kv_heads), 2)
    return q, k, qkv[..., (heads + kv_heads) * D :].unflatten(-1, (kv_heads, D))


def _meaning(out: Tensor, **arguments) -> tuple[Tensor]:
    """What ``out`` comes to in place, in fp32."""
    parts = qk_norm_rope_reference(**arguments | {"qkv": arguments["qkv"].float()})
    return (torch.cat(parts, 2).flatten(2),)


def _case(config: str, heads: int, kv_heads: int, rotate: bool, S: int) -> Case:
    def arguments(device: torch.device, rng: torch.Generator | None = None, S: int = S, D: int = 128) -> Arguments:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, device=device).bfloat16()

        qkv = normal(1, S, (heads + 2 * kv_heads) * D)
        cos, sin = rope_table(S, D, 1e6, device) if rotate else (None, None)
        found = {"qkv": qkv, "q_weight": normal(D), "k_weight": normal(D), "cos": cos, "sin": sin}
        return found | {"heads": heads, "kv_heads": kv_heads, "out": qkv}

    def moved(a: Arguments) -> float:
        share = (heads + kv_heads) / (heads + 2 * kv_heads)
        tables = [a[name] for name in ("q_weight", "k_weight", "cos", "sin")]
        return 2 * share * a["qkv"].nbytes + sum(t.nbytes for t in tables if t is not None)

    return Case(
        kernel="qk_norm_rope",
        config=config,
        launch=qk_norm_rope,
        reference=_meaning,
        real=arguments,
        small=lambda rng: arguments(torch.device("cpu"), rng, S=11),  # a program and a ragged one
        outputs=("out",),
        flops=lambda a: 8.0 * a["qkv"].numel(),
        bytes=moved,
    )


CASES = (
    _case("2b-self", 16, 8, True, 1536),  # 120 s of song: 1500 tokens, padded
    _case("xl-self", 32, 8, True, 1536),
    _case("cross-keys", 0, 8, False, 512),
)
