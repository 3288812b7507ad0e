"""Prompts and lyrics on a GPU: captured ones have the bits of launched ones, padding changes none, nothing waits."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.backends import use_backend
from acefast.checkpoint import load, open_checkpoint
from acefast.conditions import Encoded
from acefast.models.v15.checkpoint import load_text_encoder
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.text import ENCODERS, Encoding
from tests.models.fill import relative
from tests.models.test_text import GATE, conditioning, texts

DEVICE = "cuda"
NAMES = {"prompt": (5, 64, 33, 1), "lyrics": (100, 128, 3, 70)}  # of one padded length
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


def networks_of(folder, dtype, device=None):
    checkpoint, device = open_checkpoint(folder), device or DEVICE
    with torch.device("meta"):
        encoder = ConditionEncoder(checkpoint.config)
    load(encoder, ConditionEncoder.weight_table(checkpoint.config), checkpoint, device, dtype)
    return load_text_encoder(checkpoint, device, dtype), encoder.eval()


def model_of(folder, dtype, graphs=None):
    networks = networks_of(folder, dtype)
    return conditioning(networks, networks[1].config, graphs)


@contextlib.contextmanager
def on_kernels():
    with torch.inference_mode(), use_backend("triton"):
        yield


@contextlib.contextmanager
def unwaited():
    """Whatever waits for the GPU raises."""
    if DEVICE == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_captured_texts_are_the_launched_ones_whatever_their_length(tiny_base, name, dtype):
    some = texts(*NAMES[name])
    with on_kernels():
        captured, launched = (model_of(tiny_base, dtype, graphs=graphs) for graphs in (True, False))
        want = [launched._encode_text(name, ids) for ids in some]
        for _ in range(2):  # the first text of the first round is launched, and captured behind it
            got = [captured._encode_text(name, ids) for ids in some]
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        (text,) = captured.graphs._kept[name].values()
    assert text.replay.graph is not None or DEVICE == "cpu"
    assert [len(states) for states in got] == [*NAMES[name]] and not captured.graphs.failed


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_text(tiny_base, name, dtype):
    """To rounding against the text alone on a CPU's references, bit for bit by what lies in the padding."""
    (ids,) = texts(60)
    exact, rounded = (
        ENCODERS[name](networks_of(tiny_base, d, "cpu"), torch.tensor([ids]))[0] for d in (torch.float32, dtype)
    )
    networks = networks_of(tiny_base, dtype)
    with on_kernels():
        encode, weight = partial(ENCODERS[name], networks), networks[1].null_condition_emb
        made = [Encoding(encode, rows, networks[1].config, weight) for rows in (128, 256)]
        short, long = (text(ids, 0).cpu() for text in made)
        assert torch.equal(made[0](ids, 99).cpu(), short)
    for got in (short, long):
        assert relative(got, exact) <= (GATE if dtype == torch.float32 else 1.5 * relative(rounded, exact))


def test_what_was_encoded_before_has_the_same_bytes_and_nothing_is_waited_for(tiny_base):
    songs = [*zip(texts(60, 30), texts(100, 3))]
    with on_kernels():
        model = model_of(tiny_base, torch.bfloat16, graphs=True)
        timbre = Encoded.of(torch.ones(1, model.config.encoder_hidden_size, dtype=torch.bfloat16, device=DEVICE))
        first, lengths, key = model._encoded(songs, [timbre])
        with unwaited():
            again, _, same = model._encoded(songs, [timbre])
            model.encodings.clear()
            anew, _, other = model._encoded(songs, [timbre])
    assert key == same != other and lengths.tolist() == [161, 34]
    assert torch.equal(first, again) and torch.equal(first, anew) and first.isfinite().all()
