"""Launch wrapper of csrc/residual_unit.cu."""

from __future__ import annotations

from collections.abc import Callable
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
WIDE = _tile(128, 256, 64, 3)  # one block of up to 126 KB instead of two, half the weights' traffic: c128-d1-wide


def fits(x: Tensor, out: tuple[Tensor | None, ...] = ()) -> bool:
    """Whether there is a kernel for such rows and where the results go: not over x, whose neighbours are still read."""
    apart = all(t is None or t.untyped_storage()._cdata != x.untyped_storage()._cdata for t in out)
    return x.shape[2] in (128, 256) and x.dtype in NAMES and apart


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
    """Those of the Triton kernel in a decoder: there each writes y and its snake, here the next unit makes its own.

    ``activated`` becomes y, since what is kept cannot replace x; so each is beside its twin of the same name.
    """
    from acefast.kernels import residual_unit as twin

    def made(of: Callable[..., Arguments], both: bool) -> Callable[..., Arguments]:
        def arguments(argument: torch.device | torch.Generator) -> Arguments:
            given = of(argument)
            y, keep = given.pop("activated"), given["out"][0] is not None
            wave = given["wave"] if both or not keep else None
            first = {"alpha1": given["alpha2"].flip(0), "inv_beta1": given["inv_beta2"].flip(0)}
            return {**given, **first, "wave": wave, "out": (y if keep else None, given["out"][1] if wave else None)}

        return arguments

    def case(of: Case, small: tuple[int, int], *, both: bool = False, kernel: Kernel | None = None) -> Case:
        def run(**given) -> None:
            residual_unit(**given, kernel=kernel)

        def smaller(generator: torch.Generator) -> Arguments:
            B, L = small
            C = of.real(torch.device("meta"))["x"].shape[2]
            return twin.arguments(B, L, C, generator=generator)

        return replace(
            of,
            launch=run,
            reference=_reference,
            real=made(of.real, both),
            small=made(of.small, both),
            bytes=lambda a: a["x"].nbytes * (1 + sum(t is not None for t in a["out"]))
            + a["weight1"].nbytes
            + a["weight2"].nbytes,
        )

    return tuple(case(of, (1, 1)) for of in twin.CASES)
