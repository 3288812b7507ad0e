"""Songs on kept static memory, recorded and replayed on the references: the bytes of songs whose steps are launched."""

from __future__ import annotations

import logging

import pytest
import torch

from acefast import graphs as graphs_module
from acefast.backends import use_backend
from acefast.conditions import ConditionCache
from acefast.graphs import Graphs
from acefast.models.v15.dit import DiT
from acefast.models.v15.dit_layer import CrossAttention
from acefast.models.v15.step import Step
from acefast.models.v15.text import Conditioning
from acefast.request import RequestError
from acefast.sim.replay import Recording
from tests.songs import counted, distance, song

pytestmark = pytest.mark.usefixtures("offline", "undecoded")

BUCKET = [dict(duration=5.0), dict(duration=10.2, lyrics="[verse]\nword after word"), dict(duration=5.0)]
VARIED = [*BUCKET, dict(duration=12.0), dict(duration=5.0, seed=[1, 2], prompt=["drill", "lo-fi"]), dict(duration=5.0)]


@pytest.fixture
def with_graphs(monkeypatch, tiny_pipe, tiny_base_pipe):
    """``with_graphs(pipe, enabled)``: its songs take static memory of their own, as on a GPU; the ``Graphs``."""
    monkeypatch.setattr(graphs_module, "captured", lambda launch, graphs: Recording(launch))
    monkeypatch.setattr(DiT, "static", True)
    monkeypatch.setattr(Conditioning, "_static", True)

    def begin(pipe, enabled, **options):
        graphs = Graphs(torch.device("cpu"), **options)
        graphs.enabled = enabled
        monkeypatch.setattr(pipe.model, "graphs", graphs)
        monkeypatch.setattr(pipe.model, "encodings", ConditionCache())
        return graphs

    return begin


def failing(reason):
    def fail(*_, **__):
        raise RuntimeError(reason)

    return fail


def latents(pipe, *kinds, **options):
    made = [song(pipe, **{**kind, **options}) for kind in kinds]
    return [one.latents for each in made for one in (each if isinstance(each, list) else [each])]


CASES = {
    "plain": ("tiny_pipe", VARIED, {}),
    "guided": ("tiny_base_pipe", VARIED[2:5], {}),
    "guided in an interval, cfg": ("tiny_base_pipe", BUCKET, dict(guidance="cfg", guidance_interval=(0.0, 0.8))),
    "repaint": ("tiny_pipe", [dict(start=1.0, end=3.0), dict(start=0.0, end=2.0)], dict(task="repaint", strength=0.5)),
    "a cover that fades": ("tiny_pipe", [dict(strength=0.5), dict(strength=0.6, prompt="lo-fi")], dict(task="cover")),
}


@pytest.mark.parametrize("kind, songs, options", CASES.values(), ids=CASES)
def test_songs_are_the_same_bytes_with_graphs_and_without(request, with_graphs, tune, kind, songs, options):
    pipe = request.getfixturevalue(kind)
    if "task" in options:
        options = {**options, "source": tune}
    with_graphs(pipe, False)
    want = latents(pipe, *songs, **options)
    graphs = with_graphs(pipe, True)
    got = latents(pipe, *songs, **options)
    assert graphs.failed == [] and all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_they_are_the_songs_of_steps_without_static_memory(tiny_base_pipe, with_graphs, monkeypatch):
    with_graphs(tiny_base_pipe, True)
    got = song(tiny_base_pipe)
    monkeypatch.setattr(DiT, "static", False)
    assert distance(got, song(tiny_base_pipe)) <= 1e-5


def test_a_capture_that_fails_leaves_the_song_as_it_is(tiny_pipe, with_graphs, caplog):
    """Of the SDE: its reference reads the seeds back."""
    with_graphs(tiny_pipe, False)
    want = latents(tiny_pipe, *BUCKET, solver="sde")
    graphs = with_graphs(tiny_pipe, True)
    with caplog.at_level(logging.WARNING, "acefast"):
        got = latents(tiny_pipe, *BUCKET, solver="sde")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)) and graphs.failed == ["step"]
    (record,) = caplog.records
    assert record.getMessage().startswith("step cannot be captured as a CUDA graph and is launched each time: ")


def test_what_is_forgotten_is_made_again(tiny_pipe, with_graphs, monkeypatch):
    """By the limit of entries, and as the arena grows."""
    made = counted(monkeypatch, Step, "__init__")
    kinds = [dict(duration=12.0), dict(duration=5.0), dict(duration=5.0, steps=9), dict(duration=5.0), BUCKET[0]]
    with_graphs(tiny_pipe, True)
    want = latents(tiny_pipe, *kinds)
    assert len(made) == 3
    graphs = with_graphs(tiny_pipe, True, limit=1)
    assert all(torch.equal(a, b) for a, b in zip(latents(tiny_pipe, *kinds), want)) and len(made) == 3 + 4
    small = graphs.arena_bytes
    with_graphs(tiny_pipe, True)
    got = latents(tiny_pipe, kinds[1], kinds[0], kinds[1])
    assert all(torch.equal(a, want[i]) for a, i in zip(got, (1, 0, 1))) and len(made) == 7 + 3
    assert tiny_pipe.model.graphs.arena_bytes == small


