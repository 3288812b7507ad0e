"""From noise to latents: schedules, solvers and what may happen between two steps.

Everything here is a pure function of its tensors: no global generator is read, nothing is printed. Latents mix clean
data and noise as ``x_t = t * noise + (1 - t) * clean``; the velocity is ``noise - clean``; t runs from 1 down to 0.
Shapes are [B, ...] with time in ``time_dim``: [B, T, 64] in the v1.5 family, [B, T, 128] in v1.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from acefast.ops.philox import philox_normal
from acefast.ops.sampler_step import SDE_STREAM, sampler_step, step_table

SOLVERS = ("euler", "heun", "sde")

Velocity = Callable[[Tensor, float, int, bool], Tensor]


class Advance(Protocol):
    """A whole step at once, on memory of its own."""

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """The latents after ``step``; the next call overwrites them."""

    def velocity(self, step: int) -> Tensor:
        """The guided velocity of the step just taken."""


class Cancelled(Exception):
    """Sampling was stopped by its ``on_step`` hook; ``step`` is the last step that was done, from 0."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"cancelled after step {step + 1} of {steps}")
        self.step = step


@dataclass
class StepInfo:
    """What ``on_step`` is told after a step. ``sample`` gives its own tensors: return a new one, write into none."""

    step: int  # from 0
    steps: int
    t: float  # the step went from t
    t_next: float  # to t_next; 0 after the last one
    latents: Tensor
    elapsed: float  # seconds since sampling began, on the CPU's clock: a GPU may still be at work
    cancelled: bool = False
    _before: Tensor = field(default=None, repr=False)
    _velocity: Callable[[], Tensor] = field(default=None, repr=False)

    @property
    def denoised(self) -> Tensor:
        """The clean latents as estimated from this step's first velocity, ``x - v * t``; computed when asked for."""
        return self._before - self._velocity() * self.t

    def cancel(self) -> None:
        """Stop once the hook returns, with ``Cancelled``."""
        self.cancelled = True


def schedule(steps: int, sigma_shift: float, *, dtype: torch.dtype = torch.float64) -> list[float]:
    """Timesteps t_0 = 1 > ... > t_(steps-1); the 0 at the end is implied.

    ``t = s u / (1 + (s - 1) u)`` of evenly spaced u. A shift s above 1 spends more steps near the noise.

    Args:
        dtype: fp64 rounds each t once, which gives the turbo checkpoints' tables digit for digit. A narrower one is a
            parity habit, every operation rounded to it: fp32 is diffusers', bf16 the official base and sft models'.
    Raises:
        ValueError: ``steps`` below 1, or ``sigma_shift`` not above 0.
    """
    if steps < 1:
        raise ValueError(f"schedule: steps must be 1 or more, got {steps}")
    if not 0 < sigma_shift < math.inf:
        raise ValueError(f"schedule: sigma_shift must be above 0, got {sigma_shift}")
    if dtype == torch.float64:
        s = Fraction(sigma_shift)
        return [float(s * n / (steps + (s - 1) * n)) for n in range(steps, 0, -1)]
    t = torch.linspace(1.0, 0.0, steps + 1, dtype=dtype)
    if sigma_shift != 1:
        t = sigma_shift * t / (1 + (sigma_shift - 1) * t)
    return t[:-1].tolist()


def parse_timesteps(timesteps: str | Sequence[float]) -> list[float]:
    """A user's timesteps, as text ("0.97, 0.5, 0.18, 0") or numbers. Zeros at the end mark the end and are dropped.

    Raises:
        ValueError: not numbers, none left, outside (0, 1], or not strictly decreasing.
    """
    words = [w for w in re.split(r"[\s,;]+", timesteps) if w] if isinstance(timesteps, str) else timesteps
    try:
        values = [float(word) for word in words]
    except (TypeError, ValueError):
        raise ValueError(f"timesteps: must be numbers, got {timesteps!r}") from None
    while values and values[-1] == 0:
        values.pop()
    _check_timesteps(values)
    if len(set(values)) < len(values):
        raise ValueError(f"timesteps: must strictly decrease, got one twice in {values}")
    return values


