"""Triton kernels of acefast.ops.vit_linear_attention (K13), in two launches.

Math    state = Σ_j relu(k_j) v_j^T, z = Σ_j relu(k_j) per head; out_i = relu(q_i) state / (relu(q_i) . z + 1e-15)
Tiling  first one program per head and part of an image, which writes its sums, [D + 1, D] fp32; then one per M
        positions of a head, which adds the parts' in their order. The state is split in two numbers of tf32, high and
        low, so that its fp32 counts; a query of 16 bits is one
Bytes   4 * B * P * n * D * itemsize: q, k, v in, out out. The sums come from L2
Bound   memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.ops.vit_linear_attention import SPLITS, TINY, vit_linear_attention_reference

CONFIGS = {
    ("sum-half", 80): Config({"ROWS": 64, "STAGES": 3}, num_warps=4),
    ("sum-fp32", 80): Config({"ROWS": 32, "STAGES": 1}, num_warps=4),
    ("mean-half", 80): Config({"M": 256}, num_warps=4),
    ("mean-fp32", 80): Config({"M": 32}, num_warps=4),
}


@triton.jit
def _sum_kernel(
    heads_ptr,
    sums_ptr,
    P,
    batch,
    row,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    part, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    size = tl.cdiv(P, SPLITS)
    end = tl.minimum(part * size + size, P)
    j, d = tl.arange(0, ROWS), tl.arange(0, D)
    k_ptrs = heads_ptr + image * batch + head * (3 * D) + D + d[None, :]
    state, z = tl.zeros([D, D], tl.float32), tl.zeros([D], tl.float32)
    for first in tl.range(part * size, end, ROWS, num_stages=STAGES):
        at = tl.minimum(first + j, P - 1).to(tl.int64)[:, None] * row  # no masks: what is behind the part counts as 0
        k, v = tl.load(k_ptrs + at), tl.load(k_ptrs + D + at)  # [ROWS, D]
        k = tl.where((first + j < end)[:, None], tl.maximum(k.to(tl.float32), 0.0), 0.0)
        z += tl.sum(k, 0)
        state = tl.dot(tl.trans(k.to(v.dtype)), v, state, input_precision=PRECISION)
    sums_ptr += ((image * tl.num_programs(1) + head) * SPLITS + part) * ((D + 1) * D)
    tl.store(sums_ptr + (d * D)[:, None] + d[None, :], state)
    tl.store(sums_ptr + D * D + d, z)


@triton.jit
def _mean_kernel(
    heads_ptr,
    sums_ptr,
    out_ptr,
    P,
    batch,
    row,
    out_batch,
    out_row,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
):
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = tl.arange(0, D)
    sums_ptr += (image * tl.num_programs(1) + head) * SPLITS * ((D + 1) * D)
    state, z = tl.zeros([D, D], tl.float32), tl.zeros([D], tl.float32)
    for part in range(SPLITS):
        state += tl.load(sums_ptr + part * ((D + 1) * D) + (d * D)[:, None] + d[None, :])
        z += tl.load(sums_ptr + part * ((D + 1) * D) + D * D + d)

    i = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    live = (i < P)[:, None]
    q = tl.load(heads_ptr + image * batch + i[:, None] * row + head * (3 * D) + d[None, :], mask=live, other=0.0)
    q = tl.maximum(q.to(tl.float32), 0.0)
    weights = tl.sum(q * z[None, :], 1) + EPS
    if PRECISION == "ieee":
        sums = tl.dot(q, state, input_precision=PRECISION)
    else:
        high = (state.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # tf32 has 13 bits less
        sums = tl.dot(q, high, input_precision=PRECISION)
        sums = tl.dot(q, state - high, sums, input_precision=PRECISION)
    out = sums / weights[:, None]
    tl.store(
        out_ptr + image * out_batch + i[:, None] * out_row + head * D + d[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=live,
    )


def vit_linear_attention(heads: Tensor, *, head_dim: int, sums: Tensor, out: Tensor) -> Tensor:
    """Launches the kernels; the op has checked the inputs. ``sums`` is memory for [B, n, SPLITS, D + 1, D] fp32."""
    (B, P, width), D = heads.shape, head_dim
    n, kind = width // (3 * D), "fp32" if heads.dtype == torch.float32 else "half"
    fixed = {"D": D, "SPLITS": SPLITS, "PRECISION": "ieee" if kind == "fp32" else "tf32"}
    strides = heads.stride()[:2]
    _sum_kernel[(SPLITS, n, B)](heads, sums, P, *strides, **fixed, **pick(CONFIGS, f"sum-{kind}").options)
    config = pick(CONFIGS, f"mean-{kind}")
    _mean_kernel[(triton.cdiv(P, config["M"]), n, B)](
        heads, sums, out, P, *strides, *out.stride()[:2], **fixed, EPS=TINY, **config.options
    )
    return out


def _reference(heads: Tensor, *, head_dim: int, sums: Tensor, out: Tensor) -> tuple[Tensor, ...]:
    if heads.dtype != torch.float64:
        return (vit_linear_attention_reference(heads, head_dim=head_dim),)
    q, k, v = heads.unflatten(-1, (-1, 3, head_dim)).transpose(1, 2).unbind(3)
    weights = q.relu() @ k.relu().mT
    return ((weights @ v / (weights.sum(-1, keepdim=True) + TINY)).transpose(1, 2).flatten(2),)


def _case(config: str, real: tuple[int, int, int], small: tuple[int, int, int], dtype=torch.bfloat16) -> Case:
    """Sizes as B, P, heads of 32."""

    def arguments(B: int, P: int, n: int, D: int = 32, **options) -> Arguments:
        make = torch.randn if "generator" in options else torch.empty
        heads = make(B, P, n * 3 * D, **options).to(dtype)
        sums = heads.new_empty(B, n, SPLITS, D + 1, D, dtype=torch.float32)
        return {"heads": heads, "head_dim": D, "sums": sums, "out": heads.new_empty(B, P, n * D)}

    return Case(
        kernel="vit_linear_attention",
        config=config,
        launch=vit_linear_attention,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: 6 * a["head_dim"] * a["out"].numel(),
        bytes=lambda a: a["heads"].nbytes + a["out"].nbytes,
        dots=True,
        wavefront_limit=1.3,  # a program's state, once, of 32 bits that ldmatrix does not turn; much at few tiles
        tolerance=3e-3 if dtype == torch.bfloat16 else 4e-4,
    )


# 30 s of song, 16 rows of 323 frames; small: parts of 130 positions, three steps of a loop, and a shorter one.
CASES = (_case("dcae", (1, 16 * 323, 64), (1, 1039, 1)),)
