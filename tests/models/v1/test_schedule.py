"""Noise levels of ACE-Step v1, and the window of guided steps, against upstream's published numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from acefast.models.v1.guidance import window
from acefast.models.v1.schedule import picked, schedule, shifted, start_of, stretch

GOLDEN = {
    27: {0: 1.0, 1: 0.98688251, 2: 0.97305822, 3: 0.95846844, 24: 0.20619786, 25: 0.11455010, 26: 0.00892857},
    60: {1: 0.99430305, 2: 0.98847473, 15: 0.89832681, 30: 0.74474937, 58: 0.05739385, 59: 0.00892857},
    5: {0: 1.0, 1: 0.90035909, 2: 0.75112110, 3: 0.50298506, 4: 0.00892857},
    1: {0: 1.0},
}


@pytest.mark.parametrize("steps", GOLDEN)
def test_levels_are_upstreams(steps):
    times = schedule(steps)
    assert len(times) == steps and all(a > b for a, b in itertools.pairwise(times))
    assert {i: times[i] for i in GOLDEN[steps]} == pytest.approx(GOLDEN[steps], abs=3e-8)
    assert times == np.float32(times).tolist(), "fp32, as upstream has them"


def test_the_last_level_is_shifted_twice():
    assert shifted(shifted(0.001)) == pytest.approx(1 / 112) and schedule(60)[-1] == pytest.approx(1 / 112, abs=1e-9)


def test_the_middle_levels_agree_with_a_naive_formula():
    times = schedule(60, 0.5)
    top, low = (3 * s / (1 + 2 * s) for s in (0.5, 0.001))
    spaced = [top + (low - top) * j / 59 for j in range(60)]
    assert times == pytest.approx([3 * s / (1 + 2 * s) for s in spaced], abs=1e-7)


@pytest.mark.parametrize(
    "strength, steps, level, first",
    [(0.3, 42, 0.8750, 0.9545), (0.5, 30, 0.7500, 0.9000), (0.7, 18, 0.5625, 0.7941), (0.9, 5, 0.2500, 0.5000),
     (0.0, 60, 1.0, 1.0)],
)  # fmt: skip
def test_audio2audio_starts_below_its_first_level_as_upstream(strength, steps, level, first):
    times, start = start_of(60, strength)  # 0.9 of 60 leaves 5 steps: 1 - 0.9 is below 0.1
    assert (len(times), start, times[0]) == (steps, pytest.approx(level, abs=1e-6), pytest.approx(first, abs=5e-5))


def test_picked_steps_are_shifted_once_more_and_pass_through_the_models_dtype():
    own = schedule(8)
    assert picked([1, 3, 6, 8]) == pytest.approx([shifted(own[i]) for i in (0, 2, 5, 7)], abs=2e-7)  # fp32
    rounded = [(torch.tensor(own[i]) * 1000).bfloat16() / 1000 for i in (0, 2, 5, 7)]
    assert picked([1, 3, 6, 8], torch.bfloat16) == pytest.approx([shifted(r.item()) for r in rounded], abs=2e-7)
    assert picked([1, 3, 6, 8], torch.bfloat16) != picked([1, 3, 6, 8])


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        schedule(0)


def test_omega_stretches_by_a_tenth_at_most():
    assert stretch(10) == pytest.approx(1.046211715726, abs=1e-12) and stretch(0) == 1.0
    assert stretch(100) == pytest.approx(1.1, abs=1e-5) and stretch(-100) == pytest.approx(0.9, abs=1e-5)


def test_the_window_is_the_middle_of_the_steps():
    assert window(60, 0.5) == range(15, 45) and window(27, 0.5) == range(6, 20)
    assert window(60, 1.0) == range(60) and len(window(60, 0.0)) == 0 and window(1, 0.5) == range(0)
