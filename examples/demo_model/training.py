"""What both trainings share: the clock that ends them, averaged weights, checkpoints that survive a crash."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import save_atomically
from torch import nn


class Trainer:
    """Adam with a warm-up and a cosine that ends when the minutes do, and an average of the weights.

    The clock counts training time only, over all runs of a folder: a resumed run goes on where the last checkpoint was.

    Args:
        nets: what is trained; ``average`` is the same with averaged weights, which is what one ships.
        file: the checkpoint; loaded where it exists.
        minutes: the training's whole budget.
    """

    def __init__(self, nets: nn.Module, file: Path, minutes: float, rate: float, *, betas=(0.9, 0.99), warmup=100):
        self.nets, self.file, self.minutes, self.rate, self.warmup = nets, file, minutes, rate, warmup
        self.average = copy.deepcopy(nets).requires_grad_(False).eval()
        self.step, self.spent = 0, 0.0
        flat = [p for p in nets.parameters() if p.dim() < 2 or p.shape[0] == p.numel() or p.shape[1] == p.numel()]
        kept = {id(p) for p in flat}
        full = [p for p in nets.parameters() if id(p) not in kept]
        self.optimizer = torch.optim.AdamW(
            [{"params": full, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.0}], lr=rate, betas=betas
        )
        if file.is_file():
            state = torch.load(file, map_location="cpu", weights_only=True)
            nets.load_state_dict(state["nets"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent = state["step"], state["spent"]
        self._since, self._saved = time.monotonic(), time.monotonic()

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers of this step: a resumed run draws what an unbroken one would have drawn."""
        return np.random.default_rng([7, self.step])

    @property
    def progress(self) -> float:
        """Share of the budget that is used up."""
        return self.spent / 60 / self.minutes

    def update(self, loss: torch.Tensor) -> None:
        """One step down the loss's gradient; a loss that is not finite is skipped."""
        self.step += 1
        if math.isfinite(loss.item()):
            rate = self.rate * min(1, self.step / self.warmup) * (0.02 + 0.98 * math.cos(self.progress * math.pi / 2) ** 2)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.nets.parameters(), 1.0)
            self.optimizer.step()
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.nets.parameters()), 1 - decay)
        now = time.monotonic()
        self.spent += now - self._since
        self._since = now
        if now - self._saved > 60:
            self.save()

    def pause(self) -> None:
        """Leave what happened since the last update, such as a test, off the clock."""
        self._since = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint."""
        state = {"nets": self.nets.state_dict(), "average": self.average.state_dict(), "step": self.step}
        state |= {"optimizer": self.optimizer.state_dict(), "spent": self.spent}
        save_atomically(lambda path: torch.save(state, path), self.file)
        self._saved = time.monotonic()
