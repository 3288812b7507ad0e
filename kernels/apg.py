"""Triton kernels of acefast.ops.apg (K08), in two launches, the second of which may be a sampler's step as well.

Math    m <- (c - u) + momentum m;  A = sum m^2, C = sum c^2, P = sum m c over time, per song and channel
        q = min(1, threshold / sqrt(A));  d = q m;  p = (q P / max(C, 1e-24)) c;  v = c + (scale - 1) (d - p + eta p)
Tiling  as kernels/sampler_step.py: one program per 256 frames x 16 channels of a song. The first launch writes m and
        its tile's A, C and P, fp32 sums of 256; every program of the second adds those of all tiles of its channels, in
        fp64 and one order, so that no atomics are needed and the result never varies
Bytes   B * T * D * (3 c + u + 12): c, u and m in, m out; c and m in again, velocity out; or what a step moves more.
        c and u stand for their itemsize. The sums, 3 / 256 of m, stay in L2
Bound   memory beyond some 10 minutes of song, latency below
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.kernel_config import Config, pick
from acefast.kernels.sampler_step import (
    FEW,
    advance,
    at,
    case_arguments,
    columns_of,
    count_step,
    frames_of,
    read_step,
    sampler_step,
    step_bytes,
    store_latents,
)
from acefast.ops.apg import TINY, apg_numbers, apg_reference, apg_step_reference, scratch_shape
from acefast.ops.sampler_step import TILE, Repaint, step_arguments, strided

_EXACT = {"enable_fp_fusion": False}  # for the step's sake, see kernels/sampler_step.py
_TILES = {"ROWS": TILE[0], "COLUMNS": TILE[1]}
CONFIGS = {
    ("partials", 80): Config(_TILES, num_warps=8, compiler=_EXACT),
    ("guide", 80): Config({**_TILES, "PARTIALS": 16}, num_warps=8, compiler=_EXACT),
    ("guide-drawn", 80): Config({**_TILES, "PARTIALS": 16}, num_warps=16, compiler=_EXACT),  # eps drawn in the launch
}
_LEAST = tl.constexpr(TINY * TINY)


@triton.jit
def _partials_kernel(
    c_ptr, c_song, c_frame, u_ptr, u_song, u_frame, before_ptr, after_ptr, partials_ptr, numbers_ptr, lengths_ptr,
    T, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    frames, _, valid = frames_of(lengths_ptr, T, ROWS)
    columns = columns_of(COLUMNS)
    live = valid[:, None] & (columns < D)[None, :]
    c = tl.load(at(c_ptr, c_song, c_frame, frames, columns), mask=live, other=0.0).to(tl.float32)
    m = c - tl.load(at(u_ptr, u_song, u_frame, frames, columns), mask=live, other=0.0).to(tl.float32)
    if before_ptr is not None:
        m += tl.load(numbers_ptr + 1) * tl.load(at(before_ptr, T * D, D, frames, columns), mask=live, other=0.0)
    tl.store(at(after_ptr, T * D, D, frames, columns), m, mask=live)
    tile = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    sums = partials_ptr + tile * (3 * D) + columns  # [B, tiles, 3, D]
    tl.store(sums, tl.sum(m * m, axis=0), mask=columns < D)
    tl.store(sums + D, tl.sum(c * c, axis=0), mask=columns < D)
    tl.store(sums + 2 * D, tl.sum(m * c, axis=0), mask=columns < D)


@triton.jit
def _guide(
    c, m, partials_ptr, numbers_ptr, columns, D: tl.constexpr, COLUMNS: tl.constexpr, PARTIALS: tl.constexpr
):  # fmt: skip
    """The guided velocity of a tile, fp32."""
    tiles = tl.num_programs(0)
    A = tl.zeros([PARTIALS, COLUMNS], tl.float64)
    C = tl.zeros([PARTIALS, COLUMNS], tl.float64)
    P = tl.zeros([PARTIALS, COLUMNS], tl.float64)
    for first in range(0, tiles, PARTIALS):
        index = first + tl.arange(0, PARTIALS)
        tile = tl.program_id(2).to(tl.int64) * tiles + index
        sums = partials_ptr + tile[:, None] * (3 * D) + columns[None, :]
        there = (index < tiles)[:, None] & (columns < D)[None, :]
        A += tl.load(sums, mask=there, other=0.0).to(tl.float64)
        C += tl.load(sums + D, mask=there, other=0.0).to(tl.float64)
        P += tl.load(sums + 2 * D, mask=there, other=0.0).to(tl.float64)
    share = tl.sum(P, axis=0) / tl.maximum(tl.sum(C, axis=0), _LEAST)
    threshold = tl.load(numbers_ptr + 2)
    norm = tl.sqrt(tl.sum(A, axis=0)).to(tl.float32)
    bound = tl.maximum(norm, tl.where(threshold > 0, threshold, 1.0))
    q = tl.div_rn(tl.zeros([COLUMNS], tl.float32) + threshold, bound)
    q = tl.where(threshold > 0, q, 1.0)
    parallel = c * (share * q).to(tl.float32)[None, :]
    update = m * q[None, :] - parallel + tl.load(numbers_ptr + 3) * parallel
    return c + (tl.load(numbers_ptr) - 1.0) * update


@triton.jit
def _velocity_kernel(
    c_ptr, c_song, c_frame, m_ptr, partials_ptr, numbers_ptr, out_ptr, out_song, out_frame, lengths_ptr, T,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    frames, _, valid = frames_of(lengths_ptr, T, ROWS)
    columns = columns_of(COLUMNS)
    live = valid[:, None] & (columns < D)[None, :]
    c = tl.load(at(c_ptr, c_song, c_frame, frames, columns), mask=live, other=0.0).to(tl.float32)
    m = tl.load(at(m_ptr, T * D, D, frames, columns), mask=live, other=0.0)
    v = _guide(c, m, partials_ptr, numbers_ptr, columns, D, COLUMNS, PARTIALS)
    tl.store(at(out_ptr, out_song, out_frame, frames, columns), v.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["step"])
def _guided_step_kernel(
    c_ptr, c_song, c_frame, m_ptr, partials_ptr, numbers_ptr, x_ptr, x_song, x_frame,
    out_ptr, out_song, out_frame, copy_ptr, copy_song, copy_frame,
    times_ptr, step, clock_ptr, noise_ptr, seeds_ptr, mask_ptr, source_ptr, initial_ptr, held_ptr, lengths_ptr, T,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    frames, there, valid = frames_of(lengths_ptr, T, ROWS)
    columns = columns_of(COLUMNS)
    within, live = there[:, None] & (columns < D)[None, :], valid[:, None] & (columns < D)[None, :]
    step = read_step(step, clock_ptr)
    c = tl.load(at(c_ptr, c_song, c_frame, frames, columns), mask=live, other=0.0).to(tl.float32)
    m = tl.load(at(m_ptr, T * D, D, frames, columns), mask=live, other=0.0)
    before = tl.load(at(x_ptr, x_song, x_frame, frames, columns), mask=within, other=0.0)
    v = _guide(c, m, partials_ptr, numbers_ptr, columns, D, COLUMNS, PARTIALS)
    x = advance(
        before, v, None, None, step, times_ptr, noise_ptr, seeds_ptr, mask_ptr, source_ptr, initial_ptr, held_ptr,
        frames, columns, there, live, T, D,
    )  # fmt: skip
    store_latents(
        x, before, out_ptr, out_song, out_frame, copy_ptr, copy_song, copy_frame, frames, columns, within, live
    )
    count_step(step, clock_ptr)


def apg(
    cond: Tensor,
    uncond: Tensor,
    running: Tensor | None,
    numbers: Tensor,
    *,
    lengths: Tensor | None = None,
    scratch: Tensor,
    out: tuple[Tensor, Tensor],
) -> None:
    """Two launches. ``out`` are the velocity and the momentum, which may be ``running``."""
    velocity, after = out
    _launch_partials(cond, uncond, running, after, scratch, numbers, lengths)
    _velocity_kernel[_grid(cond)](
        *strided(cond), after, scratch, numbers, *strided(velocity), lengths, cond.shape[1], cond.shape[2],
        **pick(CONFIGS, "guide").options,
    )  # fmt: skip


def apg_step(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor,
    running: Tensor,
    numbers: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    model_latents: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    omega: Tensor | None = None,
    repaint: Repaint | None = None,
    lengths: Tensor | None = None,
    scratch: Tensor | tuple[Tensor, Tensor, Tensor],
    out: Tensor,
) -> None:
    """Two launches, with omega four; arguments as in the op. ``running`` is updated in place."""
    if omega is not None:  # whose mean is of the guided velocity, so that has to be there first
        scratch, velocity, sums = scratch
        apg(cond, uncond, running, numbers, lengths=lengths, scratch=scratch, out=(velocity, running))
        held = {"model_latents": model_latents, "repaint": repaint, "lengths": lengths, "out": out}
        sampler_step(latents, velocity, times, step, omega=omega, scratch=sums, **held)
        return
    _launch_partials(cond, uncond, running, running, scratch, numbers, lengths)
    _guided_step_kernel[_grid(cond)](
        *strided(cond), running, scratch, numbers, *strided(latents),
        *step_arguments(times, step, model_latents, noise, seeds, repaint, lengths, out), cond.shape[1],
        cond.shape[2], **pick(CONFIGS, "guide" if seeds is None else "guide-drawn").options,
    )  # fmt: skip


def _launch_partials(cond, uncond, before, after, scratch, numbers, lengths) -> None:
    _partials_kernel[_grid(cond)](
        *strided(cond), *strided(uncond), before, after, scratch, numbers, lengths, cond.shape[1],
        cond.shape[2], **pick(CONFIGS, "partials").options,
    )  # fmt: skip


def _grid(tensor: Tensor) -> tuple[int, int, int]:
    B, T, D = tensor.shape
    return triton.cdiv(T, TILE[0]), triton.cdiv(D, TILE[1]), B


def _velocity_reference(
    cond: Tensor, uncond: Tensor, running: Tensor, numbers: Tensor, *, scratch: Tensor, out: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    scale, *rest = numbers.unbind()
    options = dict(zip(("momentum", "norm_threshold", "eta"), rest))
    dtype = torch.promote_types(cond.dtype, torch.float32)
    return apg_reference(cond, uncond, running, scale, **options, state_dtype=dtype)


def _step_reference(*, scratch: Tensor, **arguments) -> tuple[Tensor, ...]:
    out = apg_step_reference(**arguments)
    return out, arguments["model_latents"], arguments["running"], arguments["step"]


def _arguments(B: int, T: int, *, eta: float = 0.0, **options) -> Arguments:
    """A guided step in place; conditional and unconditional velocity are the halves of one buffer."""
    arguments = case_arguments(B, T, **options)
    where = {name: options[name] for name in ("device", "generator") if name in options}
    make = torch.randn if "generator" in where else torch.empty
    shape = arguments.pop("velocity").shape
    cond, uncond = make(2, *shape, **where).bfloat16()
    numbers = apg_numbers(7.0, eta=eta).to(where.get("device"))
    scratch = torch.empty(scratch_shape(shape), device=where.get("device"))
    arguments |= {"cond": cond, "uncond": uncond, "running": make(shape, **where), "numbers": numbers}
    return arguments | {"scratch": scratch}


def _velocity_arguments(B: int, T: int, **where) -> Arguments:
    arguments = _arguments(B, T, **where)
    names = ("cond", "uncond", "running", "numbers", "scratch")
    out = torch.empty_like(arguments["cond"]), torch.empty_like(arguments["running"])
    return {**{name: arguments[name] for name in names}, "out": out}


def _guide_bytes(a: Arguments) -> float:
    return 2 * (a["cond"].nbytes + a["running"].nbytes) + a["uncond"].nbytes


def _case(config: str, B: int, T: int, flops: int = 22, **options) -> Case:
    return Case(
        kernel="apg",
        config=config,
        launch=apg_step,
        reference=_step_reference,
        real=lambda device: _arguments(B, T, **options, device=device),
        small=lambda generator: _arguments(B, FEW, **options, generator=generator),
        outputs=("out", "model_latents", "running", "step"),
        flops=lambda a: flops * a["latents"].numel(),
        bytes=lambda a: _guide_bytes(a) + a["running"].nbytes + step_bytes({**a, "velocity": None}),
    )


CASES = (
    Case(
        kernel="apg",
        config="velocity",
        launch=apg,
        reference=_velocity_reference,
        real=lambda device: _velocity_arguments(1, 6144, device=device),
        small=lambda generator: _velocity_arguments(1, FEW, generator=generator),
        outputs=("out",),
        flops=lambda a: 20 * a["cond"].numel(),
        bytes=lambda a: _guide_bytes(a) + a["running"].nbytes + a["cond"].nbytes,
    ),
    _case("step", 1, 6144),  # 4 minutes
    _case("step-batch", 3, 3072, eta=0.3, lengths=True),
    _case("step-sde-repaint", 1, 6144, 265, seeds=True, repaint=True),
)
