"""Snake, the periodic activation of the v1.5 audio autoencoder.

    y = x + inv_beta * sin(alpha * x)²

with one frequency and one height per channel, folded at load in fp32: ``alpha = exp(log_alpha)`` and
``inv_beta = 1 / (exp(log_beta) + 1e-9)``.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import snake as cpu
from acefast.guarded import check_rows, handed_over, lay, room, with_guards
from acefast.operators import operator

OP = "snake"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Wave = tuple[Tensor, Tensor]  # alpha and inv_beta, folded: fp32 [C] each
SILU = "silu"
Activation = Wave | Literal["silu"]  # of the layer that reads a convolution's result next


def block_elements(device: torch.device) -> int:
    """Elements that a reference moves through its passes at a time.

    On a CPU, 2**21 fp32 values are 8 MiB, within the outer cache. An idle machine decodes as fast with 2**19, which fit
    the inner one, but every pass ends with the threads waiting for each other, and where other programs want the
    cores that wait is a time slice: fewer, longer passes then halve the time. Elsewhere launches are what costs.
    """
    return 2**21 if device.type == "cpu" else 2**26


def snake_rows(x: Tensor, alpha: Tensor, inv_beta: Tensor, out: Tensor, scratch: Tensor) -> None:
    """One cache block of the reference: ``out = snake(x)`` for [n, C] rows; ``out`` may be ``x``.

    ``scratch`` is fp32 and holds [2, n, C] or more; only inputs that are not fp32 touch its second half.
    """
    wave = scratch[0, : len(x)]
    x32 = x if x.dtype == torch.float32 else scratch[1, : len(x)].copy_(x)
    torch.mul(x32, alpha, out=wave)
    wave.sin_()
    wave.mul_(wave)
    if out.dtype == torch.float32:
        torch.addcmul(x32, wave, inv_beta, out=out)
    else:
        out.copy_(x32.addcmul_(wave, inv_beta))


def snake_reference(
    x: Tensor, alpha: Tensor, inv_beta: Tensor, *, guarded: bool = False, out: Tensor | None = None
) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    C = x.shape[-1]
    x = x.contiguous()  # of guarded rows a copy
    y = torch.empty_like(x)
    x_rows, y_rows = x.view(-1, C), y.view(-1, C)
    n = min(max(1, block_elements(x.device) // C), len(x_rows))
    scratch = x.new_empty((1 if x.dtype == torch.float32 else 2, n, C), dtype=torch.float32)
    for i in range(0, len(x_rows), max(n, 1)):
        snake_rows(x_rows[i : i + n], alpha, inv_beta, y_rows[i : i + n], scratch)
    return lay(y, out, guarded)


def activate(x: Tensor, wave: Activation, *, guarded: bool = False, out: Tensor | None = None) -> Tensor:
    """What the next layer reads, ``snake(x)`` or ``silu(x)``, by PyTorch."""
    if wave == SILU:
        return lay(F.silu(x.contiguous()), out, guarded)
    return snake_reference(x, *wave, guarded=guarded, out=out)


@operator(
    "(Tensor x, Tensor alpha, Tensor inv_beta, *, str? backend=None) -> Tensor",
    fake=lambda x, alpha, inv_beta, **_: torch.empty_like(x, memory_format=torch.contiguous_format),
)
def snake(
    x: Tensor,
    alpha: Tensor,
    inv_beta: Tensor,
    *,
    guarded: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Add a periodic bump to every sample: ``x + inv_beta * sin(alpha * x)**2``.

    Args:
        x: audio features, [B, L, C], contiguous, or guarded; L is samples at the layer's own rate. fp32, bf16 or fp16.
        alpha, inv_beta: fp32 [C], see the module.
        guarded: x, out and the result lie between zeros, as acefast.guarded lays rows.
        out: [B, L, C] of x's dtype, written and returned; may be x. None: new memory.
        backend: "triton" (C a multiple of 16; rows that are not guarded are copied), "cpu" (bf16, C a multiple of 16,
            not guarded) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, L, C] in x's dtype, rounded once: the arithmetic before is fp32.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: Snake1d in huggingface/diffusers autoencoder_oobleck.py, which takes the exponentials in every call and
        computes in x's dtype.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, C]")
    check_rows(OP, "x", x, guarded)
    C = x.shape[2]
    check_wave(OP, "alpha", alpha, C)
    check_wave(OP, "inv_beta", inv_beta, C)
    if out is not None:
        check_shape(OP, "out", out, x.shape, "[B, L, C]")
        check_dtype(OP, "out", out, x.dtype)
        check_rows(OP, "out", out, guarded)
    takes = {"triton": x.dtype in FLOATS and C % 16 == 0 and C > 0, "cpu": not guarded and cpu.fits(x, alpha, inv_beta)}
    chosen = choose_backend(OP, backend, x.device, [name for name in ORDER if takes[name]])
    if chosen == "cpu":
        out = torch.empty_like(x) if out is None else out
        cpu.snake(x, alpha, inv_beta, out)
        return out
    if chosen == "triton":
        from acefast.kernels.snake import snake as kernel

        written = room(x, x.shape, (True,), (out,), guarded)
        if x.numel():
            kernel(x if guarded else with_guards(x), alpha, inv_beta, out=written[0])
        return handed_over(written, (out,), guarded)[0]
    return snake_reference(x, alpha, inv_beta, guarded=guarded, out=out)


def check_wave(op: str, name: str, wave: Tensor, channels: int) -> None:
    """Raise ValueError unless ``wave`` is a folded snake parameter: fp32 [C]."""
    check_shape(op, name, wave, (channels,), "[C]")
    if wave.dtype != torch.float32:
        raise ValueError(f"{op}: {name} must be torch.float32, got {wave.dtype}")
