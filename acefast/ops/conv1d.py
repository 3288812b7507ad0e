"""1-D convolution on channels-last rows, as the v1.5 audio autoencoder and the v1 vocoder use it.

    y[t, o] = bias[o] + Σ_k Σ_c weight[o, k, c] * x[t * stride + k * dilation - padding, c]   (+ residual[t, o])

and, where y is one share of a mean, ``total[t, o] + share * y[t, o]``. Rows beyond the ends are zero. The weight is
[Cout, K, Cin]: for a kernel that is the [Cout, K * Cin] operand of an implicit GEMM, and for oneDNN and cuDNN it is a
channels-last image filter, so nobody reorders it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_shape
from acefast.cpu import conv1d as cpu
from acefast.cuda import conv1d as cuda
from acefast.guarded import GUARD, check_rows, handed_over, lay, room, with_guards
from acefast.operators import operator
from acefast.ops.snake import SILU, Activation, activate, check_wave

OP = "conv1d"
ORDER = ("triton", "cuda")
Pair = tuple[Tensor | None, Tensor]  # a result, unless only the other is asked for, and the activated one


def conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    residual: Tensor | None = None,
    share: float = 1.0,
    total: Tensor | None = None,
    wave: Activation | None = None,
    keep: bool = True,
    guarded: bool = False,
    out: Tensor | Pair | None = None,
) -> Tensor | Pair:
    """What the op means in PyTorch; every kernel is held to it.

    The library's convolution accumulates in fp32; at bf16 and fp16 it rounds before the residual is added, then before
    the total is, and again before the activation.
    """
    x = x.contiguous()  # of guarded rows a copy
    if len(weight) <= 4 and stride == 1 and dilation == 1 and x.dtype == torch.float32 and x.device.type == "cpu":
        y = _few_outputs(x, weight, bias, padding)
    else:
        image = x.transpose(1, 2).unsqueeze(2)  # [B, Cin, 1, L], channels-last in memory
        filters = weight.transpose(1, 2).unsqueeze(2)
        y = F.conv2d(image, filters, bias, stride=(1, stride), padding=(0, padding), dilation=(1, dilation))
        y = y.squeeze(2).transpose(1, 2).contiguous()  # contiguous already, unless a size of 1 hid the layout
    return finished(y, residual, share, total, wave, keep, guarded, out)


def finished(
    y: Tensor,
    residual: Tensor | None,
    share: float,
    total: Tensor | None,
    wave: Activation | None,
    keep: bool,
    guarded: bool = False,
    out: Tensor | Pair | None = None,
) -> Tensor | Pair:
    """What a convolution returns of its sums y, which it overwrites."""
    y = y if residual is None else y.add_(residual)
    if total is not None:
        y = torch.add(total, y, alpha=share)
    elif share != 1:
        y = y.mul_(share)
    if wave is None:
        return lay(y, out, guarded)
    into = pair(out)
    activated = activate(y, wave, guarded=guarded, out=into[1])
    return lay(y, into[0], guarded) if keep else None, activated


def _few_outputs(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """The same for 1 to 4 output channels: one GEMM to [L, K * Cout], then K shifted sums.

    oneDNN pads the outputs of a convolution to a full vector: 7.5 ms for 128 -> 2 channels and 32,768 rows, here 0.9.
    """
    Cout, K, Cin = weight.shape
    B, L, _ = x.shape
    taps = F.linear(x, weight.transpose(0, 1).reshape(K * Cout, Cin)).view(B, L, K, Cout)
    rows = L + 2 * padding - K + 1
    y = x.new_zeros(B, rows, Cout)
    if bias is not None:
        y += bias
    for k in range(K):
        shift = k - padding  # y[t] takes x[t + shift]
        first, last = max(0, -shift), min(rows, L - shift)
        if first < last:
            y[:, first:last] += taps[:, first + shift : last + shift, k]
    return y


def _fake(x: Tensor, weight: Tensor, *_, stride: int = 1, padding: int = 0, dilation: int = 1, **__) -> Tensor:
    return x.new_empty(x.shape[0], rows_out(x.shape[1], weight.shape[1], stride, padding, dilation), weight.shape[0])


def rows_out(L: int, K: int, stride: int, padding: int, dilation: int) -> int:
    """Rows of the result of L rows."""
    return (L + 2 * padding - dilation * (K - 1) - 1) // stride + 1


@operator(
    "(Tensor x, Tensor weight, Tensor? bias, *, int stride=1, int padding=0, int dilation=1, Tensor? residual=None, "
    "float share=1.0, Tensor? total=None, str? backend=None) -> Tensor",
    fake=_fake,
)
def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    residual: Tensor | None = None,
    share: float = 1.0,
    total: Tensor | None = None,
    wave: Activation | None = None,
    keep: bool = True,
    guarded: bool = False,
    out: Tensor | Pair | None = None,
    backend: str | None = None,
) -> Tensor | Pair:
    """Convolve rows over time, add a residual if there is one, and activate for the next layer if it asks for that.

    Args:
        x: [B, L, Cin], contiguous, or guarded; fp32, bf16 or fp16.
        weight: [Cout, K, Cin], contiguous, x's dtype, weight norm folded.
        bias: [Cout] in x's dtype, or None.
        stride, dilation: rows, at least 1.
        padding: zero rows at each end.
        residual: [B, Lout, Cout] in x's dtype, added to the result; None for none.
        share: what the sum so far is multiplied by.
        total: [B, Lout, Cout] in x's dtype, added to that: the other shares of a mean; None for none.
        wave: what reads the result next: alpha and inv_beta of a snake, fp32 [Cout], see acefast.ops.snake; or "silu".
        keep: False, with a wave, gives only the activated result.
        guarded: x, residual, total, out and what is returned lie between zeros, as acefast.guarded lays rows.
        out: where what is returned is written, of the same form, [B, Lout, Cout] each; the result's own may be
            ``residual`` or ``total``. None: new memory.
        backend: "triton" (16 bits; Cout and K * Cin multiples of 16, Cin itself where dilation is not 1; padding of at
            most 32; rows that are not guarded are copied), "cuda" (of those, Cin a multiple of 64 and Cout one of 128,
            both below 2048, without share, total and silu), "cpu" (bf16, nothing guarded; Cin a multiple of
            32, or at stride 1 Cout a power of two below 32) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        The result y, [B, Lout, Cout], contiguous or guarded, Lout = (L + 2 * padding - dilation * (K - 1) - 1)
        // stride + 1. With a wave the pair (y, wave(y)), of which y is None unless kept.
    Raises:
        ValueError: a shape, dtype or layout is not as above, or no output row is left.
        BackendUnavailable: the backend named cannot take this input.
    Source: nn.Conv1d in huggingface/diffusers autoencoder_oobleck.py, and ADaMoSHiFiGANV1's head in ace-step/ACE-Step,
        there channels-first with weight norm.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, Cin]")
    check_rows(OP, "x", x, guarded)
    B, L, Cin = x.shape
    check_shape(OP, "weight", weight, (None, None, Cin), "[Cout, K, Cin]")
    check_contiguous(OP, "weight", weight)
    Cout, K, _ = weight.shape
    check_dtype(OP, "weight", weight, x)
    if bias is not None:
        check_shape(OP, "bias", bias, (Cout,), "[Cout]")
        check_dtype(OP, "bias", bias, x)
    if min(stride, dilation) < 1 or padding < 0:
        raise ValueError(
            f"{OP}: stride and dilation must be at least 1 and padding at least 0, "
            f"got stride={stride}, dilation={dilation}, padding={padding}"
        )
    rows = rows_out(L, K, stride, padding, dilation)
    if rows < 1:
        raise ValueError(f"{OP}: x must have at least {dilation * (K - 1) + 1 - 2 * padding} rows, got L = {L}")
    for name, added in (("residual", residual), ("total", total)):
        if added is not None:
            check_shape(OP, name, added, (B, rows, Cout), "[B, Lout, Cout]")
            check_dtype(OP, name, added, x)
            if guarded:
                check_rows(OP, name, added, guarded)
    check_results(OP, (B, rows, Cout), "[B, Lout, Cout]", x, wave, keep, guarded, out)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    added = {"residual": residual, "share": share, "total": total}
    order = ORDER if kernel_takes(weight, dilation) and padding <= GUARD and x.dtype in cuda.NAMES else ()
    if not cuda.fits(weight, wave, total, share):
        order = [name for name in order if name != "cuda"]
    narrow = stride == 1 and cpu.is_narrow(Cout)
    if not guarded and cpu.fits(x, weight, bias, residual, total, *pair(out), wave=wave, narrow=narrow):
        order = [*order, "cpu"]
    if (chosen := choose_backend(OP, backend, x.device, order)) != "reference":
        return _launch(chosen, x, weight, bias, geometry, added, (B, rows, Cout), wave, keep, guarded, out)
    results = {"wave": wave, "keep": keep, "guarded": guarded, "out": out}
    return conv1d_reference(x, weight, bias, **geometry, **added, **results)


