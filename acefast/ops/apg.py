"""Adaptive projected guidance: what conditions add to the velocity, with momentum, a bounded norm and no parallel part.

With c and u the conditional and unconditional velocity, m the momentum, norms and products over time for each song and
channel:

    m    <- (c - u) + momentum * m
    d    =  m * min(1, norm_threshold / |m|)
    par  =  <d, c> c / |c|^2
    v    =  c + (scale - 1) * ((d - par) + eta * par)

``apg`` gives v; ``apg_step`` takes the sampler's step along it as well, without a launch more on a GPU, but with omega
and Triton.

ACE-Step v1's norms run over 16 rows of frequency as well: its latents [B, T, 128] are given as [B, T * 16, 8], so are
all tensors like them, and lengths times 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_shape
from acefast.operators import operator
from acefast.ops.sampler_step import (
    TILE,
    Repaint,
    check_step,
    counters_memory,
    omega_memory,
    sampler_step_reference,
    step_order,
)

OP = "apg"
ORDER = ("triton", "cuda")

TINY = 1e-12  # the least norm of c that is divided by, as upstream


def apg_reference(
    cond: Tensor,
    uncond: Tensor,
    running: Tensor | None,
    scale: float | Tensor,
    *,
    momentum: float | Tensor = -0.75,
    norm_threshold: float | Tensor = 2.5,
    eta: float | Tensor = 0.0,
    time_dim: int | Sequence[int] = 1,
    state_dtype: torch.dtype = torch.float32,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the op means: sums over time in fp64, the rest in ``state_dtype``; see ``apg``. Numbers may be fp32 []."""
    if lengths is not None:
        live = (torch.arange(cond.shape[1], device=cond.device) < lengths[:, None])[..., None]
        still = torch.zeros_like(cond, dtype=state_dtype) if running is None else running
        cond, uncond, running = (None if x is None else x.where(live, 0) for x in (cond, uncond, running))
    wide = widest_dtype(cond.device)
    c = cond.to(state_dtype)
    running = c - uncond.to(state_dtype) if running is None else c - uncond.to(state_dtype) + momentum * running
    norm = torch.linalg.vector_norm(running, dim=time_dim, keepdim=True, dtype=wide).to(state_dtype)
    bound = (norm.reciprocal() * norm_threshold).clamp_(max=1.0)  # a norm of zero gives inf, and 0 * 1 stays 0
    d = running * torch.where(_above_zero(norm_threshold, norm), bound, 1.0)
    d_wide, c_wide = d.to(wide), c.to(wide)
    length = torch.linalg.vector_norm(c_wide, dim=time_dim, keepdim=True).clamp_(min=TINY)
    parallel = c_wide * ((d_wide * c_wide).sum(time_dim, keepdim=True) / length / length)
    update = (d_wide - parallel).to(state_dtype) + eta * parallel.to(state_dtype)
    velocity = (c + (scale - 1.0) * update).to(cond.dtype)
    return velocity, running if lengths is None else torch.where(live, running, still)


def apg_step_reference(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor,
    running: Tensor,
    numbers: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    lengths: Tensor | None = None,
    **step_options: Tensor | Repaint | float | None,
) -> Tensor:
    """What ``apg_step`` means."""
    scale, momentum, norm_threshold, eta = numbers.unbind()
    options = dict(momentum=momentum, norm_threshold=norm_threshold, eta=eta, state_dtype=running.dtype)
    velocity, after = apg_reference(cond.to(running.dtype), uncond, running, scale, lengths=lengths, **options)
    running.copy_(after)
    return sampler_step_reference(latents, velocity, times, step, lengths=lengths, **step_options)


