"""Triton kernel of acefast.ops.sampler_step (K07), whose parts the guided step of kernels/apg.py shares.

Math    x <- x - v dt, or t_next eps + (1 - t_next) (x - v t); then what a repaint holds, as the op's docstring has it
Tiling  one program per 256 frames x 16 channels of a song: 64 bytes of a row, two full sectors. A thread has 4
        neighbouring channels, 16 bytes of fp32 or 8 of bf16, so that all tensors share one layout
        With omega a launch before sums up v dt of each tile in fp64, whose tiles a song's programs add in one order
Bytes   B * T * D * (8 + velocity's + copy's itemsize): latents in and out, velocity in, copy out; with noise 4 more,
        in a repaint's steps 8 more
Bound   memory beyond some 10 minutes of song, latency below; fp64 arithmetic where eps is drawn here

Compiled without contraction, so that fp32 latents are the reference's bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.kernels.philox import normal
from acefast.ops.sampler_step import (
    SDE_STREAM,
    TILE,
    Repaint,
    clock,
    clock_entries,
    sampler_step_reference,
    step_arguments,
    step_table,
    strided,
)

_EXACT = {"enable_fp_fusion": False}
CONFIGS = {
    ("plain", 80): Config({"ROWS": TILE[0], "COLUMNS": TILE[1]}, num_warps=8, compiler=_EXACT),
    ("drawn", 80): Config({"ROWS": TILE[0], "COLUMNS": TILE[1]}, num_warps=16, compiler=_EXACT),
}
_SDE_STREAM = tl.constexpr(SDE_STREAM)


@triton.jit
def columns_of(COLUMNS: tl.constexpr):
    """This program's channels; a thread shall have 4 neighbouring ones."""
    return tl.program_id(1) * COLUMNS + tl.max_contiguous(tl.multiple_of(tl.arange(0, COLUMNS), 4), 4)


@triton.jit
def frames_of(lengths_ptr, T, ROWS: tl.constexpr):
    """This program's frames, which of them the tensors have, and which of them are the song's."""
    frames = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = frames < T
    valid = there
    if lengths_ptr is not None:
        valid = there & (frames < tl.load(lengths_ptr + tl.program_id(2)))
    return frames, there, valid


@triton.jit
def at(ptr, per_song, per_frame, frames, columns):
    """Pointers to a tile of [B, T, D]; int64, since a batch of long songs passes 2**31 bytes."""
    song = tl.program_id(2).to(tl.int64)
    return ptr + song * per_song + frames.to(tl.int64)[:, None] * per_frame + columns[None, :]


@triton.jit
def read_step(step, clock_ptr):
    """The step's number: from this program's own entry of the clock, or as the host has it."""
    if clock_ptr is not None:  # one return: the compiler would look at what follows the other
        step = tl.load(clock_ptr + 1 + _program())
    return step


@triton.jit
def count_step(step, clock_ptr):
    """Counts on: this program's own entry, and in one program the entry that only later launches read."""
    if clock_ptr is not None:
        tl.debug_barrier()  # every warp has read the step
        tl.store(clock_ptr + 1 + _program(), step + 1)
        if _program() == 0:
            tl.store(clock_ptr, step + 1)


@triton.jit
def _program():
    return (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)


@triton.jit
def advance(
    x, v, omega, mean, step, times_ptr, noise_ptr, seeds_ptr, mask_ptr, source_ptr, initial_ptr, held_ptr,
    frames, columns, there, live, T, D: tl.constexpr,
):  # fmt: skip
    """The latents of a tile at t_next, from those at t and the fp32 velocity; ``mean`` is of v dt, where omega is."""
    t_next, rest = tl.load(times_ptr + step * 4 + 2), tl.load(times_ptr + step * 4 + 3)
    if noise_ptr is None and seeds_ptr is None:
        change = v * tl.load(times_ptr + step * 4 + 1)
        if omega is not None:
            change = (change - mean) * omega + mean
        x = x - change
    else:
        x = x - v * tl.load(times_ptr + step * 4)
        if t_next > 0:
            if seeds_ptr is not None:
                element = frames.to(tl.int64)[:, None] * D + columns[None, :]
                eps = normal(tl.load(seeds_ptr + tl.program_id(2)), (step + _SDE_STREAM).to(tl.int64), element)
            else:
                eps = tl.load(at(noise_ptr, T * D, D, frames, columns), mask=live, other=0.0)
            x = eps * t_next + x * rest
    if mask_ptr is not None:  # noqa: SIM102 - decided when compiling, the next one by the device
        if step < tl.load(held_ptr):
            inside = tl.load(mask_ptr + tl.program_id(2).to(tl.int64) * T + frames, mask=there, other=1)
            outside = live & (inside == 0)[:, None]
            initial = tl.load(at(initial_ptr, T * D, D, frames, columns), mask=outside, other=0.0)
            source = tl.load(at(source_ptr, T * D, D, frames, columns), mask=outside, other=0.0)
            x = tl.where(outside, initial * t_next + source * rest, x)
    return x


