"""Each measure reads what a signal made for it must read; tempo and beat are in test_metrics_rhythm.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from acefast import metrics
from acefast.metrics.level import PIECE, _weighted, k_weighting
from tests.signals import PATTERNS, RATE, loop, noise, sine, stereo


def test_snr_is_the_power_ratio_in_decibels():
    r = noise()
    assert metrics.snr(r, 0.9 * r) == pytest.approx(20, abs=1e-4)
    assert metrics.snr(r, r) == math.inf and metrics.snr(r, 0 * r) == pytest.approx(0, abs=1e-9)


def test_si_sdr_ignores_gain_and_offset_but_not_balance():
    r = stereo(sine(440))
    e = r + stereo(sine(440, amplitude=0.1, phase=np.pi / 2))  # at a right angle, 20 dB below
    for estimate in (e, 0.3 * e, -2 * e, e + np.float32(0.5)):
        assert metrics.si_sdr(r, estimate) == pytest.approx(20, abs=1e-3)
    assert metrics.si_sdr(r, np.float32([[1], [0.5]]) * r) == pytest.approx(10 * math.log10(9), abs=1e-3)


def test_stft_distance_of_a_gain_is_that_gain():
    r = noise()
    convergence, log = metrics.multi_resolution_stft_distance(r, 0.5 * r)
    assert convergence == pytest.approx(0.5, abs=1e-5) and log == pytest.approx(math.log(2), abs=1e-3)
    same = metrics.multi_resolution_stft_distance(r, r)
    assert same.total == 0
    assert metrics.multi_resolution_stft_distance(r, -r).total == 0  # phase is not heard
    assert metrics.multi_resolution_stft_distance(r, 0 * r).spectral_convergence == pytest.approx(1)


def test_stft_distance_grows_with_noise_and_forgives_what_is_inaudible():
    r = stereo(sine(440, amplitude=0.5))
    levels = [metrics.multi_resolution_stft_distance(r, r + noise(amplitude=a)) for a in (1e-3, 1e-2, 1e-1)]
    assert levels[0].total < levels[1].total < levels[2].total
    assert metrics.multi_resolution_stft_distance(r, r + noise(amplitude=1e-6)).total < 1e-3


def test_frequency_response_shows_the_gain_of_each_band():
    r = noise(4)
    spectrum = np.fft.rfft(r)
    spectrum[:, np.fft.rfftfreq(r.shape[1], 1 / RATE) > 5000] *= 0.25
    e = np.fft.irfft(spectrum).astype(np.float32)
    hz, gains = metrics.frequency_response(r, e, RATE)
    assert hz[0] == pytest.approx(50.12, abs=0.01) and hz[-1] == pytest.approx(19_953, abs=1) and len(hz) == 27
    np.testing.assert_allclose(gains[hz < 4000], 0, atol=0.05)
    np.testing.assert_allclose(gains[hz > 6000], -12.04, atol=0.05)


def test_frequency_response_gives_a_tone_to_one_band():
    r = noise(4, 0.01)
    hz, gains = metrics.frequency_response(r, r + stereo(sine(1140, 4)), RATE)  # bands meet at 1122 Hz
    assert hz[gains > 0.5] == pytest.approx([1258.9], abs=0.1)


def test_log_spectral_distance_is_the_response_s_rms_and_deaf_to_time():
    r = noise(4)
    assert metrics.log_spectral_distance(r, 0.5 * r, RATE) == pytest.approx(6.02, abs=0.01)
    assert metrics.log_spectral_distance(r, r[:, ::-1], RATE) < 0.2
    assert metrics.log_spectral_distance(r, r, RATE) == 0


# Level


def test_k_weighting_at_48_khz_is_the_standard_s_table():
    b, a = k_weighting(48_000)
    table = [[1.53512485958697, -2.69169618940638, 1.19839281085285], [1, -2, 1]]
    np.testing.assert_allclose(b, table, atol=1e-9)
    np.testing.assert_allclose(
        a, [[1, -1.69065929318241, 0.73248077421585], [1, -1.99004745483398, 0.99007225036621]], atol=1e-9
    )


@pytest.mark.parametrize("rate", (32_000, 44_100, 48_000, 96_000))
def test_full_scale_997_hz_in_one_channel_reads_minus_3_01(rate):
    one = np.stack([sine(997, 3, rate=rate), np.zeros(3 * rate)]).astype(np.float32)
    assert metrics.loudness(one, rate) == pytest.approx(-3.01, abs=0.01)
    assert metrics.loudness(one[:1], rate) == pytest.approx(-3.01, abs=0.01)


@pytest.mark.parametrize(
    "levels, seconds, reads",
    [
        ((-23,), (4,), -23.0),
        ((-33,), (4,), -33.0),
        ((-36, -23, -36), (2, 12, 2), -23.0),  # 13 LU below: gated
        ((-72, -36, -23, -36, -72), (2, 2, 12, 2, 2), -23.0),  # the absolute gate too
        ((-26, -20, -26), (4, 4.02, 4), -23.0),  # 6 LU below: not gated
    ],
    ids=str,
)
def test_loudness_passes_ebu_tech_3341(levels, seconds, reads):  # its cases 1 to 5, a fifth as long
    tones = [sine(1000, s, 10 ** (level / 20)) for level, s in zip(levels, seconds)]
    assert metrics.loudness(stereo(np.concatenate(tones)), RATE) == pytest.approx(reads, abs=0.1)


def test_k_weighting_is_the_recursion_and_has_no_seam():
    x = noise(12)[:1, : PIECE + 3000]
    y = x[0, :300].astype(np.float64)
    for b, a in zip(*k_weighting(RATE)):
        out = np.zeros(302)  # two zeros of history
        history = np.concatenate([[0, 0], y])
        for n in range(2, 302):
            out[n] = b @ history[n - 2 : n + 1][::-1] - a[1:] @ out[n - 2 : n][::-1]
        y = out[2:]
    weighted = _weighted(x, RATE)
    np.testing.assert_allclose(weighted[0, :300], y, atol=1e-12)
    np.testing.assert_allclose(weighted[:, PIECE:], _weighted(x[:, PIECE - 30_000 :], RATE)[:, 30_000:], atol=1e-12)


def test_loudness_of_silence_is_minus_infinity():
    assert metrics.loudness(np.zeros((2, RATE), np.float32), RATE) == -math.inf


@pytest.mark.parametrize("hz, phase, dbtp", [(12_000, 45, -6.02), (8000, 60, -6.02), (6000, 0, -6.02), (997, 0, -6.02)])
def test_true_peak_finds_what_lies_between_the_samples(hz, phase, dbtp):  # EBU Tech 3341, cases 15 to 18
    tone = stereo(sine(hz, 1, 0.5, math.radians(phase)) * np.hanning(RATE) ** 0.1)
    assert dbtp - 0.4 < metrics.true_peak(tone) < dbtp + 0.2
    assert metrics.true_peak(tone) >= 20 * math.log10(np.abs(tone).max()) - 1e-9
    assert metrics.true_peak(0 * tone) == -math.inf


def test_true_peak_is_found_in_every_piece():
    x = np.zeros((1, 1_100_000), np.float32)
    for place in (0, 524_287, 524_288, 1_099_998):
        x[:] = 0
        x[0, place : place + 2] = 0.5  # between two equal samples of a pulse: 4 / pi of them
        assert metrics.true_peak(x) == pytest.approx(20 * math.log10(0.5 * 4 / math.pi), abs=0.1)


def test_clipping_counts_samples_and_runs_in_each_channel():
    x = np.zeros((2, 1000), np.float32)
    x[0, 10:15], x[0, 20:22], x[1, 50], x[0, -3:], x[1, :4] = 1, -1, 1.5, 1, -1
    assert metrics.clipping(x) == (15 / 2000, 3, 5)  # the run at an end does not go on in the other channel
    assert metrics.clipping(0.6 * x) == (0, 0, 0)
    assert metrics.clipping(np.zeros((2, 9), np.float32), None) == (0, 0, 0)


def test_clipping_of_its_own_peak_finds_tops_cut_before_the_level_came_down():
    clean = stereo(sine(40, amplitude=0.7))  # the flattest tops of an 808
    assert metrics.clipping(clean, None).runs == 0
    assert metrics.clipping(0.7 * np.clip(2 * clean, -1, 1), None).runs == 160  # 40 Hz, two tops, two channels


# Rhythm


@pytest.mark.parametrize("hz", (440.0, 997.0, 8000.0))
def test_centroid_of_a_sine_is_its_frequency(hz):
    assert metrics.spectral_centroid(stereo(sine(hz, 2)), RATE) == pytest.approx(hz, rel=0.005)


def test_centroid_is_the_mean_by_magnitude_and_by_loudness():
    two = stereo(sine(2000, 2, 0.3) + sine(8000, 2, 0.1))
    assert metrics.spectral_centroid(two, RATE) == pytest.approx(3500, rel=0.005)  # 3 : 1
    assert metrics.spectral_centroid(noise(4), RATE) == pytest.approx(RATE / 4, rel=0.005)
    late = np.concatenate([stereo(sine(1000, 1)), stereo(sine(9000, 1, 1e-4))], axis=1)
    assert metrics.spectral_centroid(late, RATE) == pytest.approx(1000, rel=0.05)


def test_flatness_runs_from_tone_to_noise():
    assert metrics.spectral_flatness(stereo(sine(997, 2))) < 1e-3
    flat = math.exp(-np.euler_gamma)  # of an exponential variable, which a noise's power is
    for amplitude in (0.1, 1e-4):
        assert metrics.spectral_flatness(noise(4, amplitude)) == pytest.approx(flat, abs=0.005)
    padded = np.concatenate([noise(2), np.zeros((2, 4 * RATE), np.float32)], axis=1)
    assert metrics.spectral_flatness(padded) == pytest.approx(flat, abs=0.01)  # silence does not count


# Similarity


def test_bars_of_a_loop_are_alike_and_bars_of_noise_are_not():
    x = loop(PATTERNS["boom bap"], 96)
    same = metrics.self_similarity(x, RATE, 96)
    assert same.matrix.shape == (4, 4) and same.neighbours > 0.98 and same.best > 0.98 and same.bpm == 96
    assert metrics.self_similarity(x, RATE).neighbours > 0.95  # by the tempo measured
    assert metrics.self_similarity(x, RATE, 78).neighbours < 0.5  # by a wrong one
    for feature in ("mel", "chroma"):
        assert abs(metrics.self_similarity(noise(12), RATE, 96, feature=feature).neighbours) < 0.2
    assert metrics.self_similarity(stereo(sine(220, 10, 0.5)), RATE, 96).neighbours == 1  # a drone


def test_chroma_tells_chords_that_alternate():
    def chord(*hz):
        return sum(sine(f, 2, 0.2) for f in hz) * np.exp(-np.arange(2 * RATE) / RATE)

    c, f = chord(261.63, 329.63, 392.0), chord(261.63, 349.23, 440.0)
    alike = metrics.self_similarity(stereo(np.concatenate([c, f, c, f])), RATE, 120, feature="chroma")
    np.testing.assert_allclose(alike.matrix[0, [0, 2]], 1, atol=0.02)
    assert alike.neighbours < 0.3 and alike.best > 0.98


def test_originality_finds_the_copy_and_where_it_is():
    clips = [loop(PATTERNS["drill"], 140, 6), loop(PATTERNS["off-beat hats"], 97, 6), loop(PATTERNS["trap"], 78, 6)]
    x = np.concatenate([noise(3, 0.05), 0.2 * clips[1][:, RATE // 2 : RATE // 2 + 4 * RATE]], axis=1)
    found = metrics.originality(x, RATE, clips)
    assert found.clip == 1 and found.distance < 0.05
    beat = 60 / 97
    shift = (found.clip_at - 0.5) - (found.at - 3)
    assert abs(shift - beat * round(shift / beat)) < 0.02  # one of the loop's own beats
    assert metrics.originality(x, RATE, [metrics.mel_embedding(c, RATE) for c in clips]) == found


def test_originality_tells_a_copy_from_kin_from_strangers():
    x = loop(PATTERNS["boom bap"], 90)

    def distance(clip):
        return metrics.originality(x, RATE, [clip]).distance

    copies = [distance(x), distance(np.roll(x, 12_345, 1)), distance(0.1 * x), distance(x + noise(12, 0.01))]
    kin, stranger = distance(loop(PATTERNS["off-beat hats"], 90)), distance(loop(PATTERNS["trap"], 141))
    assert copies[0] < 1e-5 and max(copies[:3]) < 0.02 and copies[3] < 0.1
    assert 0.1 < kin < stranger and stranger > 0.5 and distance(noise(12)) > 0.8


# Errors

ONE = [
    pytest.param(lambda x: metrics.loudness(x, RATE), id="loudness"),
    pytest.param(metrics.true_peak, id="true_peak"),
    pytest.param(metrics.clipping, id="clipping"),
    pytest.param(lambda x: metrics.tempo(x, RATE), id="tempo"),
    pytest.param(lambda x: metrics.beat_strength(x, RATE), id="beat_strength"),
    pytest.param(lambda x: metrics.onset_rate(x, RATE), id="onset_rate"),
    pytest.param(lambda x: metrics.spectral_centroid(x, RATE), id="spectral_centroid"),
    pytest.param(metrics.spectral_flatness, id="spectral_flatness"),
    pytest.param(lambda x: metrics.self_similarity(x, RATE, 120), id="self_similarity"),
    pytest.param(lambda x: metrics.mel_embedding(x, RATE), id="mel_embedding"),
    pytest.param(lambda x: metrics.originality(x, RATE, []), id="originality"),
]
TWO = [
    pytest.param(metrics.snr, id="snr"),
    pytest.param(metrics.si_sdr, id="si_sdr"),
    pytest.param(metrics.multi_resolution_stft_distance, id="stft"),
    pytest.param(lambda r, e: metrics.frequency_response(r, e, RATE), id="response"),
    pytest.param(lambda r, e: metrics.log_spectral_distance(r, e, RATE), id="spectral"),
]


@pytest.mark.parametrize("measure", ONE)
def test_a_measure_refuses_what_is_not_finite_float_audio(measure):
    good = noise(7)
    measure(good) if measure is not ONE[-1].values[0] else None
    bad = good.copy()
    bad[1, 5] = np.nan
    for audio, says in (
        (bad, "NaN"),
        (good.T, "transpose"),
        (good[0], r"\[2, N\]"),
        ((good * 1000).astype(np.int16), "int16"),
        (good.tolist(), "list"),
        (good[:, :0], "needs at least"),
    ):
        with pytest.raises(ValueError, match=says):
            measure(audio)


@pytest.mark.parametrize("measure", TWO)
def test_a_comparison_refuses_what_cannot_be_compared(measure):
    r = noise()
    bad = r.copy()
    bad[0, 0] = np.inf
    for reference, estimate, says in (
        (r, bad, "estimate has 1 of"),
        (bad, r, "reference has 1 of"),
        (0 * r, r, "silent"),
    ):
        with pytest.raises(ValueError, match=says):
            measure(reference, estimate)
    if measure in [p.values[0] for p in TWO[:3]]:
        with pytest.raises(ValueError, match="one shape"):
            measure(r, r[:, 1:])


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: metrics.tempo(noise(3), RATE), "at least 288000 samples"),
        (lambda: metrics.tempo(np.zeros((2, 12 * RATE), np.float32), RATE), "silent"),
        (lambda: metrics.tempo(stereo(sine(220, 12)), RATE), "nothing begins"),
        (lambda: metrics.tempo(noise(12), RATE, 180, 60), "low < high"),
        (lambda: metrics.tempo(noise(12), "48k"), "rate must be a number"),
        (lambda: metrics.loudness(noise(1), 100), "at least 8000"),
        (lambda: metrics.loudness(noise(0.3), RATE), "at least 19200 samples"),
        (lambda: metrics.onset_rate(noise(1), 24_000), "band"),
        (lambda: metrics.clipping(noise(1), 0.0), "full_scale"),
        (lambda: metrics.si_sdr(np.ones((2, 99), np.float32), noise(1)[:, :99]), "constant"),
        (lambda: metrics.self_similarity(noise(3), RATE, 120), "two bars"),
        (lambda: metrics.self_similarity(noise(5), RATE, 120, feature="cqt"), "feature"),
        (lambda: metrics.originality(noise(4), RATE, []), "clips is empty"),
        (lambda: metrics.originality(noise(4), RATE, [noise(2)]), "clip 0 needs at least"),
        (lambda: metrics.originality(stereo(sine(220, 6)), RATE, [noise(4)]), "nothing varies in audio"),
    ],
)
def test_an_error_says_what_is_needed(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_measures_leave_their_input_alone():
    x = noise(7)
    x.flags.writeable = False
    for measure in ONE[:-1]:
        measure.values[0](x)