def test_nothing_in_the_arena_is_read_before_it_is_written(tiny_base_pipe, with_graphs, tune):
    graphs = with_graphs(tiny_base_pipe, True)
    kinds = [dict(duration=5.0), dict(task="repaint", source=tune, start=1.0, end=3.0)]
    want = latents(tiny_base_pipe, *kinds)
    for kind, first in zip(kinds, want):
        graphs._arena.fill_(255)  # NaN in every floating dtype
        graphs.take(tiny_base_pipe)
        assert torch.equal(latents(tiny_base_pipe, kind)[0], first)


def test_conditions_that_lie_there_are_not_computed_again(tiny_base_pipe, with_graphs, monkeypatch):
    """Those of the same key, while nobody else has taken the arena; a context always is."""
    graphs, layers = with_graphs(tiny_base_pipe, False), tiny_base_pipe.model.config.num_hidden_layers
    encoded, keys = Conditioning._encoded, iter(["a", "a", "a", "b", None, None, "a", "a"])
    monkeypatch.setattr(Conditioning, "_encoded", lambda *args: (*encoded(*args)[:2], next(keys)))
    # The prompt's tokens hold the duration: to be the same conditions it has to be the same one in both.
    monkeypatch.setattr("acefast.models.v15.text.text_prompt", lambda *_, **__: "boom bap")
    want = {}
    projected, computed = counted(monkeypatch, CrossAttention, "keys_values"), []
    for seconds, taken in ((5.0, 0), (5.0, 0), (8.0, 0), (5.0, 0), (8.0, 0), (8.0, 0), (5.0, 0), (5.0, 1)):
        if taken:
            graphs.take(tiny_base_pipe)
        projected.clear()
        made = song(tiny_base_pipe, duration=seconds).latents
        assert torch.equal(made, want.setdefault(seconds, made))
        computed.append(len(projected) // layers)
    assert computed == [1, 0, 0, 1, 1, 1, 1, 1]


def test_conditions_that_failed_halfway_do_not_count_as_loaded(tiny_base_pipe, with_graphs, monkeypatch):
    """Memory ran out, say: the same song asked for again is that song."""
    graphs = with_graphs(tiny_base_pipe, True)
    want = song(tiny_base_pipe).latents
    graphs.clear()
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="no memory"):
        broken.setattr(CrossAttention, "keys_values", failing("no memory"))
        song(tiny_base_pipe)
    assert len(graphs._kept["step"]) == 1 and torch.equal(song(tiny_base_pipe).latents, want)


def test_a_hook_and_a_progress_may_make_a_song_in_between(tiny_base_pipe, with_graphs):
    with_graphs(tiny_base_pipe, True)
    want = song(tiny_base_pipe, steps=3)
    inner = []

    def on_step(info):
        inner.append(song(tiny_base_pipe, "drill", seed=5).latents)

    def progress(stage, done, total):
        if stage == "diffusion" and done == 0:
            inner.append(song(tiny_base_pipe, "drill", seed=5).latents)

    got = song(tiny_base_pipe, steps=3, on_step=on_step, progress=progress)
    assert torch.equal(got.latents, want.latents) and len(inner) == 4
    assert all(torch.equal(one, inner[0]) for one in inner)


def test_warmup_makes_what_later_songs_take(tiny_pipe, with_graphs, monkeypatch):
    graphs = with_graphs(tiny_pipe, True, limit=1)
    song(tiny_pipe, "boom bap, 0", steps=1)  # so that its words are known
    graphs.clear()
    made = counted(monkeypatch, Step, "__init__")
    tiny_pipe.warmup(durations=(5.0, 12.0), batches=(1, 2), prompt="boom bap", steps=1)
    sizes = [step.shape[:2] for step, *_ in made]
    assert len(made) == 4 and len(set(sizes)) == 2
    song(tiny_pipe, duration=7.0), song(tiny_pipe, ["boom bap, a", "boom bap, b"], seed=[1, 2], duration=12.5)
    assert len(made) == 4 and len(graphs._kept["step"]) == 4
    assert {name for name, _ in graphs._pinned} == {"step", "prompt", "lyrics"}
    assert graphs._kept["prompt"] and graphs._kept["lyrics"]


def test_another_backend_has_graphs_of_its_own(tiny_pipe, with_graphs):
    graphs = with_graphs(tiny_pipe, True)
    song(tiny_pipe, steps=1)
    with use_backend("reference"):
        song(tiny_pipe, steps=1)
    assert {name: len(entries) for name, entries in graphs._kept.items()} == {"step": 2, "prompt": 2, "lyrics": 2}
    assert {"auto", "reference"} <= {backend for _, backend, _ in tiny_pipe.model.silences}


def test_warmup_refuses_a_batch_of_no_songs(tiny_pipe):
    for batches in ((0,), ("two",)):
        with pytest.raises(RequestError, match="batches"):
            tiny_pipe.warmup(durations=(5.0,), batches=batches, steps=1)
