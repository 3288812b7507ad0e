"""Proof of acefast.models.v1.codec: upstream's MusicDCAE by golden numbers, tiles against the whole, soxr, memory."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soxr
import torch
from safetensors.torch import load_file

from acefast.models.v1 import codec, local
from acefast.models.v1.config import FRAME, DCAEConfig, VocoderConfig
from acefast.models.v1.dcae_layers import SpectralConv2d
from acefast.models.v1.local import Rows
from tests.live_bytes import LiveBytes
from tests.models.v1.codec_fill import (
    DCAE,
    SHORT,
    dcae_tensors,
    fill,
    latents,
    normal,
    relative,
    sound,
    vocoder_tensors,
)

GOLDEN = Path(__file__).parents[2] / "golden/v1/codec.safetensors"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def decoder():
    with torch.device("meta"):
        module = codec.Decoder(DCAE, SHORT)
    return fill(module, codec.Decoder.weight_table(DCAE, SHORT), dcae_tensors(DCAE) | vocoder_tensors(SHORT))


@pytest.fixture(scope="module")
def encoder():
    with torch.device("meta"):
        module = codec.Encoder(DCAE)
    return fill(module, codec.Encoder.weight_table(DCAE), dcae_tensors(DCAE))


@pytest.mark.parametrize("device", ("cpu", "cuda"))
def test_filters_of_fewer_products_are_a_cpus(device):
    sizes, where = SimpleNamespace(dcae_config=DCAE, vocoder_config=SHORT), torch.device(device)
    for kind, configs in ((codec.Decoder, codec.decoder_configs), (codec.Encoder, codec.encoder_configs)):
        given = configs(sizes, where)
        with torch.device("meta"):
            module = kind(*given)
        assert kind.weight_table(*given).keys() == module.state_dict().keys()
        assert any(isinstance(part, SpectralConv2d) for part in module.modules()) == (device == "cpu")


def raw(decoder, z):
    """[B * 2, 4096 * T] at 44.1 kHz, of all frames at once."""
    T = z.shape[1]
    return local.run(decoder.steps(), Rows(decoder.latent(z), 0, T), 0, T * FRAME).x.squeeze(2)


# -- parity ----------------------------------------------------------------------------------------------------------


def test_decoding_matches_upstream(decoder, golden):
    assert relative(raw(decoder, latents()), golden["decode"]) <= 1e-5


def test_encoding_matches_upstream(encoder, golden):
    made = codec.encode_resampled(encoder, sound())
    assert made.shape == (1, 4, 128) and made.dtype == torch.float32
    assert relative(made[0], golden["encode"]) <= 1e-5


def test_upstreams_overlapped_decoding_ends_in_what_it_pads_with_and_ours_does_not(decoder, golden):
    """Upstream fills its last window with mel 0, which is loud, and the song's end hears it; nothing is padded here."""
    tail = golden["overlap"].shape[1]
    whole = golden["decode"][:, -tail:]
    assert relative(golden["overlap"], whole) > 0.05
    assert relative(codec_tail(decoder, tail), whole) <= 1e-5


def codec_tail(decoder, tail):
    rows = Rows(decoder.latent(latents()), 0, 3)
    return local.run(decoder.steps(), rows, 3 * FRAME - tail, 3 * FRAME).x.squeeze(2)


def test_latents_are_in_the_pipelines_scale_and_row_major(decoder, golden):
    z = latents()
    image = z.view(1, 3, 16, 8) / 0.1786 - 1.9091
    assert torch.equal(decoder.latent(z), decoder.dcae.latent(image))


