"""Linear layers: matrix products with a weight, and what follows where a model asks for it.

    y = x @ weight.T + bias        and of that  gelu(y) + residual,  gelu(y) = y / 2 * (1 + erf(y / sqrt(2)))

On a GPU they are the library's, whatever backend is in force.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend, cpu_multiplies
from acefast.checks import check_dtype, check_shape
from acefast.cpu import linear as cpu
from acefast.panels import COLUMNS, from_panels, rows_of

OP = "linear"
ORDER = ("cpu",)
FEW_ROWS = 64  # below, converting the weights costs more than the faster multiplication saves
# Whether addmm starts from fp32 where its factors have 16 bits. Before, it wanted one dtype, or knew no ``out_dtype``
# at all (pytorch/pytorch #154086, #167931).
WIDE_SUMS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
SCRATCH = 1 << 22  # elements of a weight converted at a time: 16 MiB of fp32, reused by the allocator from call to call


def linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """What the op means, by the library; at 16 bits it rounds before GELU and before the residual is added."""
    if not gelu and residual is None:
        return _product(x, weight, bias, out)
    y = _product(x, weight, bias)
    y = F.gelu(y) if gelu else y
    y = y if residual is None else y.add_(residual)
    return y if out is None else out.copy_(y)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    16-bit weights on a CPU that is slow at them are multiplied in fp32, one slice of the weight at a time. Measured on
    2 cores with AVX-512 alone, [rows, 2048] x [2048, 12288] bf16: 375 rows 117 -> 71 ms, 1500 rows 458 -> 253 ms.
    """
    weight = from_panels(weight) if weight.dim() == 4 else weight
    rows = x.numel() // x.shape[-1]
    O, I = weight.shape  # noqa: E741
    if x.device.type != "cpu" or x.dtype == torch.float32 or rows < FEW_ROWS or cpu_multiplies(x.dtype):
        if out is None:
            return F.linear(x, weight, bias)
        if bias is None:
            torch.mm(x.reshape(rows, I), weight.t(), out=out.view(rows, O))
        else:
            torch.addmm(bias, x.reshape(rows, I), weight.t(), out=out.view(rows, O))
        return out
    x32 = x.reshape(rows, I).float()
    if out is None:
        out = x.new_empty(*x.shape[:-1], O)
    found = out.view(rows, O)
    step = min(O, max(64, SCRATCH // I // 64 * 64))
    scratch, part = x32.new_empty(step, I), x32.new_empty(rows, step)
    for start in range(0, O, step):
        stop = min(start + step, O)
        if stop - start < step:
            scratch, part = scratch[: stop - start], x32.new_empty(rows, stop - start)
        scratch.copy_(weight[start:stop])
        if bias is None:
            torch.mm(x32, scratch.t(), out=part)
        else:
            torch.addmm(bias[start:stop].float(), x32, scratch.t(), out=part)
        found[:, start:stop] = part
    return out


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``x @ weight.T + bias`` in x's dtype, or GELU of that, plus a residual; by a kernel rounded once.

    Args:
        x: [..., I].
        weight: [O, I] of x's dtype; or acefast.panels of that, which the kernel reads as they are.
        bias: [O] or None.
        gelu: whether the exact GELU is taken of the result so far.
        residual: [..., O] of x's dtype, added at last; None for none.
        out: [..., O] of x's dtype, rows at one distance, written and returned; shares no memory with x, and may be the
            residual. None: new one.
        backend: "cpu" (bf16, I a multiple of 32, rows at one distance) or "reference"; None leaves the choice to
            acefast.backends.
    Returns:
        [..., O].
    Raises:
        ValueError: panels are not of such a weight, or the residual's shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: nn.Linear and nn.GELU in pytorch/pytorch.
    """
    if weight.dim() == 4:
        check_shape(OP, "weight", weight, (None, x.shape[-1] // 2, COLUMNS, 2), f"[O / {COLUMNS}, I / 2, {COLUMNS}, 2]")
    outputs = rows_of(weight)
    if residual is not None:
        check_shape(OP, "residual", residual, (*x.shape[:-1], outputs), "[..., O]")
        check_dtype(OP, "residual", residual, x.dtype)
    order = ORDER if cpu.fits(x, weight, bias, residual, out) else ()
    if choose_backend(OP, backend, x.device, order) == "cpu":
        out = x.new_empty(*x.shape[:-1], outputs) if out is None else out
        cpu.linear(x, weight, bias, out, gelu=gelu, residual=residual)
        return out
    return linear_reference(x, weight, bias, gelu=gelu, residual=residual, out=out)


def add_linear(x: Tensor, y: Tensor, weight: Tensor, *, backend: str | None = None) -> None:
    """``x += y @ weight.T`` in place: on a GPU one product that starts from x and rounds once, on "cpu" too.

    A product and a sum, which round twice, on a CPU's reference, and of two dtypes also where torch is older than 2.11
    or the device is no CUDA GPU.

    Args:
        x: [..., O], contiguous; a residual stream, which may be fp32 where y is fp16.
        y: [..., I], contiguous.
        weight: [O, I] of y's dtype.
        backend: as in ``linear``.
    Returns, raises: nothing; as ``linear``.
    """
    if choose_backend(OP, backend, x.device, ORDER if cpu.fits(y, weight, None, x) else ()) == "cpu":
        cpu.linear(y, weight, None, x, residual=x)
        return
    mixed = x.dtype != y.dtype
    if x.device.type == "cpu" or (mixed and not (WIDE_SUMS and x.device.type == "cuda")):
        x.add_(linear_reference(y, weight))
        return
    x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    if mixed:
        torch.addmm(x, y, weight.t(), out_dtype=x.dtype, out=x)
    else:
        x.addmm_(y, weight.t())
