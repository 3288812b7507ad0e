"""Launch wrapper of csrc/linear_int8.cu."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.checks import rows_start_at
from acefast.cuda.loader import Kernel, current_sm, launch
from acefast.kernel_config import pick

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
DEPTH = 128  # of K at a time


def _tile(m: int, n: int, stages: int) -> Kernel:
    shared = (m + n) * DEPTH * stages
    return Kernel(f"linear_int8_m{m}_n{n}", m * n // 128, shared, {"M": m, "N": n})


# Sums are exact: a row has the same bits in any tile.
KERNELS = {
    ("many", 80): _tile(128, 256, 3),  # one block of 144 KB on a multiprocessor
    ("few", 80): _tile(128, 128, 2),  # two of 64 KB
    ("many", 86): _tile(128, 128, 2),
    ("many", 89): _tile(128, 128, 2),
    ("many", 120): _tile(128, 128, 2),
}


def fits(x: Tensor, weight: Tensor, *others: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether the kernel takes these operands and ``others`` that it reads or writes 16 bytes at a time."""
    tensors = [t for t in (x, weight, *others) if t is not None]
    sizes = x.numel() > 0 and x.shape[-1] % DEPTH == 0 and len(weight) % 128 == 0 and weight.numel() < 1 << 31
    return dtype in NAMES and sizes and all(rows_start_at(t, 16) for t in tensors)


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
    out: Tensor,
    kernel: Kernel | None = None,
) -> None:
    """Launches the kernel; the op has checked the inputs. ``out`` is ``residual`` where there is one. ``kernel``:
    instead of the table's."""
    O, K = weight.shape  # noqa: E741
    R = x.numel() // K
    kernel = kernel or pick(KERNELS, "many" if R > 512 and O % 256 == 0 else "few", current_sm())
    grid = (-(-R // kernel["M"]) * (O // kernel["N"]), 1, 1)
    apart = 0 if gate is None or step is None else gate.stride(0)
    tensors = x, x_scale, weight, weight_scale, bias, gate, step, out
    arguments = *tensors, apart, R, K, O, int(swiglu), int(residual is not None)
    entry = f"{kernel.entry}_{NAMES[out.dtype]}"
    launch("linear_int8", entry, grid, kernel.threads, kernel.shared, arguments, 8 * "p" + "l" + 5 * "i")


def _reference(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, **options
) -> tuple[Tensor, ...]:
    from acefast.ops.linear_int8 import linear_int8_reference

    dtype = options.pop("out").dtype
    return (linear_int8_reference(x, x_scale, weight, weight_scale, bias, **options, dtype=dtype),)


def _rounded_twice(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None, *, out, **options
) -> tuple[Tensor, ...]:
    """As PyTorch has it without the op: a product of ``out``'s dtype, then SwiGLU or what is added."""
    own, other = ((t * s[:, None]).to(out.dtype) for t, s in ((x, x_scale), (weight, weight_scale)))
    y = F.linear(own, other, None if bias is None else bias.to(out.dtype))
    if options.get("swiglu"):
        first, second = y.chunk(2, dim=-1)
        return (F.silu(first) * second,)
    if options.get("residual") is None:
        return (y,)
    gate, step = options.get("gate"), options.get("step")
    if gate is not None:
        y = y * (gate if step is None else gate[int(step)]).to(out.dtype)
    return (options["residual"] + y,)


def _case(
    config: str,
    real: tuple[int, int, int],
    small: tuple[int, int, int],
    form: str = "plain",
    dtype: torch.dtype = torch.bfloat16,
    loop_mix: float | None = None,
) -> Case:
    """Sizes as R, K, rows of the weight; ``form``: "plain", "bias", "swiglu" or "add"."""

    def arguments(R: int, K: int, O: int, **options) -> Arguments:  # noqa: E741
        made = "generator" in options

        def integers(*shape: int) -> Tensor:
            # At real size small ones: scales are then of the size of 1, and fp16 is narrow.
            most, where = (127, {"generator": options["generator"]}) if made else (2, {"device": options["device"]})
            return torch.randint(-most, most + 1, shape, dtype=torch.int8, **where)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(*shape, **options) if made else torch.empty(*shape, **options)

        x_scale, weight_scale = (numbers(n).abs_() / 127 for n in (R, O))
        given = {"x": integers(R, K), "x_scale": x_scale, "weight": integers(O, K), "weight_scale": weight_scale}
        if form == "bias":
            given["bias"] = numbers(O)
        if form == "swiglu":
            return {**given, "swiglu": True, "out": x_scale.new_empty(R, O // 2, dtype=dtype)}
        if form != "add":
            return {**given, "out": x_scale.new_empty(R, O, dtype=dtype)}
        stream = numbers(R, O).to(dtype)
        step = torch.ones(1, dtype=torch.int32, device=x_scale.device)
        return {**given, "residual": stream, "gate": numbers(3, 2, O)[:, 1], "step": step, "out": stream}

    def moved(a: Arguments) -> float:
        passes = 2 if form == "add" else 1
        return a["x"].nbytes + a["weight"].nbytes + 4 * (len(a["x"]) + len(a["weight"])) + passes * a["out"].nbytes

    return Case(
        kernel="linear_int8",
        config=config,
        launch=linear_int8,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out",),
        flops=lambda a: a["x"].numel() * len(a["weight"]),  # half of them: of integers the peak is twice that of bf16
        bytes=moved,
        dots=True,
        loop_mix=loop_mix,
        plain=_rounded_twice,
    )


WIDE_MIX, NARROW_MIX = 0.77, 0.89


def cases() -> tuple[Case, ...]:
    """A layer's products at 120 s and at 30 s."""
    return (
        _case("2b-qkv", (1500, 2048, 4096), (513, 128, 256), loop_mix=WIDE_MIX),
        _case("2b-swiglu", (1536, 2048, 12288), (520, 256, 256), "swiglu", loop_mix=WIDE_MIX),
        _case("xl-down-fp16", (1536, 9728, 2560), (513, 384, 256), "add", torch.float16, loop_mix=WIDE_MIX),
        _case("2b-few-down", (375, 6144, 2048), (130, 384, 256), "add", loop_mix=NARROW_MIX),
        _case("xl-few-bias-fp16", (384, 2560, 2560), (128, 256, 128), "bias", torch.float16, loop_mix=NARROW_MIX),
    )
