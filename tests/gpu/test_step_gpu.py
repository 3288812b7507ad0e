"""Whole steps on a GPU: the library's attention, songs against the reference on a CPU, determinism, graphs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast import sampling
from acefast.backends import use_backend
from acefast.guidance import Guidance, guided
from acefast.models.v15.dit import DiT
from acefast.ops.self_attention import library_fits, self_attention
from acefast.testing import TINY_BASE
from tests.models.fill import official_tensors, ours, relative
from tests.models.test_step import Song, batch, stepping

DEVICE = "cuda"
TIMES = [1.0, 0.7, 0.3]
SONGS = [([131], [65]), ([61, 39], [20, 13])]  # latent frames and conditions of each
GUIDANCE = [Guidance(1.0), Guidance(5.0, interval=(0.5, 1.0))]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


def tiny(dtype, device):
    config = dataclasses.replace(TINY_BASE, num_hidden_layers=2)
    tensors = {n: t.bfloat16().float() for n, t in official_tensors(config).items()}
    return ours(DiT, config, tensors, dtype).to(device)


def conditions_of(model, song):
    rest = (song.lengths, song.context, TIMES)
    return model.prepare(song.states, *rest, null_condition=song.null, frames=song.frames)


def by_reference(dtype, song, guidance):
    """On a CPU, on the references."""
    model = tiny(dtype, "cpu")
    with torch.inference_mode(), use_backend("reference"):
        conditions = conditions_of(model, song)
        velocity = guided(lambda x, t, i, both: model(x, t, conditions, unconditional=both), guidance)
        return sampling.sample(velocity, song.noise, TIMES)


def whole_steps(song, guidance):
    """Static memory, and the initial noise, on the GPU."""
    song = Song(*(None if t is None else t.to(DEVICE) for t in song))
    model = tiny(torch.bfloat16, DEVICE)
    return stepping(model, conditions_of(model, song), TIMES, len(song.noise), guidance), song.noise


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("heads", (16, 32))
def test_the_library_attends_to_everything_within_the_lengths(dtype, heads):
    """120 s of one song and 60 s of another, packed as in the model; what lies in the padding is finite."""
    g = torch.Generator(DEVICE).manual_seed(0)
    qkv = torch.randn(2, 1536, heads + 16, 128, generator=g, device=DEVICE).to(dtype)
    q, k, v = qkv.split((heads, 8, 8), 2)
    out, lengths = q.new_empty(2, 1536, heads * 128), torch.tensor([1500, 750], dtype=torch.int32, device=DEVICE)
    assert library_fits(q, out)
    got = self_attention(q, k, v, None, lengths, out=out)
    want = self_attention(q.float(), k.float(), v.float(), None, lengths, backend="reference")
    assert got is out and got.isfinite().all()
    for b, length in enumerate(lengths.tolist()):
        assert relative(got[b, :length], want[b, :length]) <= 4e-3


@pytest.mark.parametrize("guidance", GUIDANCE, ids=["plain", "guided at first"])
@pytest.mark.parametrize("frames, conditions", SONGS)
def test_songs_are_as_near_to_fp32_as_the_references_and_the_same_bits_again(frames, conditions, guidance):
    song = batch(TINY_BASE, frames, conditions)
    exact, rounded = (by_reference(dtype, song, guidance) for dtype in (torch.float32, torch.bfloat16))
    with torch.inference_mode(), use_backend("triton"):
        step, noise = whole_steps(song, guidance)
        got = sampling.sample(None, noise, TIMES, advance=step)
        step, noise = whole_steps(song, guidance)
        again = sampling.sample(None, noise, TIMES, advance=step)
    assert relative(got.cpu(), exact) <= max(1.1 * relative(rounded, exact), 4e-3) and torch.equal(got, again)


@pytest.mark.parametrize("scale", (1.0, 5.0), ids=["plain", "guided"])
def test_one_graph_replayed_is_every_step(scale):
    song = batch(TINY_BASE, *SONGS[1])
    with torch.inference_mode(), use_backend("triton"):
        step, noise = whole_steps(song, Guidance(scale))
        want = sampling.sample(None, noise, TIMES, advance=step)
        step, noise = whole_steps(song, Guidance(scale))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        step.begin(noise, 0)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step.launch(scale > 1)  # compiled and loaded before the capture
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            step.launch(scale > 1)
        step.begin(noise, 0)
        if step.running is not None:
            step.running.zero_()
        for _ in TIMES:
            graph.replay()
    assert torch.equal(step.latents[:, : noise.shape[1]], want)
