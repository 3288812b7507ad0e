"""Tempo, beat and onsets, read from loops whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from acefast import metrics
from tests.signals import EIGHTHS, PATTERNS, RATE, SIXTEENTHS, loop, noise, sine, stereo


@pytest.mark.parametrize("bpm", (70, 97, 111, 128, 160))
def test_tempo_of_a_click_track_is_exact(bpm):
    clicks = loop(dict(hat=(0, 4, 8, 12)), bpm)
    found = metrics.tempo(clicks, RATE)
    assert found.bpm == pytest.approx(found.octave_of(bpm) * bpm, rel=1.5e-4)  # bare clicks tell no octave
    assert found.confidence > 0.45


@pytest.mark.parametrize("bpm", (72.5, 97, 118, 158))
@pytest.mark.parametrize("name", PATTERNS)
def test_tempo_of_drums_is_within_a_third_of_a_percent_or_an_octave(name, bpm):
    found = metrics.tempo(loop(PATTERNS[name], bpm, swing=0.5, human=0.004), RATE)
    octave = found.octave_of(bpm)
    assert octave is not None and found.bpm == pytest.approx(octave * bpm, rel=3e-3) and found.confidence > 0.2


@pytest.mark.parametrize("bpm", (80, 93, 104))
def test_tempo_of_swung_boom_bap_is_its_own_octave(bpm):
    for swing in (0.54, 0.6, 0.66):
        found = metrics.tempo(loop(PATTERNS["boom bap"], bpm, swing=swing), RATE)
        assert found.octave_of(bpm) == 1 and found.bpm == pytest.approx(bpm, rel=1e-3)


def test_tempo_holds_under_noise_at_other_rates_and_other_levels():
    x = loop(PATTERNS["boom bap"], 93)
    at_24k = (x[:, ::2] + x[:, 1::2]) / 2
    for audio, rate in ((x + noise(12, 0.05), RATE), (0.01 * x, RATE), (x[:1], RATE), (at_24k, 24_000)):
        assert metrics.tempo(audio, rate).bpm == pytest.approx(93, rel=2e-3)


def test_tempo_is_heard_in_what_begins_not_in_what_swells():
    swell = 10 ** (sine(1 / 1.7, 12) - 1)  # 40 dB up and down in 1.7 s
    x = loop(PATTERNS["boom bap"], 97) + noise(12, 0.1) * swell.astype(np.float32)
    assert metrics.tempo(x, RATE).octave_of(97, 0.005) == 1


def test_tempo_reports_the_octave_it_did_not_choose():
    found = metrics.tempo(loop(PATTERNS["trap"], 144, 20), RATE)
    octave = found.octave_of(144)
    assert octave in (0.5, 1) and found.half is not None and found.double is not None
    other = 72 if octave == 1 else 144
    assert any(abs(bpm / other - 1) < 0.01 for bpm, _ in found.others)
    assert metrics.tempo(loop(PATTERNS["boom bap"], 75, 6), RATE).half is None  # 8 beats at half tempo do not fit


def test_octave_of_tells_octaves_from_other_ratios():
    found = metrics.Tempo(140.0, 0.5, None, None, ())
    assert [found.octave_of(b) for b in (140, 141, 70, 280, 105, 93.3)] == [1, 1, 2, 0.5, None, None]
    assert found.octave_of(150) is None and found.octave_of(150, tolerance=0.1) == 1


def test_tempo_keeps_to_the_range_given():
    x = loop(PATTERNS["boom bap"], 90)
    assert metrics.tempo(x, RATE, 120, 240).bpm == pytest.approx(180, rel=2e-3)
    assert metrics.tempo(x, RATE, 80, 100).bpm == pytest.approx(90, rel=2e-3)


def test_drums_have_a_beat_and_noise_has_none():
    drums = [metrics.beat_strength(loop(p, 112, human=0.004), RATE) for p in PATTERNS.values()]
    hiss = [metrics.beat_strength(noise(12, seed=s), RATE) for s in range(3)]
    assert min(drums) > 0.7 and max(hiss) < 0.1
    assert metrics.beat_strength(stereo(sine(220, 6, 0.5)), RATE) == 0
    assert metrics.tempo(noise(12), RATE).confidence < 0.05


@pytest.mark.parametrize("per_bar, steps", [(8, EIGHTHS), (16, SIXTEENTHS), (32, tuple(np.arange(0, 16, 0.5)))])
def test_onset_rate_counts_hats_and_not_kicks(per_bar, steps):
    x = loop(dict(kick=(0, 6, 10), hat=steps), 120, 10)  # five bars of 2 s
    assert metrics.onset_rate(x, RATE) == pytest.approx(per_bar / 2, rel=0.02)
    assert metrics.onset_rate(x + noise(10, 3e-4), RATE) == pytest.approx(per_bar / 2, rel=0.02)


def test_onset_rate_hears_only_its_band():
    assert metrics.onset_rate(noise(10), RATE) <= 0.2
    kicks = loop(dict(kick=(0, 4, 8, 12)), 120, 10) + noise(10, 1e-4)
    assert metrics.onset_rate(kicks, RATE) <= 0.2
    assert metrics.onset_rate(kicks, RATE, (20, 200)) == pytest.approx(2, rel=0.05)


# Timbre
