"""One step of the sampler: the latents from t to t_next along the velocity, and what a repaint holds on to.

    euler    x <- x - v dt
    omega    x <- x - ((d - m) omega + m)                   of d = v dt and m, its mean over a song: Euler's, stretched
    sde      x <- t_next eps + (1 - t_next) (x - v t)       eps fresh each step; none once t_next is 0
    repaint  x <- t_next n + (1 - t_next) source            then, outside of the region, in its first steps

All of it is one launch on a GPU, two with omega and Triton. It also writes the model's copy of the latents, in the
model's dtype, and counts the step. Step and times lie on the device, so that one captured graph serves every step:

    times    [steps, 4], row i is (t, t - t_next, t_next, 1 - t_next) of step i; ``step_table`` makes it
    clock    int32 [1 + programs] of ``clock``; every entry is the number of the current step

Entry 0 of the clock is what the model's kernels read (``clock[:1]``); the launch of a step writes it and does not read
it. Entry 1 + p belongs to the launch's program p alone, which reads its step there and adds one. So no program reads
what another one writes, and the next launch finds all entries equal.

Blocks of a CUDA kernel that wait for one another do so by ``counters``, which are 0 before and after each launch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.ops.philox import philox_normal_reference

OP = "sampler_step"
ORDER = ("triton", "cuda")

SDE_STREAM = 1  # Philox stream of the SDE noise of step 0; later steps count on, stream 0 is the initial noise
TILE = (256, 16)  # frames and channels of one program of the kernels, each of which has its own clock entry


class Repaint(NamedTuple):
    """What holds the latents outside of a repaint's region to the source."""

    mask: Tensor  # [B, T] bool or uint8, not 0 inside the region
    source: Tensor  # clean source latents, the latents' shape and dtype
    noise: Tensor  # the song's initial noise, likewise
    steps: Tensor  # int32 [1], on the device: steps 0 .. steps - 1 are held


