"""The residual unit of the v1.5 audio autoencoder; fifteen of them are 88 % of the decoder's FLOPs.

    y = x + b2 + W2 @ snake2(b1 + conv7_d(snake1(x)))          and snake_next(y), where the next layer asks for it

with a seven-tap convolution of dilation d, zero rows beyond the ends, and a 1x1 convolution; see acefast.ops.snake
and acefast.ops.conv1d for the parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_shape
from acefast.cuda import residual_unit as cuda
from acefast.guarded import GUARD, check_rows, clear_guards, elements, handed_over, room, with_guards
from acefast.guarded import guarded as between_guards
from acefast.operators import operator
from acefast.ops.conv1d import Pair, check_dtype, check_results, conv1d_reference, pair
from acefast.ops.snake import Wave, block_elements, check_wave, snake, snake_rows

OP = "residual_unit"
ORDER = ("cuda", "triton")
TAPS = 7


def fused(channels: int) -> bool:
    """Whether the kernel takes units of this width: all their channels are one tile's."""
    return channels in (16, 32, 64, 128, 256)


def from_x_alone(channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a kernel is in force that makes its own first snake: it has no use for ``activated``, and its results
    need memory of their own."""
    if not cuda.fits(channels, dtype):
        return False
    return choose_backend(OP, None, device, ORDER, f"c{channels}") == "cuda"


def residual_unit_reference(
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
    activated: Tensor | None = None,
    wave: Wave | None = None,
    keep: bool = True,
    guarded: bool = False,
    out: Tensor | Pair | None = None,
) -> Tensor | Pair:
    """What the op means in PyTorch; every kernel is held to it.

    It runs block by block of rows, so that x is read and y written once while what lies between stays in a CPU's cache.
    A block recomputes ``6 * dilation`` rows of the first snake and nothing else. Blocks are at least 4 C rows, for the
    convolution to amortise reading its 7 C² weights.
    """
    _, L, C = x.shape
    reach = TAPS // 2 * dilation
    n = max(4 * C, block_elements(x.device) // C, 1)
    n = -(-L // max(1, -(-L // n)))  # the same number of blocks, of like sizes
    scratch = x.new_empty((1 if x.dtype == torch.float32 else 2, n + 2 * reach, C), dtype=torch.float32)
    padded = x.new_empty(1, n + 2 * reach, C)  # snake1 of a block and its neighbours, or zeros at the ends
    y, waved = _outputs(x, wave, keep, guarded, out)
    sum_block = x.new_empty(n, C) if y is None else None
    if activated is None and any(t is not None and _same_memory(t, x) for t in (y, waved)):
        x = x.clone()  # a block's neighbours are still to be read when it is written
    for i, song in enumerate(x):
        for start in range(0, L, n or 1):
            stop = min(start + n, L)
            first, last = max(start - reach, 0), min(stop + reach, L)
            block = padded[:, : stop - start + 2 * reach]
            offset = first - start + reach
            block[0, :offset] = 0
            block[0, offset + last - first :] = 0
            inner = block[0, offset : offset + last - first]
            if activated is None:
                snake_rows(song[first:last], alpha1, inv_beta1, inner, scratch)
            else:
                inner.copy_(activated[i, first:last])
            hidden = conv1d_reference(block, weight1, bias1, dilation=dilation)[0]
            snake_rows(hidden, alpha2, inv_beta2, hidden, scratch)
            y_block = sum_block[: stop - start] if y is None else y[i, start:stop]
            if x.dtype == torch.float32:
                torch.add(song[start:stop], bias2, out=y_block).addmm_(hidden, weight2.t())
            else:  # the product is rounded once, the sum again
                torch.add(song[start:stop], F.linear(hidden, weight2, bias2), out=y_block)
            if wave is not None:
                snake_rows(y_block, *wave, waved[i, start:stop], scratch)
    for t in (y, waved):
        if guarded and t is not None:
            clear_guards(t)
    return y if wave is None else (y, waved)


def _order(x: Tensor, dilation: int, out: tuple[Tensor | None, ...]) -> list[str]:
    """The kernels that take such rows and results, fastest first."""
    if x.dtype not in (torch.bfloat16, torch.float16) or TAPS // 2 * dilation > GUARD or x.numel() == 0:
        return []
    apart = not any(t is not None and _overlap(t, x) for t in out)
    takes = {"cuda": cuda.fits(x.shape[2], x.dtype) and apart, "triton": fused(x.shape[2])}
    return [name for name in ORDER if takes[name]]


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether guarded rows of one shape share memory."""
    near = abs(a.storage_offset() - b.storage_offset()) < elements(*a.shape)
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata and near


def _outputs(
    x: Tensor, wave: Wave | None, keep: bool, guarded: bool, out: Tensor | Pair | None
) -> tuple[Tensor | None, Tensor | None]:
    """Memory for y and for what the next snake makes of it, None where it is not asked for."""
    if out is not None:
        return pair(out)

    def new() -> Tensor:
        return between_guards(*x.shape, dtype=x.dtype, device=x.device) if guarded else torch.empty_like(x)

    return new() if keep else None, None if wave is None else new()


def _same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape start at the same element of the same storage."""
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata and a.storage_offset() == b.storage_offset()


@operator(
    "(Tensor x, Tensor alpha1, Tensor inv_beta1, Tensor weight1, Tensor bias1, Tensor alpha2, Tensor inv_beta2, "
    "Tensor weight2, Tensor bias2, *, int dilation, Tensor? activated=None, str? backend=None) -> Tensor",
    fake=lambda x, *_, **__: torch.empty_like(x, memory_format=torch.contiguous_format),
)
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
    activated: Tensor | None = None,
    wave: Wave | None = None,
    keep: bool = True,
    guarded: bool = False,
    out: Tensor | Pair | None = None,
    backend: str | None = None,
) -> Tensor | Pair:
    """Refine rows with their neighbours 1, 2 and 3 dilations away.

    Args:
        x: [B, L, C], contiguous; fp32, bf16 or fp16.
        alpha1, inv_beta1, alpha2, inv_beta2: fp32 [C], as in acefast.ops.snake.
        weight1: [C, 7, C] (output, tap, input), contiguous, x's dtype; bias1: [C].
        weight2: [C, C] (output, input), contiguous, x's dtype; bias2: [C].
        dilation: rows between taps, at least 1.
        activated: snake1(x) if it is there already, like x. "cuda" makes its own, of x as it is rounded; for the others
            alpha1 and inv_beta1 are then not read.
        wave: alpha and inv_beta of the snake that reads the result next; None: no second result.
        keep: whether y itself is wanted beside the second result.
        guarded: x, ``activated`` and ``out`` lie as acefast.guarded lays them, zeros in x's and ``activated``'s guards,
            and results do so too, zeros in their guards. Else all are contiguous, and a kernel works on copies.
        out: like what is returned, written and returned. Each may be x; none shares memory with ``activated``.
        backend: "triton" (16 bits, widths that are ``fused``, dilation at most 10, not empty), "cuda" (of those, 128 or
            256 wide and, if guarded, no result in x's memory) or "reference"; None leaves the choice to
            acefast.backends. On a CPU's kernels acefast.models.v15.vae_layers.SpectralUnit takes its place.
    Returns:
        y, [B, L, C] in x's dtype; with ``wave`` the pair of y, None unless ``keep``, and its snake.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: OobleckResidualUnit in huggingface/diffusers autoencoder_oobleck.py.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, C]")
    check_rows(OP, "x", x, guarded)
    C = x.shape[2]
    for name, values in (("alpha1", alpha1), ("inv_beta1", inv_beta1), ("alpha2", alpha2), ("inv_beta2", inv_beta2)):
        check_wave(OP, name, values, C)
    check_shape(OP, "weight1", weight1, (C, TAPS, C), "[C, 7, C]")
    check_shape(OP, "weight2", weight2, (C, C), "[C, C]")
    for name, bias in (("bias1", bias1), ("bias2", bias2)):
        check_shape(OP, name, bias, (C,), "[C]")
        check_dtype(OP, name, bias, x)
    for name, weight in (("weight1", weight1), ("weight2", weight2)):
        check_contiguous(OP, name, weight)
        check_dtype(OP, name, weight, x)
    if dilation < 1:
        raise ValueError(f"{OP}: dilation must be at least 1, got {dilation}")
    if activated is not None:
        check_shape(OP, "activated", activated, x.shape, "[B, L, C]")
        check_dtype(OP, "activated", activated, x)
        check_rows(OP, "activated", activated, guarded)
    if isinstance(wave, str):
        raise ValueError(f"{OP}: wave must be alpha and inv_beta of a snake, got {wave!r}")
    check_results(OP, tuple(x.shape), "[B, L, C]", x, wave, keep, guarded, out)
    if activated is not None and any(t is not None and _same_memory(t, activated) for t in pair(out)):
        raise ValueError(f"{OP}: out must not be activated, whose rows are read by their neighbours too")
    into = pair(out)
    order = _order(x, dilation, into if guarded else ())
    weights = (alpha1, inv_beta1, weight1, bias1, alpha2, inv_beta2, weight2, bias2)
    if (chosen := choose_backend(OP, backend, x.device, order, f"c{C}")) != "reference":
        asked = (keep, wave is not None)
        rows = x if guarded else with_guards(x)
        written = room(rows, x.shape, asked, into, guarded)
        rest = (weight1, bias1, alpha2, inv_beta2, weight2, bias2)
        if chosen == "cuda":
            cuda.residual_unit(rows, alpha1, inv_beta1, *rest, dilation=dilation, wave=wave, out=written)
        else:
            from acefast.kernels.residual_unit import residual_unit as kernel

            if activated is None:
                activated = snake(rows, alpha1, inv_beta1, guarded=True, backend="triton")
            elif not guarded:
                activated = with_guards(activated)
            kernel(rows, activated, *rest, dilation=dilation, wave=wave, out=written)
        results = handed_over(written, into, guarded)
        return results[0] if wave is None else results
    return residual_unit_reference(
        x,
        *weights,
        dilation=dilation,
        activated=activated,
        wave=wave,
        keep=keep,
        guarded=guarded,
        out=out,
    )
