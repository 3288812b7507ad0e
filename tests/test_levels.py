"""A song's level is set where it was decoded, in one pass, unless something of it is still to be changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from acefast.models.v15 import vae
from acefast.waveform import normalise
from tests.songs import same, song

pytestmark = pytest.mark.usefixtures("offline")
FRAMES = 128  # of a song of 5 s


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
        from acefast.sim.interpreter import interpreted

        with interpreted():
            yield request.param
    else:
        yield request.param


def decoded(monkeypatch, audio, peaks=None):
    """Every song is decoded to ``audio`` [B, 2, N]."""
    monkeypatch.setattr(vae, "decode", lambda *_, **__: vae.Decoded(audio.clone(), peaks))


def loud(rng, B=1):
    return 3 * torch.rand(B, 2, FRAMES * 1920, generator=rng) - 1.5


@pytest.mark.parametrize("dbfs", (-1.0, 0.0, -20.0))
def test_a_decoded_song_has_the_bits_that_normalise_gives_it(backend, tiny_pipe, monkeypatch, rng, dbfs):
    audio = loud(rng, 2)[:, :, :3840] * torch.tensor([1.0, 0.01])[:, None, None]
    latents = torch.zeros(2, 2, 8)
    for peaks in (None, torch.stack([audio.abs().amax((1, 2)), torch.zeros(2)], 1)):
        decoded(monkeypatch, audio, peaks)
        assert torch.equal(tiny_pipe.model.decode(latents), audio)
        for got, raw in zip(tiny_pipe.model.decode(latents, None, dbfs), audio):
            assert np.array_equal(got.numpy(), normalise(raw.numpy(), dbfs))


def test_peaks_that_the_decoder_found_are_not_looked_for_again(tiny_pipe, monkeypatch):
    decoded(monkeypatch, torch.full((1, 2, 10), 0.5), torch.tensor([[0.0, 1.0]]))
    assert (tiny_pipe.model.decode(torch.zeros(1, 1, 8), None, 0.0) == 0.5).all()


LEVELS = {
    "by default": ({}, -1.0),
    "asked for": (dict(normalize=-6), -6.0),
    "left alone": (dict(normalize=None), None),
    "cover": (dict(task="cover"), -1.0),
    "repaint": (dict(task="repaint", start=1.5, end=3.0), None),
    "repaint, asked for": (dict(task="repaint", start=1.5, end=3.0, normalize=-6), None),
    "repaint that splices nothing": (dict(task="repaint", start=1.5, end=3.0, repaint_mode="aggressive"), -1.0),
    "repaint that keeps nothing": (dict(task="repaint", start=1.5, end=3.0, semantics="diffusers"), -1.0),
}


@pytest.mark.parametrize("options, level", LEVELS.values(), ids=LEVELS)
def test_the_decoder_is_told_the_level_unless_parts_are_put_back(tiny_pipe, monkeypatch, tune, options, level):
    told = []

    def decode(latents, on_tile, level):
        told.append(level)
        return torch.full((1, 2, latents.shape[1] * 1920), 0.25)

    monkeypatch.setattr(tiny_pipe.model, "decode", decode)
    made = song(tiny_pipe, **options, **(dict(source=tune) if "task" in options else {}))
    assert told == [level]
    if level is not None:
        assert (made.audio == 0.25).all()  # it is not set a second time


def test_songs_are_the_same_on_the_kernels(tiny_pipe, monkeypatch, rng):
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    decoded(monkeypatch, loud(rng))
    options = dict(normalize=-3, fade_in=0.5, fade_out=1.0)
    want = song(tiny_pipe, **options)
    peak = np.abs(want.audio[:, 24_000:-48_000]).max()
    assert peak == pytest.approx(10 ** (-3 / 20), rel=1e-3) and want.audio[0, 0] == want.audio[1, -1] == 0
    with interpreted():
        pcm = tiny_pipe.model.decode(torch.zeros(1, FRAMES, 8), None, -3.0)
    monkeypatch.setattr(tiny_pipe.model, "decode", lambda *_: pcm)
    assert same(song(tiny_pipe, **options), want)


def test_silence_stays_silence(backend, tiny_pipe, monkeypatch):
    decoded(monkeypatch, torch.zeros(1, 2, 3840))
    assert not tiny_pipe.model.decode(torch.zeros(1, 2, 8), None, -1.0).any()


@pytest.mark.parametrize("normalize", (-1.0, None))
def test_a_decoder_that_overflows_is_told_of_with_the_number_of_samples(tiny_pipe, monkeypatch, rng, normalize):
    import acefast

    audio = loud(rng)
    audio[0, 0, 7], audio[0, 1, 9], audio[0, 1, 10] = torch.nan, torch.inf, -torch.inf
    decoded(monkeypatch, audio)
    sentence = (
        f"audio: 3 of {audio.numel()} samples are NaN or infinite; the decoder overflowed, "
        "try dtype='float32' or another seed"
    )
    with pytest.raises(acefast.RequestError) as caught:
        song(tiny_pipe, normalize=normalize)
    assert str(caught.value) == sentence
