"""A song of v1 with ``backend="triton"``: passes on static memory, the kernels in the interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

import acefast
from acefast.models.v1.replay import Pass
from acefast.pipeline import Pipeline
from acefast.sim.interpreter import interpreted
from tests.songs import counted, distance

pytestmark = pytest.mark.usefixtures("offline")
SONG = dict(prompt="boom bap", lyrics="[verse]\nhello night", language="en", duration=5.0, steps=2, seed=1)
OPTIONS = {
    "guided at last": dict(guidance_interval=0.5),
    "two songs, cfg": dict(
        prompt=["drill", "lo-fi, slow and warm"], seed=[7, 8], steps=1, guidance_interval=1.0, guidance="cfg"
    ),
    "pingpong": dict(solver="pingpong", guidance_scale=1.0),
}


@pytest.fixture(autouse=True)
def undecoded(v1_pipe, monkeypatch):
    monkeypatch.setattr(v1_pipe.model, "decode", lambda latents, *_: torch.zeros(len(latents), 2, 480))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_mean_what_they_mean_on_the_reference(v1_pipe, options, monkeypatch):
    want = v1_pipe.generate(**SONG | options)
    passes = counted(monkeypatch, Pass, "launch")
    with interpreted():
        got = Pipeline(v1_pipe.model, "triton").generate(**SONG | options)
    assert len(passes) == options.get("steps", 2)
    for a, b in zip(got, want) if isinstance(want, list) else ((got, want),):
        assert distance(a, b) <= 1e-5


def test_a_song_in_bf16_is_as_near_to_fp32_as_the_references(v1_pipe, tiny_v1, monkeypatch):
    exact = v1_pipe.generate(**SONG)
    pipe = acefast.load(tiny_v1, device="cpu", dtype="bfloat16")
    monkeypatch.setattr(pipe.model, "decode", v1_pipe.model.decode)
    rounded = pipe.generate(**SONG)
    with interpreted():
        got = Pipeline(pipe.model, "triton").generate(**SONG)
    assert distance(got, exact) <= 1.1 * distance(rounded, exact)