@operator(
    "(Tensor cond, Tensor uncond, Tensor? running, float scale, *, float momentum=-0.75, float norm_threshold=2.5, "
    "float eta=0.0, Tensor? lengths=None, str? backend=None) -> (Tensor, Tensor)",
    fake=lambda cond, *_, **__: (torch.empty_like(cond), torch.empty(cond.shape, device=cond.device)),
)
def apg(
    cond: Tensor,
    uncond: Tensor,
    running: Tensor | None,
    scale: float,
    *,
    momentum: float = -0.75,
    norm_threshold: float = 2.5,
    eta: float = 0.0,
    time_dim: int | Sequence[int] = 1,
    state_dtype: torch.dtype = torch.float32,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The guided velocity of one step.

    Args:
        cond, uncond: the two velocities, one shape, such as [B, T, C].
        running: what the previous guided step returned as its second result; None before the first.
        scale: guidance scale; 1 returns ``cond``.
        momentum: share of ``running`` kept; negative values damp.
        norm_threshold: the largest norm of the difference, absolute; 0 or less bounds nothing.
        eta: share kept of the difference's part parallel to ``cond``.
        time_dim: dimension or dimensions that norms and products run over.
        state_dtype: of the difference, the momentum and the bound. fp32; bf16 is upstream's habit, which also rounds
            after each of the formula's operations (the projection is fp64 in both).
        lengths: [B], valid frames of each song, where time is dimension 1; None: all. The frames behind them count
            for nothing, their velocity is 0 and their momentum stays as it is.
        backend: "triton", "cuda" or "reference"; None leaves the choice to acefast.backends.
    Returns:
        The velocity in ``cond``'s dtype, and the momentum in ``state_dtype``, each of ``cond``'s shape.
    Raises:
        ValueError: shapes differ.
        BackendUnavailable: the backend named cannot take this input: Triton takes [B, T, C] with C contiguous, time in
            dimension 1, a contiguous momentum and an fp32 state. CUDA takes of those what
            ``acefast.cuda.sampler_step.fits``.
    Source: Sadat et al., Eliminating oversaturation and artifacts of high guidance scales (arXiv 2410.02416), with the
    norms over time as ACE-Step has them.
    """
    check_shape(OP, "uncond", uncond, cond.shape, "cond's shape")
    if running is not None:
        check_shape(OP, "running", running, cond.shape, "cond's shape")
    options = dict(momentum=momentum, norm_threshold=norm_threshold, eta=eta, lengths=lengths)
    wanted = time_dim in (1, -2, (1,), [1]) and state_dtype == torch.float32
    order = _order(cond, uncond, running, lengths) if wanted else []
    if (chosen := choose_backend(OP, backend, cond.device, order)) != "reference":
        if chosen == "cuda":
            from acefast.cuda.apg import apg as kernel
        else:
            from acefast.kernels.apg import apg as kernel

        velocity = (torch.empty_like if lengths is None else torch.zeros_like)(cond)
        after = torch.empty(cond.shape, dtype=state_dtype, device=cond.device)
        if lengths is not None:
            after = after.zero_() if running is None else after.copy_(running)
        scratch = torch.empty(scratch_shape(cond.shape), device=cond.device)
        numbers = apg_numbers(scale, momentum=momentum, norm_threshold=norm_threshold, eta=eta).to(cond.device)
        more = counters_memory(OP, cond, None) if chosen == "cuda" else {}
        kernel(cond, uncond, running, numbers, lengths=lengths, scratch=scratch, **more, out=(velocity, after))
        return velocity, after
    return apg_reference(cond, uncond, running, scale, **options, time_dim=time_dim, state_dtype=state_dtype)


def apg_step(
    latents: Tensor,
    cond: Tensor,
    uncond: Tensor,
    running: Tensor,
    numbers: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    scratch: Tensor | tuple[Tensor, Tensor, Tensor] | None = None,
    counters: Tensor | None = None,
    model_latents: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    omega: float | Tensor | None = None,
    repaint: Repaint | None = None,
    lengths: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """A guided step: ``sampler_step`` along the velocity of ``apg``, which is not rounded on the way.

    Args:
        latents, times, step, model_latents, noise, seeds, omega, repaint, lengths, out: as in ``sampler_step``.
        cond, uncond: as in ``apg``; [B, T, D].
        numbers: fp32 [4] of ``apg_numbers``, on the device, so that one captured graph serves every guidance.
        running: fp32 [B, T, D], contiguous, updated in place; zeros before the first guided step.
        scratch: fp32 of ``scratch_shape(latents.shape)``, overwritten; None allocates. With omega also the memory of a
            velocity, fp32 [B, T, D], and ``sampler_step``'s scratch.
        counters: of ``acefast.ops.sampler_step.counters``, which the CUDA kernel uses; None allocates.
        backend: "triton", "cuda" or "reference"; None leaves the choice to acefast.backends.
    Returns, raises: as ``sampler_step``.
    """
    steps = dict(model_latents=model_latents, noise=noise, seeds=seeds, repaint=repaint, lengths=lengths, out=out)
    check_step(OP, latents, times, step, omega=omega, **steps)
    for name, tensor in (("cond", cond), ("uncond", uncond), ("running", running)):
        check_shape(OP, name, tensor, latents.shape, "latents' shape")
    check_shape(OP, "numbers", numbers, (4,), "[4]")
    order = step_order(cond, latents, times, **steps)
    order = [name for name in _order(cond, uncond, running, lengths) if name in order]
    if (chosen := choose_backend(OP, backend, latents.device, order)) != "reference":
        if chosen == "cuda":
            from acefast.cuda.apg import apg_step as kernel

            steps |= counters_memory(OP, latents, counters)
        else:
            from acefast.kernels.apg import apg_step as kernel

        scratch, guided, sums = scratch if isinstance(scratch, tuple) else (scratch, None, None)
        scratch = torch.empty(scratch_shape(latents.shape), device=latents.device) if scratch is None else scratch
        check_shape(OP, "scratch", scratch, scratch_shape(latents.shape), "[B, tiles, 3, D]")
        if omega is not None:
            more = omega_memory(latents, omega, sums)
            guided = torch.empty(latents.shape, device=latents.device) if guided is None else guided
            steps["omega"], scratch = more["omega"], (scratch, guided, more["scratch"])
        steps["out"] = out = torch.empty_like(latents) if out is None else out
        kernel(latents, cond, uncond, running, numbers, times, step, **steps, scratch=scratch)
        return out
    return apg_step_reference(latents, cond, uncond, running, numbers, times, step, omega=omega, **steps)


def apg_numbers(scale: float, *, momentum: float = -0.75, norm_threshold: float = 2.5, eta: float = 0.0) -> Tensor:
    """What ``apg_step`` takes as ``numbers``: fp32 [4], in this order, on the CPU."""
    return torch.tensor([scale, momentum, norm_threshold, eta], dtype=torch.float32)


def scratch_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Of the fp32 buffer that the kernels sum in, for velocities of ``shape`` [B, T, D]."""
    B, T, D = shape
    return B, -(-T // TILE[0]), 3, D


def _order(cond: Tensor, uncond: Tensor, running: Tensor | None, lengths: Tensor | None) -> list[str]:
    """The families whose kernels take these arguments."""
    state_fits = running is None or (running.dtype == torch.float32 and running.is_contiguous())
    state_fits = state_fits and (lengths is None or lengths.is_contiguous())
    channels_last = cond.ndim == 3 and cond.stride(-1) == uncond.stride(-1) == 1
    if not (state_fits and channels_last and all(x.dtype.itemsize <= 4 for x in (cond, uncond))):
        return []
    from acefast.cuda.sampler_step import fits

    cuda = fits(cond, uncond, running, lengths=lengths) and uncond.dtype == cond.dtype
    return [name for name in ORDER if name != "cuda" or cuda]


def _above_zero(number: float | Tensor, like: Tensor) -> Tensor:
    return number > 0 if isinstance(number, Tensor) else torch.full((), number > 0, device=like.device)


def widest_dtype(device: torch.device) -> torch.dtype:
    """fp64, or fp32 on the one kind of device that has none: sums over time are then right to about 1e-6."""
    return torch.float32 if device.type == "mps" else torch.float64
