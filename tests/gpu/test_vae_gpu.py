"""The autoencoder's tiles on a GPU: songs against the references on a CPU, the same bits in any tile, graphs."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

import acefast
from acefast.backends import use_backend
from acefast.graphs import Graphs
from acefast.host import on_host
from acefast.models.v15 import vae, vae_static
from acefast.models.v15.config import VAEConfig
from acefast.ops.pcm import pcm
from acefast.testing import write_checkpoint
from tests.models.test_vae import relative
from tests.models.test_vae_tile import SMALL, latents, made, sound

DEVICE = "cuda"
SIZES = {"small": SMALL, "narrow": VAEConfig(32, (2, 4), (1, 2), 32, 16)}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


def song_of(kind, config):
    return latents(2, 90, config.decoder_input_channels) if kind is vae.Decoder else sound(2, 90 * config.hop + 3)


def coded(coder, x, size):
    with torch.inference_mode(), use_backend("triton"):
        if isinstance(coder, vae.Decoder):
            return vae.decode(coder, x.to(DEVICE), size).audio.cpu()
        return torch.cat(vae.encode(coder, x.to(DEVICE), size), -1).cpu()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("kind", (vae.Decoder, vae.Encoder))
@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_songs_are_as_near_to_fp32_as_the_references_and_the_same_bits_in_any_tile(config, kind, dtype):
    coder, x = made(kind, config, dtype), song_of(kind, config)
    with torch.inference_mode(), use_backend("reference"):
        want, rounded = copy.deepcopy(coder).float()(x), coder(x)
    if kind is vae.Encoder:
        want, rounded = torch.cat(want, -1), torch.cat(rounded, -1)
    coder = coder.to(DEVICE)
    got = coded(coder, x, 90)
    assert relative(got, want) <= 1.1 * relative(rounded, want)
    for size in (90, 79):
        assert torch.equal(coded(coder, x, size), got)


def twins(kind, config=SMALL):
    """A coder whose tiles are launched, and the same whose tiles are captured and replayed."""
    coders = [made(kind, config, torch.float16).to(DEVICE) for _ in range(2)]
    for coder, enabled in zip(coders, (False, True)):
        coder.graphs = Graphs(coder.conv1.weight.device, enabled=enabled)
    return coders


def check_captured(*graphs):
    """Nothing failed to be captured, and all that is kept has been."""
    for one in graphs:
        kept = [tile for entries in one._kept.values() for tile in entries.values()]
        assert kept and not one.failed
        assert all(tile.replay.graph is not None for tile in kept if getattr(tile, "rows", 0) % 4 == 0)


@pytest.mark.parametrize("kind", (vae.Decoder, vae.Encoder))
def test_replayed_tiles_of_several_lengths_in_turn_have_the_bytes_of_launched_ones(kind):
    launched, replayed = twins(kind)
    x = [song_of(kind, SMALL), song_of(kind, SMALL)[:1] * 0.5]
    songs = [(x[0], 90), (x[1], 79), (x[0], 72), (x[1], 90)]
    want = [coded(launched, *song) for song in songs]
    for i in (0, 1, 0, 2, 3, 1, 0, 2, 3):
        assert torch.equal(coded(replayed, *songs[i]), want[i])
    check_captured(replayed.graphs)


@pytest.mark.parametrize("frames", (40, 200, 1500))
def test_a_stream_begins_with_short_tiles_and_has_the_bytes_of_the_song(frames):
    launched, replayed = twins(vae.Decoder)
    z = latents(1, frames, 8)
    want = coded(launched, z, None)
    with torch.inference_mode(), use_backend("triton"):
        for _ in range(2):
            numbers, pieces = zip(*on_host(vae.decode_tiles(replayed, z.to(DEVICE))))
            assert torch.equal(torch.cat(pieces, 2), want) and pieces[0].shape[2] <= 128 * SMALL.hop
            assert numbers[0] == 0 and (len(pieces) > 1) == (frames > 128)
        kept = z.to(DEVICE), (30, frames - 5)
        part = torch.cat([piece for _, piece in on_host(vae.decode_tiles(replayed, kept[0], keep=kept[1]))], 2)
    assert torch.equal(part, want[:, :, 30 * SMALL.hop : (frames - 5) * SMALL.hop])
    check_captured(replayed.graphs)


def test_a_replayed_level_has_the_bits_of_one_pass():
    _, decoder = twins(vae.Decoder)
    with torch.inference_mode(), use_backend("triton"):
        for seed, level in ((1, 0.5), (2, 1.0), (3, 0.9)):
            audio = 5 * sound(2, 5000, seed).to(DEVICE)  # two pieces and a shorter one
            peaks = audio.abs().amax((1, 2))[:, None]
            got = torch.cat([piece for _, piece in vae_static.finished(decoder, audio, peaks, level)], 2)
            levels = torch.full((2,), level, dtype=torch.float64)
            assert torch.equal(got, pcm(audio, levels, peaks=peaks))
    check_captured(decoder.graphs)


def test_copies_to_the_host_are_of_what_was_made_before_its_memory_was_used_again():
    def pieces():
        for i in range(12):
            x = torch.full((2, 1 << 22), float(i), device=DEVICE)
            for _ in range(20):
                x = x + 1
            yield i, x
            del x  # its memory may be taken at once

    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            for i, (number, piece) in enumerate(on_host(pieces())):
                assert number == i and piece.device.type == "cpu" and bool((piece == i + 20).all())


def test_songs_on_two_cuda_streams_take_turns():
    launched, replayed = twins(vae.Decoder)
    one, other = latents(1, 1500, 8, 1), latents(2, 1500, 8, 2)
    want = [coded(launched, z, None) for z in (one, other)]
    one, other, side = one.to(DEVICE), other.to(DEVICE), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.inference_mode(), use_backend("triton"):
        for _ in range(3):
            heard, stream = [], on_host(vae.decode_tiles(replayed, one))
            for _, piece in stream:
                heard.append(piece)  # the next tile is at work
                with torch.cuda.stream(side):
                    assert torch.equal(vae.decode(replayed, other).audio.cpu(), want[1])
            assert torch.equal(torch.cat(heard, 2), want[0])
    check_captured(replayed.graphs)


def test_a_models_audio_is_the_same_bytes_with_graphs_and_without(tmp_path):
    folder = write_checkpoint(tmp_path / "tiny", vae_config=VAEConfig(2, decoder_channels=2, decoder_input_channels=8))
    models = [acefast.load(folder, device=DEVICE, dtype="bfloat16", graphs=g).model for g in (False, True)]
    songs = [latents(1, 300, 8), latents(2, 200, 8, 2), latents(1, 1100, 8, 3)]
    recording = sound(1, 300 * 1920 + 7)[0].numpy()
    made = []
    with torch.inference_mode():
        for model in models:
            assert vae.on_kernels(model.decoder)
            audio = [model.decode(z.to(DEVICE), None, level) for _ in range(2) for z in songs for level in (None, -1.0)]
            audio += [torch.cat([piece for _, piece in model.decode_tiles(z.to(DEVICE))], 2) for z in songs]
            made.append([*audio, *model.encode(recording), *model.encode(recording[:, : 200 * 1920])])
    assert all(t.device.type == "cpu" and not t.is_pinned() for t in made[1][:12])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    for i in range(3):
        assert torch.equal(made[1][2 * i], made[1][12 + i]) and torch.equal(made[1][2 * i], made[1][6 + 2 * i])
        assert made[1][2 * i + 1].abs().amax((1, 2)).tolist() == pytest.approx([10 ** (-1 / 20)] * len(songs[i]))
    check_captured(models[1].tile_graphs)