def kernel_takes(weight: Tensor, dilation: int = 1) -> bool:
    """Whether the Triton kernel takes a weight [Cout, K, Cin]."""
    Cout, K, Cin = weight.shape
    inner = Cin if dilation > 1 else K * Cin
    return inner > 0 and inner % 16 == 0 and Cout % 16 == 0


def _launch(
    chosen: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: dict[str, int],
    added: dict[str, Tensor | float | None],
    shape: tuple[int, int, int],
    wave: Activation | None,
    keep: bool,
    guards: bool,
    out: Tensor | Pair | None,
) -> Tensor | Pair:
    """By a kernel; a GPU's works on guarded rows: where these are not, on copies."""
    into, asked = pair(out), (keep, wave is not None)
    if chosen == "cpu":
        written = cpu.outputs(x, shape, asked, into)
        cpu.conv1d(x, weight, bias, **geometry, **added, wave=wave, out=written)
        return written[0] if wave is None else written
    written = room(x, shape, asked, into, guards)
    if not guards:
        x = with_guards(x)
        added = {name: with_guards(t) if isinstance(t, Tensor) else t for name, t in added.items()}
    if 0 in shape:
        pass
    elif chosen == "cuda":
        cuda.conv1d(x, weight, bias, **geometry, residual=added["residual"], wave=wave, out=written)
    else:
        from acefast.kernels.conv1d import conv1d as kernel

        kernel(x, weight, bias, **geometry, **added, wave=wave, out=written)
    results = handed_over(written, into, guards)
    return results[0] if wave is None else results


