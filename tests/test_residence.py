"""Where a model's networks are: those of one stage at a time where memory is low, and the songs are the same bytes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import acefast
from acefast import sampling
from acefast.graphs import Graphs
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.plan import STAGES
from acefast.residence import Part, Residence, tensors
from acefast.testing import TINY_BASE, write_checkpoint

CPU = torch.device("cpu")
SONG = dict(prompt="drill", seed=1, duration=5.2, steps=2)
COVER = dict(prompt="jazz", seed=1, task="cover", strength=0.5, steps=2)


class Parked(Residence):
    """Networks are sent to the host's memory as from a GPU; what is away is NaN, so that no work can use it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.parks = True

    def _send(self, name, module):
        super()._send(name, module)
        for tensor in tensors(module):
            tensor.data = torch.full_like(tensor, torch.nan)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A base checkpoint whose frames are 4 samples: next to nothing to decode."""
    config = VAEConfig(2, (2, 2), (1, 2), 2, 8)
    return write_checkpoint(tmp_path_factory.mktemp("short"), variant="base", vae_config=config)


@pytest.fixture(scope="module")
def fast(short):
    return acefast.load(short, device="cpu", dtype="float32", memory="fast")


@pytest.fixture(params=("dropped", "parked"))
def low(short, request):
    return parted(short, request.param)


def parted(folder, kind):
    pipe = acefast.load(folder, device="cpu", dtype="float32", memory="low")
    if kind == "parked":
        pipe.model.residence = Parked(CPU, "low", pipe.model.residence.forget)
    return pipe


@pytest.fixture
def seen(monkeypatch):
    """The networks that were on the device, whenever one was asked for."""
    found, ask = [], Residence.ask

    def asked(self, *args):
        network = ask(self, *args)
        if self.low:
            found.append(frozenset(self.here))
        return network

    monkeypatch.setattr(Residence, "ask", asked)
    return found


def one_stage_at_a_time(seen):
    groups = [set(parts) for parts, _ in STAGES.values()]
    return all(any(here <= group for group in groups) for here in seen)


def test_low_makes_the_same_bytes_with_the_networks_of_one_stage_at_a_time(low, fast, seen):
    want = fast.generate(**SONG)
    first = low.generate(**SONG)
    assert set(low.model.residence.here) == {"decoder"}
    other = low.generate(**{**SONG, "prompt": "trap"})  # its text is encoded anew
    again = low.generate(**SONG)
    assert want.audio.any() and np.array_equal(first.audio, want.audio) and np.array_equal(again.audio, want.audio)
    assert not np.array_equal(other.audio, want.audio)
    assert one_stage_at_a_time(seen) and {frozenset({"transformer"}), frozenset({"decoder"})} <= set(seen)


def test_low_makes_covers_with_a_reference_too(tiny, tiny_pipe, tune, seen):
    options = {**COVER, "source": tune, "reference": tune}
    want, got = (pipe.generate(**options).audio for pipe in (tiny_pipe, parted(tiny, "parked")))
    assert np.array_equal(got, want) and one_stage_at_a_time(seen)
    assert frozenset({"encoder", "audio_tokenizer", "audio_detokenizer"}) in seen


@pytest.mark.slow
@pytest.mark.usefixtures("few_programs")
def test_low_makes_the_same_bytes_on_static_memory_too(tmp_path, seen):
    """The kernels in the interpreter: steps, texts and tiles point to weights, and are forgotten when those leave."""
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    few = dict(num_hidden_layers=1, num_lyric_encoder_hidden_layers=1, num_timbre_encoder_hidden_layers=1)
    config = dataclasses.replace(TINY_BASE, **few)
    folder = write_checkpoint(tmp_path, config=config, vae_config=VAEConfig(2, (2, 2), (1, 2), 2, 8))
    options = {**SONG, "steps": 1, "duration": 5.12}
    with interpreted():
        pipe = acefast.load(folder, device="cpu", dtype="bfloat16", backend="triton")
        want = pipe.generate(**options).audio
        pipe = acefast.load(folder, device="cpu", dtype="bfloat16", backend="triton", memory="low")
        pipe.model.residence = Parked(CPU, "low", pipe.model.residence.forget)
        pipe.generate(**{**options, "prompt": "trap"})
        assert np.array_equal(pipe.generate(**options).audio, want)
    assert pipe.model.graphs.arena_bytes == 0 < pipe.model.tile_graphs.arena_bytes and one_stage_at_a_time(seen)


def test_low_loads_nothing_before_it_is_needed(short):
    assert not parted(short, "dropped").model.residence.here


def test_networks_that_come_back_from_the_host_are_the_same_ones(short):
    pipe = parted(short, "parked")
    first, weights = pipe.model.transformer, [t.clone() for t in tensors(pipe.model.transformer)]
    assert pipe.model.decoder and all(t.isnan().all() for t in tensors(first))
    assert pipe.model.transformer is first and all(map(torch.equal, tensors(first), weights))


def test_networks_that_the_host_has_no_room_for_stay_and_those_that_left_come_back(short, fast, monkeypatch):
    pipe = parted(short, "parked")
    model, full = pipe.model, []
    assert model.text_encoder and model.condition_encoder
    real = Parked._send

    def send(self, name, module):
        if name == "condition_encoder" and not full:
            full.append(name)
            raise MemoryError("no room")
        real(self, name, module)

    monkeypatch.setattr(Parked, "_send", send)
    with pytest.raises(MemoryError):
        _ = model.decoder
    assert set(model.residence.here) == {"condition_encoder"}
    assert np.array_equal(pipe.generate(**SONG).audio, fast.generate(**SONG).audio)


def begin_another(pipe):
    """A song that is given up after its first step: the transformer is what is on the device then."""
    with pytest.raises(sampling.Cancelled):
        pipe.generate("trap", seed=2, duration=5.2, steps=1, on_step=lambda _: False)


def test_songs_begun_while_tiles_are_told_leave_the_outer_ones_networks_in_place(low, fast):
    told = []

    def progress(stage, done, total):
        if stage == "decode" and not told:
            begin_another(low)
            told.append(done)

    assert np.array_equal(low.generate(**SONG, progress=progress).audio, fast.generate(**SONG).audio)
    told.clear()
    assert np.array_equal(
        low.generate(**SONG, progress=lambda *now: now[1] and progress(*now)).audio, fast.generate(**SONG).audio
    )
    assert told[0] > 0


def test_songs_made_between_steps_leave_the_outer_ones_networks_in_place(low, fast, monkeypatch):
    """Also for whole steps on static memory, which hold the transformer and do not ask for it."""
    inner = []

    def on_step(_):
        if not inner:
            inner.append(low.generate("trap", seed=2, duration=5.2, steps=1))

    want = fast.generate(**SONG).audio
    assert np.array_equal(low.generate(**SONG, on_step=on_step).audio, want)
    here, steps = low.model.residence.here, []

    def step(latents, index):
        steps.append("transformer" in here)
        return latents

    step.velocity = lambda index: None
    inner.append(None)
    monkeypatch.setattr(low.model, "advance", lambda *_, **__: step)
    low.generate(**SONG, on_step=lambda _: low.model.decoder and None)
    assert steps == [True, True]


def test_songs_begun_between_two_chunks_of_a_stream_do_not_change_it(tiny, tiny_pipe):
    pipe, pieces = parted(tiny, "parked"), []
    for chunk in pipe.stream(**SONG, normalize=None, ahead=0):
        pieces.append(chunk.samples)
        if len(pieces) == 1:
            begin_another(pipe)
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate(pieces, 1), tiny_pipe.generate(**SONG, normalize=None).audio)


def test_what_was_made_for_networks_is_forgotten_when_they_leave():
    class Model:
        one = Part("a", lambda model: torch.nn.Linear(2, 2))
        two = Part("b", lambda model: torch.nn.Linear(2, 2))

        def __init__(self, memory):
            self.forgotten = 0
            self.residence = Residence(CPU, memory, self.forget)

        def forget(self):
            self.forgotten += 1

    for policy, times in (("low", 2), ("fast", 0)):
        model = Model(policy)
        for part in ("one", "one", "two", "one"):
            getattr(model, part)
        assert model.forgotten == times


def test_graphs_give_their_memory_back_when_everything_is_forgotten():
    graphs = Graphs(CPU)
    graphs.kept("step", 1, lambda: graphs.arena(1000))
    graphs.clear("step")
    assert graphs.arena_bytes == 1000
    graphs.clear()
    assert graphs.arena_bytes == 0 and len(graphs.arena(10)) == 10
