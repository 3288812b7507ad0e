"""Products of 8-bit integers, summed as integers and scaled back: a linear layer at twice a tensor core's 16-bit rate.

    y = x_scale * weight_scale * (x @ weight.T) + bias              a scale per row of x and one per row of the weight

acefast.ops.quantize_rows makes both operands: the weight's once at load, x before every product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_dtype, check_shape
from acefast.cpu import linear_int8 as cpu
from acefast.cuda import linear_int8 as cuda
from acefast.operators import operator
from acefast.ops.quantize_rows import Pair, quantize_rows

OP = "linear_int8"
ORDER = ("cuda", "cpu")
LONGEST = 1 << 17  # so many products of -128 by -128 are more than 32 bits hold


def quantize_weight(weight: Tensor) -> Pair:
    """A linear layer's weight [N, K] as int8 and one fp32 scale [N] per output, as ``linear_int8`` takes them."""
    return quantize_rows(weight.contiguous())


def int_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` of int8 [R, K] and [N, K], exact: int32 [R, N]."""
    (R, K), N = x.shape, len(weight)
    if K % 8 == N % 8 == 0 and (x.device.type == "cpu" or R > 16):  # on a CPU it takes K = 1 too, and is wrong there
        return torch._int_mm(x, weight.t())
    return (x.double() @ weight.double().t()).int()  # exact up to 2**53


def linear_int8_reference(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    swiglu: bool = False,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    step: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What the op means: exact sums, the rest in fp32 PyTorch, rounded once; every kernel is held to it.

    Scales, bias and gate in fp64 make the rest fp64.
    """
    y = int_product(x.view(-1, x.shape[-1]), weight).to(x_scale.dtype).view(*x.shape[:-1], len(weight))
    y.mul_(x_scale[..., None]).mul_(weight_scale)
    if bias is not None:
        y.add_(bias)
    if swiglu:
        first, second = y.chunk(2, dim=-1)
        y = F.silu(first).mul_(second)
    if residual is None:
        return y.to(dtype or torch.bfloat16)
    if gate is not None:
        y.mul_(gate if step is None else gate.index_select(0, step)[0])
    return y.add_(residual).to(residual.dtype)


def _fake(x: Tensor, x_scale: Tensor, weight: Tensor, *_, swiglu: bool = False, dtype=None, **__) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight) // (1 + swiglu)), dtype=dtype or torch.bfloat16)


@operator(
    "(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias=None, *, bool swiglu=False, "
    "ScalarType? dtype=None, str? backend=None) -> Tensor",
    fake=_fake,
)
def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    swiglu: bool = False,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    step: Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``y = x_scale * weight_scale * (x @ weight.T) + bias``, its SwiGLU, or ``residual += gate * y``.

    Args:
        x: int8 [..., K], contiguous; K below 131072.
        x_scale: fp32 [...], contiguous.
        weight: int8 [N, K], contiguous; of SwiGLU the gate's N / 2 rows first, as in acefast.ops.linear_swiglu.
        weight_scale: fp32 [N], contiguous.
        bias: fp32 [N], contiguous, or None.
        swiglu: whether the result is ``silu(y[..., :N/2]) * y[..., N/2:]``.
        residual: [..., N], contiguous, to which y is added in place and which is returned; not with ``swiglu``.
        gate: fp32 [N], factor of y before it is added to ``residual``; None stands for 1.
        step: int32 [1] on x's device: gate is then a table, [steps, N], of which row ``step[0]`` is used.
        dtype: the result's, of floating point; None: that of ``residual`` or ``out``, or bf16 where there is neither.
        out: like what is returned, contiguous, written and returned. None: new memory.
        backend: "cuda" (16-bit results, K and N multiples of 128, at least a row, addresses multiples of 16), "cpu"
            (bf16 results, K a multiple of 64, width of the result one of 16, at least a row, no ``step``) or
            "reference"; None leaves the choice to acefast.backends.
    Returns:
        [..., N], with ``swiglu`` [..., N / 2], rounded once: sums are exact, the rest is fp32.
    Raises:
        ValueError: a shape, dtype or layout is not as above, or two arguments exclude one another.
        BackendUnavailable: the backend named cannot take this input.
    Source: W8A8 by token and by channel as in vllm-project/vllm csrc/quantization/cutlass_w8a8.
    """
    _check_operands(x, x_scale, weight, weight_scale, bias)
    N = len(weight)
    if swiglu and (N % 2 or residual is not None):
        raise ValueError(f"{OP}: swiglu needs an even N and no residual, got N = {N}")
    if residual is None and gate is not None:
        raise ValueError(f"{OP}: gate needs a residual that its product is added to, got residual=None")
    if residual is not None and out is not None:
        raise ValueError(f"{OP}: residual is written itself; it excludes out")
    into = out if residual is None else residual
    if into is not None:
        name = "out" if residual is None else "residual"
        check_shape(OP, name, into, (*x.shape[:-1], N // (1 + swiglu)), "[..., N / 2]" if swiglu else "[..., N]")
        check_contiguous(OP, name, into)
        check_dtype(OP, name, into, dtype or into.dtype)
    if gate is not None:
        check_shape(OP, "gate", gate, (N,) if step is None else (None, N), "[N]" if step is None else "[steps, N]")
        check_dtype(OP, "gate", gate, torch.float32)
    if step is not None:
        check_shape(OP, "step", step, (1,), "[1]")
        check_dtype(OP, "step", step, torch.int32)
    dtype = (dtype or torch.bfloat16) if into is None else into.dtype
    options = {"swiglu": swiglu, "residual": residual, "gate": gate, "step": step}
    fits = {
        "cuda": cuda.fits(x, weight, weight_scale, bias, gate, into, dtype=dtype),
        "cpu": cpu.fits(x, weight, gate, step, swiglu=swiglu, dtype=dtype),
    }
    chosen = choose_backend(OP, backend, x.device, [name for name in ORDER if fits[name]])
    if chosen != "reference":
        if into is None:
            into = x.new_empty((*x.shape[:-1], N // (1 + swiglu)), dtype=dtype)
        kernel = cuda if chosen == "cuda" else cpu
        kernel.linear_int8(x, x_scale, weight, weight_scale, bias, **options, out=into)
        return into
    y = linear_int8_reference(x, x_scale, weight, weight_scale, bias, **options, dtype=dtype)
    return y if into is None else into.copy_(y)


def _check_operands(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> None:
    K = x.shape[-1]
    check_shape(OP, "weight", weight, (None, K), "[N, K]")
    if K >= LONGEST:
        raise ValueError(f"{OP}: K must be below {LONGEST}, or sums do not fit into 32 bits, got {K}")
    check_shape(OP, "x_scale", x_scale, x.shape[:-1], "[...]")
    for name, t in (("weight_scale", weight_scale), ("bias", bias)):
        if t is not None:
            check_shape(OP, name, t, (len(weight),), "[N]")
    for name, t in (("x", x), ("weight", weight)):
        check_dtype(OP, name, t, torch.int8)
    for name, t in (("x_scale", x_scale), ("weight_scale", weight_scale), ("bias", bias)):
        if t is not None:
            check_dtype(OP, name, t, torch.float32)
    for name, t in (("x", x), ("x_scale", x_scale), ("weight", weight), ("weight_scale", weight_scale), ("bias", bias)):
        if t is not None:
            check_contiguous(OP, name, t)
