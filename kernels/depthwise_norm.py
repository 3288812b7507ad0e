"""Triton kernel of acefast.ops.depthwise_norm (K13, the vocoder's backbone).

Math    u[t] = conv_bias + Σ_k conv_weight[k] * x[t + k - K / 2];  y = (u - mean) * rsqrt(var + eps) * weight + bias
Tiling  one program per ROWS whole rows, whose sums stay in registers; a row is read once for each tap, from memory the
        first time and from L1 and L2 after that
Bytes   2 * B * L * C * itemsize: x in, y out
Bound   latency: a song of 240 s is 21 MB
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick

CONFIGS = {
    ("narrow", 80): Config({"ROWS": 8}, num_warps=4),  # C up to 256
    ("wide", 80): Config({"ROWS": 4}, num_warps=4),
}


@triton.jit
def _vector(ptr, columns, C: tl.constexpr):
    return tl.load(ptr + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["L"])  # or a length that 16 divides would be another kernel
def _depthwise_norm(
    x_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    L,
    x_batch,
    x_row,
    y_batch,
    y_row,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,  # C, up to a power of two
):
    song = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)
    inside = (c < C)[None, :]
    x_ptr += song * x_batch + c[None, :]
    u = tl.zeros([ROWS, BLOCK], tl.float32) + _vector(conv_bias_ptr, c, C)
    for tap in tl.static_range(TAPS):
        source = rows + (tap - TAPS // 2)
        x = tl.load(x_ptr + source * x_row, mask=(source >= 0) & (source < L) & inside, other=0.0)
        u += x.to(tl.float32) * _vector(conv_weight_ptr + tap * C, c, C)
    u = tl.where(inside, u - (tl.sum(u, 1) / C)[:, None], 0.0)
    y = u * tl.rsqrt(tl.sum(u * u, 1) / C + EPS)[:, None] * _vector(weight_ptr, c, C) + _vector(bias_ptr, c, C)
    y_ptrs = y_ptr + song * y_batch + rows * y_row + c[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=(rows < L) & inside)


def depthwise_norm(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    out: Tensor,
) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    B, L, C = x.shape
    config = pick(CONFIGS, "narrow" if C <= 256 else "wide")
    _depthwise_norm[(triton.cdiv(L, config["ROWS"]), B)](
        *(x, conv_weight, conv_bias, weight, bias, out, L),
        *(*x.stride()[:2], *out.stride()[:2]),
        C=C,
        TAPS=len(conv_weight),
        EPS=eps,
        BLOCK=triton.next_power_of_2(C),
        **config.options,
    )
    return out


def _reference(x, conv_weight, conv_bias, weight, bias, *, eps: float = 1e-6, out: Tensor) -> tuple[Tensor, ...]:
    K, C = conv_weight.shape
    u = F.conv1d(x.mT, conv_weight.T.unsqueeze(1), conv_bias, padding=K // 2, groups=C).mT
    return (F.layer_norm(u, (C,), weight, bias, eps),)


def _case(config: str, real: tuple[int, int, int], small: tuple[int, int, int], dtype=torch.bfloat16) -> Case:
    """Sizes as B, L, C."""

    def arguments(B: int, L: int, C: int, **options) -> Arguments:
        make = torch.randn if "generator" in options else torch.empty
        x = make(B, L, C, **options).to(dtype)
        vectors = [make(*size, **options).to(dtype) for size in ((7, C), (C,), (C,), (C,))]
        names = ("conv_weight", "conv_bias", "weight", "bias")
        return {"x": x, **dict(zip(names, vectors)), "out": x.new_empty(B, L, C)}

    return Case(
        kernel="depthwise_norm",
        config=config,
        launch=depthwise_norm,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: (2 * 7 + 8) * a["x"].numel(),
        bytes=lambda a: 2 * a["x"].nbytes + 10 * a["weight"].nbytes,
        tolerance=3e-3 if dtype == torch.bfloat16 else 4e-4,
    )


# The mel frames of 60 s, both channels; small: two programs and a ragged one.
CASES = (
    _case("c512", (2, 5168, 512), (2, 9, 512)),
    _case("c384", (2, 5168, 384), (1, 6, 384)),
    _case("c128-fp16", (2, 5168, 128), (1, 20, 128), torch.float16),
)
