"""Passes of v1's transformer on static memory: the same velocities, whatever was in it before, replayed or launched."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from acefast import graphs as graphs_module
from acefast.graphs import Graphs
from acefast.models.v1.dit import DiT
from acefast.models.v1.replay import Pass, PassShape
from acefast.sim.graph import check_step
from acefast.sim.replay import Recording
from tests.models.v1.fill import TINY, normal, official_tensors, ours, relative
from tests.songs import counted

CONFIG = dataclasses.replace(TINY, num_layers=17)  # the last two of which ERG weakens
# frames, conditions of each song, branches: four shapes, the largest one first, as a growing arena forgets the others
SONGS = [(20, (70, 30), 2), (20, (12, 7), 2), (20, (9,), 1), (33, (5, 9), 3), (20, (63, 64), 2), (20, (12, 7), 2)]


@pytest.fixture(scope="module")
def dit():
    return ours(DiT, CONFIG, official_tensors(CONFIG))


def evaluated(dit, frames, lengths, branches, t=0.7):
    """Velocities of songs with conditions of these lengths."""
    sequences = [normal(40 + i, length, CONFIG.hidden_size) for i, length in enumerate(lengths)]
    null = [normal(60 + i, length, CONFIG.hidden_size) for i, length in enumerate(lengths)]
    others = dict(null=null if branches > 1 else (), text_only=null[::-1] if branches > 2 else ())
    with torch.inference_mode():
        given = dit.prepare(sequences, frames, **others)
        latents = normal(3, len(lengths), frames, CONFIG.frame_size)
        made = [dit.velocity(latents, at, given, unconditional=branches > 1) for at in (t, t / 2)]
    return [torch.cat(m) if branches > 1 else m for m in made]


@pytest.fixture(scope="module")
def wanted(dit):
    return [evaluated(dit, *song) for song in SONGS]


@pytest.fixture
def static(dit, monkeypatch):
    monkeypatch.setattr(DiT, "static", True)
    monkeypatch.setattr(dit, "graphs", Graphs(torch.device("cpu")))
    return dit


def test_a_pass_on_static_memory_is_the_pass(static, wanted, monkeypatch):
    loads, made = counted(monkeypatch, Pass, "_put"), counted(monkeypatch, Pass, "__init__")
    for song, want in zip(SONGS, wanted):
        for a, b in zip(evaluated(static, *song), want):
            assert relative(a, b) <= 1e-5 and a.dtype == torch.float32
    assert len(loads) == len(SONGS)  # once a song, not once a step
    assert len(made) == 4


def test_a_replayed_pass_is_the_launched_one(static, monkeypatch):
    launched = [evaluated(static, *song) for song in SONGS]
    monkeypatch.setattr(graphs_module, "captured", lambda launch, graphs: Recording(launch))
    static.graphs = Graphs(torch.device("cpu"))
    static.graphs.enabled = True
    launches = counted(monkeypatch, Pass, "launch")
    for song, want in zip(SONGS, launched):
        for a, b in zip(evaluated(static, *song), want):
            assert torch.equal(a, b)
    assert static.graphs.failed == [] and len(launches) == 2 * 4  # launched once and captured once, of each shape


def test_songs_that_share_their_conditions_are_one_row_of_static_memory(static, monkeypatch):
    """Of two lengths, so that there is a mask; and again when the conditions before are gone."""
    sequence, null = normal(40, 12, CONFIG.hidden_size), normal(60, 9, CONFIG.hidden_size)
    latents, made = normal(3, 3, 20, CONFIG.frame_size), counted(monkeypatch, Pass, "__init__")
    with torch.inference_mode():
        for i in range(3):
            shared = static.prepare([sequence * (1 + i)], 20, null=[null])
            given = static.prepare([sequence * (1 + i)] * 3, 20, null=[null] * 3)
            pairs = zip(*(static.velocity(latents, 0.7, c, unconditional=True) for c in (given, shared)))
            assert all(relative(a, b) <= 1e-5 for a, b in pairs)
            del shared, given
    assert [shape.rows for _, _, shape, _ in made] == [6, 2]


def test_what_is_handed_out_is_no_static_memory(static):
    first, second = evaluated(static, *SONGS[0])
    assert not torch.equal(first, second)


def test_conditions_of_the_same_content_are_not_put_there_again(static, monkeypatch):
    loads, latents = counted(monkeypatch, Pass, "_put"), normal(3, 1, 20, CONFIG.frame_size)
    made = []
    with torch.inference_mode():
        for key in ("drill", "drill", "trap"):
            given = static.prepare([normal(40 + len(key), 12, CONFIG.hidden_size)], 20)
            given.key = key
            made.append(static.velocity(latents, 0.7, given))
    assert len(loads) == 2 and torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_other_weights_are_seen_though_the_conditions_are_the_same(static):
    """As after a LoRA is merged: keys and values are made anew with the conditions, the rest lies where it lay."""
    with torch.inference_mode():
        given = static.prepare([normal(40, 12, CONFIG.hidden_size)], 20)
        latents = normal(3, 1, 20, CONFIG.frame_size)
        before = static.velocity(latents, 0.7, given)
        static.graphs.spoil()
        given.prepared["layers"][0].v.zero_()
        assert not torch.equal(before, static.velocity(latents, 0.7, given))


@pytest.mark.parametrize("songs, branches", [(1, 1), (1, 2), (2, 3)])
def test_at_full_size_nothing_in_a_pass_waits_or_moves(songs, branches):
    """On meta tensors; what comes and goes within, a graph's pool holds."""
    from acefast.models.v1.config import Config

    config = dataclasses.replace(Config(), num_layers=2)
    with torch.device("meta"):
        dit = DiT(config).to(torch.bfloat16)
    shape = PassShape(songs, branches, False, 322, 512)
    found = Pass(dit, shape, Graphs(torch.device("meta")))
    static = (dit, found.memory, found.evaluation.rope)
    with torch.inference_mode():
        report = check_step(found.launch, static=static)
    report.require(allow=("allocation",))
    assert report.count("sync") == report.count("moving") == report.count("host") == 0
