"""How the conditional and the unconditional velocity become one: CFG, APG and ADG, and the interval they act in.

``acefast.models.v1.guidance`` adds what only v1 has.

Pure functions of tensors. APG's momentum is passed in and returned; only ``guided`` holds it, for one song's loop.
Velocities and latents have any shape with time in ``time_dim`` and channels last, [B, T, C] in the v1.5 family.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from acefast.ops.apg import apg, widest_dtype

__all__ = ["VARIANTS", "Guidance", "adg", "apg", "blended", "cfg", "guided"]

VARIANTS = ("apg", "cfg", "adg", "adg_w_norm", "adg_wo_clip")

_ADG_LIMIT = {"adg": 3.14 / 6, "adg_w_norm": 3.14 / 3, "adg_wo_clip": math.inf}  # radians; 3.14 is upstream's
_INTERVAL_SLACK = 1e-6  # a bound written in decimals includes the timestep it names, rounded or not


def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, ``uncond + scale * (cond - uncond)``, in fp32 or wider, then in ``cond``'s dtype."""
    work = torch.promote_types(cond.dtype, torch.float32)
    c, u = cond.to(work), uncond.to(work)
    return (u + scale * (c - u)).to(cond.dtype)


def adg(
    cond: Tensor,
    uncond: Tensor,
    latents: Tensor,
    t: float,
    scale: float,
    *,
    variant: str = "adg",
    time_dim: int = 1,
) -> Tensor:
    """Angle-domain guidance: turns the clean estimate away from the unconditional one, by an angle, not a length.

    Per song and frame, over the channels: the angle between the two clean estimates grows by ``scale - 1 + 0.001``
    times.

    Args:
        cond, uncond: velocities, [B, T, C].
        latents: [B, T, C], where they were evaluated.
        t: their timestep, above 0.
        variant: "adg" turns by at most 3.14 / 6; "adg_w_norm" by at most 3.14 / 3, and restores the conditional
            estimate's norm over time, per channel; "adg_wo_clip" by any angle.
        time_dim: only "adg_w_norm" reads it.
    Returns:
        [B, T, C] in ``cond``'s dtype, rounded once: fp64 before, since the division by a small ``t`` magnifies errors.
    Raises:
        ValueError: unknown variant, or ``t`` is not above 0.
    """
    if variant not in _ADG_LIMIT:
        raise ValueError(f"adg: variant must be one of {', '.join(_ADG_LIMIT)}, got {variant!r}")
    if not t > 0:
        raise ValueError(f"adg: t must be above 0, got {t}")
    wide = widest_dtype(cond.device)
    x = latents.to(wide)
    clean, clean_null = x - t * cond.to(wide), x - t * uncond.to(wide)
    weight = max(scale - 1.0, 0.0) + 1e-3
    cosine = torch.nn.functional.cosine_similarity(clean, clean_null, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    turn = (weight * angle).clamp(max=_ADG_LIMIT[variant])
    sine = angle.sin()
    factor = torch.where(sine > 1e-3, turn.sin() / sine, weight)
    difference = clean - clean_null
    share = (difference * clean_null).sum(-1, keepdim=True) / (clean_null.square().sum(-1, keepdim=True) + 1e-8)
    target = turn.cos() * clean + factor * (difference - share * clean_null)
    if variant == "adg_w_norm":
        wanted, got = (torch.linalg.vector_norm(e, dim=time_dim, keepdim=True) for e in (clean, target))
        target = target * (wanted / got.clamp(min=torch.finfo(wide).tiny))
    return ((x - target) / t).to(cond.dtype)


@dataclass(frozen=True)
class Guidance:
    """One request's guidance: when it acts and what it does.

    Args:
        scale: 1 switches guidance off; 7 is usual.
        variant: one of ``VARIANTS``.
        interval: (start, end) within 0..1, both included. "official" guides while ``start <= t <= end``, so the
            beginning of sampling, t = 1, is at the interval's end; "diffusers" tests ``1 - t`` in its place.
        semantics: "official" or "diffusers".
        momentum, norm_threshold, eta, state_dtype: of APG, see ``acefast.ops.apg``.
        time_dim: dimension of time.
    Raises:
        ValueError: a value is out of range.
    """

    scale: float
    variant: str = "apg"
    interval: tuple[float, float] = (0.0, 1.0)
    semantics: str = "official"
    momentum: float = -0.75
    norm_threshold: float = 2.5
    eta: float = 0.0
    time_dim: int = 1
    state_dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"guidance: variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if self.semantics not in ("official", "diffusers"):
            raise ValueError(f"guidance: semantics must be 'official' or 'diffusers', got {self.semantics!r}")
        if not 1.0 <= self.scale < math.inf:
            raise ValueError(f"guidance: scale must be 1 or more (1 switches it off), got {self.scale}")
        start, end = self.interval
        if not 0.0 <= start <= end <= 1.0:
            raise ValueError(f"guidance: interval must be 0 <= start <= end <= 1, got {start}, {end}")

    def active(self, t: float, step: int = 0) -> bool:
        """Whether the evaluation at timestep ``t`` is guided, that is, needs the unconditional velocity.

        ``step``: number of the step that begins at ``t``; of no matter here.
        """
        start, end = self.interval
        position = t if self.semantics == "official" else 1.0 - t
        return self.scale > 1.0 and start - _INTERVAL_SLACK <= position <= end + _INTERVAL_SLACK

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor,
        latents: Tensor,
        t: float,
        running: Tensor | None = None,
        *,
        step: int = 0,
        corrector: bool = False,
        backend: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The guided velocity of one evaluation for which ``active(t, step)`` holds, and APG's momentum after it.

        ``corrector`` marks the second evaluation of a Heun step: plain CFG stands in for APG, whose momentum then stays
        as it is, and for ADG at t = 0, where it is not defined.
        """
        if self.variant == "cfg" or (corrector and (self.variant == "apg" or t <= 0)):
            return cfg(cond, uncond, self.scale), running
        if self.variant != "apg":
            return adg(cond, uncond, latents, t, self.scale, variant=self.variant, time_dim=self.time_dim), running
        return apg(
            cond,
            uncond,
            running,
            self.scale,
            momentum=self.momentum,
            norm_threshold=self.norm_threshold,
            eta=self.eta,
            time_dim=self.time_dim,
            state_dtype=self.state_dtype,
            backend=backend,
        )


def guided(
    predict: Callable[[Tensor, float, int, bool], Tensor | tuple[Tensor, ...]],
    guidance: Guidance,
    *,
    backend: str | None = None,
) -> Callable[[Tensor, float, int, bool], Tensor]:
    """The ``velocity`` that ``acefast.sampling.sample`` takes. It holds the momentum, so make one per call of it.

    Args:
        predict: ``predict(latents, t, step, unconditional)`` returns the conditional velocity, and with
            ``unconditional`` the pair (conditional, unconditional), or all that ``guidance.combine`` takes. It is asked
            for these only where guidance acts.
    """
    running: Tensor | None = None

    def velocity(latents: Tensor, t: float, step: int, corrector: bool) -> Tensor:
        nonlocal running
        at = step + corrector  # Heun's second evaluation is where the next step begins
        if not guidance.active(t, at):
            return predict(latents, t, step, False)
        cond, uncond, *text = predict(latents, t, step, True)
        options = {"text": text[0]} if text else {}
        guided_velocity, running = guidance.combine(
            cond, uncond, latents, t, running, step=at, corrector=corrector, backend=backend, **options
        )
        return guided_velocity

    return velocity


def blended(
    velocity: Callable[..., Tensor], other: Callable[[Tensor, float], Tensor], strength: float
) -> Callable[..., Tensor]:
    """Diffusers' cover strength: every step a blend of two conditions' velocities, the other one unguided."""

    def blend(x: Tensor, t: float, step: int, corrector: bool) -> Tensor:
        return strength * velocity(x, t, step, corrector) + (1 - strength) * other(x, t)

    return blend