def sample(
    velocity: Velocity,
    noise: Tensor,
    timesteps: Sequence[float],
    *,
    solver: str = "euler",
    start: int = 0,
    seeds: Sequence[int] | None = None,
    sde_noise: Callable[[int], Tensor] | None = None,
    correct: Callable[[Tensor, Tensor, float, float], Tensor] | None = None,
    after_step: Callable[[Tensor, int, float], Tensor] | None = None,
    on_step: Callable[[StepInfo], Tensor | bool | None] | None = None,
    state_dtype: torch.dtype = torch.float32,
    step_dtype: torch.dtype | None = None,
    omega: float | None = None,
    coupled: bool = False,
    corrects_last: bool = True,
    advance: Advance | None = None,
) -> Tensor:
    """Integrates the velocity from ``timesteps[start]`` down to 0.

    euler  x <- x - v dt
    heun   x <- x - (v + v2) dt / 2, v2 at Euler's result and t_next; two evaluations a step
    sde    x <- t_next * eps + (1 - t_next) * (x - v t), eps fresh each step; the last step draws none

    Args:
        velocity: ``velocity(latents, t, step, corrector)``, guided; ``corrector`` marks Heun's second evaluation.
        noise: latents at ``timesteps[start]``, [B, ...].
        timesteps: t of each step, decreasing within (0, 1], without the final 0.
        start: index of the first step to run; steps keep their numbers.
        seeds: one per song; the SDE noise of step i is stream ``SDE_STREAM + i`` of that song's seed.
        sde_noise: ``sde_noise(step)`` in place of that, a tensor of the noise's shape.
        correct: ``correct(latents, denoised, t, t_next)`` after each Euler or Heun step, such as
            ``wavelet_correction``; ``denoised`` is ``x - v t`` of the step's first velocity.
        after_step: ``after_step(latents, step, t_next)`` then, such as ``repaint.inject``.
        on_step: then called with a ``StepInfo``. None goes on, a tensor replaces the latents, False cancels.
        state_dtype: of the latents between steps. fp32 is exact enough to never matter. bf16 (or fp16) is upstream's
            habit: latents, velocity and noise are rounded to it; so are t, dt = t - t_next and 1 - t_next, t also as
            the model is told it; and each product and sum is rounded on its own.
        step_dtype: of t and of a step's own arithmetic, ``state_dtype`` if not given. With fp32 beside a narrower
            state, as v1 has it, t is not rounded, and of a step's products only an Euler's with ``omega``.
        omega: of Euler and Heun: each step's change is stretched about its mean by this factor; see ``shifted_step``.
        coupled: the mean is that of the whole batch, not each song's.
        corrects_last: whether Heun's last step, where t_next is 0, has its second evaluation; v1's has none.
        advance: takes each step, in place of ``velocity``, ``solver`` and ``correct``. What a hook is shown then holds
            until the next step, ``denoised`` too.
    Returns:
        Latents at t = 0, of noise's shape, in ``state_dtype``.
    Raises:
        ValueError: unknown solver, timesteps or start out of range, "sde" without a source of noise, or a callable
            returned another shape.
        TypeError: ``on_step`` returned something else.
        Cancelled: ``on_step`` asked for it.
    """
    begun = time.perf_counter()
    if solver not in SOLVERS:
        raise ValueError(f"sample: solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    _check_timesteps(timesteps)
    steps = len(timesteps)
    if not 0 <= start < steps:
        raise ValueError(f"sample: start must be 0 to {steps - 1}, got {start}")
    if solver == "sde" and sde_noise is None:
        sde_noise = _philox_noise(seeds, noise)

    work = step_dtype or state_dtype

    def rounded(value: float) -> float:
        return value if work.itemsize >= 4 else torch.tensor(value, dtype=work).item()

    def checked(what: str, tensor: Tensor, dtype: torch.dtype = state_dtype) -> Tensor:
        if tensor.shape != noise.shape:
            raise ValueError(f"sample: {what} must be of shape {list(noise.shape)}, got {list(tensor.shape)}")
        return tensor.to(noise.device, dtype)

    times, table = [*map(rounded, timesteps), 0.0], step_table(timesteps, state_dtype=work, device=noise.device)
    move = functools.partial(shifted_step, times=table, omega=None if solver == "sde" else omega, coupled=coupled)
    x = noise.to(state_dtype)
    for step in range(start, steps):
        t, t_next = times[step], times[step + 1]
        if advance is not None:
            before, x = x.clone() if on_step else None, advance(x, step)
            v = functools.partial(advance.velocity, step)
        else:
            before, first = x, checked("velocity", velocity(x, t, step, False))
            eps = checked("sde_noise", sde_noise(step), work) if solver == "sde" and t_next > 0 else None
            drift = first if solver == "euler" else first.to(work)
            x, v = move(before.to(work), drift, step=step, noise=eps).to(state_dtype), lambda first=first: first
            if solver == "heun" and (corrects_last or t_next > 0):
                second = checked("velocity", velocity(x, t_next, step, True), work)
                x = move(before.to(work), (drift + second) * 0.5, step=step).to(state_dtype)
            if correct is not None and solver != "sde":
                x = checked("correct", correct(x, before - first * t, t, t_next))
        if after_step is not None:
            x = checked("after_step", after_step(x, step, t_next))
        if on_step is not None:
            info = StepInfo(step, steps, t, t_next, x, time.perf_counter() - begun, _before=before, _velocity=v)
            answer = on_step(info)
            if answer is False or info.cancelled:
                raise Cancelled(step, steps)
            if isinstance(answer, Tensor):
                x = checked("on_step", answer)
            elif answer is not None:
                raise TypeError(f"on_step must return None, a tensor or False, got {type(answer).__name__}")
    return x if advance is None else x.clone()


def shifted_step(
    latents: Tensor,
    velocity: Tensor,
    times: Tensor,
    step: int,
    *,
    noise: Tensor | None = None,
    omega: float | None = None,
    coupled: bool = False,
) -> Tensor:
    """``sampler_step``, its change stretched about its mean: ``x - ((d - mean(d)) * omega + mean(d))``, d = v dt.

    Args:
        omega: the factor; None leaves the change as it is, as has to be in an SDE's step.
        coupled: one mean of the whole batch, upstream's, in place of one for each song.
    """
    if omega is None or not coupled:
        return sampler_step(latents, velocity, times, step, noise=noise, omega=omega)
    change = times[step, 1] * velocity  # in this order, which of bf16 decides where a CPU rounds
    mean = change.mean()
    return latents - ((change - mean) * omega + mean)


def mix_noise(noise: Tensor, other: Tensor, variation: float) -> Tensor:
    """A retake's noise: ``cos(a) * noise + sin(a) * other`` with a = variation * pi / 2, which keeps the variance.

    ``variation`` 0 returns ``noise``, 1 returns ``other``. Raises ValueError outside of 0..1.
    """
    _check_share("mix_noise", "variation", variation)
    if variation in (0, 1):
        return other if variation else noise
    angle = variation * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other


def noised_start(
    timesteps: Sequence[float], noise: Tensor, source: Tensor, amount: float
) -> tuple[Tensor, list[float]]:
    """A cover's start from its source: (latents, the timesteps that remain).

    The start is the timestep t nearest to ``1 - amount`` (the noisier of two), the latents are
    ``t * noise + (1 - t) * source``. ``amount`` 0 changes nothing. Raises ValueError outside of 0..1.
    """
    _check_share("noised_start", "amount", amount)
    if amount == 0:
        return noise, list(timesteps)
    index = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - (1.0 - amount)))
    t = timesteps[index]
    return t * noise + (1.0 - t) * source, list(timesteps[index:])


