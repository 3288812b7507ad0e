"""Steps kept for a bucket and replayed: the bytes of steps that are launched, song after song.

Recorded and replayed on a CPU with a graph's semantics (acefast.sim.replay), on the references: what the host did at
the recording is what a replay does, whatever has been loaded since.
"""

from __future__ import annotations

import pytest
import torch

from acefast import graphs as graphs_module
from acefast import sampling
from acefast.graphs import Graphs
from acefast.guidance import Guidance
from acefast.models.v15.dit import DiT
from acefast.models.v15.step import Step
from acefast.sim.replay import Recording
from acefast.testing import TINY_BASE
from tests.models.fill import official_tensors, ours
from tests.models.test_step import TIMES, batch, stepping
from tests.songs import counted

SONGS = [([131], [65]), ([90], [70]), ([255], [110]), ([131], [65])]  # frames and conditions: one bucket of each


@pytest.fixture(scope="module")
def model():
    tensors = {name: t.bfloat16().float() for name, t in official_tensors(TINY_BASE).items()}
    return ours(DiT, TINY_BASE, tensors)


@pytest.fixture
def recording(monkeypatch):
    """``Replayed`` records and replays on the CPU."""
    monkeypatch.setattr(graphs_module, "captured", lambda launch, graphs: Recording(launch))
    graphs = Graphs(torch.device("cpu"))
    graphs.enabled = True
    return graphs


def made(model, graphs, songs, guidance, times=TIMES, *, held=False, later=False, **options):
    """The latents of one batch after another."""
    found = []
    with torch.inference_mode():
        for seed, (frames, conditions) in enumerate(songs):
            song = batch(TINY_BASE, frames, conditions, seed)
            given = model.prepare(song.states, song.lengths, song.context, null_condition=song.null, frames=song.frames)
            rest = dict(options)
            if held:
                source = song.context[..., : song.noise.shape[2]]
                rest["held"] = torch.arange(max(frames)) % 7 > 2, source, song.noise, 1
            if later:
                other = torch.randn(1, 9, TINY_BASE.encoder_hidden_size, generator=torch.Generator().manual_seed(seed))
                rest |= {"later": model.prepare(other, None, song.context[:1], null_condition=song.null), "switch": 1}
            step = stepping(model, given, times, len(frames), guidance, graphs, **rest)
            found.append(sampling.sample(None, song.noise, times, advance=step))
    return found


CASES = {
    "plain": (SONGS, Guidance(1.0), {}),
    "guided": (SONGS, Guidance(5.0), {}),
    "guided at first, repaint": (SONGS[:3], Guidance(5.0, "cfg", (0.8, 1.0)), dict(held=True)),
    "two songs, other conditions": ([([131, 61], [65, 70]), ([99, 180], [100, 80])], Guidance(3.0), dict(later=True)),
}


@pytest.mark.parametrize("songs, guidance, options", CASES.values(), ids=CASES)
def test_replayed_steps_are_the_launched_ones(model, recording, monkeypatch, songs, guidance, options):
    want = made(model, Graphs(torch.device("cpu")), songs, guidance, **options)
    steps = counted(monkeypatch, Step, "__init__")
    got = made(model, recording, songs, guidance, **options)
    assert len(steps) == 1 and recording.failed == []  # one bucket
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    step = steps[0][0]
    assert step.latents.untyped_storage().data_ptr() not in {a.untyped_storage().data_ptr() for a in got}
    captured = {replayed.name for replayed in (*step.replay.values(), step.prepare) if replayed.graph}
    assert captured == {"prep"} | {"step_cfg" if guidance.active(t) else "step" for t in TIMES}


def test_numbers_of_a_song_are_not_captured(model, recording):
    """Scale, momentum, bound and parallel share, and the times of a schedule."""
    numbers = [
        (Guidance(5.0), [1.0, 0.6]),
        (Guidance(2.0, momentum=0.5, norm_threshold=0.1, eta=0.7), [1.0, 0.6]),
        (Guidance(5.0, "cfg"), [0.9, 0.3]),
        (Guidance(5.0), [1.0, 0.7, 0.4]),
    ]
    for guidance, times in numbers:
        fresh = Graphs(torch.device("cpu"))
        got, want = (made(model, graphs, SONGS[:1], guidance, times)[0] for graphs in (recording, fresh))
        assert torch.equal(got, want)
    assert len(recording._kept["step"]) == 1 and recording.failed == []
