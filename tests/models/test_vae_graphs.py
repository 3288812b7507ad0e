"""Songs on static memory that is replayed have the bytes of songs that are launched: captured graphs, on a CPU.

What stands for a CUDA graph here holds, as a real one does, the launches with the very addresses and numbers that they
were captured with, and runs nothing else.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

import acefast
from acefast import graphs, host
from acefast.backends import use_backend
from acefast.graphs import Graphs
from acefast.models.v15 import vae, vae_static, vae_tiling
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_tile import Tile
from acefast.ops.pcm import pcm
from acefast.pipeline import Pipeline
from acefast.sim.interpreter import interpreted
from acefast.sim.replay import Recording
from acefast.testing import write_checkpoint
from tests.models.test_vae import relative
from tests.models.test_vae_tile import REORDERED, SMALL, latents, made, sound


class Captured:
    """The kernels that ``launch`` launches; nothing runs until ``replay``."""

    def __init__(self, launch):
        from triton.runtime.jit import JITFunction

        self.launches, self.replays = [], 0
        with mock.patch.object(JITFunction, "run", lambda *args, **options: self.launches.append((args, options))):
            launch()

    def replay(self):
        self.replays += 1
        for (kernel, *args), options in self.launches:
            kernel.run(*args, **options)


class Recorded:
    """The same of a tile on the references, whose ATen calls are what is launched; of what else there is, itself."""

    def __init__(self, launch):
        self.again, self.replays = Recording(launch).replay if isinstance(launch.__self__, Tile) else launch, 0

    def replay(self):
        self.replays += 1
        self.again()


@pytest.fixture
def captured(monkeypatch):
    """The graphs that are captured from here on."""
    told = SimpleNamespace(graphs=[], kind=Captured)

    def capture(launch, _):
        told.graphs.append(told.kind(launch))
        return told.graphs[-1]

    monkeypatch.setattr(graphs, "captured", capture)
    return told


@pytest.fixture
def recorded(captured, monkeypatch):
    """The same, with tiles on static memory in fp32 as well, which the references compute."""
    captured.kind = Recorded
    for module in (vae, vae_tiling):
        monkeypatch.setattr(module, "on_kernels", lambda coder: True)
    with torch.inference_mode():
        yield captured.graphs


def twins(coder, limit=8):
    """The coder, whose tiles are launched, and one like it that captures them."""
    other = copy.deepcopy(coder)
    other.graphs = Graphs(torch.device("cpu"), limit=limit)
    other.graphs.enabled = True
    return coder, other


# -- what is replayed, on the references -----------------------------------------------------------------------------


def test_songs_of_tiles_of_several_lengths_have_the_bytes_of_those_that_are_launched(recorded):
    """Interleaved, two songs at a time and one, of more lengths than are kept."""
    launched, replayed = twins(made(vae.Decoder, SMALL), limit=2)
    songs = [(latents(batch, 75, 8, seed), size) for batch, seed, size in ((2, 1, 70), (1, 2, 72), (1, 3, 75))]
    for i in (0, 1, 0, 2, 0, 1):
        if replayed.graphs.arena_bytes:
            replayed.graphs.arena(0).untyped_storage().fill_(255)  # NaN, which nobody is to read
        got, want = (vae.decode(coder, *songs[i]) for coder in (replayed, launched))
        assert torch.equal(got.audio, want.audio) and torch.equal(got.peaks, want.peaks)
    assert [graph.replays for graph in recorded] == [11, 1, 0, 1]  # of four tiles, two, one, and two again, anew
    assert not replayed.graphs.failed


@pytest.mark.parametrize("extra", (0, 3))
def test_a_recording_has_the_latents_of_one_that_is_launched(recorded, extra):
    launched, replayed = twins(made(vae.Encoder, SMALL))
    for seed in (1, 2, 3):
        x = sound(1, 75 * SMALL.hop + extra, seed)
        for got, want in zip(vae.encode(replayed, x, 70), vae.encode(launched, x, 70)):
            assert torch.equal(got, want)
    assert [graph.replays for graph in recorded] == [2 if extra else 5]  # an end within a frame is launched
    assert not replayed.graphs.failed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same tiny model, launched and captured; a frame is 4 samples, seen in tiles of up to 128 frames."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), vae_config=VAEConfig(2, (2, 2), (1, 2), 2, 8))
    made = [acefast.load(folder, device="cpu", dtype="float32").model for _ in range(2)]
    made[1].tile_graphs.enabled = True
    assert made[1].decoder.graphs is made[1].encoder.graphs is made[1].tile_graphs
    return made


def test_a_model_decodes_and_streams_the_same_bytes_and_hands_out_no_static_memory(models, recorded):
    songs = [latents(1, 150, 8), latents(2, 96, 8, 2), latents(1, 150, 8, 3)]
    want, got = ([model.decode(song, None, level) for song in songs for level in (None, -1.0)] for model in models)
    streams = [[piece for _, piece in model.decode_tiles(songs[0])] for model in models]
    assert all(map(torch.equal, want, got)) and all(map(torch.equal, *streams)) and len(streams[1]) == 2
    assert relative(torch.cat(streams[1], 2), got[0]) <= REORDERED
    assert not torch.equal(got[0], got[4]) and got[1].abs().amax() == pytest.approx(10 ** (-1 / 20))
    assert sum(graph.replays for graph in recorded) > 5


def test_a_stream_captures_each_of_its_lengths_once(models, recorded, monkeypatch):
    monkeypatch.setitem(vae_tiling.TILE_FRAMES, "decode", 512)  # as if a GPU had the memory
    models[1].tile_graphs._begin()
    for _ in range(2):
        want, got = ([piece for _, piece in model.decode_tiles(latents(1, 1500, 8))] for model in models)
        assert all(map(torch.equal, want, got))
        assert [piece.shape[2] // 4 for piece in got] == [94, 188, 444, 444, 330]
    assert [graph.replays for graph in recorded] == [1, 1, 5]


def test_progress_tells_of_every_tile_with_and_without_a_level(models, recorded, monkeypatch):
    """A song's tiles, which are of one length and not a stream's."""
    monkeypatch.setitem(vae_tiling.TILE_FRAMES, "decode", 512)
    for level in (None, -1.0):
        told = []
        models[0].decode(latents(1, 800, 8), lambda *done, told=told: told.append(done), level)
        assert told == [(414, 800), (800, 800)]


def test_two_streams_and_a_song_take_turns(models, recorded):
    """Each tile is copied to memory of its own before another's is loaded."""
    one, other, song = (latents(1, 300, 8, seed) for seed in (1, 2, 3))
    whole = models[0].decode(song, None, -1.0)
    want = [torch.cat([piece for _, piece in models[0].decode_tiles(z)], 2) for z in (one, other)]
    streams, heard = [models[1].decode_tiles(z) for z in (one, other)], ([], [])
    for i in (0, 1, 1, 0):
        heard[i].append(next(streams[i])[1])
        assert torch.equal(models[1].decode(song, None, -1.0), whole)
    twice = models[1].decode(song, lambda *_: models[1].decode(other, None, -1.0), -1.0)  # a progress that makes one
    assert torch.equal(twice, whole)
    for i in (0, 1):
        assert torch.equal(torch.cat([*heard[i], *(piece for _, piece in streams[i])], 2), want[i])


