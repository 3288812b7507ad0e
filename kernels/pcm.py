"""Triton kernels of acefast.ops.pcm (K12's last pass): two launches.

Math    as the op's docstring has it
Tiling  the peaks of a song, or its samples, are gone over by up to PARTS programs, BLOCK elements at a time, each of
        which leaves one peak in scratch; then one program per BLOCK samples of a song, which takes the largest of
        those peaks. A thread reads 16 bytes at a time where a song's samples are a multiple of 16
Bytes   8 or 6 per sample, 4 more where there are no peaks yet
Bound   memory

The bits of |x| order as integers the way that the numbers do, with infinity and NaN above them: largest by largest,
NaN is kept and no order of the programs matters.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.ops.pcm import PARTS, QUIETEST, pcm_reference

CONFIGS = {
    ("peaks", 80): Config({"BLOCK": 4096}, num_warps=8),
    ("convert", 80): Config({"BLOCK": 8192}, num_warps=8),
}
_QUIETEST = tl.constexpr(QUIETEST)
_INFINITY = tl.constexpr(0x7F800000)  # its bits
_ROUND = tl.constexpr(1.5 * 2**23)  # a sum of it and a number below 2**22 has no fraction left


@triton.jit(do_not_specialize=["parts"])
def _peaks_kernel(x_ptr, parts_ptr, n, parts, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """The largest |x| of every ``parts``-th block of a song's n numbers."""
    song = tl.program_id(1).to(tl.int64)
    within = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.int32)
    for first in range(tl.program_id(0) * BLOCK, n, parts * BLOCK):
        x = tl.load(x_ptr + song * n + (first + within), mask=first + within < n, other=0.0)
        largest = tl.maximum(largest, x.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    tl.store(parts_ptr + song * PARTS + tl.program_id(0), tl.max(largest, 0).to(tl.float32, bitcast=True))


@triton.jit(do_not_specialize=["parts"])
def _convert_kernel(x_ptr, levels_ptr, parts_ptr, out_ptr, n, parts, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    song = tl.program_id(1).to(tl.int64)
    part = tl.arange(0, PARTS)
    bits = tl.load(parts_ptr + song * PARTS + part, mask=part < parts, other=0.0).to(tl.int32, bitcast=True)
    largest = tl.max(bits, 0)
    peak = largest.to(tl.float32, bitcast=True).to(tl.float64)
    factor = (tl.load(levels_ptr + song) / tl.maximum(peak, _QUIETEST)).to(tl.float32)

    within = tl.max_contiguous(tl.multiple_of(tl.arange(0, BLOCK), 4), 4)  # 4 a thread, of int16 as well
    samples = tl.program_id(0) * BLOCK + within
    x = tl.load(x_ptr + song * n + samples, mask=samples < n, other=0.0)
    y = tl.minimum(tl.maximum(x * factor, -1.0), 1.0)
    if out_ptr.dtype.element_ty == tl.int16:
        y = tl.where(largest < _INFINITY, y, 0.0)
        y = tl.minimum((y * 32768.0 + _ROUND) - _ROUND, 32767.0).to(tl.int16)
    else:
        y = tl.where(largest < _INFINITY, y, x)
    tl.store(out_ptr + song * n + samples, y, mask=samples < n)


def pcm(audio: Tensor, levels: Tensor, *, peaks: Tensor | None, out: Tensor, scratch: Tensor) -> Tensor:
    """Launches the kernels; arguments as in the op, which has checked them."""
    found = audio if peaks is None else peaks
    B, n = audio.shape[0], found[0].numel()
    config = pick(CONFIGS, "peaks")
    parts = min(PARTS, triton.cdiv(n, config["BLOCK"]))
    _peaks_kernel[(parts, B)](found, scratch, n, parts, PARTS=PARTS, **config.options)
    n, config = audio[0].numel(), pick(CONFIGS, "convert")
    grid = (triton.cdiv(n, config["BLOCK"]), B)
    _convert_kernel[grid](audio, levels, scratch, out, n, parts, PARTS=PARTS, **config.options)
    return out


def _reference(audio: Tensor, levels: Tensor, *, peaks: Tensor | None, out: Tensor, scratch: Tensor):
    if out.dtype == torch.int16:
        audio = audio.float()  # a sum of its own, in fp64, would round some halves to the other side
    return (pcm_reference(audio, levels, peaks=peaks, dtype=out.dtype),)


def _arguments(B: int, N: int, dtype: torch.dtype, slots: int, *, device="cpu", generator=None) -> Arguments:
    make = torch.empty if generator is None else partial(torch.randn, generator=generator)
    audio = make(B, 2, N, device=device)
    peaks = make(B, slots, device=device).abs_() if slots else None
    levels = torch.full((B,), 10 ** (-1 / 20), dtype=torch.float64, device=device)
    out = torch.empty_like(audio, dtype=dtype)
    return {"audio": audio, "levels": levels, "peaks": peaks, "out": out, "scratch": audio.new_empty(B, PARTS)}


def _case(config: str, seconds: int, B: int = 1, dtype: torch.dtype = torch.float32, slots: int = 0) -> Case:
    return Case(
        kernel="pcm",
        config=config,
        launch=pcm,
        reference=_reference,
        real=lambda device: _arguments(B, 48_000 * seconds, dtype, slots, device=device),
        small=lambda generator: _arguments(B, 8_000, dtype, min(slots, 4_112), generator=generator),
        outputs=("out",),
        flops=lambda a: (4 if a["peaks"] is None else 3) * a["audio"].numel(),
        bytes=lambda a: a["audio"].nbytes * (2 if a["peaks"] is None else 1) + a["out"].nbytes,
    )


CASES = (
    _case("float", 240),
    _case("float-peaks", 240, slots=3840),
    _case("int16-peaks-batch", 120, B=2, dtype=torch.int16, slots=3840),
)
