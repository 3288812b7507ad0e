"""Launch wrapper of csrc/conv1d.cu."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acefast.cases import Case
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.guarded import GUARD, whole
from acefast.kernel_config import pick
from acefast.ops.snake import Activation

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def table(op: str) -> dict[tuple[str, int], Kernel]:
    """The entries of csrc/<op>.cu: 128 rows of ``n`` columns, ``k`` of K at a time."""

    def tile(n: int, k: int, stages: int) -> Kernel:
        return Kernel(f"{op}_n{n}_k{k}", n, stages * (128 + n) * k * 2, {"M": 128, "N": n, "K": k})

    smaller = tile(128, 32, 3)
    return {
        ("wide", 80): tile(256, 64, 3),  # one block of 144 KB
        ("half", 80): tile(128, 64, 2),  # two of 64 KB, of which one multiplies while the other stores
        **{(shape, sm): smaller for shape in ("wide", "half") for sm in (86, 89, 120)},  # two of 48
    }


KERNELS = table("conv1d")


def shape_class(channels: int, taps: int) -> str:
    """By what is left when ``channels`` are cut into tiles; never by the number of rows, so that a row has the same
    bits in any tile."""
    return "wide" if channels % 256 == 0 and taps > 1 else "half"


def fits(weight: Tensor, wave: Activation | None, total: Tensor | None, share: float) -> bool:
    """Whether there is a kernel for a weight [Cout, K, Cin] and for what is done to the result."""
    Cout, _, Cin = weight.shape
    plain = weight.dtype in NAMES and not isinstance(wave, str) and total is None and share == 1
    frames = max(Cin, Cout) >= 2048  # of which there are few: Triton's tiles are smaller
    return plain and not frames and Cin > 0 and Cin % 64 == 0 and Cout % 128 == 0


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    residual: Tensor | None = None,
    wave: tuple[Tensor, Tensor] | None = None,
    out: tuple[Tensor | None, Tensor | None],
) -> None:
    """Launches the kernel on guarded rows; ``out``: the result and what ``wave`` makes of it. The op has checked."""
    (B, L, Cin), (Cout, taps, _) = x.shape, weight.shape
    R = next(t for t in out if t is not None).shape[1]
    kernel = pick(KERNELS, shape_class(Cout, taps), current_sm())
    blocks = -(-R // kernel["M"]) * (Cout // kernel["N"])
    residual, y, activated = (None if t is None else whole(t) for t in (residual, *out))
    tensors = whole(x), weight, bias, residual, *(wave or (None, None)), y, activated
    sizes = L, R, Cin, Cout, taps, stride, padding, dilation, GUARD
    entry = f"{kernel.entry}_{NAMES[x.dtype]}"
    launch("conv1d", entry, (blocks, 1, B), kernel.threads, kernel.shared, (*tensors, *sizes), 8 * "p" + 9 * "i")


def cases() -> tuple[Case, ...]:
    """Twins of the Triton kernel's cases, by the same names."""
    from acefast.kernels.conv1d import CASES

    def twin(of: Case) -> Case:
        def launched(share: float, total: None, **given) -> None:
            conv1d(**given)

        Cout, taps, _ = of.real(torch.device("meta"))["weight"].shape
        mix = 0.81 if shape_class(Cout, taps) == "wide" else 0.92  # 102 and 117 others per 128 on tensor cores
        return replace(of, launch=launched, sector_limit=1.05, loop_mix=mix)

    def taken(case: Case) -> bool:
        a = case.real(torch.device("meta"))
        return fits(a["weight"], a["wave"], a["total"], a["share"])

    return tuple(twin(case) for case in CASES if taken(case))
