"""The running limiter: never above its ceiling, the same bits however audio is cut, untouched where nothing is loud."""

from __future__ import annotations

import numpy as np
import pytest

from acefast.limiter import AHEAD, BLOCK, RELEASE, Limiter
from tests.test_stream import SHORT, joined

pytestmark = pytest.mark.usefixtures("offline")
RATE = 48_000


def limited(audio: np.ndarray, ceiling: float, cuts=()) -> np.ndarray:
    limiter = Limiter(ceiling)
    pieces = np.split(audio, list(cuts), axis=1)
    return np.concatenate([limiter(piece, final=i == len(pieces) - 1) for i, piece in enumerate(pieces)], 1)


def music(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """[2, N] with bursts of up to 4 times full scale, also in the first and the last sample."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    audio = 0.3 * rng.standard_normal((2, n))
    for at in rng.integers(0, n, 12):
        audio[rng.integers(2), at : at + rng.integers(1, 3000)] *= 8
    audio[0, 0], audio[1, -1] = 4, -4
    return audio.clip(-4, 4).astype(np.float32)


@pytest.mark.parametrize("ceiling", (1.0, 10 ** (-1 / 20), 10 ** (-60 / 20)))
@pytest.mark.parametrize("samples", (1, 47, 48, 300, 48_001))  # within a block, one, all held back at first, ragged
def test_no_sample_passes_the_ceiling_and_none_is_lost(ceiling, samples):
    for seed in range(3):
        audio = music(seed=seed)[:, :samples]
        out = limited(audio, ceiling)
        assert out.shape == audio.shape and out.dtype == np.float32
        assert np.abs(out).max() <= np.float32(ceiling)
        assert (np.sign(out) == np.sign(audio)).all() and (np.abs(out) <= np.abs(audio)).all()


def test_what_is_not_loud_keeps_its_bits_and_its_place():
    audio = music()
    audio[:, 20_000:40_000] *= 0.05
    out = limited(audio, 5.0)
    assert np.array_equal(out, audio)
    audio = 0.1 * music()
    audio[0, 30_000] = 2
    out = limited(audio, 1.0)
    first = 30_000 - 30_000 % BLOCK - (AHEAD - 1) * BLOCK  # the gain begins to fall 4 to 5 ms before
    assert np.array_equal(out[:, : first - BLOCK], audio[:, : first - BLOCK])
    assert (out[:, first + 1 : 30_000] != audio[:, first + 1 : 30_000]).mean() > 0.9
    again = 30_000 + round(RATE * 20 * np.log10(2) / RELEASE) + 10 * BLOCK
    assert np.array_equal(out[:, again:], audio[:, again:]) and again < 46_000


def test_cuts_do_not_change_a_bit():
    audio = music()
    whole = limited(audio, 0.8)
    rng = np.random.default_rng(1)
    for n in (1, 2, 9, 200):
        assert np.array_equal(limited(audio, 0.8, np.sort(rng.integers(0, audio.shape[1] + 1, n))), whole)
    assert np.array_equal(limited(audio[:, :700], 0.8, range(1, 700)), limited(audio[:, :700], 0.8))


def test_gain_falls_within_five_milliseconds_and_rises_by_twenty_decibels_a_second():
    audio = np.full((2, RATE), 0.5, np.float32)
    audio[1, 24_000:24_010] = 2.0
    gain = 20 * np.log10(limited(audio, 0.5)[0] / 0.5)
    down = np.flatnonzero(gain < -0.01)
    assert 24_000 - (AHEAD + 1) * BLOCK <= down[0] < 24_000
    assert gain[24_000] == pytest.approx(-12.04, abs=0.05)
    assert np.abs(np.diff(limited(audio, 0.5)[0] / 0.5)).max() < 0.75 / (AHEAD * BLOCK) * 1.01  # a straight line
    later = np.arange(25_000, 45_000, 1000)
    np.testing.assert_allclose(np.diff(gain[later]), RELEASE * 1000 / RATE, rtol=0.02)


def test_little_is_held_back():
    limiter = Limiter(1.0)
    given = got = 0
    for n in (1, 100, 1000, 333, 4800):
        given, got = given + n, got + limiter(np.full((2, n), 0.1, np.float32)).shape[1]
        assert given - got <= (AHEAD + 1) * BLOCK
    assert got and limiter(np.zeros((2, 0), np.float32), final=True).shape[1] == given - got


# -- in a stream -------------------------------------------------------------------------------------------------------


def test_a_limiter_stands_for_the_normalised_peak(tiny_pipe):
    raw = joined(tiny_pipe.stream("boom bap", **SHORT, normalize=None))
    for given, ceiling in (({}, 10 ** (-1 / 20)), ({"normalize": -6.0}, 10 ** (-6 / 20)), ({"normalize": 0.0}, 1.0)):
        out = joined(tiny_pipe.stream("boom bap", **SHORT, **given))
        assert out.shape == raw.shape and np.abs(raw).max() > 1  # random weights shout
        assert np.abs(out).max() <= np.float32(ceiling) and np.abs(out).max() > 0.9 * ceiling


def test_gain_is_fixed_and_comes_before_the_limiter(tiny_pipe):
    raw = joined(tiny_pipe.stream("boom bap", **SHORT, normalize=None))
    half = joined(tiny_pipe.stream("boom bap", **SHORT, normalize=None, gain=-6.0))
    np.testing.assert_allclose(half, raw * 10 ** (-6 / 20), rtol=1e-6)
    quiet = joined(tiny_pipe.stream("boom bap", **SHORT, gain=-40.0))
    assert np.array_equal(quiet, raw * np.float32(10 ** (-40 / 20))) and np.abs(quiet).max() < 0.8


def test_a_repaint_keeps_its_source_and_limits_what_is_made(tiny_pipe, tune):
    options = {"task": "repaint", "source": tune * 2.1, "start": 1.5, "end": 3.0, "steps": 1, "seed": 1}
    out = joined(tiny_pipe.stream("boom bap", **options))
    kept = np.ones(out.shape[1], bool)
    kept[72_000 - 1200 : 144_000 + 1200] = False
    assert np.array_equal(out[:, kept], (tune * 2.1).clip(-1, 1)[:, kept]) and np.abs(out[:, kept]).max() > 0.9
    assert np.abs(out[:, 72_000:144_000]).max() <= np.float32(10 ** (-1 / 20))
