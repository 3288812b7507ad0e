"""Rows as 8-bit integers and one scale each: what an int8 product reads, see acefast.ops.linear_int8."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape
from acefast.cpu import quantize_rows as cpu
from acefast.cuda import quantize_rows as cuda
from acefast.operators import operator

OP = "quantize_rows"
ORDER = ("cuda", "cpu")
LEVELS = 127  # on either side of zero; -128 is not used
# What a row's largest magnitude is at least taken for: no scale is zero, none has an infinite inverse.
LEAST = 2.0**-100
Pair = tuple[Tensor, Tensor]


def quantize_rows_reference(x: Tensor) -> Pair:
    """What the op means, in fp32 PyTorch; every kernel has the same bits."""
    x32 = x.float()
    scale = x32.abs().amax(-1).clamp_(min=LEAST).mul_(1 / LEVELS)
    return (x32 * scale.reciprocal()[..., None]).round_().to(torch.int8), scale


@operator(
    "(Tensor x, *, str? backend=None) -> (Tensor, Tensor)",
    fake=lambda x, *_, **__: (x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)),
)
def quantize_rows(x: Tensor, *, out: Pair | None = None, backend: str | None = None) -> Pair:
    """``q = round(x / scale)`` with ``scale = max |x| / 127`` of each row, so that ``q * scale`` is x to half a scale.

    Rounded to nearest, ties to even. A row of zeros is zeros, its scale 2**-100 / 127. One that holds an infinity or a
    NaN has a scale that is the same, which makes what is multiplied by it NaN or infinite; its q have no meaning.

    Args:
        x: [..., K], contiguous; fp32, bf16 or fp16; K at least 1.
        out: like what is returned, contiguous, written and returned. None: new memory.
        backend: "cuda" (K a multiple of 8, at most 32768), "cpu" (bf16, K a multiple of 16) or "reference"; None leaves
            the choice to acefast.backends.
    Returns:
        q, int8 [..., K], from -127 to 127, and scale, fp32 [...].
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: dynamic per-token quantisation as in vllm-project/vllm
        csrc/quantization/compressed_tensors/int8_quant_kernels.cu.
    """
    check_contiguous(OP, "x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{OP}: x must be [..., K] with K at least 1, got {list(x.shape)}")
    if x.dtype not in cuda.NAMES:
        raise ValueError(f"{OP}: x must be {', '.join(map(str, cuda.NAMES))}, got {x.dtype}")
    if out is not None:
        wanted = (x.shape, torch.int8, "[..., K]"), (x.shape[:-1], torch.float32, "[...]")
        for name, t, (shape, dtype, letters) in zip(("out[0]", "out[1]"), out, wanted):
            check_shape(OP, name, t, shape, letters)
            check_dtype(OP, name, t, dtype)
            check_contiguous(OP, name, t)
    kernels = {name: launch for name, launch in zip(ORDER, (cuda, cpu)) if launch.fits(x)}
    if (chosen := choose_backend(OP, backend, x.device, [*kernels])) in kernels:
        if out is None:
            out = torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)
        kernels[chosen].quantize_rows(x, out=out)
        return out
    found = quantize_rows_reference(x)
    return found if out is None else tuple(to.copy_(t) for to, t in zip(out, found))
