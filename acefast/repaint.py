"""How a repaint holds on to its source: how strictly, between the steps and at the region's edges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acefast.request import Request
from acefast.tasks import Task


@dataclass(frozen=True)
class RepaintPlan:
    """How strictly a repaint holds on to what lies outside its region."""

    injection_ratio: float  # share of the steps after which the outside is set back to the noised source
    boundary_frames: int  # latent frames of cross-fade outside the region, after sampling
    wave_fade_seconds: float  # of the waveforms' cross-fade; used where ``splice``
    splice: bool  # whether the source's waveform replaces what was generated outside

    def injected_steps(self, steps: int) -> int:
        """Steps 0 .. n - 1 of ``steps`` are followed by ``inject``."""
        return round(self.injection_ratio * steps)


def repaint_plan(mode: str, strength: float = 0.5) -> RepaintPlan:
    """The plan of ``mode`` "conservative", "balanced" or "aggressive"; only "balanced" reads ``strength``.

    Raises ValueError for another mode, or a strength outside of 0..1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"repaint_plan: strength must be 0 to 1, got {strength}")
    if mode not in ("conservative", "balanced", "aggressive"):
        raise ValueError(f"repaint_plan: mode must be conservative, balanced or aggressive, got {mode!r}")
    hold = {"conservative": 1.0, "balanced": 1.0 - strength, "aggressive": 0.0}[mode]
    return RepaintPlan(hold, round(25 * hold), 0.05 * hold, mode != "aggressive")


def plan_of(request: Request, task: Task) -> RepaintPlan | None:
    """The plan of a request; None for tasks that keep nothing, and in diffusers' semantics."""
    if task.made is None or request.semantics == "diffusers":
        return None
    return repaint_plan(request.repaint_mode, 0.5 if request.strength is None else request.strength)


def inject(latents: Tensor, source: Tensor, noise: Tensor, mask: Tensor, t_next: float, *, time_dim: int = 1) -> Tensor:
    """``latents`` with every frame outside the region set to the source at noise level ``t_next``.

    Args:
        source, noise: clean source latents and the song's initial noise, latents' shape.
        mask: [T] or [B, T], true or not 0 inside the region.
    """
    inside = _frames(mask, latents, time_dim) != 0
    return torch.where(inside, latents, (t_next * noise + (1.0 - t_next) * source).to(latents.dtype))


def blend_boundary(latents: Tensor, source: Tensor, mask: Tensor, frames: int, *, time_dim: int = 1) -> Tensor:
    """``latents`` inside the region, ``source`` outside, and a linear ramp over the ``frames`` frames next to it.

    A frame at distance d from the region keeps ``1 - d / (n + 1)`` of its latents, where n is ``frames`` or, if less,
    what there is between the region and the song's end. 0 frames blend nothing. Shapes as in ``inject``.
    """
    if frames < 0:
        raise ValueError(f"blend_boundary: frames must be 0 or more, got {frames}")
    if frames == 0:
        return latents
    inside, T = mask != 0, mask.shape[-1]
    far, index = T + frames, torch.arange(T, device=mask.device).expand_as(mask)
    previous = torch.where(inside, index, -far).cummax(-1).values  # the region's nearest frame, before and after
    following = torch.where(inside, index, 2 * far).flip(-1).cummin(-1).values.flip(-1)
    left = 1.0 - (following - index).to(latents.dtype) / (following.clamp(max=frames) + 1)
    right = 1.0 - (index - previous).to(latents.dtype) / ((T - 1 - previous).clamp(max=frames) + 1)
    weight = torch.maximum(left, right).clamp_(min=0)
    return torch.lerp(source.to(latents.dtype), latents, _frames(weight, latents, time_dim))


def _frames(mask: Tensor, latents: Tensor, time_dim: int) -> Tensor:
    """A [T] or [B, T] mask in a shape that broadcasts over ``latents``."""
    B, T = latents.shape[0], latents.shape[time_dim]
    if mask.shape not in ((T,), (B, T)):
        raise ValueError(f"mask must be [T] or [B, T] = {[T]} or {[B, T]}, got {list(mask.shape)}")
    shape = [1] * latents.ndim
    shape[0], shape[time_dim] = (*mask.shape[:-1], 1)[0], T
    return mask.reshape(shape).to(latents.device)
