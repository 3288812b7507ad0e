"""Launch wrapper of csrc/quantize_rows.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.checks import rows_start_at
from acefast.cuda.loader import launch

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
OF_A_WARP = 4 * 8 * 32  # elements, at most; a block has 32 warps


def fits(x: Tensor) -> bool:
    """Whether the kernel takes rows [..., K]."""
    K = x.shape[-1]
    return x.dtype in NAMES and K % 8 == 0 and K <= 32 * OF_A_WARP and rows_start_at(x, 16)


def quantize_rows(x: Tensor, *, out: tuple[Tensor, Tensor]) -> None:
    """Launches the kernel; the op has checked the inputs."""
    K = x.shape[-1]
    warps = -(-K // OF_A_WARP)
    grid = (x.numel() // K, 1, 1)
    launch("quantize_rows", f"quantize_rows_{NAMES[x.dtype]}", grid, 32 * warps, 4 * warps, (x, *out, K), "pppi")


def _reference(x: Tensor, *, out: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    from acefast.ops.quantize_rows import quantize_rows_reference

    return quantize_rows_reference(x)


def _case(
    config: str, dtype: torch.dtype, real: tuple[int, int], small: tuple[int, int], sector_limit: float = 1.05
) -> Case:
    """Sizes as R, K."""

    def arguments(R: int, K: int, **options) -> Arguments:
        make = torch.randn if "generator" in options else torch.empty
        x = make(R, K, **options).to(dtype)
        return {"x": x, "out": (torch.empty_like(x, dtype=torch.int8), x.new_empty(R, dtype=torch.float32))}

    return Case(
        kernel="quantize_rows",
        config=config,
        launch=quantize_rows,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: 4 * a["x"].numel(),
        bytes=lambda a: a["x"].nbytes + a["x"].numel() + 4 * len(a["x"]),
        sector_limit=sector_limit,
    )


def cases() -> tuple[Case, ...]:
    """Rows of 120 s before an attention's products and before the feed-forward's second."""
    return (
        _case("h2048", torch.bfloat16, (1536, 2048), (5, 2048)),
        _case("h2560-fp32", torch.float32, (1536, 2560), (3, 2560), 1.8),  # 8 fp32 are two loads, of the same sectors
        _case("i9728-fp16", torch.float16, (1536, 9728), (2, 9728)),
    )
