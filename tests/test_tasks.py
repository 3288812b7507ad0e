"""Where a recording's regions lie in latent frames: each upstream's own arithmetic, at every hundredth of a second."""

from __future__ import annotations

import numpy as np
import pytest

from acefast.request import Request
from acefast.tasks import Recording, read_audio

HOP = 1920


def recording(seconds: float, *regions: tuple[float, float]) -> Recording:
    return Recording(np.zeros((2, round(seconds * 48_000)), np.float32), regions)


RULES = {"official": lambda s: int(s * 48_000 // 1920), "diffusers": lambda s: int(s * 25.0)}


@pytest.mark.parametrize("semantics", RULES)
def test_a_time_falls_into_the_frame_that_upstream_computes(semantics):
    frame, silence, earlier = RULES[semantics], recording(600).waveform, 0
    for start in np.arange(0, 599, 0.04).round(2).tolist():
        mask = Recording(silence, ((start, start + 1.0),)).mask(15_000, HOP, semantics)
        made = mask.nonzero()[:, 0]
        assert (made[0], made[-1] + 1) == (frame(start), frame(start + 1.0))
        earlier += frame(start) < round(start * 25)
    assert earlier > 100  # such as 1.16: times that a float holds from below


@pytest.mark.parametrize("semantics", RULES)
def test_a_region_reaches_the_end_of_every_recording(semantics):
    for frames in range(124, 700):
        whole = recording(frames * 0.04, (1.0, frames * HOP / 48_000)).mask(frames, HOP, semantics)
        assert whole[25:].all() and not whole[:25].any()


def test_regions_keep_within_the_song_and_are_a_frame_at_least():
    mask = recording(6, (0.01, 0.02), (5.99, 6.5)).mask(150, HOP)
    assert mask.nonzero()[:, 0].tolist() == [0, 149]


def test_samples_are_the_nearest_ones():
    source = np.zeros((2, 6 * 48_000), np.float32)
    found, _ = read_audio(Request("a", task="repaint", source=source, start=1.16, end=2.28))
    assert found.sample_regions == [(55_680, 109_440)]
