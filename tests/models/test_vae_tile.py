"""Proof of acefast.models.v15.vae_tile: tiles on static memory are Decoder.forward and Encoder.forward.

Where the launches, the memory and the rows go is shown on the references in fp32, at the published strides; that the
kernels compute them, in the interpreter in 16 bits, at strides whose songs are a few tiles of a kernel.
"""

from __future__ import annotations

import copy

import pytest
import torch

import acefast
from acefast.backends import use_backend
from acefast.graphs import Graphs
from acefast.models.v15 import names, vae, vae_tile, vae_tiling
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_tile import DecoderTile, EncoderTile
from acefast.ops.residual_unit import residual_unit
from acefast.sim.interpreter import interpreted
from acefast.sim.tensors import tensors_of
from tests.models.test_vae import build, poisoned_frames, relative

SIZES = dict(encoder_hidden_size=8, decoder_channels=8, decoder_input_channels=4)  # widths 8 (padded), 16, 32, 64, 128
PUBLISHED = VAEConfig(**SIZES)
# Of few rows: 4 samples a frame, 34 frames of halo. Widths 24 and 72 (padded) and 48, whose units are two launches.
SMALL = VAEConfig(24, (2, 2), (2, 3), 24, 8)
HOP = PUBLISHED.hop
REORDERED = 3e-6  # sums of another order in fp32, see tests/models/test_vae.py


