"""What both trainings share: the clock that ends them, averaged weights, checkpoints that survive a crash."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data import save_atomically
from torch import Tensor, nn


class Trainer:
    """A warm-up, a cosine that ends when the minutes do, and an average of the weights.

    Muon for the matrices between hidden states, Adam for the rest (embeddings, convolutions, vectors).

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
        hidden, full, flat = [], [], []
        for name, p in nets.named_parameters():
            if p.dim() == 2 and min(p.shape) >= 32 and "embed" not in name:
                hidden.append(p)
            else:
                (flat if p.dim() < 2 or p.numel() in p.shape[:2] else full).append(p)
        groups = [{"params": full, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.0}]
        self.optimizers = [torch.optim.AdamW(groups, lr=rate, betas=betas)]
        if hidden:
            muon = torch.optim.Muon(hidden, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
            self.optimizers.append(muon)
        if file.is_file():
            state = torch.load(file, map_location="cpu", weights_only=True)
            nets.load_state_dict(state["nets"])
            self.average.load_state_dict(state["average"])
            for optimizer, kept in zip(self.optimizers, state["optimizers"]):
                optimizer.load_state_dict(kept)
            self.step, self.spent = state["step"], state["spent"]
        self._since, self._saved = time.monotonic(), time.monotonic()

    @property
    def progress(self) -> float:
        """Share of the budget that is used up."""
        return self.spent / 60 / self.minutes

    def update(self, loss: Tensor) -> None:
        """One step down the loss's gradient; a loss that is not finite is skipped."""
        self.step += 1
        if math.isfinite(loss.item()):
            fall = 0.02 + 0.98 * math.cos(self.progress * math.pi / 2) ** 2
            self.nets.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.nets.parameters(), 1.0)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = self.rate * min(1, self.step / self.warmup) * fall
                optimizer.step()
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.average.parameters()), list(self.nets.parameters()), 1 - decay)
        now = time.monotonic()
        self.spent += now - self._since
        self._since = now
        if now - self._saved > 60:
            self.save()

    def run(
        self, loss: Callable[[np.random.Generator], Tensor], test: Callable[[nn.Module], dict[str, float]], *,
        every: float, steps: int | None = None,
    ) -> nn.Module:  # fmt: skip
        """Train to the end of the budget, or to ``steps``, and give back the averaged weights.

        Args:
            loss: of one batch, drawn with the generator it is given.
            test: measures the averaged weights, off the clock; its figures go to the log beside the checkpoint.
            every: seconds between tests.
        """
        began, first, tested = self.spent, self.step, self.spent
        print(f"{self.file}: {sum(p.numel() for p in self.nets.parameters()) / 1e6:.2f} M, step {first}", flush=True)
        self._since = time.monotonic()
        while self.progress < 1 and (steps is None or self.step < steps):
            value = loss(np.random.default_rng([7, self.step]))  # of the step: a resumed run draws other clips
            self.update(value)
            if self.spent - tested > every or self.progress >= 1:
                each = (self.spent - began) / (self.step - first)
                line = {"step": self.step, "minutes": round(self.spent / 60, 2), "s/step": round(each, 3)}
                line |= {"loss": round(value.item(), 3), **test(self.average)}
                with self.file.with_suffix(".log").open("a") as log:
                    print(json.dumps(line), file=log)
                print(line, flush=True)
                tested, self._since = self.spent, time.monotonic()
        self.save()
        return self.average

    def save(self) -> None:
        """Write the checkpoint."""
        state = {"nets": self.nets.state_dict(), "average": self.average.state_dict(), "step": self.step}
        state |= {"optimizers": [o.state_dict() for o in self.optimizers], "spent": self.spent}
        save_atomically(lambda path: torch.save(state, path), self.file)
        self._saved = time.monotonic()
