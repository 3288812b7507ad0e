"""Songs on a GPU with CUDA graphs and without: the same bytes. Audio is left out, see test_vae_gpu.py."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

import acefast
from acefast.graphs import Graphs
from acefast.models.v15.step import Step
from acefast.testing import write_checkpoint
from tests.songs import song

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]

BUCKET = [dict(duration=5.0), dict(duration=10.2, lyrics="[verse]\nword after word"), dict(duration=5.0)]
VARIED = [*BUCKET, dict(duration=30.0), dict(prompt=["drill", "lo-fi"], seed=[1, 2]), dict(duration=5.0)]
CASES = {
    "plain": ("turbo", VARIED, {}),
    "guided": ("base", VARIED, {}),
    "guided in an interval, cfg": ("base", BUCKET, dict(guidance="cfg", guidance_interval=(0.0, 0.8))),
    "other numbers of guidance": ("base", [{}, dict(guidance_scale=2.0, guidance_eta=0.5, guidance_norm=0.5)], {}),
    "sde": ("turbo", VARIED, dict(solver="sde")),
    "guided sde": ("base", BUCKET, dict(solver="sde")),
    "two seeds of one prompt": ("base", [dict(seed=[3, 4]), dict(seed=[5, 6])], {}),
    "repaint": ("turbo", [dict(start=1.0, end=3.0), dict(start=0.0, end=2.0)], dict(task="repaint", strength=0.5)),
    "a cover that fades": ("turbo", [dict(strength=0.5), dict(strength=0.6, prompt="lo-fi")], dict(task="cover")),
}


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    """By kind: a pipeline with tiny random weights, whose audio is silence and whose sources are noise."""
    made = {}
    for kind in ("turbo", "base"):
        folder = write_checkpoint(tmp_path_factory.mktemp(kind), variant=kind)
        pipe = made[kind] = acefast.load(folder, device=DEVICE, dtype="bfloat16", backend="triton")
        pipe.model.decode = lambda z, *_: torch.zeros(len(z), 2, z.shape[1] * 1920)
        pipe.model.encode = lambda audio, config=pipe.model.config: noise(audio.shape[1] // 1920, config)
    return made


def noise(frames, config):
    """A mean and a standard deviation."""
    shape, g = (1, frames, config.audio_acoustic_hidden_dim), torch.Generator().manual_seed(frames)
    return [torch.rand(shape, generator=g).to(DEVICE) for _ in range(2)]


@pytest.fixture
def begin(pipes, monkeypatch):
    """``begin(kind, enabled)``: that pipeline with static memory of its own, and the ``Graphs``."""

    def begin(kind, enabled, **options):
        graphs = Graphs(torch.device(DEVICE), enabled=enabled, **options)
        monkeypatch.setattr(pipes[kind].model, "graphs", graphs)
        return pipes[kind], graphs

    return begin


def latents(pipe, songs, **options):
    made = [song(pipe, **{**options, **one}) for one in songs]
    return [one.latents for each in made for one in (each if isinstance(each, list) else [each])]


def same(got, want) -> bool:
    return all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(got, want, strict=True))


def replays(graphs) -> dict[str, bool]:
    """Whether each step that is kept has a graph."""
    steps = graphs._kept["step"].values()
    parts = [part for step in steps for part in (step.prepare, *step.replay.values())]
    return {part.name: part.graph is not None for part in parts if part.graph or part.launched}


@pytest.mark.parametrize("kind, songs, options", CASES.values(), ids=CASES)
def test_songs_are_the_same_bytes_with_graphs_and_without(begin, tune, kind, songs, options):
    if "task" in options:
        options = {**options, "source": tune}
    want = latents(begin(kind, False)[0], songs, **options)
    pipe, graphs = begin(kind, True)
    assert same(latents(pipe, songs, **options), want) and graphs.failed == []
    assert DEVICE != "cuda" or (all(replays(graphs).values()) and len(replays(graphs)) >= 2)
    assert same(latents(pipe, songs, **options), want)  # all of it replayed


def test_a_failed_capture_is_one_line_of_the_log_and_the_song_is_the_same(begin, monkeypatch, caplog):
    want = latents(begin("base", False)[0], VARIED[:3])
    launch = Step.launch

    def waits(step, unconditional):
        launch(step, unconditional)
        step.clock[0].item()  # which no capture allows

    pipe, graphs = begin("base", True)
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING, "acefast"):
        broken.setattr(Step, "launch", waits)
        assert same(latents(pipe, VARIED[:3]), want)
    if DEVICE == "cuda":
        (record,) = caplog.records
        assert record.getMessage().startswith("step_cfg cannot be captured as a CUDA graph and is launched each time: ")
        assert graphs.failed == ["step_cfg"] and torch.cuda.current_stream() == torch.cuda.default_stream()
        torch.cuda.empty_cache()
    pipe, graphs = begin("base", True)  # what comes behind is captured
    assert same(latents(pipe, VARIED[:3]), want) and graphs.failed == []


def test_what_is_forgotten_is_made_again_and_a_growing_arena_changes_no_bit(begin):
    songs = [dict(duration=30.0), dict(duration=5.0), dict(duration=5.0, steps=9), dict(duration=5.0)]
    want = latents(begin("base", False)[0], songs)
    pipe, graphs = begin("base", True, limit=1)
    assert same(latents(pipe, songs), want) and len(graphs._kept["step"]) == 1
    pipe, graphs = begin("base", True)
    assert same(latents(pipe, [songs[1], songs[0], songs[1]]), [want[i] for i in (1, 0, 1)])
    grown = graphs.arena_bytes
    assert same(latents(pipe, songs), want) and graphs.arena_bytes == grown


def test_nothing_in_the_arena_is_read_before_it_is_written(begin, tune):
    songs = [dict(duration=5.0), dict(task="repaint", source=tune, start=1.0, end=3.0)]
    pipe, graphs = begin("base", True)
    want = latents(pipe, songs)
    for one, first in zip(songs, want):
        graphs._arena.fill_(255)  # NaN in every floating dtype
        graphs.take(pipe)
        assert same(latents(pipe, [one]), [first])


def test_a_hook_may_make_a_song_in_between(begin):
    pipe, _ = begin("base", True)
    want, inner = song(pipe, steps=3), []
    got = song(pipe, steps=3, on_step=lambda info: inner.append(song(pipe, "drill", seed=5).latents))
    assert same([got.latents], [want.latents]) and same(inner, inner[:1] * 3)


def test_a_pool_whose_graphs_are_all_gone_is_captured_into_again(begin):
    pipe, graphs = begin("turbo", True)
    want = latents(pipe, BUCKET[:1])
    for _ in range(2):
        graphs.clear()
        torch.cuda.empty_cache()
        assert same(latents(pipe, BUCKET[:1]), want) and graphs.failed == []
