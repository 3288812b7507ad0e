"""Level, fades, the splice and the timbre reference, to the sample."""

from __future__ import annotations

import numpy as np
import pytest

from acefast.request import RequestError
from acefast.waveform import fade, is_silent, normalise, reference_segments, splice

RATE = 48_000


def tone(frequency: float = 440.0, seconds: float = 1.0, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    """[2, N]: a sine on the left, the same a quarter period later and at half the level on the right."""
    t = np.arange(round(seconds * rate)) / rate
    left, right = np.sin(2 * np.pi * frequency * t), 0.5 * np.cos(2 * np.pi * frequency * t)
    return (level * np.stack([left, right])).astype(np.float32)


def noise(samples: int, level: float = 0.25) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal((2, samples))).clip(-1, 1).astype(np.float32)


def test_silence_is_what_stays_below_minus_120_decibels():
    silence = np.zeros((2, 1920), np.float32)
    assert is_silent(silence) and is_silent(silence + 9e-7)
    assert not is_silent(silence + 2e-6) and not is_silent(silence - 2e-6)


def test_a_long_reference_gives_its_start_its_third_and_its_end():
    n = 45 * RATE + 1
    ramp = np.broadcast_to(np.arange(n, dtype=np.float64), (2, n))
    out = reference_segments(ramp)
    ten = np.arange(10 * RATE)
    expected = np.concatenate([ten, n // 3 + ten, n - 10 * RATE + ten])
    np.testing.assert_array_equal(out, np.stack([expected, expected]))


@pytest.mark.parametrize("samples", (1920, 7 * RATE + 5, 30 * RATE - 1, 30 * RATE))
def test_a_short_reference_is_repeated_whole_before_it_is_cut(samples):
    audio = np.broadcast_to(np.arange(samples), (2, samples))
    total = -(-30 * RATE // samples) * samples
    ten = np.arange(10 * RATE)
    expected = np.concatenate([ten, total // 3 + ten, total - 10 * RATE + ten]) % samples
    np.testing.assert_array_equal(reference_segments(audio)[1], expected)


@pytest.mark.parametrize("level", (1e-4, 0.3, 1.0, 7.5))
def test_the_peak_is_set_exactly_whatever_it_was(level):
    x = noise(4000, 0.1)
    x[1, 5] = -1
    out = normalise(x * np.float32(level))
    assert abs(float(np.abs(out).max()) - 0.8912509381337456) < 1e-7  # the factor's rounding and the product's
    np.testing.assert_allclose(out, x * np.float32(0.8912509), rtol=3e-7)
    assert float(np.abs(normalise(x, 0.0)).max()) == 1.0
    assert float(np.abs(normalise(x, -6.0)).max()) == pytest.approx(0.5011872, rel=1e-6)


def test_at_zero_dbfs_rounding_never_passes_full_scale():
    for level in np.random.default_rng(0).uniform(0.01, 3, 500).astype(np.float32):
        assert 1 - 1e-6 < np.abs(normalise(np.array([[level, -level / 2]]), 0.0)).max() <= 1


def test_silence_stays_silent_and_none_leaves_every_sample():
    silence = np.zeros((2, 100), np.float32)
    np.testing.assert_array_equal(normalise(silence), silence)
    loud = noise(100) * 9
    np.testing.assert_array_equal(normalise(loud, None), loud)


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("peak", (-1.0, None))
def test_a_sample_that_is_no_number_is_an_error(bad, peak):
    x = noise(100)
    x[1, 50] = bad
    with pytest.raises(RequestError, match=r"1 of 200 samples are NaN or infinite; the model overflowed"):
        normalise(x, peak)


@pytest.mark.parametrize("peak", (0.5, -1000.0, float("nan")))
def test_a_level_out_of_range_is_refused(peak):
    with pytest.raises(RequestError, match=r"normalize: must be a peak of -200 to 0 dBFS"):
        normalise(noise(100), peak)


def test_fades_are_straight_lines_from_and_to_zero():
    ones = np.ones((2, 100), np.float32)
    out = fade(ones, 0.05, 0.1, sample_rate=200)  # 10 and 20 samples
    np.testing.assert_allclose(out[0, :10], np.arange(10) / 9, rtol=1e-6)
    np.testing.assert_allclose(out[1, 80:], np.arange(19, -1, -1) / 19, rtol=1e-6)
    assert (out[:, 9:81] == 1).all() and (ones == 1).all()
    np.testing.assert_array_equal(fade(ones), ones)
    own = ones.copy()
    assert fade(own, 0.05, 0.1, sample_rate=200, in_place=True) is own
    np.testing.assert_array_equal(own, out)
    assert (ones == 1).all()


def test_a_fade_longer_than_the_song_is_cut_to_it():
    out = fade(np.ones((2, 11), np.float32), 1e6, 1e6)
    np.testing.assert_allclose(out[0], np.arange(11) / 10 * (1 - np.arange(11) / 10), atol=1e-7)
    with pytest.raises(RequestError, match=r"fade_out: must be 0 or more seconds, got -1"):
        fade(out, 0, -1)


def test_splice_keeps_the_source_bit_for_bit_outside_and_the_new_inside():
    generated, source = noise(1000), tone(seconds=1000 / RATE)
    out = splice(generated, source, 300, 600, 0.05, sample_rate=1000)  # cross-fades of 50 samples
    np.testing.assert_array_equal(out[:, :250], source[:, :250])
    np.testing.assert_array_equal(out[:, 300:600], generated[:, 300:600])
    np.testing.assert_array_equal(out[:, 650:], source[:, 650:])


def test_splice_fades_in_equal_steps_on_the_kept_side():
    out = splice(np.ones((2, 20), np.float32), np.zeros((2, 20), np.float32), 8, 12, 0.004, sample_rate=1000)
    expected = [0] * 4 + [0.2, 0.4, 0.6, 0.8] + [1] * 4 + [0.8, 0.6, 0.4, 0.2] + [0] * 4
    np.testing.assert_allclose(out[0], expected, atol=1e-7)


def test_a_fade_that_finds_no_room_before_the_songs_edge_is_shorter():
    out = splice(np.ones((2, 20), np.float32), np.zeros((2, 20), np.float32), 2, 18, 0.004, sample_rate=1000)
    np.testing.assert_allclose(out[0], [1 / 3, 2 / 3] + [1] * 16 + [2 / 3, 1 / 3], atol=1e-7)


@pytest.mark.parametrize("seconds", (0.0, 0.01))
def test_splice_at_the_songs_own_edges_has_no_fade_there(seconds):
    generated, source = noise(100), tone(seconds=100 / RATE)
    np.testing.assert_array_equal(splice(generated, source, -5, 200, seconds), generated)
    assert (splice(generated, source, 0, 50, seconds)[:, :50] == generated[:, :50]).all()


def test_splice_takes_a_source_of_another_length():
    generated = noise(100)
    short, long = tone(seconds=80 / RATE), tone(seconds=120 / RATE)
    out = splice(generated, short, 20, 40, 0)
    np.testing.assert_array_equal(out[:, 40:80], short[:, 40:])
    np.testing.assert_array_equal(out[:, 80:], generated[:, 80:])
    assert splice(generated, long, 20, 40, 0).shape == (2, 100)
    with pytest.raises(RequestError, match=r"repaint: the region \[120, 200\) is empty or outside 100 samples"):
        splice(generated, long, 120, 200, 0)


@pytest.mark.parametrize("cuts", ([], [1], [300, 301, 520], range(0, 1000, 7)))
def test_pieces_of_a_song_are_faded_and_spliced_as_the_whole(cuts):
    generated, source = noise(1000), tone(seconds=940 / RATE)
    for seconds in ((0.2, 0.3), (0.7, 0.9), (0, 5), (0.001, 0)):
        whole = fade(generated, *seconds, sample_rate=1000)
        pieces = np.split(generated, cuts, axis=1)
        at = np.cumsum([0, *[piece.shape[1] for piece in pieces]])
        faded = [fade(p, *seconds, 1000, at=int(a), total=1000) for p, a in zip(pieces, at)]
        np.testing.assert_array_equal(np.concatenate(faded, 1), whole)
    for region in ((300, 600), (-5, 20), (900, 2000)):
        whole = splice(generated, source, *region, 0.05, 1000)
        spliced = [
            splice(p, source[:, a : a + p.shape[1]], *region, 0.05, 1000, at=int(a), total=1000)
            for p, a in zip(pieces, at)
        ]
        np.testing.assert_array_equal(np.concatenate(spliced, 1), whole)


def test_a_song_without_an_end_fades_in_only():
    ones = np.ones((2, 100), np.float32)
    out = [fade(ones, 0.15, 0, 1000, at=at, total=np.inf) for at in (0, 100, 200)]
    np.testing.assert_array_equal(np.concatenate(out, 1), fade(np.ones((2, 300), np.float32), 0.15, 0, 1000))