def test_another_backend_has_graphs_of_its_own(models, recorded):
    models[1].tile_graphs._begin()
    for backend in ("auto", "reference"):
        with use_backend(backend):
            models[1].decode(latents(1, 150, 8), None, -1.0)
    assert {name: len(kept) for name, kept in models[1].tile_graphs._kept.items()} == {"tile": 2, "finish": 2}


@pytest.mark.usefixtures("offline")
def test_no_song_of_a_size_that_is_warm_captures_anything(models, recorded, monkeypatch):
    """A stream's largest tile may be larger than a song's, which makes the arena anew and forgets the song's."""
    monkeypatch.setitem(vae_tiling.TILE_FRAMES, "decode", 512)
    monkeypatch.setattr(models[1], "tile_graphs", Graphs(torch.device("cpu")))
    models[1].tile_graphs.enabled, models[1].decoder.graphs = True, models[1].tile_graphs
    pipe, options = Pipeline(models[1]), dict(steps=1, seed=0)
    pipe.warmup(durations=(8.0, 30.0), **options)
    before = len(recorded)
    pipe.generate("drill", duration=30.0, **options), pipe.generate("drill", duration=8.0, **options)
    list(models[1].decode_tiles(latents(1, 750, 8)))
    assert len(recorded) == before and models[1].tile_graphs.failed == []


