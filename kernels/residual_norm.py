"""Triton kernel of acefast.ops.residual_norm (K01).

Math    x' = x + gate * y, rounded to x's dtype; h = x' * rsqrt(mean(x'**2) + eps) * weight * (1 + scale) + shift
Tiling  one program per ROWS whole rows, which stay in registers; H as two pieces, a power of two and what is left
        (2560 = 2048 + 512). A thread has 4 neighbouring columns, 8 bytes of bf16 or 16 of an fp32 vector: both fill
        their sectors and share one layout
Bytes   4 * R * H * itemsize: x and y in, x' and h out; the vectors come from L2, once per program
Bound   memory beyond about 70 s of song, latency below
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.ops.residual_norm import residual_norm_reference

CONFIGS = {
    ("narrow", 80): Config({"ROWS": 4}, num_warps=1),  # H below 1024
    ("wide", 80): Config({"ROWS": 4}, num_warps=4),  # up to 3072
    ("widest", 80): Config({"ROWS": 2}, num_warps=8),
}


@triton.jit
def _vector(ptr, step, stride, columns, H: tl.constexpr):
    """fp32 [1, columns] of a vector, or of row ``step`` of a table."""
    if step is not None:
        ptr += step * stride
    return tl.load(ptr + columns, mask=columns < H, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _stream(x, y, gate_ptr, new, step, gate_stride, live, columns, H: tl.constexpr):
    """One piece of x', rounded as it is stored; x, y and new point to the rows, [ROWS, 1]."""
    mask = live & (columns < H)[None, :]
    piece = tl.load(x + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if y is not None:
        added = tl.load(y + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if gate_ptr is not None:
            added *= _vector(gate_ptr, step, gate_stride, columns, H)
        rounded = (piece + added).to(x.dtype.element_ty)
        if new is not None:
            tl.store(new + columns[None, :], rounded, mask=mask)
        piece = rounded.to(tl.float32)
    return piece


@triton.jit
def _norm(
    h,
    x,
    inverse_rms,
    weight_ptr,
    scale_ptr,
    shift_ptr,
    step,
    scale_stride,
    shift_stride,
    live,
    columns,
    H: tl.constexpr,
):
    """Store one piece of h."""
    if weight_ptr is not None:
        factor = _vector(weight_ptr, None, 0, columns, H)
        if scale_ptr is not None:
            factor *= 1 + _vector(scale_ptr, step, scale_stride, columns, H)
        out = x * inverse_rms[:, None] * factor
    elif scale_ptr is not None:
        out = x * inverse_rms[:, None] * (1 + _vector(scale_ptr, step, scale_stride, columns, H))
    else:
        out = x * inverse_rms[:, None]
    if shift_ptr is not None:
        out += _vector(shift_ptr, step, shift_stride, columns, H)
    tl.store(h + columns[None, :], out.to(h.dtype.element_ty), mask=live & (columns < H)[None, :])


@triton.jit(do_not_specialize=["S"])
def _residual_norm(
    x_ptr,
    weight_ptr,
    y_ptr,
    gate_ptr,
    scale_ptr,
    shift_ptr,
    step_ptr,
    new_ptr,
    h_ptr,
    S,
    x_batch,
    x_row,
    y_batch,
    y_row,
    new_batch,
    new_row,
    h_batch,
    h_row,
    gate_stride,
    scale_stride,
    shift_stride,
    H: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    FIRST: tl.constexpr,  # columns of the first piece
    REST: tl.constexpr,  # of the second, a power of two as well; 0 where there is none
):
    batch = tl.program_id(1).to(tl.int64)
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None].to(tl.int64)
    live = rows < S
    x = x_ptr + batch * x_batch + rows * x_row
    h = h_ptr + batch * h_batch + rows * h_row
    y = None
    if y_ptr is not None:
        y = y_ptr + batch * y_batch + rows * y_row
    new = None
    if new_ptr is not None:
        new = new_ptr + batch * new_batch + rows * new_row
    step = None
    if step_ptr is not None:
        step = tl.load(step_ptr).to(tl.int64)

    columns = tl.max_contiguous(tl.arange(0, FIRST), min(FIRST, 4))
    first = _stream(x, y, gate_ptr, new, step, gate_stride, live, columns, H)
    squares = first * first
    if REST:
        more = FIRST + tl.max_contiguous(tl.arange(0, REST), min(REST, 4))
        rest = _stream(x, y, gate_ptr, new, step, gate_stride, live, more, H)
        squares = tl.sum(squares.reshape(ROWS, FIRST // REST, REST), 1) + rest * rest
    inverse_rms = tl.rsqrt(tl.sum(squares, 1) / H + EPS)
    _norm(h, first, inverse_rms, weight_ptr, scale_ptr, shift_ptr, step, scale_stride, shift_stride, live, columns, H)
    if REST:
        _norm(h, rest, inverse_rms, weight_ptr, scale_ptr, shift_ptr, step, scale_stride, shift_stride, live, more, H)


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
    config = pick(CONFIGS, "narrow" if H < 1024 else "wide" if H <= 3072 else "widest")
    first = 1 << (H.bit_length() - 1)
    _residual_norm[(triton.cdiv(S, config["ROWS"]), B)](
        x,
        weight,
        y,
        gate,
        scale,
        shift,
        step,
        None if y is None else new,
        h,
        S,
        *(n for t in (x, y, new, h) for n in ((0, 0) if t is None else t.stride()[:2])),
        *(0 if step is None or t is None else t.stride(0) for t in (gate, scale, shift)),
        H=H,
        EPS=eps,
        FIRST=first,
        REST=triton.next_power_of_2(H - first) if first < H else 0,
        **config.options,
    )
    return new, h


def _meaning(out: tuple[Tensor | None, Tensor], **arguments) -> tuple[Tensor, ...]:
    """What ``out`` comes to: x' in its dtype where it is stored, h in fp32."""
    new, h = residual_norm_reference(**arguments, dtype=torch.float32)
    return (h,) if out[0] is None else (new, h)


def _case(config: str, H: int, variant: str, stream: torch.dtype = torch.bfloat16, weighed: bool = True) -> Case:
    def arguments(device: torch.device, rng: torch.Generator | None = None, S: int = 1536) -> Arguments:
        def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(shape, generator=rng, device=device).to(dtype)

        x, table = normal(1, S, H, dtype=stream), normal(8, 6, H, dtype=torch.float32)
        found: Arguments = {"x": x, "weight": normal(H) if weighed else None}
        if variant != "b":
            found |= {"y": normal(1, S, H), "gate": table[:, 2]}
        if variant != "a":
            found |= {"scale": table[:, 1], "shift": table[:, 0]}
        step = torch.full((1,), 3, dtype=torch.int32, device=device)
        h = torch.full((1, S, H), torch.nan, dtype=torch.bfloat16, device=device)
        return found | {"step": step, "out": (x if variant in "ac" else None, h)}

    def moved(a: Arguments) -> float:
        new, h = a["out"]
        whole = [a["x"], a.get("y"), None if a.get("y") is None else new, h, a["weight"]]  # without y no x' is stored
        rows = [a.get(name) for name in ("gate", "scale", "shift")]  # of tables
        return sum(t.nbytes for t in whole if t is not None) + sum(t[0].nbytes for t in rows if t is not None)

    return Case(
        kernel="residual_norm",
        config=config,
        launch=residual_norm,
        reference=_meaning,
        real=arguments,  # 120 s of song: 1500 tokens, padded
        small=lambda rng: arguments(torch.device("cpu"), rng, S=6),  # a program and a ragged one
        outputs=("out",),
        flops=lambda a: 8.0 * a["x"].numel(),
        bytes=moved,
    )


CASES = (
    *(
        _case(f"{model}-{name}", H, variant)
        for model, H in (("2b", 2048), ("xl", 2560))
        for variant, name in (("a", "gate-norm"), ("b", "norm-modulate"), ("c", "full"), ("d", "final"))
    ),
    _case("xl-full-fp32-stream", 2560, "c", torch.float32),
    _case("v1-full", 2560, "c", weighed=False),
)
