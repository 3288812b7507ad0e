"""Flow-edit: from a source straight to an edited song, along the difference of two velocities at one noise level.

Until a switch the latents z are clean: they start as the source x and follow ``v_target(z + n - x) - v_source(n)``, n
the source noised to t. At the switch they take on the noise, and follow the target's velocity to the end.
Source: Kulikov et al., FlowEdit (arXiv 2412.08629); the edit of ACE-Step v1's pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from acefast.sampling import Velocity


class FlowEdit:
    """The edit's velocity for ``acefast.sampling.sample``, and what it starts from and does between steps.

    Args:
        clean: the source's latents, [B, T, D].
        timesteps: of the loop, which takes Euler steps from number ``first`` on; ``switch``: the step that the second
            part begins with, ``first`` or later.
        difference: (target, source), the guided velocities of the first part; ``target``: that of the second.
        draw: a function that gives new noise [B, T, D] at each call.
        average: how many noises a step of the first part averages over.
    """

    def __init__(
        self,
        clean: Tensor,
        timesteps: Sequence[float],
        first: int,
        switch: int,
        *,
        difference: tuple[Velocity, Velocity],
        target: Velocity,
        draw: Callable[[], Tensor],
        average: int = 1,
    ) -> None:
        self.clean, self.timesteps, self.first, self.switch = clean, timesteps, first, switch
        self.difference, self.target, self.draw, self.average = difference, target, draw, average

    def start(self) -> Tensor:
        """The latents at the first step."""
        return self.clean if self.first < self.switch else self._noised(self.clean, self.timesteps[self.first])

    def velocity(self, latents: Tensor, t: float, step: int, corrector: bool) -> Tensor:
        """Of one step."""
        if step >= self.switch:
            return self.target(latents, t, step, corrector)
        of_target, of_source = self.difference
        total = 0
        for _ in range(self.average):
            noised = (1 - t) * self.clean + t * self.draw()
            there = of_target(latents + noised - self.clean, t, step, corrector)
            total = total + (there - of_source(noised, t, step, corrector)) / self.average
        return total

    def after_step(self, latents: Tensor, step: int, t_next: float) -> Tensor:
        """The latents as the next step needs them: noised to its t before the switch."""
        return self._noised(latents, t_next) if step + 1 == self.switch else latents

    def _noised(self, latents: Tensor, t: float) -> Tensor:
        return latents + t * (self.draw() - self.clean)
