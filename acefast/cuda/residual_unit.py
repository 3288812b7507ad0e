"""Launch wrapper of csrc/residual_unit.cu."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.guarded import GUARD, whole
from acefast.kernel_config import pick

TAPS = 7
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def _tile(C: int, rows: int, k: int, stages: int) -> Kernel:
    threads = rows // 64 * (C // 64) * 32
    return Kernel(f"residual_unit_c{C}_r{rows}", threads, tiles={"ROWS": rows, "KB": k, "STAGES": stages})


# Of two blocks on a multiprocessor one loads and stores while the other multiplies; 64 x 64 of a warp's sums leave room
# for eight warps. Never chosen by the number of rows, so that a row has the same bits in any tile.
KERNELS = {
    ("c128", 80): _tile(128, 128, 64, 2),  # two blocks of up to 78 KB; one where there are 100 KB
    ("c256", 80): _tile(256, 128, 64, 2),  # one of up to 155 KB
    ("c256", 86): _tile(256, 64, 32, 2),  # one of up to 91 KB
    ("c256", 89): _tile(256, 64, 32, 2),
    ("c256", 120): _tile(256, 64, 32, 2),
}


def fits(channels: int, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for rows so wide."""
    return channels in (128, 256) and dtype in NAMES


def residual_unit(
    x: Tensor,
    alpha1: Tensor,
    inv_beta1: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    inv_beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    dilation: int,
    wave: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor | None, Tensor | None],
    kernel: Kernel | None = None,
) -> None:
    """Launches the kernel on guarded rows; the op has checked the inputs. ``kernel``: instead of the table's."""
    B, L, C = x.shape
    kernel = kernel or pick(KERNELS, f"c{C}", current_sm())
    rows = kernel["ROWS"]
    shared = (kernel["STAGES"] * kernel["KB"] + rows + (TAPS - 1) * dilation) * C * x.itemsize
    first, second = (alpha1, inv_beta1, weight1, bias1), (alpha2, inv_beta2, weight2, bias2)
    results = (None if t is None else whole(t) for t in out)
    arguments = whole(x), *first, *second, *(wave or (None, None)), *results, L, dilation, GUARD
    entry = f"{kernel.entry}_{NAMES[x.dtype]}"
    launch("residual_unit", entry, (-(-L // rows), 1, B), kernel.threads, shared, arguments, 13 * "p" + 3 * "i")


def _reference(
    x: Tensor,
    alpha1: Tensor,
    inv_beta1: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    inv_beta2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    dilation: int,
    wave: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, ...]:
    def snake(rows: Tensor, alpha: Tensor, inv_beta: Tensor) -> Tensor:
        return (rows + inv_beta * (alpha * rows).sin() ** 2).to(x.dtype)

    padding = TAPS // 2 * dilation
    h = F.conv1d(snake(x, alpha1, inv_beta1).mT, weight1.mT, bias1, padding=padding, dilation=dilation).mT
    y = x + F.linear(snake(h, alpha2, inv_beta2), weight2, bias2)
    return *(() if out[0] is None else (y,)), *(() if wave is None else (snake(y, *wave),))


def cases() -> tuple[Case, ...]:
    """Twins of the Triton kernel's cases, by the same names. There a unit writes y over x and the next unit's snake;
    here y alone, to memory of its own, unless it is a block's last."""
    from acefast.kernels.residual_unit import CASES

    def twin(of: Case) -> Case:
        def given(theirs: Arguments) -> Arguments:
            y, (kept, waved) = theirs.pop("activated"), theirs["out"]
            first = {"alpha1": theirs["alpha2"].flip(0), "inv_beta1": theirs["inv_beta2"].flip(0)}
            ends = {"wave": theirs["wave"], "out": (None, waved)} if kept is None else {"wave": None, "out": (y, None)}
            return {**theirs, **first, **ends}

        return replace(
            of,
            launch=residual_unit,
            reference=_reference,
            real=lambda device: given(of.real(device)),
            small=lambda generator: given(of.small(generator)),
            bytes=lambda a: 2 * a["x"].nbytes + a["weight1"].nbytes + a["weight2"].nbytes,
            tolerance=2 * of.tolerance,  # snake1 is rounded here too: a unit's is twice a convolution's
        )

    same = ("c256-d1", "c256-d3", "c256-d9-last", "c128-d1", "c128-d3", "c128-d9-last", "c128-d9-last-fp16")
    return tuple(twin(case) for case in CASES if case.config in same)
