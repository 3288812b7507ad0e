"""Triton kernel of acefast.ops.swiglu (K05, the separate pass).

Math    out = gate / (1 + exp2(-gate * log2(e))) * up
Tiling  one program per ROWS x BLOCK outputs, each touched once; a thread moves 16 bytes at a time
Bytes   3 * R * I * itemsize: gate and up in, out out
Bound   memory
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
    ("wide", 80): Config({"ROWS": 8, "BLOCK": 512}, num_warps=4),  # I a multiple of 512: 6144 and 9728 are
    ("narrow", 80): Config({"ROWS": 8, "BLOCK": 64}, num_warps=1),
}


@triton.jit
def silu(x):
    """``x / (1 + exp(-x))`` of fp32."""
    return x / (1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def _swiglu(
    gate_up_ptr,
    out_ptr,
    R,
    gate_up_row,
    out_row,
    I: tl.constexpr,  # noqa: E741
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # row * stride passes 2**31
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    live = (row < R) & (column < I)
    gate_ptrs = gate_up_ptr + row * gate_up_row + column  # [ROWS, BLOCK]
    gate = tl.load(gate_ptrs, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_ptrs + I, mask=live, other=0.0).to(tl.float32)
    out = silu(gate) * up
    tl.store(out_ptr + row * out_row + column, out.to(out_ptr.dtype.element_ty), mask=live)


def swiglu(gate_up: Tensor, *, out: Tensor) -> Tensor:
    """Launches the kernel; the op has checked the inputs."""
    I = out.shape[-1]  # noqa: E741
    source, target = gate_up.view(-1, 2 * I), out.view(-1, I)
    R = len(target)
    config = pick(CONFIGS, "narrow" if I % 512 else "wide")
    grid = (triton.cdiv(I, config["BLOCK"]), triton.cdiv(R, config["ROWS"]))
    _swiglu[grid](source, target, R, source.stride(0), target.stride(0), I=I, **config.options)
    return out


def _reference(gate_up: Tensor, *, out: Tensor) -> tuple[Tensor, ...]:
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) * up,)


def _case(config: str, real: tuple[int, int], small: tuple[int, int]) -> Case:
    def arguments(R: int, I: int, **options) -> Arguments:  # noqa: E741
        make = torch.randn if "generator" in options else torch.empty
        gate_up = make(R, 2 * I, **options)
        return {"gate_up": gate_up.bfloat16(), "out": gate_up.new_empty(R, I, dtype=torch.bfloat16)}

    return Case(
        kernel="swiglu",
        config=config,
        launch=swiglu,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: 8 * a["out"].numel(),
        bytes=lambda a: a["gate_up"].nbytes + a["out"].nbytes,
    )


CASES = (
    _case("2b", (1536, 6144), (17, 1024)),  # 120 s; small: a last program of one row
    _case("xl", (1536, 9728), (16, 1536)),
    _case("tiny", (24, 128), (9, 80)),
)
