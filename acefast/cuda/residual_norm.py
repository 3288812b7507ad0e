"""Launch wrapper of csrc/residual_norm.cu."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from acefast.cases import Case
from acefast.cuda.loader import launch

WIDTHS = 2048, 2560
ROWS = 2  # of a block, which has as many warps
NAMES = {
    (torch.bfloat16, torch.bfloat16): "bf16",  # the stream's and the norm's
    (torch.float32, torch.bfloat16): "fp32_bf16",
    (torch.float32, torch.float16): "fp32_fp16",
}


def fits(
    x: Tensor,
    others: Sequence[Tensor | None],
    vectors: Sequence[Tensor | None],
    new: Tensor | None,
    dtype: torch.dtype,
) -> bool:
    """Whether the kernel takes a stream ``x``, written to ``new`` or to new memory, a norm of ``dtype``, the ``others``
    of that dtype (weight, y, h), and gate, scale and shift, of which the last two come together."""
    return (
        x.shape[-1] in WIDTHS
        and (vectors[1] is None) == (vectors[2] is None)
        and (x.dtype, dtype) in NAMES
        and all(t is None or t.dtype == dtype for t in others)
        and all(t is None or t.dtype == torch.float32 for t in vectors)
        and all(t is None or in_fours(t) for t in (x, new, *others, *vectors))
    )


def in_fours(t: Tensor) -> bool:
    """Whether each row's columns can be read four at a time."""
    rows = all(stride % 4 == 0 for size, stride in zip(t.shape[:-1], t.stride()) if size > 1)
    return rows and t.stride(-1) == 1 and t.data_ptr() % (4 * t.itemsize) == 0


def residual_norm(
    x: Tensor,
    weight: Tensor | None,
    y: Tensor | None = None,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    step: Tensor | None = None,
    eps: float = 1e-6,
    out: tuple[Tensor | None, Tensor],
) -> tuple[Tensor | None, Tensor]:
    """Launches the kernel; the op has checked the inputs. ``out`` is written; where y is None, x is returned for x'."""
    B, S, H = x.shape
    new, h = (x, out[1]) if y is None else out
    places = (n for t in (x, y, new, h) for n in ((0, 0) if t is None else t.stride()[:2]))
    tables = (0 if step is None or t is None else t.stride(0) for t in (gate, scale, shift))
    stream = None if y is None else new
    arguments = x, y, weight, gate, scale, shift, step, stream, h, S, *places, *tables, eps
    entry = f"residual_norm_h{H}_{NAMES[x.dtype, h.dtype]}"
    types = 9 * "p" + "i" + 11 * "l" + "f"
    launch("residual_norm", entry, (-(-S // ROWS), B, 1), 32 * ROWS, 4 * ROWS * ROWS, arguments, types)
    return new, h


def cases() -> tuple[Case, ...]:
    """Those of the Triton kernel, launched here."""
    from acefast.kernels.residual_norm import CASES

    return tuple(replace(case, launch=residual_norm) for case in CASES)
