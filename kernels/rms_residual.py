"""Triton kernel of acefast.ops.rms_residual (K13, the autoencoder's blocks).

Math    y = x + h * rsqrt(mean(h**2) + eps) * weight + bias, and relu(y); fp32, rounded once
Tiling  one program per ROWS whole rows, which stay in registers
Bytes   3 * R * C * itemsize: h and x in, y out; the two vectors come from L2
Bound   memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.ops.rms_residual import rms_residual_reference

CONFIGS = {
    ("narrow", 80): Config({"ROWS": 16}, num_warps=4),  # C up to 256
    ("wide", 80): Config({"ROWS": 4}, num_warps=4),
}


@triton.jit(do_not_specialize=["R"])
def _rms_residual(
    h_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    y_ptr,
    R,
    h_row,
    x_row,
    y_row,
    C: tl.constexpr,
    EPS: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,  # C, up to a power of two
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)
    live = (rows < R) & (c < C)[None, :]
    h = tl.load(h_ptr + rows * h_row + c[None, :], mask=live, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    weight = tl.load(weight_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    y = h * tl.rsqrt(tl.sum(h * h, 1) / C + EPS)[:, None] * weight
    y += tl.load(bias_ptr + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if x_ptr is not None:
        y += tl.load(x_ptr + rows * x_row + c[None, :], mask=live, other=0.0).to(tl.float32)
    if RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y_ptr + rows * y_row + c[None, :], y.to(y_ptr.dtype.element_ty), mask=live)


def rms_residual(
    h: Tensor, weight: Tensor, bias: Tensor, x: Tensor | None, *, relu: bool = False, eps: float = 1e-5, out: Tensor
) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    C = h.shape[-1]
    source, added, target = (None if t is None else t.view(-1, C) for t in (h, x, out))
    config = pick(CONFIGS, "narrow" if C <= 256 else "wide")
    _rms_residual[(triton.cdiv(len(target), config["ROWS"]),)](
        *(source, weight, bias, added, target, len(target)),
        *(0 if t is None else t.stride(0) for t in (source, added, target)),
        C=C,
        EPS=eps,
        RELU=relu,
        BLOCK=triton.next_power_of_2(C),
        **config.options,
    )
    return out


def _reference(h, weight, bias, x, *, out, **options) -> tuple[Tensor, ...]:
    if h.dtype != torch.float64:
        return (rms_residual_reference(h, weight, bias, x, **options),)
    y = h * (h.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight + bias + (0 if x is None else x)
    return (y.relu() if options.get("relu") else y,)


def _case(config: str, R: int, C: int, small: tuple[int, int], relu: bool = False, dtype=torch.bfloat16) -> Case:
    def arguments(R: int, C: int, **options) -> Arguments:
        make = torch.randn if "generator" in options else torch.empty
        h, x = (make(R, C, **options).to(dtype) for _ in range(2))
        weight, bias = (make(C, **options).to(dtype) for _ in range(2))
        return {
            "h": h,
            "weight": weight,
            "bias": bias,
            "x": None if relu else x,
            "relu": relu,
            "out": h.new_empty(R, C),
        }

    return Case(
        kernel="rms_residual",
        config=config,
        launch=rms_residual,
        reference=_reference,
        real=lambda device: arguments(R, C, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: 6 * a["h"].numel(),
        bytes=lambda a: sum(a[name].nbytes for name in ("h", "weight", "bias", "x", "out") if a[name] is not None),
        tolerance=3e-3 if dtype == torch.bfloat16 else 4e-4,
    )


# 30 s of song: 16 rows of 323 frames in the middle, 128 of 2584 at the mel's rate.
CASES = (
    _case("c1024", 16 * 323, 1024, (9, 1024)),
    _case("c128", 128 * 2584, 128, (37, 128)),
    _case("c128-relu-fp16", 128 * 2584, 128, (37, 128), relu=True, dtype=torch.float16),
)