def wavelet_correction(
    latents: Tensor,
    denoised: Tensor,
    t: float,
    *,
    mode: str = "double",
    scale: float = 0.05,
    high_scale: float = 0.02,
    time_dim: int = 1,
) -> Tensor:
    """Pushes latents away from the clean estimate, separately in the two bands of a Haar wavelet along time.

    Args:
        latents: after the step; denoised: ``x - v t`` from before it. One shape.
        t: timestep before the step. Slow changes are pushed by ``t * scale``, fast ones by ``(1 - t) * scale``.
        mode: "low" or "high", one band; "double", both, the high one by ``high_scale``; "pix", ``scale`` on all.
    Returns:
        As ``latents``. With an odd number of frames the last one's partner is a frame of zeros, cut off again.
    Raises ValueError for an unknown mode. Source: arXiv 2604.16044.
    """
    bands = {
        "low": (t * scale, 0.0),
        "high": (0.0, (1.0 - t) * scale),
        "double": (t * scale, (1.0 - t) * high_scale),
        "pix": (scale, scale),
    }
    if mode not in bands:
        raise ValueError(f"wavelet_correction: mode must be one of {', '.join(bands)}, got {mode!r}")
    low, high = bands[mode]
    # The transform is linear, so only the difference passes through it. A pair's bands are (a + b) and (a - b) over
    # sqrt(2); back in time each frame gets half their scaled sum or difference.
    frames = (latents - denoised).movedim(time_dim, 0)
    if odd := frames.shape[0] % 2:
        frames = torch.cat([frames, torch.zeros_like(frames[:1])])
    a, b = frames[0::2], frames[1::2]
    mean, half = (a + b) * (0.5 * low), (a - b) * (0.5 * high)
    change = torch.stack([mean + half, mean - half], dim=1).flatten(0, 1)
    return latents + change[: change.shape[0] - odd].movedim(0, time_dim)


def _philox_noise(seeds: Sequence[int] | None, like: Tensor) -> Callable[[int], Tensor]:
    if seeds is None or len(seeds) != like.shape[0]:
        raise ValueError(f"sample: solver 'sde' needs one seed per song, {like.shape[0]}, or sde_noise; got {seeds}")
    shape = tuple(like.shape[1:])
    return lambda step: philox_normal(seeds, shape, stream=SDE_STREAM + step, device=like.device)


def _check_timesteps(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("timesteps: must hold at least one above 0, got none")
    for value in values:
        if not 0 < value <= 1:
            raise ValueError(f"timesteps: each must be above 0 and at most 1, got {value}")
    for a, b in itertools.pairwise(values):
        if b > a:
            raise ValueError(f"timesteps: must decrease, got {b} after {a}")


def _check_share(where: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{where}: {name} must be 0 to 1, got {value}")
