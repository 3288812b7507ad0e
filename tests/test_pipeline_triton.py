"""Prompt to latents and to audio with ``backend="triton"``: static buffers, the kernels in the interpreter."""

from __future__ import annotations

import copy

import pytest
import torch

import acefast
from acefast import sampling
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.step import Step
from acefast.models.v15.vae_tile import DecoderTile
from acefast.pipeline import Pipeline
from acefast.sim.interpreter import interpreted
from acefast.testing import write_checkpoint
from tests.songs import counted, distance, song, velocities

pytestmark = pytest.mark.usefixtures("offline", "undecoded", "few_programs")


def on_triton(pipe, *words, **options):
    with interpreted():
        return song(Pipeline(pipe.model, "triton"), *words, **options)


@pytest.mark.parametrize("kind", ["tiny", "tiny_base"], ids=["turbo", "base, guided"])
def test_a_song_in_bf16_is_as_near_to_fp32_as_the_references(request, kind, monkeypatch):
    exact = song(request.getfixturevalue(f"{kind}_pipe"), lyrics="[verse]\nword after word")
    pipe = acefast.load(request.getfixturevalue(kind), device="cpu", dtype="bfloat16")
    monkeypatch.setattr(pipe.model, "decode", request.getfixturevalue(f"{kind}_pipe").model.decode)
    rounded = song(pipe, lyrics="[verse]\nword after word")
    steps, evaluated = counted(monkeypatch, Step, "launch"), velocities(pipe, monkeypatch)
    got = on_triton(pipe, lyrics="[verse]\nword after word")
    assert len(steps) == 2 and not evaluated
    assert distance(got, exact) <= 1.1 * distance(rounded, exact)


OPTIONS = {
    "two songs": dict(prompt=["drill", "lo-fi, slow and warm, a longer line"], seed=[7, 8]),
    "two seeds of one prompt, cfg in an interval": dict(seed=[7, 8], guidance_interval=(0.0, 0.8), guidance="cfg"),
    "adg, which no launch computes": dict(guidance="adg"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_mean_what_they_mean_on_the_reference(tiny_base_pipe, options):
    want, got = song(tiny_base_pipe, **options), on_triton(tiny_base_pipe, **options)
    for a, b in zip(got, want) if isinstance(want, list) else ((got, want),):
        assert distance(a, b) <= 1e-5


def test_songs_of_two_lengths_are_made_together(tiny_pipe):
    asked = [acefast.Request("drill", seed=i, steps=1, duration=(5.0, 5.8)[i]) for i in range(2)]
    with interpreted():
        got = Pipeline(tiny_pipe.model, "triton").generate(asked)
    for a, b in zip(got, [tiny_pipe.generate(r) for r in asked]):
        assert a.latents.shape == b.latents.shape and distance(a, b) <= 1e-5


def test_a_repaint_holds_on_to_its_source(tiny_pipe, tune):
    options = dict(task="repaint", source=tune, start=1.0, end=3.0, strength=0.5)
    want, got = song(tiny_pipe, **options), on_triton(tiny_pipe, **options)
    assert distance(got, want) <= 1e-5


def test_hooks_see_the_clean_estimate_of_a_guided_song(tiny_base_pipe):
    seen = []
    for made in (song, on_triton):
        made(tiny_base_pipe, on_step=lambda info: seen.append(info.denoised))
    want, got = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert len(want) == len(got) == 2 and not any(t.is_inference() for t in got)
    assert all(float((a - b).norm() / b.norm()) <= 1e-5 for a, b in zip(got, want))


def test_hooks_replace_and_cancel(tiny_pipe):
    def on_step(info):
        seen.append(info.latents)
        return info.latents * 0.5 if info.step == 0 else None

    seen = []
    want, got = song(tiny_pipe, on_step=on_step), on_triton(tiny_pipe, on_step=on_step)
    assert distance(got, want) <= 1e-5 and len(seen) == 4
    torch.testing.assert_close(seen[2:], seen[:2])  # tensors of their own: the second step left the first's alone
    with pytest.raises(sampling.Cancelled, match="after step 1"):
        on_triton(tiny_pipe, on_step=lambda info: False)


def test_a_song_is_decoded_by_the_kernels_too(tmp_path, monkeypatch):
    """Prompt to audio. Of two strides and not five a frame is 4 samples and not 1920."""
    config = VAEConfig(2, (2, 2), (1, 2), 2, 8)
    with interpreted():
        pipe = acefast.load(
            write_checkpoint(tmp_path, vae_config=config), device="cpu", dtype="bfloat16", backend="triton"
        )
    launched = counted(monkeypatch, DecoderTile, "load")
    made = on_triton(pipe, normalize=None)
    assert len(launched) == 1 and pipe.model.decoder.conv1.weight.dtype == torch.bfloat16
    z, decoder = made.latents[None], pipe.model.decoder
    exact, rounded = copy.deepcopy(decoder).float()(z)[0], decoder(z)[0]
    assert made.audio.shape == exact.shape == (2, len(made.latents) * config.hop)
    assert (torch.from_numpy(made.audio) - exact).norm() <= 1.1 * (rounded - exact).norm() <= 0.1 * exact.norm()
