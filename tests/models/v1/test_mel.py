"""Proof of acefast.models.v1.mel: the specification's numbers, a naive float64 transform, and upstream's own output."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from acefast.models.v1 import mel
from tests.models.v1.codec_fill import normal, padded, relative, sound

GOLDEN = Path(__file__).parents[2] / "golden/v1/codec.safetensors"


def edges():
    """130 frequencies in Hz, by the scale's definition."""
    top = 15 + 27 * math.log(16) / math.log(6.4)
    points = np.linspace(0.6, top, 130)
    return np.where(points < 15, points * 200 / 3, 1000 * np.exp((points - 15) / 27 * math.log(6.4)))


def test_edges_are_the_published_ones():
    hz = edges()
    np.testing.assert_allclose(hz[:3], [40, 68.2830, 96.5659], atol=1e-4)
    np.testing.assert_allclose(hz[-3:], [15093.3404, 15540.0594, 16000], atol=1e-4)


def test_filterbank_has_the_published_numbers():
    bank = mel.filterbank()
    assert bank.shape == (1025, 128) and bank.dtype == torch.float32
    assert bank[:, 0].nonzero().flatten().tolist() == [2, 3, 4]
    assert bank[2, 0] == pytest.approx(0.00383336, abs=1e-8)
    assert bank[:, 127].nonzero().flatten().tolist() == [*range(701, 744)]
    assert bank.max() == pytest.approx(0.0351550, abs=1e-7)
    assert (bank > 0).sum() == 1460 and (bank >= 0).all() and (bank.sum(0) > 0).all()


def test_filterbank_is_triangles_of_one_area():
    hz, bins = edges(), np.linspace(0, 22050, 1025)
    for band in range(128):
        low, top, high = hz[band : band + 3]
        triangle = np.interp(bins, [low, top, high], [0, 2 / (high - low), 0])
        np.testing.assert_allclose(mel.filterbank()[:, band], triangle, atol=1e-7)


def test_log_mel_is_a_naive_transform():
    audio = 0.1 * normal(1, 2, 8 * 512)
    signal = np.pad(audio.double().numpy(), ((0, 0), (768, 768)), mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    frames = np.stack([signal[:, t * 512 : t * 512 + 2048] * window for t in range(8)], 1)
    magnitude = np.sqrt(np.abs(np.fft.rfft(frames)) ** 2 + 1e-6)
    want = np.log(np.maximum(magnitude @ mel.filterbank().double().numpy(), 1e-5))
    got = mel.log_mel(audio)
    assert got.shape == (2, 8, 128) and got.dtype == torch.float32
    assert relative(got, torch.from_numpy(want)) <= 1e-6


def test_log_mel_is_upstreams():
    got = mel.log_mel(padded(sound()))
    assert relative(got, load_file(GOLDEN)["mel"].transpose(1, 2)) <= 1e-5


def test_silence_is_the_floor_and_nothing_is_clamped():
    floor = mel.log_mel(torch.zeros(1, 2048))  # magnitude 1e-3 in every bin
    assert torch.equal(floor, floor[:, :1].expand_as(floor)) and floor.min() >= math.log(1e-5)
    assert mel.normalised(torch.tensor([-11.0, -4.0, 3.0, 10.0])).tolist() == [-1, 0, 1, 2]
    loud = mel.log_mel(3 * normal(2, 1, 4096))
    torch.testing.assert_close(mel.normalised(loud), ((loud + 11) / 14 - 0.5) / 0.5, rtol=1e-5, atol=1e-6)


def test_pieces_leave_no_seam(monkeypatch):
    audio = 0.1 * normal(3, 2, 20 * 512)
    whole = mel.log_mel(audio)
    monkeypatch.setattr(mel, "PIECE", 7)
    assert relative(mel.log_mel(audio), whole) <= 1e-6


def test_16_bits_are_computed_in_fp32():
    audio = (0.1 * normal(4, 1, 4096)).bfloat16()
    assert torch.equal(mel.log_mel(audio), mel.log_mel(audio.float()))


def test_wrong_audio_is_named():
    with pytest.raises(ValueError, match=r"log_mel: audio must be \[C, N\]"):
        mel.log_mel(torch.zeros(4096))
    for n in (512, 4095):
        with pytest.raises(ValueError, match=f"log_mel: N must be a multiple of 512 and more than 768, got {n}"):
            mel.log_mel(torch.zeros(1, n))
