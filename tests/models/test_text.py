"""Texts on static memory: what a graph would hold, at full size and in small, and what padding does not change."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from acefast.backends import use_backend
from acefast.conditions import ConditionCache, Encoded
from acefast.config_files import text_config_for
from acefast.graphs import Graphs
from acefast.models.v15.checkpoint import empty_text_encoder
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.config import Config
from acefast.models.v15.text import ENCODERS, Conditioning, Encoding, padded_text
from acefast.sim.driver import dry_run
from acefast.sim.graph import check_step
from acefast.sim.interpreter import interpreted
from acefast.sim.replay import Recording
from tests.models.fill import relative

GATE = 1e-5  # relative L2 in fp32
PADDING = 7


@pytest.fixture(scope="module")
def full_size():
    """The text encoder and the condition encoder of every published model, without weights."""
    with torch.device("meta"):
        encoder = ConditionEncoder(Config()).to(torch.bfloat16)
    return empty_text_encoder(text_config_for(Config())).to(torch.bfloat16), encoder


@pytest.fixture
def networks(tiny_pipe):
    return tiny_pipe.model.text_encoder, tiny_pipe.model.condition_encoder


def encoding(name, networks, rows, config=None):
    return Encoding(partial(ENCODERS[name], networks), rows, config or networks[1].config, networks[1].timbre_token)


def conditioning(networks, config, graphs=None):
    """The half of a model that makes conditions, on these networks."""
    made, weight = Conditioning(), networks[1].null_condition_emb
    made.config, made.device, made.dtype = config, weight.device, weight.dtype
    made.text_encoder, made.condition_encoder = networks
    made.graphs, made.encodings = Graphs(made.device, enabled=graphs), ConditionCache()
    made.tokenizer = SimpleNamespace(pad_token_id=PADDING)
    return made


def texts(*lengths):
    g = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(100, (n,), generator=g).tolist()) for n in lengths]


@pytest.mark.parametrize("name, rows", [("prompt", 256), ("lyrics", 2048)])
def test_a_text_at_full_size_can_be_captured(full_size, name, rows):
    """The memory that is made within belongs to the graph's own pool."""
    with torch.inference_mode(), dry_run(80), use_backend("triton"):
        text = encoding(name, full_size, rows, Config())
        report = check_step(
            text.launch, static=(full_size, vars(text)), between=lambda run: text.load((run,) * (run + 1), PADDING)
        )
    report.require(allow=("allocation",))
    assert report.undeclared == []
    if name == "lyrics":  # 8 a layer; ids to embeddings, their projection, the last norm, the copy
        assert report.launches.total() == 8 * Config().num_lyric_encoder_hidden_layers + 4


def test_nothing_is_read_back_for_a_batch(full_size):
    """On "meta" there is nothing to read."""
    model = conditioning(full_size, Config())
    timbre = Encoded.of(torch.empty(1, Config().encoder_hidden_size, dtype=torch.bfloat16, device="meta"))
    with torch.inference_mode(), dry_run(80), use_backend("triton"):
        states, lengths, key = model._encoded([*zip(texts(70, 20), texts(300, 90))], [timbre])
    assert states.shape == (2, 384, 2048) and states.device.type == lengths.device.type == "meta"
    assert len({*key[0], *key[1]}) == 5  # the timbre is shared


@pytest.mark.parametrize("name", ENCODERS)
def test_one_recording_replays_every_text_of_its_length_to_the_same_bits(networks, name):
    text, some = encoding(name, networks, 128), texts(128, 3, 70, 1)
    with torch.inference_mode():
        want = [text(ids, PADDING) for ids in some]
        text.replay = Recording(text.launch).replay
        got = [text(ids, PADDING) for ids in some]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert len({t.data_ptr() for t in (*got, text.states)}) == 5  # each has memory of its own


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("length", (1, 17, 64))
def test_padding_changes_no_text(networks, name, length):
    """Beyond the window of 16 too. What lies in it changes no bit; how much, the order of sums."""
    (ids,) = texts(length)
    with torch.inference_mode():
        want = ENCODERS[name](networks, torch.tensor([ids]))[0]
        own, longer, other = (encoding(name, networks, n)(ids, p) for n, p in ((64, 0), (192, 0), (64, 99)))
    assert own.shape == want.shape and torch.equal(own, other)
    assert max(relative(own, want), relative(longer, want)) <= GATE


def test_texts_are_padded_to_few_lengths():
    assert [padded_text("prompt", n) for n in (1, 64, 65, 256)] == [64, 64, 128, 256]
    assert [padded_text("lyrics", n) for n in (1, 128, 129, 2000)] == [128, 128, 256, 2048]


@pytest.mark.usefixtures("few_programs")
def test_kernels_encode_what_the_references_do(tiny_pipe):
    model, ids = tiny_pipe.model, [*zip(texts(60, 30), texts(40, 3))]
    with torch.inference_mode():
        timbre = Encoded.of(torch.ones(1, model.config.encoder_hidden_size))
        want, lengths, key = model._encoded(ids, [timbre])
        with interpreted(), use_backend("triton"):
            got, same, other = model._encoded(ids, [timbre])
    assert want.shape[1] == 101 and got.shape[1] == 128 and lengths.tolist() == same.tolist() == [101, 34]
    assert not {*key[0], *key[1]} & {*other[0], *other[1]} - {timbre.serial}  # each path has bits of its own
    for a, b, n in zip(got, want, lengths):
        assert relative(a[:n], b[:n]) <= GATE and not a[n:].any()
