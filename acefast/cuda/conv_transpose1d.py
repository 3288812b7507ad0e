"""Launch wrapper of csrc/conv_transpose1d.cu."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acefast.cases import Case
from acefast.cuda.conv1d import NAMES, table
from acefast.cuda.loader import current_sm, launch
from acefast.guarded import GUARD, whole
from acefast.kernel_config import pick
from acefast.ops.snake import Activation

KERNELS = table("conv_transpose1d")


def shape_class(half: int) -> str:
    """By what is left when ``half`` of the columns are cut into tiles; never by the number of rows, so that a row has
    the same bits in any tile."""
    return "wide" if half % 256 == 0 else "half"


def fits(weight: Tensor, stride: int, wave: Activation | None) -> bool:
    """Whether there is a kernel for a weight [2 * Cin, stride * Cout] and for what is done to the result."""
    Cin, Cout = weight.shape[0] // 2, weight.shape[1] // stride
    plain = weight.dtype in NAMES and not isinstance(wave, str)
    return plain and min(Cin, Cout) > 0 and Cin % 64 == Cout % 64 == 0 and stride // 2 * Cout % 128 == 0


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    wave: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor | None, Tensor | None],
) -> None:
    """Launches the kernel on guarded rows; ``out``: y and what ``wave`` makes of it, if wanted. The op has checked."""
    (B, L, Cin), Cout = x.shape, len(bias)
    kernel = pick(KERNELS, shape_class(stride // 2 * Cout), current_sm())
    blocks = -(-L // kernel["M"]) * (stride * Cout // kernel["N"])
    y, activated = (None if t is None else whole(t) for t in out)
    tensors = whole(x), weight, bias, *(wave or (None, None)), y, activated
    sizes = L, Cin, Cout, stride, GUARD
    entry = f"{kernel.entry}_{NAMES[x.dtype]}"
    arguments = (*tensors, *sizes), 7 * "p" + 5 * "i"
    launch("conv_transpose1d", entry, (blocks, 1, B), kernel.threads, kernel.shared, *arguments)


def cases() -> tuple[Case, ...]:
    """Twins of the Triton kernel's cases, by the same names."""
    from acefast.kernels.conv_transpose1d import CASES

    def twin(of: Case) -> Case:
        a = of.real(torch.device("meta"))
        wide = shape_class(a["weight"].shape[1] // 2) == "wide"
        mix = 0.83 if wide else 0.93  # 106 and 119 others per 128 on tensor cores
        return replace(of, launch=conv_transpose1d, sector_limit=1.05, loop_mix=mix)

    def taken(case: Case) -> bool:
        a = case.real(torch.device("meta"))
        return fits(a["weight"], a["stride"], a["wave"])

    return tuple(twin(case) for case in CASES if taken(case))