def pair(out: Tensor | Pair | None) -> tuple[Tensor | None, Tensor | None]:
    """Where a result and the activated one are to be written, of an op's ``out``."""
    return out if isinstance(out, tuple) else (out, None)


def check_dtype(op: str, name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise ValueError unless ``tensor`` has x's dtype."""
    if tensor.dtype != x.dtype:
        raise ValueError(f"{op}: {name} must have x's dtype, {x.dtype}, got {tensor.dtype}")


def check_results(
    op: str,
    shape: tuple[int, int, int],
    letters: str,
    x: Tensor,
    wave: Activation | None,
    keep: bool,
    guarded: bool,
    out: Tensor | Pair | None,
) -> None:
    """Raise ValueError unless an op's ``wave``, ``keep`` and ``out`` ask for results of ``shape`` that it can give."""
    if wave is None:
        if not keep:
            raise ValueError(f"{op}: keep=False needs a wave, or nothing is left to return")
        given = {} if out is None else {"out": out}
    else:
        if isinstance(wave, str):
            if wave != SILU:
                raise ValueError(f"{op}: wave must be alpha and inv_beta of a snake, or 'silu', got {wave!r}")
        else:
            check_wave(op, "wave[0]", wave[0], shape[2])
            check_wave(op, "wave[1]", wave[1], shape[2])
        fits = isinstance(out, tuple) and [t is not None for t in out] == [keep, True]
        if out is not None and not fits:
            raise ValueError(f"{op}: with a wave, out must be a pair, of which the first is None unless it is kept")
        given = {} if out is None else {f"out[{i}]": t for i, t in enumerate(out) if t is not None}
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        check_shape(op, name, tensor, shape, letters)
        check_dtype(op, name, tensor, x)
        check_rows(op, name, tensor, guarded)