def step_table(
    timesteps: Sequence[float], *, state_dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """``times`` of decreasing ``timesteps`` without the final 0, computed in fp64 and rounded once.

    With a ``state_dtype`` of 16 bits t is rounded to it first, then dt and 1 - t_next: upstream's habit.
    """

    def rounded(value: float) -> float:
        return value if state_dtype.itemsize >= 4 else torch.tensor(value, dtype=state_dtype).item()

    t = [*map(rounded, timesteps), 0.0]
    rows = [(now, rounded(now - then), then, rounded(1.0 - then)) for now, then in itertools.pairwise(t)]
    return torch.tensor(rows, dtype=torch.promote_types(state_dtype, torch.float32), device=device)


def clock(shape: Sequence[int], *, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """A clock for latents of ``shape`` [B, T, D] that stands at ``step``; ``fill_`` sets it again."""
    return torch.full((clock_entries(shape),), step, dtype=torch.int32, device=device)


def clock_entries(shape: Sequence[int]) -> int:
    """How many entries a clock for latents of ``shape`` has."""
    B, T, D = shape
    return 1 + B * -(-T // TILE[0]) * -(-D // TILE[1])


def counters(shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
    """Counters for latents of ``shape`` [B, T, D]: int32 [1 + B]. Launches that use them follow one another."""
    return torch.zeros(1 + shape[0], dtype=torch.int32, device=device)


def sampler_step_reference(
    latents: Tensor,
    velocity: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    model_latents: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    omega: float | Tensor | None = None,
    repaint: Repaint | None = None,
    lengths: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """What the op means, every operation rounded to the latents' dtype; see ``sampler_step``."""
    dtype, T = latents.dtype, latents.shape[1]
    row = times[step] if isinstance(step, int) else times.index_select(0, step[:1])[0]
    t, dt, t_next, rest = row
    v = velocity.to(dtype)
    if seeds is not None:
        stream = SDE_STREAM + int(step if isinstance(step, int) else step[0])
        words = [seed % 2**64 for seed in seeds.tolist()]
        noise = philox_normal_reference(words, latents.shape[1:], stream=stream, device=latents.device)
    live = None
    if lengths is not None:
        live = (torch.arange(T, device=latents.device) < lengths[:, None])[..., None]
    if noise is None:
        change = v * dt
        if omega is not None:
            change = stretched(change, omega, live)
        x = latents - change
    else:
        clean = latents - v * t
        x = torch.where(t_next > 0, noise.to(dtype) * t_next + clean * rest, clean)
    if repaint is not None:
        free = (repaint.mask != 0) | (step >= repaint.steps if isinstance(step, int) else step[:1] >= repaint.steps)
        held = repaint.noise.to(dtype) * t_next + repaint.source.to(dtype) * rest
        x = torch.where(free[..., None], x, held)
    if live is not None:
        x = torch.where(live, x, latents)
    if model_latents is not None:
        model = model_latents[:, :T]
        model.copy_(x if live is None else torch.where(live, x.to(model.dtype), model))
    if not isinstance(step, int):
        step.add_(1)
    return x if out is None else out.copy_(x)


def stretched(change: Tensor, omega: float | Tensor, live: Tensor | None) -> Tensor:
    """``(change - m) * omega + m`` with m the mean of a song [B, ...], of its frames that are ``live`` [B, T, 1]."""
    wide = torch.float32 if change.device.type == "mps" else torch.float64
    among = change if live is None else change.where(live, 0)
    count = change[0].numel() if live is None else live.sum(1, keepdim=True) * change.shape[2]
    mean = among.sum(tuple(range(1, change.ndim)), keepdim=True, dtype=wide) / count
    mean = mean.to(change.dtype)
    return (change - mean) * (omega.reshape(()) if isinstance(omega, Tensor) else omega) + mean


def sampler_step(
    latents: Tensor,
    velocity: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    model_latents: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    omega: float | Tensor | None = None,
    repaint: Repaint | None = None,
    lengths: Tensor | None = None,
    scratch: Tensor | None = None,
    counters: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Take one step, as the equations at the head of this file say.

    Args:
        latents: at the step's t, [B, T, D]; its dtype is that of the state, fp32 unless in parity mode. Of any other
            shape where ``step`` is a number and ``model_latents``, ``repaint`` and ``lengths`` are None.
        velocity: guided, [B, T, D], any float dtype; a view of a buffer with more rows will do.
        times: as above.
        step: a ``clock``, which is counted on; or the step's number, known to the host.
        model_latents: [B, T or more, D], any float dtype; the new latents are written to its first T rows as well.
        noise: eps, [B, T, D]; with it the step is the SDE's. Or
        seeds: int64 [B], the bits of each song's seed: eps is stream ``SDE_STREAM + step`` of ``philox_normal``.
        omega: factor of what a step of Euler's departs from its mean over the song's frames and channels; a number, or
            fp32 [1] on latents' device, so that one captured graph serves every omega. None: no such step. For the
            mean over a whole batch give it as one song, ``x.view(1, B * T, D)``.
        repaint: what to hold on to, if anything.
        lengths: [B], valid frames of each song; None: all T. The latents of the frames behind them, and their rows of
            ``model_latents``, stay as they are, whatever their velocity.
        scratch: with omega, fp64 of ``clock_entries(latents.shape) - 1`` that kernels write; None allocates.
        counters: with omega, ``counters(latents.shape)``, which the CUDA kernel uses; None allocates.
        out: where the new latents are written; ``latents`` itself for in place. None allocates.
        backend: "triton", "cuda" or "reference"; None leaves the choice to acefast.backends.
    Returns:
        The latents at t_next, ``out`` if given. fp32 latents are the same bits on every backend, but for the order of
        the fp64 sums behind omega's mean.
    Raises:
        ValueError: a shape or dtype is not as above, or two of noise, seeds and omega are given.
        BackendUnavailable: the backend named cannot take this input. Triton takes fp32, but for velocity and
            ``model_latents``, with contiguous channels; times, noise, seeds, lengths and repaint contiguous. CUDA takes
            of those what ``acefast.cuda.sampler_step.fits``: D, strides and offsets a multiple of 4, one dtype of at
            most 32 bits for velocity and ``model_latents``, lengths of 32 or 64.
    Source: ACE-Step 1.5's sampling loop, its ODE and SDE; ``inject`` of acefast.repaint for what a repaint holds; omega
        and the SDE also are FlowMatchEulerDiscreteScheduler and FlowMatchPingPongScheduler in ace-step/ACE-Step.
    """
    options = dict(model_latents=model_latents, noise=noise, seeds=seeds, repaint=repaint, lengths=lengths, out=out)
    check_step(OP, latents, times, step, omega=omega, **options)
    check_shape(OP, "velocity", velocity, latents.shape, "latents' shape")
    order = step_order(velocity, latents, times, **options)
    if (chosen := choose_backend(OP, backend, latents.device, order)) != "reference":
        if chosen == "cuda":
            from acefast.cuda.sampler_step import sampler_step as kernel
        else:
            from acefast.kernels.sampler_step import sampler_step as kernel

        options["out"] = out = torch.empty_like(latents) if out is None else out
        if omega is not None:
            options |= omega_memory(latents, omega, scratch)
            options |= counters_memory(OP, latents, counters) if chosen == "cuda" else {}
        kernel(latents, velocity, times, step, **options)
        return out
    return sampler_step_reference(latents, velocity, times, step, omega=omega, **options)


def omega_memory(latents: Tensor, omega: float | Tensor, scratch: Tensor | None) -> dict[str, Tensor]:
    """``omega`` and ``scratch`` as the kernel takes them, on the device."""
    if scratch is None:
        scratch = torch.empty(clock_entries(latents.shape) - 1, dtype=torch.float64, device=latents.device)
    check_shape(OP, "scratch", scratch, (clock_entries(latents.shape) - 1,), "[clock_entries(latents.shape) - 1]")
    check_dtype(OP, "scratch", scratch, torch.float64)
    if not isinstance(omega, Tensor):
        omega = torch.tensor([omega], dtype=torch.float32, device=latents.device)
    return {"omega": omega, "scratch": scratch}


def counters_memory(op: str, like: Tensor, given: Tensor | None) -> dict[str, Tensor]:
    """``counters`` as a CUDA kernel takes them, for tensors like [B, T, D]."""
    if given is None:
        return {"counters": counters(like.shape, device=like.device)}
    check_shape(op, "counters", given, (1 + len(like),), "[1 + B]")
    check_dtype(op, "counters", given, torch.int32)
    return {"counters": given}


def check_step(
    op: str,
    latents: Tensor,
    times: Tensor,
    step: Tensor | int,
    *,
    model_latents: Tensor | None,
    noise: Tensor | None,
    seeds: Tensor | None,
    repaint: Repaint | None,
    lengths: Tensor | None,
    out: Tensor | None,
    omega: float | Tensor | None = None,
) -> None:
    """Raise ValueError unless a step's arguments other than its velocity are as ``sampler_step`` has them."""
    check_shape(op, "times", times, (None, 4), "[steps, 4]")
    if not isinstance(step, int) or any(x is not None for x in (model_latents, repaint, lengths)):
        check_shape(op, "latents", latents, (None, None, None), "[B, T, D]")
    B, T, D = (*latents.shape, 1, 1)[:3]
    if not isinstance(step, int):
        check_shape(op, "step", step, (clock_entries(latents.shape),), "clock(latents.shape)")
    elif not 0 <= step < len(times):
        raise ValueError(f"{op}: step must be 0 to {len(times) - 1}, got {step}")
    if model_latents is not None:
        check_shape(op, "model_latents", model_latents[:, :T], (B, T, D), "[B, T or more, D]")
    if noise is not None and seeds is not None:
        raise ValueError(f"{op}: noise and seeds exclude each other, got both")
    if omega is not None and (noise is not None or seeds is not None):
        raise ValueError(
            f"{op}: omega stretches Euler's step, got it with the SDE's {'noise' if seeds is None else 'seeds'}"
        )
    if isinstance(omega, Tensor):
        check_shape(op, "omega", omega, (1,), "[1]")
        check_dtype(op, "omega", omega, torch.float32)
    if seeds is not None:
        check_shape(op, "seeds", seeds, (B,), "[B]")
    if lengths is not None:
        check_shape(op, "lengths", lengths, (B,), "[B]")
    if repaint is not None:
        check_shape(op, "repaint.mask", repaint.mask, (B, T), "[B, T]")
        check_shape(op, "repaint.steps", repaint.steps, (1,), "[1]")
    same = {"noise": noise, "out": out}
    same |= {} if repaint is None else {"repaint.source": repaint.source, "repaint.noise": repaint.noise}
    for name, tensor in same.items():
        if tensor is not None:
            check_shape(op, name, tensor, latents.shape, "latents' shape")


def step_order(
    velocity: Tensor,
    latents: Tensor,
    times: Tensor,
    *,
    model_latents: Tensor | None,
    noise: Tensor | None,
    seeds: Tensor | None,
    repaint: Repaint | None,
    lengths: Tensor | None,
    out: Tensor | None,
) -> list[str]:
    """The families whose kernels take these arguments."""
    if latents.ndim != 3 or velocity.stride(-1) != 1:
        return []
    state = [latents, out, noise, *(repaint[1:3] if repaint else ())]
    channels_last = all(x is None or x.stride(-1) == 1 for x in (*state, model_latents))
    packed = all(x is None or x.is_contiguous() for x in (times, seeds, lengths, *state[2:], *(repaint or ())))
    fp32 = all(x is None or x.dtype == torch.float32 for x in (*state, times))
    if not (channels_last and packed and fp32 and (repaint is None or repaint.mask.dtype.itemsize == 1)):
        return []
    from acefast.cuda.sampler_step import fits

    cuda = fits(velocity, *state, lengths=lengths, model_latents=model_latents)
    return [name for name in ORDER if name != "cuda" or cuda]


def strided(tensor: Tensor | None) -> tuple:
    """A [B, T, D] tensor and its strides of a song and a frame."""
    return (None, 0, 0) if tensor is None else (tensor, *tensor.stride()[:2])


def step_arguments(
    times: Tensor,
    step: Tensor | int,
    model_latents: Tensor | None,
    noise: Tensor | None,
    seeds: Tensor | None,
    repaint: Repaint | None,
    lengths: Tensor | None,
    out: Tensor,
) -> tuple:
    """What the kernels take of a step from ``out`` to ``lengths``, in their order."""
    number, counter = (step, None) if isinstance(step, int) else (0, step)
    mask, source, initial, held = (None,) * 4 if repaint is None else repaint
    mask = None if mask is None else mask.view(torch.uint8)
    copy = strided(model_latents)
    return *strided(out), *copy, times, number, counter, noise, seeds, mask, source, initial, held, lengths
