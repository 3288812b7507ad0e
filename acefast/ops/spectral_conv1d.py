"""1-D convolution of rows with a long filter, by Fourier transforms of 32 rows: exact, with a fourth of the products.

    X[f] = Σ_n x[n] exp(-2πi f n / 32),  Y[f] = X[f] @ W[f],  y[t] = 1/32 Σ_f Y[f] exp(2πi f t / 32)

Of 17 frequencies two are real, and the product of the other 15 is made of three real ones, (a + ib)(c + id) =
c(a + b) - b(c + d) + i (c(a + b) + a(d - c)). So 47 matrix products [pieces, Cin] @ [Cin, Cout] give the 33 - K results
that see these 32 rows alone. The one before them and the one behind see a row more, d[0] and d[33], where the transform
has the one of its other end, d[32] and d[1]: two products more, (d[0] - d[32]) w[0] and (d[33] - d[1]) w[K - 1], make
them right. For 13 taps that is 49 / 22 = 2.23 products a result in place of 13. The transforms are orthogonal:
in fp32 the result is closer to the exact one than a direct sum's; in bf16 the kernel, which rounds a + b, a and b, is
1.5 times as far from it, and the reference, which rounds the products too, 2.1 times (measured, relative L2 against
fp64, normal numbers). A dilated filter sees interleaved rows as so many songs.

The reference says the same by two small matrices over the rows: ``analysis`` [49, 34], which makes a + b too, and
``synthesis`` [35 - K, 49].
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_contiguous, check_shape
from acefast.cpu import spectral_conv1d as cpu
from acefast.cpu.conv1d import fits, outputs
from acefast.cpu.extension import contiguous
from acefast.ops.conv1d import Pair, check_dtype, check_results, finished, pair
from acefast.ops.snake import Activation, Wave, check_wave, snake_reference
from acefast.panels import check_products, products_of

OP = "spectral_conv1d"
ORDER = ("cpu",)
POINTS = 32
ROWS = POINTS + 2  # of a piece
PRODUCTS = 2 + 3 * (POINTS // 2 - 1) + 2


@functools.cache
def tables(kernel: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Analysis [49, 34], the taps' own [49, kernel], which have the 1/32, and synthesis [35 - kernel, 49]."""
    angle = 2 * math.pi / POINTS * torch.arange(-1, POINTS + 1, dtype=torch.float64)
    taps, results = angle[1 : kernel + 1], angle[: ROWS - kernel + 1]  # the result before the transform's first row
    angle = angle[1:-1]
    analysis, filters, synthesis = [torch.ones(POINTS)], [torch.ones(kernel)], [torch.ones(len(results))]
    for f in range(1, POINTS // 2):
        a, b = (f * angle).cos(), -(f * angle).sin()
        c, d = (f * taps).cos(), (f * taps).sin()
        cos, sin = 2 * (f * results).cos(), 2 * (f * results).sin()
        analysis += [a + b, a, b]
        filters += [c, d - c, c + d]
        synthesis += [cos - sin, -sin, -cos]
    analysis.append((POINTS // 2 * angle).cos())
    filters.append((POINTS // 2 * taps).cos())
    synthesis.append((POINTS // 2 * results).cos())
    analysis = F.pad(torch.stack(analysis), (1, 1, 0, 2))
    filters = F.pad(torch.stack(filters) / POINTS, (0, 0, 0, 2))
    synthesis = F.pad(torch.stack(synthesis, 1), (0, 2))
    analysis[-2, 0], analysis[-2, -2], analysis[-1, -1], analysis[-1, 1] = 1, -1, 1, -1
    filters[-2, 0] = filters[-1, -1] = synthesis[0, -2] = synthesis[-1, -1] = 1
    return analysis.to(dtype), filters.to(dtype), synthesis.to(dtype)


def transformed(weight: Tensor) -> Tensor:
    """[Cout, 49 * Cin], in fp32, of a filter [Cout, K, Cin]."""
    return torch.einsum("mk,oki->omi", tables(weight.shape[1])[1].float(), weight.float()).flatten(1).contiguous()


def spectral_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: int,
    *,
    dilation: int = 1,
    residual: Tensor | None = None,
    share: float = 1.0,
    total: Tensor | None = None,
    before: Wave | None = None,
    wave: Activation | None = None,
    keep: bool = True,
    out: Tensor | Pair | None = None,
) -> Tensor | Pair:
    """What the op means in PyTorch, in x's dtype; every kernel is held to it."""
    B, L, C = x.shape
    if before is not None:
        x = snake_reference(x, *before)
    analysis, _, synthesis = tables(kernel, x.dtype)
    hop, reach = ROWS - kernel + 1, dilation * (kernel - 1) // 2
    count = -(-L // (dilation * hop))  # pieces of each of the interleaved songs
    rows = dilation * (count * hop + kernel - 1)
    padded = x.new_empty(B, rows, C)
    padded[:, :reach], padded[:, reach + L :] = 0, 0
    padded[:, reach : reach + L] = x
    spectra = x.new_empty(B, dilation, count, PRODUCTS, C)
    for song, own in zip(padded, spectra):
        for phase in range(dilation):
            pieces = song[phase:].as_strided((count, ROWS, C), (hop * dilation * C, dilation * C, 1))
            torch.matmul(analysis, pieces, out=own[phase])
    filters = products_of(weight, PRODUCTS).mT
    made = torch.bmm(spectra.view(-1, PRODUCTS, C).transpose(0, 1), filters)  # [49, B * dilation * count, Cout]
    if bias is not None:
        made[0] += bias  # of the constant part
    y = torch.matmul(synthesis, made.transpose(0, 1)).view(B, dilation, count * hop, -1)
    y = y.transpose(1, 2).flatten(1, 2)[:, :L].contiguous()
    return finished(y, residual, share, total, wave, keep, out=out)


def spectral_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kernel: int,
    *,
    dilation: int = 1,
    residual: Tensor | None = None,
    share: float = 1.0,
    total: Tensor | None = None,
    before: Wave | None = None,
    wave: Activation | None = None,
    keep: bool = True,
    out: Tensor | Pair | None = None,
    backend: str | None = None,
) -> Tensor | Pair:
    """Convolve rows over time with an odd filter, of which ``weight`` is the transform; zeros lie beyond the ends.

    Args:
        x: [B, L, Cin], contiguous; fp32 or bf16.
        weight: [Cout, 49 * Cin], contiguous, x's dtype: ``transformed`` of the filter [Cout, K, Cin]; or acefast.panels
            of that, which the kernel reads as they are.
        bias: [Cout] in x's dtype, or None.
        kernel: K, odd, at most 31.
        dilation: rows from one tap to the next.
        before: alpha and inv_beta of a snake (acefast.ops.snake), [Cin] fp32 each, where x is to pass one first.
        residual, share, total, wave, keep, out: as of acefast.ops.conv1d.
        backend: "cpu" (bf16, Cin a multiple of 32) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        The result y, [B, L, Cout], contiguous; with a wave the pair (y, wave(y)), of which y is None unless kept.
    Raises:
        ValueError: a shape, dtype or layout is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: the convolutions of ADaMoSHiFiGANV1's head in ace-step/ACE-Step music_vocoder.py, there direct ones.
    """
    check_shape(OP, "x", x, (None, None, None), "[B, L, Cin]")
    B, L, Cin = x.shape
    check_contiguous(OP, "x", x)
    shape = (B, L, check_products(OP, weight, PRODUCTS, Cin))
    check_dtype(OP, "weight", weight, x)
    if bias is not None:
        check_shape(OP, "bias", bias, (shape[2],), "[Cout]")
        check_dtype(OP, "bias", bias, x)
    if not (0 < kernel < POINTS and kernel % 2) or dilation < 1:
        raise ValueError(
            f"{OP}: kernel must be odd and at most {POINTS - 1} and dilation at least 1, "
            f"got kernel={kernel}, dilation={dilation}"
        )
    for name, added in (("residual", residual), ("total", total)):
        if added is not None:
            check_shape(OP, name, added, shape, "[B, L, Cout]")
            check_dtype(OP, name, added, x)
    check_results(OP, shape, "[B, L, Cout]", x, wave, keep, False, out)
    for name, values in zip(("before[0]", "before[1]"), before or ()):
        check_wave(OP, name, values, Cin)
    options = {"dilation": dilation, "residual": residual, "share": share, "total": total}
    options |= {"before": before, "wave": wave}
    into = pair(out)
    order = ORDER if fits(x, weight, bias, residual, total, *into, wave=wave) and contiguous(*before or ()) else ()
    if choose_backend(OP, backend, x.device, order) == "cpu":
        written = outputs(x, shape, (keep, wave is not None), into)
        cpu.spectral_conv1d(x, weight, bias, kernel, **options, out=written)
        return written[0] if wave is None else written
    return spectral_conv1d_reference(x, weight, bias, kernel, **options, keep=keep, out=out)