# -- 48 kHz ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("N", (FRAME, 2 * FRAME, 7 * FRAME, 147 * 30, 9999))
def test_resampling_tile_by_tile_is_resampling_the_whole_to_the_bit(N):
    x = 0.1 * normal(1, 2, N)
    want = soxr.resample(np.append(x.T.numpy(), np.zeros((1, 2), np.float32), 0), 44_100, 48_000, quality="VHQ")
    total = -(-160 * N // 147)  # soxr alone rounds: it may be one sample short
    for size in (1500, FRAME, 3 * FRAME):
        resampler = codec.Resampler(2)
        parts = [resampler(x[:, lo:hi], last=hi == N) for lo, hi in local.pieces(0, N, size)]
        made = torch.cat(parts, 1)
        assert made.shape == (2, total) and torch.equal(made, torch.from_numpy(want[:total].T.copy()))
    own = soxr.resample(x.T.numpy(), 44_100, 48_000, quality="VHQ")
    assert total - 1 <= len(own) <= total and np.array_equal(own, want[: len(own)])


def test_the_published_song_of_a_minute_has_its_samples():
    assert codec.samples(645 * FRAME) == 2_875_560


# -- tiles -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile_frames", (5, 11))
def test_tiles_are_the_whole_song(decoder, tile_frames):
    z = latents(13)
    whole = codec.decode(decoder, z, 13)
    assert whole.shape == (1, 2, codec.samples(13 * FRAME)) and whole.dtype == torch.float32
    pieces = list(codec.decode_tiles(decoder, z, None, tile_frames))
    at = 0
    for first, piece in pieces:
        assert first == at
        at += piece.shape[2]
    made = torch.cat([piece for _, piece in pieces], 2)
    assert len(pieces) == -(-13 // tile_frames) and relative(made, whole) <= 1e-6
    assert torch.equal(codec.decode(decoder, z, tile_frames), made)
    alone = soxr.resample(raw(decoder, z)[:2].T.numpy(), 44_100, 48_000, quality="VHQ")
    assert relative(whole[0, :, : len(alone)], torch.from_numpy(alone.T)) <= 1e-6


def test_no_frame_beyond_the_halo_is_heard_behind_the_attention(decoder):
    x, steps, T, at = decoder.latent(latents(40)), decoder.steps(), 40, 20
    near = local.run(steps, Rows(x, 0, T), at * FRAME, (at + 1) * FRAME).x
    x[:, : at - decoder.halo], x[:, at + 1 + decoder.halo :] = torch.nan, torch.nan
    assert torch.equal(local.run(steps, Rows(x, 0, T), at * FRAME, (at + 1) * FRAME).x, near)
    assert local.needs(steps, at * FRAME, (at + 1) * FRAME)[0] == at - decoder.halo


def test_halo_of_the_published_size():
    with torch.device("meta"):
        assert codec.Decoder(DCAEConfig(), VocoderConfig()).halo == 18


@pytest.mark.parametrize("tile_frames", (1, 5))
def test_tiled_encoding_is_the_whole_song(encoder, tile_frames):
    audio = 0.3 * normal(2, 2, 12 * 4458)
    whole = codec.encode(encoder, audio, 100)
    assert whole.shape == (1, 12, 128)
    assert relative(codec.encode(encoder, audio, tile_frames), whole) <= 1e-6


def test_encoding_resamples_with_soxr_and_pads_to_whole_frames(encoder):
    audio = 0.3 * normal(3, 2, 5000)
    wave = soxr.resample(audio.T.numpy(), 48_000, 44_100, quality="VHQ").T
    want = codec.encode_resampled(encoder, torch.nn.functional.pad(torch.from_numpy(wave.copy()), (0, 3598)))
    assert len(wave[0]) == 4594 and torch.equal(codec.encode(encoder, audio), want) and want.shape[1] == 2


@pytest.mark.parametrize("frames", [1, 2, 53, 54, 147])
def test_a_decoded_song_has_as_many_frames_again_and_upstream_makes_it_one_longer(encoder, frames):
    """Upstream rounds up on its way to 48 kHz and back: but for 147 frames and such, the last frame is one sample's."""
    there = codec.samples(4096 * frames)
    assert math.ceil(math.ceil(147 * there / 160) / 4096) == frames + (frames % 147 > 0)
    assert codec.encode(encoder, torch.zeros(2, there)).shape[1] == frames


def test_memory_of_a_tile_does_not_grow_with_the_song(decoder):
    """Beyond two images at the latents' rate and the song's own ends."""
    peaks = {}
    steps = decoder.steps()
    for T in (60, 240):
        x = torch.zeros(1, T, 16, DCAE.block_out_channels[-1])
        with LiveBytes() as live:
            local.run(steps, Rows(x, 0, T), 20 * FRAME, 24 * FRAME)
        peaks[T] = live.peak
    assert peaks[60] == peaks[240]
    grows = {}
    for T in (200, 400):
        with LiveBytes() as live:
            decoder.latent(latents(T))
        grows[T] = live.peak
    image = 200 * 16 * DCAE.block_out_channels[-1] * 4
    assert grows[400] - grows[200] <= 2.3 * image  # two images, and the latents


def test_songs_of_a_batch_do_not_meet(decoder):
    z = latents(3, 3)
    alone = codec.decode(decoder, z[1:2])
    assert relative(codec.decode(decoder, z)[1:2], alone) <= 1e-6
    z[[0, 2]] = torch.nan
    assert codec.decode(decoder, z)[1].isfinite().all()


def test_inputs_are_not_modified(decoder, encoder):
    z, audio = latents(2), 0.1 * normal(4, 2, 5000)
    before = z.clone(), audio.clone()
    codec.decode(decoder, z), codec.encode(encoder, audio)
    assert torch.equal(z, before[0]) and torch.equal(audio, before[1])


def test_wrong_arguments_are_named(decoder, encoder):
    with pytest.raises(ValueError, match=r"decode: latents must be \[B, T, latent numbers\] = \[any, any, 128\]"):
        codec.decode(decoder, torch.zeros(1, 8, 16, 3))
    with pytest.raises(ValueError, match=r"decode: ACE-Step v1 decodes whole songs, got keep=\(0, 1\)"):
        next(codec.decode_tiles(decoder, latents(), (0, 1)))
    for shape in ((1, 0, 128), (0, 3, 128)):
        with pytest.raises(ValueError, match="decode: latents must have at least one song and frame, got"):
            codec.decode(decoder, torch.zeros(shape))
    with pytest.raises(ValueError, match="decode: tile_frames must be at least 1, got 0"):
        codec.decode(decoder, latents(), 0)
    with pytest.raises(ValueError, match="encode: tile_frames must be at least 1, got -3"):
        codec.encode(encoder, torch.zeros(2, 4096), -3)
    with pytest.raises(ValueError, match=r"encode: audio must be \[2, N\] = \[2, any\]"):
        codec.encode(encoder, torch.zeros(1, 4096))
    with pytest.raises(ValueError, match="encode: audio must have at least one sample, got none"):
        codec.encode(encoder, torch.zeros(2, 0))
