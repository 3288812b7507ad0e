"""The mel spectrogram and the envelope show what the samples hold."""

from __future__ import annotations

import numpy as np
import pytest

from acefast.picture import FLOOR_DB, HOP, MELS, envelope, hz_to_mel, mel_filters, mel_spectrogram, mel_to_hz

RATE = 48_000


def test_mel_scale_has_slaneys_landmarks_and_an_inverse():
    np.testing.assert_allclose(hz_to_mel([0, 200, 1000, 6400]), [0, 3, 15, 42])
    hz = np.linspace(0, 24_000, 1000)
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, atol=1e-8)


@pytest.mark.parametrize("rate", (44_100, 48_000))
def test_no_mel_filter_is_empty_and_neighbours_sum_to_one(rate):
    filters = mel_filters(rate).numpy()
    assert filters.shape == (1025, MELS) and (filters.sum(0) > 0).all()
    edges = mel_to_hz(np.linspace(0, hz_to_mel(rate / 2), MELS + 2))
    bins = np.linspace(0, rate / 2, 1025)
    inside = (bins >= edges[1]) & (bins <= edges[-2])
    np.testing.assert_allclose(filters.sum(1)[inside], 1, atol=1e-5)


@pytest.mark.parametrize("frequency", (110.0, 1000.0, 9000.0))
def test_a_tone_is_brightest_in_its_own_mel_band(frequency):
    t = np.arange(RATE) / RATE
    mel = mel_spectrogram(np.sin(2 * np.pi * frequency * t)[None], RATE)
    assert mel.shape == (MELS, 1 + RATE // HOP) and mel.max() == 0 and mel.min() >= FLOOR_DB
    band = int(mel[:, 40].argmax())
    width = float(hz_to_mel(RATE / 2)) / (MELS + 1)
    assert abs((band + 1) * width - float(hz_to_mel(frequency))) <= width


def test_levels_are_decibels_and_opposite_channels_do_not_cancel():
    t = np.arange(RATE) / RATE
    x = np.sin(2 * np.pi * 1000 * t)
    x[RATE // 2 :] *= 0.1
    mel = mel_spectrogram(np.stack([x, -x]), RATE)
    assert mel[:, 20].max() - mel[:, 75].max() == pytest.approx(20, abs=0.05)
    assert (mel_spectrogram(np.zeros((2, 5000)), RATE) == FLOOR_DB).all()


def test_columns_of_a_long_song_are_means_of_whole_hops():
    x = np.random.default_rng(0).standard_normal((1, HOP * 3999))  # 4000 hops: two to a column
    assert mel_spectrogram(x, RATE).shape == (MELS, 2000)


def test_the_envelope_misses_no_sample():
    x = np.zeros(123_457, np.float32)
    x[[0, 61_000, -1]] = 1, -2, 3
    share, low, high = envelope(x)
    assert len(share) == 2000 and share[0] == 0 and high[0] == 1 and high[-1] == 3
    assert low.min() == -2 and abs(share[low.argmin()] - 61_000 / len(x)) < 1 / 2000