@triton.jit
def store_latents(
    x, before, out_ptr, out_song, out_frame, copy_ptr, copy_song, copy_frame, frames, columns, within, live
):
    """Writes a tile of latents, ``before`` where frames are not the song's, and the model's copy of the song's."""
    tl.store(at(out_ptr, out_song, out_frame, frames, columns), tl.where(live, x, before), mask=within)
    if copy_ptr is not None:
        copy = at(copy_ptr, copy_song, copy_frame, frames, columns)
        tl.store(copy, x.to(copy_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["step"])
def _sums_kernel(
    v_ptr, v_song, v_frame, times_ptr, step, clock_ptr, sums_ptr, lengths_ptr, T,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    frames, _, valid = frames_of(lengths_ptr, T, ROWS)
    columns = columns_of(COLUMNS)
    live = valid[:, None] & (columns < D)[None, :]
    v = tl.load(at(v_ptr, v_song, v_frame, frames, columns), mask=live, other=0.0).to(tl.float32)
    change = v * tl.load(times_ptr + read_step(step, clock_ptr) * 4 + 1)
    tl.store(sums_ptr + _program(), tl.sum(change.to(tl.float64)))


@triton.jit
def _mean(sums_ptr, lengths_ptr, T, D: tl.constexpr):
    """Of v dt over this program's song, fp32."""
    tiles = tl.num_programs(0) * tl.num_programs(1)
    total = tl.zeros([16], tl.float64)
    for first in range(0, tiles, 16):
        index = first + tl.arange(0, 16)
        total += tl.load(sums_ptr + tl.program_id(2) * tiles + index, mask=index < tiles, other=0.0)
    frames = T
    if lengths_ptr is not None:
        frames = tl.minimum(tl.load(lengths_ptr + tl.program_id(2)).to(tl.int32), T)
    return (tl.sum(total) / (frames * D).to(tl.float64)).to(tl.float32)


@triton.jit(do_not_specialize=["step"])
def _sampler_step_kernel(
    omega_ptr, sums_ptr, x_ptr, x_song, x_frame, v_ptr, v_song, v_frame,
    out_ptr, out_song, out_frame, copy_ptr, copy_song, copy_frame,
    times_ptr, step, clock_ptr, noise_ptr, seeds_ptr, mask_ptr, source_ptr, initial_ptr, held_ptr, lengths_ptr, T,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    frames, there, valid = frames_of(lengths_ptr, T, ROWS)
    columns = columns_of(COLUMNS)
    within, live = there[:, None] & (columns < D)[None, :], valid[:, None] & (columns < D)[None, :]
    step = read_step(step, clock_ptr)
    before = tl.load(at(x_ptr, x_song, x_frame, frames, columns), mask=within, other=0.0)
    v = tl.load(at(v_ptr, v_song, v_frame, frames, columns), mask=live, other=0.0).to(tl.float32)
    omega, mean = None, None
    if omega_ptr is not None:
        omega, mean = tl.load(omega_ptr), _mean(sums_ptr, lengths_ptr, T, D)
    x = advance(
        before, v, omega, mean, step, times_ptr, noise_ptr, seeds_ptr, mask_ptr, source_ptr, initial_ptr, held_ptr,
        frames, columns, there, live, T, D,
    )  # fmt: skip
    store_latents(
        x, before, out_ptr, out_song, out_frame, copy_ptr, copy_song, copy_frame, frames, columns, within, live
    )
    count_step(step, clock_ptr)


def sampler_step(
    latents: Tensor,
    velocity: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    model_latents: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    omega: Tensor | None = None,
    repaint: Repaint | None = None,
    lengths: Tensor | None = None,
    scratch: Tensor | None = None,
    out: Tensor,
) -> None:
    """Launches the kernel, with omega both; arguments as in the op, which has checked them."""
    config = pick(CONFIGS, "plain" if seeds is None else "drawn")
    B, T, D = latents.shape
    grid = triton.cdiv(T, TILE[0]), triton.cdiv(D, TILE[1]), B
    if omega is not None:
        known = (0, step) if isinstance(step, Tensor) else (step, None)
        _sums_kernel[grid](*strided(velocity), times, *known, scratch, lengths, T, D, **config.options)
    _sampler_step_kernel[grid](
        omega,
        scratch,
        *strided(latents),
        *strided(velocity),
        *step_arguments(times, step, model_latents, noise, seeds, repaint, lengths, out),
        T,
        D,
        **config.options,
    )


FEW = 304  # frames: a tile and a ragged one; a multiple of 16, as real sizes are, so that both are one compiled kernel


def _reference(scratch: Tensor | None = None, **arguments) -> tuple[Tensor, ...]:
    out = sampler_step_reference(**arguments)
    return out, arguments["model_latents"], arguments["step"]


def case_arguments(
    B: int,
    T: int,
    *,
    noise: bool = False,
    seeds: bool = False,
    omega: bool = False,
    repaint: bool = False,
    lengths: bool = False,
    **where,
) -> Arguments:
    """A step in place of a model in bf16; T frames of a buffer, of which the songs fill all but a few."""
    make = torch.randn if "generator" in where else torch.empty
    device, shape = where.get("device", "cpu"), (B, T, 64)
    x = make(shape, **where)
    arguments = {
        "latents": x,
        "velocity": make(shape, **where).bfloat16(),
        "times": step_table([1.0, 0.9, 0.75, 0.3], device=device),
        "step": clock(shape, step=1, device=device),
        "model_latents": torch.zeros(shape, dtype=torch.bfloat16, device=device),
        "out": x,
    }
    if noise:
        arguments["noise"] = make(shape, **where)
    if omega:
        arguments["omega"] = torch.tensor([1.046], device=device)
        arguments["scratch"] = torch.full((clock_entries(shape) - 1,), torch.nan, dtype=torch.float64, device=device)
    if seeds:
        arguments["seeds"] = torch.arange(B, device=device) - 1
    if repaint:
        mask = (torch.arange(T, device=device) % 5 < 3).expand(B, T).contiguous()
        held = torch.tensor([3], dtype=torch.int32, device=device)
        arguments["repaint"] = Repaint(mask, make(shape, **where), make(shape, **where), held)
    if lengths:
        arguments["lengths"] = torch.arange(T, T - 5 * B, -5, device=device)
    return arguments


def step_bytes(arguments: Arguments) -> float:
    """Bytes that a step has to move, those of its velocity included."""
    x, repaint = arguments["latents"], arguments.get("repaint")
    moved = [x, arguments["velocity"], arguments["model_latents"], arguments["out"], arguments.get("noise")]
    return sum(t.nbytes for t in moved if t is not None) + (
        0.8 * x.nbytes if repaint else 0
    )  # outside: 2 tensors, 2 / 5


def _case(config: str, B: int, T: int, flops: int = 2, **options: bool) -> Case:
    return Case(
        kernel="sampler_step",
        config=config,
        launch=sampler_step,
        reference=_reference,
        real=lambda device: case_arguments(B, T, **options, device=device),
        small=lambda generator: case_arguments(B, FEW, **options, generator=generator),
        outputs=("out", "model_latents", "step"),
        flops=lambda a: flops * a["latents"].numel(),
        bytes=step_bytes,
    )


CASES = (
    _case("euler", 1, 6144),  # 4 minutes
    _case("euler-batch", 3, 3072, lengths=True),
    _case("omega", 2, 6144, 5, omega=True, lengths=True),
    _case("sde-given", 1, 6144, 5, noise=True),
    _case("sde-drawn", 1, 6144, 245, seeds=True),  # of which 240 as in kernels/philox.py
    _case("repaint", 2, 6144, 5, repaint=True, lengths=True),
)