def made(kind, config, dtype=torch.float32, seed=0, spectral=False):
    """A decoder or encoder of random weights that keep their input's size."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in (names.vae_encoder_tensors(config) | names.vae_decoder_tensors(config)).items():
        spread = 0.02 if name.endswith("bias") else 0.3 if name.endswith(("alpha", "beta")) else 1.0
        tensors[name] = spread * torch.randn(shape, generator=g)
        if name.endswith("weight_g"):
            gain = 2**0.5 if "conv_t1" in name else 0.2 if "res_unit" in name and "conv2" in name else 1.0
            tensors[name] = gain * (1 + 0.1 * tensors[name])
    return build(kind, tensors, dtype, config, spectral)


def latents(batch, frames, width=4, seed=1):
    return torch.randn(batch, frames, width, generator=torch.Generator().manual_seed(seed))


def sound(batch, samples, seed=1):
    return 0.3 * torch.randn(batch, 2, samples, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def decoder():
    return made(vae.Decoder, PUBLISHED)


@pytest.fixture(scope="module")
def encoder():
    return made(vae.Encoder, PUBLISHED)


@pytest.fixture(scope="module")
def demo():
    return acefast.load("demo", device="cpu", dtype="float32").model


@pytest.fixture
def tiled(monkeypatch):
    """Tiles on static memory in fp32 as well, which the references compute."""
    monkeypatch.setattr(vae, "on_kernels", lambda coder: True)


# -- launches, memory and rows, on the references --------------------------------------------------------------------


@pytest.mark.parametrize("B, T", [(1, 1), (2, 3)])
def test_a_decoders_tile_is_the_decoder(decoder, B, T):
    z, tile = latents(B, T), decoder.tile(B, T)
    for _ in range(2):  # the second time over what the first left behind
        tile.load(z, torch.tensor([0, T * HOP, 0], dtype=torch.int32))
        tile.launch()
        assert relative(tile.audio, decoder(z)) <= REORDERED
        assert torch.equal(tile.peaks.amax(1), tile.audio.abs().amax((1, 2)))


def test_a_tile_keeps_the_rows_that_are_asked_for_and_their_peaks(decoder):
    z, tile = latents(1, 3), decoder.tile(1, 3)
    tile.load(z, torch.tensor([HOP, 2 * HOP, 0], dtype=torch.int32))
    tile.launch()
    kept = tile.audio[:, :, :HOP]
    assert relative(kept, decoder(z)[:, :, HOP : 2 * HOP]) <= REORDERED and tile.peaks.amax() == kept.abs().amax()


def test_units_that_make_their_own_snake_leave_out_all_others(decoder, encoder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(vae_tile, "from_x_alone", lambda *kind: True)
        tile = DecoderTile(decoder, Graphs(torch.device("cpu")), 2, 1)
        other = EncoderTile(encoder, Graphs(torch.device("cpu")), 2, 1)
    units = [launch for launch in (*tile.launches, *other.launches) if launch.func is residual_unit]
    assert len(units) == 30 and not any("activated" in unit.keywords for unit in units)
    assert sum(unit.keywords["wave"] is not None for unit in units) == 10
    for unit in units:  # y is not over x
        assert all(t.data_ptr() != unit.args[0].data_ptr() for t in tensors_of(unit.keywords["out"]))
    z, x = latents(2, 1), sound(2, HOP)
    tile.load(z, torch.tensor([0, HOP, 0], dtype=torch.int32))
    tile.launch()
    assert relative(tile.audio, decoder(z)) <= REORDERED
    other.load(x)
    other.launch()
    for got, want in zip(encoder.posterior(other.moments[..., :8]), encoder(x)):
        assert relative(got, want) <= REORDERED


@pytest.mark.parametrize("B, T, extra", [(1, 1, 0), (2, 3, 0), (1, 2, 1), (1, 2, 1919)])
def test_an_encoders_tile_is_the_encoder(encoder, B, T, extra):
    x, tile = sound(B, T * HOP + extra), encoder.tile(B, T, extra)
    for _ in range(2):
        tile.load(x)
        tile.launch()
        for got, want in zip(encoder.posterior(tile.moments[..., :8]), encoder(x)):
            assert got.shape == want.shape and relative(got, want) <= REORDERED


@pytest.mark.parametrize("B, T, size", [(1, 19, 19), (2, 20, 19), (1, 25, 20)])
def test_a_song_of_tiles_is_the_whole_song(decoder, tiled, B, T, size):
    z, heard = latents(B, T), []
    decoded = vae.decode(decoder, z, size, lambda done, total: heard.append((done, total)))
    assert relative(decoded.audio, decoder(z)) <= REORDERED
    assert torch.equal(decoded.peaks.amax(1), decoded.audio.abs().amax((1, 2)))
    pieces = list(vae.decode_tiles(decoder, z, size))
    assert torch.equal(torch.cat([piece for _, piece in pieces], 2), decoded.audio)
    assert heard == [(start, T) for start, _ in pieces[1:]] + [(T, T)]


@pytest.mark.parametrize("N", (HOP, 15 * HOP, 17 * HOP + 1919))
def test_an_encoded_song_of_tiles_is_the_whole_song(encoder, tiled, N):
    x = sound(1, N)
    for got, want in zip(vae.encode(encoder, x, 15), encoder(x)):
        assert got.shape == want.shape and relative(got, want) <= REORDERED


def test_tiles_show_the_decoder_the_nine_frames_that_it_hears_and_not_eight(decoder, tiled, monkeypatch):
    z = latents(1, 21)
    z[0, 19] = torch.nan  # the first tile sees frames up to 18 and keeps those up to 9
    assert poisoned_frames(vae.decode(decoder, z, 19).audio) == [*range(10, 21)]
    monkeypatch.setattr(decoder, "halo", 8)  # and now those up to 10
    assert poisoned_frames(vae.decode(decoder, z, 19).audio) == [*range(11, 21)]


def test_what_memory_held_before_is_not_heard(decoder, encoder):
    z, x = latents(1, 2), sound(1, 2 * HOP)
    tile = decoder.tile(1, 2)
    tile.memory.fill_(torch.nan)
    tile.peaks.fill_(torch.nan)
    tile.load(z, torch.tensor([0, 2 * HOP, 0], dtype=torch.int32))
    tile.launch()
    assert relative(tile.audio, decoder(z)) <= REORDERED and tile.peaks.isfinite().all()
    tile = encoder.tile(1, 2)
    tile.memory.fill_(torch.nan)
    tile.load(x)
    tile.launch()
    assert relative(tile.moments[..., :4].float(), encoder(x)[0]) <= REORDERED


def test_songs_of_all_sizes_share_their_memory(decoder, encoder, tiled):
    """Both coders', if they are given the same graphs; a longer tile forgets the others."""
    decoder.graphs = encoder.graphs = graphs = Graphs(torch.device("cpu"))
    with torch.inference_mode():
        vae.decode(decoder, latents(1, 5))
    tile, small = decoder.tile(1, 5), decoder.tile(1, 3)
    assert len(tile.memory.untyped_storage()) == graphs.arena_bytes == tile.memory.nbytes
    vae.decode(decoder, latents(1, 5))
    vae.encode(encoder, sound(1, 4 * HOP + 7))
    assert decoder.tile(1, 5) is tile and decoder.tile(1, 3) is small
    assert len({t.memory.data_ptr() for t in (tile, small, encoder.tile(1, 4, 7))}) == 1
    assert encoder.tile(1, 3).moments.shape == (1, 3, 16) and decoder.tile(1, 3) is small
    vae.decode(decoder, latents(1, 6))
    assert decoder.tile(1, 5) is not tile and graphs.arena_bytes > tile.memory.nbytes
    assert decoder.tile(1, 5).memory.data_ptr() == decoder.tile(1, 6).memory.data_ptr()


def test_tiles_do_not_outlive_their_weights_places():
    decoder = made(vae.Decoder, SMALL)
    tile = decoder.tile(1, 2)
    assert decoder.tile(1, 2) is tile and decoder.to(torch.float32).tile(1, 2) is not tile
    twin = copy.deepcopy(decoder)
    assert twin.graphs is not decoder.graphs and twin.half().tile(1, 2).memory.dtype == torch.float16
    with torch.device("meta"):
        assert twin.to_empty(device="meta").tile(1, 2).memory.is_meta


@pytest.mark.parametrize("keep", [(0, 1), (11, 20), (24, 25)])
def test_frames_kept_are_those_of_the_whole(decoder, tiled, keep):
    z = latents(1, 25)
    whole = decoder(z)[:, :, keep[0] * HOP : keep[1] * HOP]
    starts, pieces = zip(*vae.decode_tiles(decoder, z, 19, keep))
    assert starts[0] == keep[0] and relative(torch.cat(pieces, 2), whole) <= REORDERED