# -- the kernels, in the interpreter ---------------------------------------------------------------------------------


def test_captured_kernels_have_the_bytes_of_those_that_are_launched(captured):
    launched, replayed = twins(made(vae.Decoder, VAEConfig(16, (2, 2), (1, 1), 16, 8), torch.float16))
    songs = [latents(1, frames, 8, seed) for frames, seed in ((5, 1), (3, 2), (5, 3))]
    with torch.inference_mode(), interpreted(), use_backend("triton"):
        want, got = ([vae.decode(coder, z) for z in songs] for coder in (launched, replayed))
    for a, b in zip(got, want):
        assert torch.equal(a.audio, b.audio) and torch.equal(a.peaks, b.peaks)
    assert [(graph.replays, len(graph.launches)) for graph in captured.graphs] == [(1, 10), (0, 10)]


def test_a_level_is_set_piece_by_piece_to_the_bits_of_one_pass(captured, monkeypatch):
    monkeypatch.setattr(vae_static, "FINISH_FRAMES", 10)
    _, decoder = twins(made(vae.Decoder, SMALL))
    audio = sound(2, 93)  # two pieces of 40 samples and a shorter one
    with torch.inference_mode(), interpreted(), use_backend("triton"):
        for level, gain in ((0.5, 1.0), (1.0, 3.0), (0.25, torch.nan)):
            song = audio * torch.tensor([1.0, gain])[:, None, None]
            peaks = song.abs().amax((1, 2))[:, None]
            at, pieces = zip(*vae_static.finished(decoder, song, peaks, level))
            want = pcm(song, torch.full((2,), level, dtype=torch.float64), peaks=peaks)
            assert at == (0, 40, 80)
            assert torch.equal(torch.cat(pieces, 2).nan_to_num(7), want.nan_to_num(7))
    assert [(graph.replays, len(graph.launches)) for graph in captured.graphs] == [(8, 2)]


# -- copies to the host ----------------------------------------------------------------------------------------------


def test_a_gpus_piece_is_copied_while_the_next_one_is_made_and_a_cpus_is_not_held_back(monkeypatch):
    told = []

    class Copy:
        def __init__(self, piece):
            told.append(f"copy {piece.name}")
            self.piece = piece

        def wait(self):
            told.append(f"wait {self.piece.name}")
            return self.piece

    def pieces(device):
        for name in "abc":
            told.append(f"make {name}")
            piece = SimpleNamespace(name=name, device=torch.device(device))
            piece.cpu = lambda piece=piece: piece
            yield ord(name), piece

    monkeypatch.setattr(host, "_Copy", Copy)
    for device, order in (
        ("cuda", "make a, copy a, make b, copy b, wait a, a, make c, copy c, wait b, b, wait c, c"),
        ("cpu", "make a, a, make b, b, make c, c"),
    ):
        told.clear()
        for number, piece in host.on_host(pieces(device)):
            assert number == ord(piece.name)
            told.append(piece.name)
        assert ", ".join(told) == order
    assert not [*host.on_host([])]
