"""Triton kernel of acefast.ops.depthwise_glu (K13, the convolution).

Math    y[s, c] = bias[c] + sum_k weight[c, k] u[s + k - 1, c] of u = x or silu(x); out = y[s, c] silu(y[s, c + F])
Tiling  one program per GROUPS times ROWS rows of BLOCK channel pairs (c, c + F); a warp takes its ROWS rows one by one
        and keeps the last three, so that each is read and activated once. A thread has 4 neighbouring channels
Bytes   3 B S F itemsize: x in, out out; and two rows more for each ROWS. Weights come from L2, once per program
Bound   memory
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.kernels.swiglu import silu
from acefast.ops.depthwise_glu import depthwise_glu_reference

CONFIGS = {
    ("wide", 80): Config({"GROUPS": 4, "ROWS": 16, "BLOCK": 128}, num_warps=4),  # F a multiple of 128: 6400 is
    ("narrow", 80): Config({"GROUPS": 1, "ROWS": 16, "BLOCK": 64}, num_warps=1),
}


@triton.jit
def _row(x, row, x_row, length, live, SILU: tl.constexpr):
    """u of one row of each group, fp32; zero before and behind the song."""
    u = tl.load(x + row * x_row, mask=live & (row >= 0) & (row < length), other=0.0).to(tl.float32)
    if SILU:
        u = silu(u)
    return u


@triton.jit(do_not_specialize=["S"])
def _depthwise_glu(
    x_ptr, weight_ptr, bias_ptr, lengths_ptr, out_ptr, S,
    x_batch, x_row, weight_channel, weight_tap, out_batch, out_row,
    F: tl.constexpr, SILU: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(2).to(tl.int64)
    length = S
    if lengths_ptr is not None:
        length = tl.minimum(tl.load(lengths_ptr + b).to(tl.int32), S)
    column = (tl.program_id(1) * BLOCK + tl.max_contiguous(tl.arange(0, BLOCK), min(BLOCK, 4)))[None, :]
    start = ((tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)) * ROWS)[:, None]
    live = column < F
    x, out = x_ptr + b * x_batch + column, out_ptr + b * out_batch + column
    a_weight, g_weight = weight_ptr + column * weight_channel, weight_ptr + (F + column) * weight_channel
    a0 = tl.load(a_weight, mask=live, other=0.0).to(tl.float32)
    a1 = tl.load(a_weight + weight_tap, mask=live, other=0.0).to(tl.float32)
    a2 = tl.load(a_weight + 2 * weight_tap, mask=live, other=0.0).to(tl.float32)
    g0 = tl.load(g_weight, mask=live, other=0.0).to(tl.float32)
    g1 = tl.load(g_weight + weight_tap, mask=live, other=0.0).to(tl.float32)
    g2 = tl.load(g_weight + 2 * weight_tap, mask=live, other=0.0).to(tl.float32)
    a_bias = tl.load(bias_ptr + column, mask=live, other=0.0).to(tl.float32)
    g_bias = tl.load(bias_ptr + F + column, mask=live, other=0.0).to(tl.float32)

    a_before, a_here = _row(x, start - 1, x_row, length, live, SILU), _row(x, start, x_row, length, live, SILU)
    g_before, g_here = _row(x + F, start - 1, x_row, length, live, SILU), _row(x + F, start, x_row, length, live, SILU)
    for row in tl.static_range(ROWS):
        a_next = _row(x, start + (row + 1), x_row, length, live, SILU)
        g_next = _row(x + F, start + (row + 1), x_row, length, live, SILU)
        a = a_bias + a0 * a_before + a1 * a_here + a2 * a_next
        g = g_bias + g0 * g_before + g1 * g_here + g2 * g_next
        y = tl.where(start + row < length, a * silu(g), 0.0)
        tl.store(out + (start + row) * out_row, y.to(out_ptr.dtype.element_ty), mask=live & (start + row < S))
        a_before, a_here, g_before, g_here = a_here, a_next, g_here, g_next


def depthwise_glu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lengths: Tensor | None = None,
    *,
    silu_input: bool = False,
    out: Tensor,
) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    B, S, F = out.shape
    config = pick(CONFIGS, "narrow" if F % 128 else "wide")
    grid = triton.cdiv(S, config["GROUPS"] * config["ROWS"]), triton.cdiv(F, config["BLOCK"]), B
    _depthwise_glu[grid](
        *(x, weight, bias, lengths, out, S),
        *(*x.stride()[:2], *weight.stride(), *out.stride()[:2]),
        F=F,
        SILU=silu_input,
        **config.options,
    )
    return out


def _meaning(*, out: Tensor, **arguments) -> tuple[Tensor]:
    arguments["x"] = arguments["x"].to(torch.promote_types(arguments["x"].dtype, torch.float32))
    return (depthwise_glu_reference(**arguments),)


def _case(config: str, real: tuple[int, list[int]], small: tuple[int, list[int]], silu_input: bool) -> Case:
    def arguments(F: int, lengths: list[int], device: torch.device, rng: torch.Generator | None = None) -> Arguments:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, device=device).bfloat16()

        x = normal(len(lengths), max(lengths) + 3, 2 * F)
        if rng is not None:
            for song, length in zip(x, lengths):
                song[length:] = torch.nan
        found = {"x": x, "weight": normal(3, 2 * F).T, "bias": normal(2 * F), "silu_input": silu_input}
        found["lengths"] = torch.tensor(lengths, dtype=torch.int32, device=device)
        return found | {"out": x.new_empty(*x.shape[:2], F)}

    return Case(
        kernel="depthwise_glu",
        config=config,
        launch=depthwise_glu,
        reference=_meaning,
        real=lambda device: arguments(*real, device),
        small=lambda rng: arguments(*small, torch.device("cpu"), rng),
        outputs=("out",),
        flops=lambda a: (30 if silu_input else 20) * a["out"].numel(),
        bytes=lambda a: a["x"].nbytes + a["out"].nbytes,
    )


# 120 s with guidance. Small: two programs' rows, the second ragged, beside a song that ends in the first.
CASES = (
    _case("v1", (6400, [1291, 1291]), (256, [71, 18]), True),
    _case("v1-activated", (6400, [1291, 1291]), (256, [71, 18]), False),
)
