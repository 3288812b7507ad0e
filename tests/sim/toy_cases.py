"""Cases of small kernels for the tests of study, budgets and command: sound ones, and each with one fault."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Case
from tests.sim import kernels_sound as sound


@triton.jit
def scale_kernel(x_ptr, weight_ptr, out_ptr, H: tl.constexpr, STEP: tl.constexpr, WRONG: tl.constexpr):
    """out = x * weight, row by row; the columns are visited STEP apart."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, H)
    columns = i % (H // STEP) * STEP + i // (H // STEP)
    x = tl.load(x_ptr + row * H + columns).to(tl.float32)
    y = x * tl.load(weight_ptr + columns).to(tl.float32) * WRONG
    tl.store(out_ptr + row * H + columns, y.to(out_ptr.dtype.element_ty))


def scale(
    x: Tensor, weight: Tensor, *, out: Tensor, step: int = 1, wrong: float = 1.0, scratch: bool = False, **options
):
    """Launches the kernel; ``scratch`` makes it write to memory of its own, as a wrapper must not."""
    target = torch.empty_like(out) if scratch else out
    scale_kernel[(len(x),)](x, weight, target, H=x.shape[1], STEP=step, WRONG=wrong, num_warps=1, **options)


def _scale_reference(x: Tensor, weight: Tensor, *, out: Tensor) -> tuple[Tensor, ...]:
    return ((x.double() * weight).where(x[:, :1] != 1024, torch.nan),)  # rows of 1024 are padding


def _scale_arguments(rows: int, columns: int, **where) -> dict:
    make = torch.randn if "generator" in where else torch.empty
    x = make(rows, columns, **where).bfloat16()
    return {"x": x, "weight": make(columns, **where), "out": torch.empty_like(x)}


def _scale_small(generator: torch.Generator) -> dict:
    arguments = _scale_arguments(3, 256, generator=generator)
    arguments["x"][2] = 1024
    return arguments


SCALE = Case(
    kernel="scale",
    config="narrow",
    launch=scale,
    reference=_scale_reference,
    real=lambda device: _scale_arguments(64, 256, device=device),
    small=_scale_small,
    outputs=("out",),
    flops=lambda a: a["x"].numel(),
    bytes=lambda a: 2 * a["x"].nbytes + a["weight"].nbytes,
)


def matmul(a: Tensor, b: Tensor, *, out: Tensor, **options) -> None:
    (M, K), N = a.shape, b.shape[1]
    sizes = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_stages": 3, **options}
    sound.matmul[(triton.cdiv(M, 64), triton.cdiv(N, 64))](a, b, out, M, N, K, **sizes)


def _matmul_arguments(M: int, N: int, K: int, **where) -> dict:
    make = torch.randn if "generator" in where else torch.empty
    a, b = make(M, K, **where).bfloat16(), make(K, N, **where).bfloat16()
    return {"a": a, "b": b, "out": a.new_empty(M, N)}


MATMUL = Case(
    kernel="matmul",
    config="square",
    launch=matmul,
    reference=lambda a, b, out: (a.double() @ b.double(),),
    real=lambda device: _matmul_arguments(256, 256, 256, device=device),
    small=lambda generator: _matmul_arguments(64, 64, 64, generator=generator),
    outputs=("out",),
    flops=lambda a: 2 * a["a"].numel() * a["b"].shape[1],
    bytes=lambda a: a["a"].nbytes + a["b"].nbytes + a["out"].nbytes,
    dots=True,
)


def add_in_place(x: Tensor, total: Tensor, count: Tensor) -> None:
    n = x.numel()
    sound.add[(1,)](x, total, total, n, BLOCK=256, num_warps=1)
    sound.add[(1,)](count, count, count, 1, BLOCK=16, num_warps=1)


IN_PLACE = Case(
    kernel="add",
    config="in-place",
    launch=add_in_place,
    reference=lambda x, total, count: (total + x, count + count),
    real=lambda device: (
        {n: torch.empty(256, device=device) for n in ("x", "total")}
        | {"count": torch.ones(1, device=device, dtype=torch.int32)}
    ),
    small=lambda g: (
        {n: torch.randn(256, generator=g) for n in ("x", "total")} | {"count": torch.full((1,), 3, dtype=torch.int32)}
    ),
    outputs=("total", "count"),
    flops=lambda a: 256,
    bytes=lambda a: 3 * 1024,
)


def with_fault(case: Case, **changes) -> Case:
    """The same case launched with further keyword arguments."""
    return replace(case, launch=lambda **given: case.launch(**given, **changes))
