"""Noise levels of ACE-Step v1: a shift of 3, which its schedulers apply to both ends and once more to what is between.

Source: the flow matching schedulers of ACE-Step v1, of which all three have this schedule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

SHIFT = 3.0
TRAINED = 1000  # levels of the training schedule, the least of which is 1 / 1000


def schedule(steps: int, largest: float = 1.0) -> list[float]:
    """Timesteps t_0 > ... > t_(steps - 1) in (0, 1], exact in fp32; the 0 at the end is implied.

    The ends, 1 / 1000 and ``largest``, are shifted in fp32, ``steps`` numbers between them once more, in fp64. So the
    last t is 1/112, and with ``largest`` s below 1 the first is S(S(s)), above the noise level S(s); S is ``shifted``.
    """
    if steps < 1:
        raise ValueError(f"schedule: steps must be 1 or more, got {steps}")
    ends = [float(shifted(np.float32(end * TRAINED) / np.float32(TRAINED))) for end in (largest, 1 / TRAINED)]
    spaced = np.linspace(*(end * TRAINED for end in ends), steps) / TRAINED
    return np.float32(shifted(spaced)).tolist()


def picked(steps: Sequence[int], dtype: torch.dtype = torch.float32) -> list[float]:
    """Timesteps of some steps, counted from 1, of the schedule of as many as the last; shifted a third time.

    Args:
        dtype: that upstream keeps them in before the last shift: the model's.
    """
    chosen = [schedule(max(steps))[step - 1] for step in steps]
    levels = (torch.tensor(chosen) * TRAINED).to(dtype) / TRAINED
    return shifted(levels.float().numpy()).tolist()


def shifted(level: np.ndarray | np.floating | float) -> np.ndarray:
    """S(s) = 3 s / (1 + 2 s), in the number's own precision."""
    return SHIFT * level / (1 + (SHIFT - 1) * level)


def start_of(steps: int, strength: float) -> tuple[list[float], float]:
    """Timesteps of audio2audio, and the noise level that upstream starts them from, which is below the first of them.

    ``strength`` 0.5 of 60 steps takes 30, from t = 0.9, on a source noised to 0.75.
    """
    largest = 1 - strength
    level = float(shifted(np.float32(largest * TRAINED) / np.float32(TRAINED)))
    return schedule(int(largest * steps), largest), level


def stretch(omega: float) -> float:
    """The factor of a step's change about its mean, 0.9 to 1.1; ``omega`` 0 is 1, 10 is 1.0462."""
    return 0.9 + 0.2 / (1 + math.exp(-0.1 * omega))
