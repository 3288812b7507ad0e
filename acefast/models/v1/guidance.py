"""Guidance of ACE-Step v1: a window of steps, a scale that may fall, and two more ways to combine the predictions.

Source: guidance of ACE-Step v1's pipeline; Fan et al., CFG-Zero* (arXiv 2503.18886).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from acefast.guidance import Guidance, apg, cfg
from acefast.models.v1.config import ROWS
from acefast.ops.apg import widest_dtype

ZERO_STEPS = 2  # first steps that CFG-Zero* makes none of


def cfg_star(cond: Tensor, uncond: Tensor, scale: float, step: int) -> Tensor:
    """CFG-Zero*: ``cfg`` with ``uncond`` times its projection of ``cond``, over all of a song; zeros in steps 0 and 1.

    The default window begins later, so the zeros come with a ``guidance_interval`` near 1 only. Sums are fp64.
    """
    if step < ZERO_STEPS:
        return torch.zeros_like(cond)
    c, u = (x.to(widest_dtype(x.device)).flatten(1) for x in (cond, uncond))
    share = (c * u).sum(1) / (u.square().sum(1) + 1e-8)
    return cfg(cond, uncond * share.to(torch.float32).view(-1, *[1] * (cond.ndim - 1)), scale)


@dataclass(frozen=True)
class WindowGuidance(Guidance):
    """Guidance that acts in a window of steps.

    Args:
        scale: 1 switches guidance off; 15 is usual.
        variant: "apg", "cfg" or "cfg_star".
        window: steps it acts in. Heun's second evaluation counts as the next step's.
        decay: share of the way from ``scale`` to ``least`` that the scale falls over the window.
        text, lyric: where both are above 1, scales of the prompt and of prompt and lyrics together; ``variant``,
            ``scale`` and ``decay`` then do nothing, but that ``scale`` 1 switches guidance off.
        momentum, norm_threshold, eta, state_dtype: of APG, whose norms are over the rows and frames of a channel.
    """

    window: range = range(0)
    decay: float = 0.0
    least: float = 3.0
    text: float = 0.0
    lyric: float = 0.0

    def __post_init__(self) -> None:
        if self.variant not in ("apg", "cfg", "cfg_star"):
            raise ValueError(f"guidance: variant must be apg, cfg or cfg_star, got {self.variant!r}")
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"guidance: scale must be 0 or more (1 switches it off), got {self.scale}")

    @property
    def double(self) -> bool:
        """Whether a third velocity, conditioned on the prompt alone, is part of it."""
        return self.text > 1 and self.lyric > 1

    def active(self, t: float, step: int = 0) -> bool:
        """Whether the evaluation where ``step`` begins is guided."""
        return self.scale != 1 and step in self.window

    def scale_at(self, step: int) -> float:
        """The scale of a step of the window; in a window of one step, where upstream divides by 0, it is ``scale``."""
        share = (step - self.window.start) / max(len(self.window) - 1, 1)
        return self.scale - (self.scale - self.least) * share * self.decay

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
        text: Tensor | None = None,
        backend: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The guided velocity [B, T, D], and APG's momentum after it; Heun's second evaluation is one like any other.

        ``text``: the velocity of the prompt alone, where guidance is ``double``.
        """
        if self.double:
            return (1 - self.text) * uncond + (self.text - self.lyric) * text + self.lyric * cond, running
        scale = self.scale_at(step)
        if self.variant == "cfg":
            return cfg(cond, uncond, scale), running
        if self.variant == "cfg_star":
            return cfg_star(cond, uncond, scale, step), running
        by_channel = [x.reshape(len(x), -1, x.shape[-1] // ROWS) for x in (cond, uncond)]  # [B, T * 16, 8]
        velocity, running = apg(
            *by_channel,
            running,
            scale,
            momentum=self.momentum,
            norm_threshold=self.norm_threshold,
            eta=self.eta,
            state_dtype=self.state_dtype,
            backend=backend,
        )
        return velocity.view(cond.shape), running


def window(steps: int, interval: float) -> range:
    """The steps in the middle of ``steps`` that an interval 0 to 1 covers: with 0.5, 15 to 44 of 60."""
    return range(int(steps * ((1 - interval) / 2)), int(steps * (interval / 2 + 0.5)))
