"""Whole songs, from prompt and lyrics to 48 kHz, against upstream's own pipeline on the same tiny random checkpoint.

Golden numbers: tests/golden/v1/make_song.py. Where ours differs by choice is in test_loop_bugs.py and test_codec.py.
"""

from __future__ import annotations

import pytest
import torch

import acefast
from tests.models.v1 import song_cases
from tests.models.v1.fill import golden, relative

GATE = 1e-4  # relative L2 of a trajectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("songs")


@pytest.fixture(scope="module")
def pipe(folder):
    return acefast.load(song_cases.write(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def upstreams():
    return golden("song")


def test_lyrics_are_upstreams_ids(pipe, upstreams):
    assert pipe.model.lyric_tokenizer.ids(song_cases.LYRICS, None) == upstreams["ids"].tolist()


@pytest.mark.parametrize("name", song_cases.CASES)
def test_a_song_is_upstreams(pipe, folder, upstreams, name):
    _, options = song_cases.CASES[name]
    song = pipe.generate(**song_cases.ours(options, song_cases.write_source(folder)))
    assert relative(song.latents[:: song_cases.STEP_FRAMES], upstreams[f"{name}.latents"]) <= GATE
    audio = torch.from_numpy(song.audio)[:, :: song_cases.STEP_SAMPLES]
    assert relative(audio, upstreams[f"{name}.audio"]) <= GATE