def test_two_streams_of_one_decoder_do_not_meet(decoder, tiled):
    z, y = latents(1, 21), latents(1, 21, seed=2)
    one, other = vae.decode_tiles(decoder, z, 19), vae.decode_tiles(decoder, y, 20)
    heard = [[], []]
    for i in (0, 1, 0, 1, 0):
        heard[i] += [piece for _, piece in [next((one, other)[i], (0, None))] if piece is not None]
    for pieces, song in zip(heard, (z, y)):
        assert relative(torch.cat(pieces, 2), decoder(song)) <= REORDERED


def test_widths_that_16_divides_are_not_copied():
    decoder = made(vae.Decoder, VAEConfig(16, (2, 2), (1, 2), 16, 16))
    tile = decoder.tile(1, 2)
    own = {p.data_ptr() for p in decoder.parameters()}
    given = [t for step in tile.launches for t in step.args if torch.is_tensor(t)]
    memory = range(tile.memory.data_ptr(), tile.memory.data_ptr() + tile.memory.nbytes)
    weights = [t for t in given if t.data_ptr() not in memory]
    assert len(weights) > 40 and all(t.data_ptr() in own for t in weights)


# -- the kernels, in the interpreter ---------------------------------------------------------------------------------


def on_triton(function, *args):
    with interpreted(), use_backend("triton"):
        assert vae.on_kernels(args[0])
        return function(*args)


def in_fp32(coder):
    return copy.deepcopy(coder).float()  # of the same rounded weights


@pytest.fixture(scope="module", params=(torch.float16, torch.bfloat16), ids=str)
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def small(dtype):
    """A decoder, latents, and the audio of either song as one tile."""
    decoder, z = made(vae.Decoder, SMALL, dtype), latents(2, 71, 8)
    return decoder, z, [on_triton(vae.decode, decoder, song[None], 71) for song in z]


def test_kernels_decode_as_near_to_fp32_as_the_references(small):
    decoder, z, songs = small
    want = in_fp32(decoder)(z)
    got, rounded = torch.cat([song.audio for song in songs]), decoder(z)
    assert relative(got, want) <= 1.1 * relative(rounded, want)
    assert all(torch.equal(song.peaks.amax(1), song.audio.abs().amax((1, 2))) for song in songs)


def test_a_row_has_the_same_bits_in_any_tile_and_any_batch(small):
    """In another place of a tile of another length, beside another song, at the song's ends and where tiles meet."""
    decoder, z, songs = small
    assert decoder.halo == 34 and len([*vae_tiling.windows(71, 70, 34)]) == 2
    tiled = on_triton(vae.decode, decoder, z, 70).audio
    assert torch.equal(tiled, torch.cat([song.audio for song in songs]))


@pytest.mark.parametrize("keep", [(0, 30), (40, 71)])
def test_frames_kept_have_the_bits_of_the_whole(small, keep):
    decoder, z, songs = small
    pieces = on_triton(lambda decoder: [piece for _, piece in vae.decode_tiles(decoder, z[:1], 70, keep)], decoder)
    assert torch.equal(torch.cat(pieces, 2), songs[0].audio[:, :, keep[0] * SMALL.hop : keep[1] * SMALL.hop])


def test_kernels_encode_as_near_to_fp32_as_the_references_and_the_same_in_any_tile():
    encoder, x = made(vae.Encoder, SMALL, torch.float16), sound(2, 71 * SMALL.hop + 3)
    exact, rounded = in_fp32(encoder)(x), encoder(x)
    whole, tiled = on_triton(vae.encode, encoder, x, 71), on_triton(vae.encode, encoder, x[1:], 70)
    assert encoder.halo < 35
    for got, want, near, other in zip(whole, exact, rounded, tiled):
        assert relative(got, want) <= 1.1 * relative(near, want)
        assert torch.equal(got[1:], other)


CLIPS = [(vae.Decoder, 1), (vae.Encoder, 2), pytest.param(vae.Encoder, 12, marks=pytest.mark.slow)]  # frames


@pytest.mark.parametrize("kind, frames", CLIPS)
def test_the_demo_models_autoencoder(demo, kind, frames):
    """Its real weights: widths 8, 24, 48 and 96, and latents of 24 channels.

    The error of an encoded frame is that of one or two large values, and differs by a factor of two from frame to frame
    on either path: only a clip of a dozen tells which path is the nearer.
    """
    config = demo.checkpoint.vae_config
    coder = demo._load(kind, config, dtype=torch.float16)
    code = vae.decode if kind is vae.Decoder else vae.encode
    x = (
        latents(1, frames, config.decoder_input_channels)
        if kind is vae.Decoder
        else sound(1, frames * config.hop + 5, 7)
    )
    want, rounded, got = in_fp32(coder)(x), coder(x), on_triton(code, coder, x)
    for exact, near, made in zip(*((w,) if torch.is_tensor(w) else w for w in (want, rounded, got))):
        assert relative(made, exact) <= (4e-3 if kind is vae.Encoder and frames < 12 else 1.1 * relative(near, exact))
