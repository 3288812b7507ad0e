"""The autoencoder's tiles on a GPU: songs against the references on a CPU, the same bits in any tile, graphs."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.backends import use_backend
from acefast.models.v15 import vae
from acefast.models.v15.config import VAEConfig
from acefast.ops.audio_conv1d import peak_slots
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


def test_a_captured_tile_is_replayed_on_other_latents():
    decoder, one, other = made(vae.Decoder, SMALL, torch.float16).to(DEVICE), latents(1, 90, 8), latents(1, 90, 8, 2)
    place = torch.tensor([0, 90 * SMALL.hop, 0], dtype=torch.int32, device=DEVICE)
    audio = torch.zeros(1, 2, 90 * SMALL.hop, device=DEVICE)
    peaks = torch.zeros(1, peak_slots(90 * SMALL.hop), device=DEVICE)
    with torch.inference_mode(), use_backend("triton"):
        tile = decoder.tile(1, 90)
        tile.load(one.to(DEVICE), place)
        tile.launch(audio, peaks)  # compiles
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            tile.launch(audio, peaks)
        for song in (one, other):
            tile.load(song.to(DEVICE), place)
            graph.replay()
            replayed = audio.cpu()
            assert torch.equal(replayed, coded(decoder, song, 90))
