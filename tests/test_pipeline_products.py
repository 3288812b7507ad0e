"""What a song multiplies, weight by weight, on the references and on the kernels: every exact saving shows in it.

Names are the weights' own, rows those of what they are multiplied with. A weight that is stacked, or of which a part is
taken, counts by where that part begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import acefast
from acefast.pipeline import Pipeline
from acefast.sampling import Cancelled
from acefast.sim.interpreter import interpreted
from acefast.testing import TINY_BASE, write_checkpoint
from tests.conftest import NARROW_VAE
from tests.songs import song

pytestmark = pytest.mark.usefixtures("offline", "few_programs")
FACTORS = {"linear": (0, 1), "mm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "bmm": (0, 1)}
LAYERS = 2
SHORT = dict(duration=5.0, semantics="diffusers")  # 125 frames, 63 tokens, which the kernels take as 64


class Products(TorchDispatchMode):
    """Within the block: name of a weight -> rows of each product with it."""

    def __init__(self, model):
        super().__init__()
        self.rows: dict[str, list[int]] = defaultdict(list)
        self.names = {}
        for part in ("text_encoder", "condition_encoder", "transformer"):
            for name, weight in getattr(model, part).named_parameters():
                self.names[weight.data_ptr()] = f"{part}.{name}"
        for i, layer in enumerate(model.transformer.layers):
            values = layer.cross_attention.kv.chunk(2)[1]
            self.names[values.data_ptr()] = f"transformer.layers.{i}.cross_attention.v"
        context = 2 * model.config.audio_acoustic_hidden_dim * model.config.patch_size
        patch = model.transformer.patch.weight
        self.names[patch.data_ptr()] = "context"
        self.names[patch[:, context:].data_ptr()] = "latents"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        at = FACTORS.get(func._schema.name.partition("::")[2])
        if at is not None:
            x, weight = (args[i] for i in at)
            self.rows[self.names.get(weight.data_ptr(), "")].append(x.numel() // x.shape[-1])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = dataclasses.replace(TINY_BASE, num_hidden_layers=LAYERS)
    return write_checkpoint(tmp_path_factory.mktemp("short"), config=config, vae_config=NARROW_VAE)


class Made(NamedTuple):
    """Makes a song of ``SHORT`` and says what it multiplied, with one model for all songs of a test."""

    kernels: bool
    pipe: Pipeline

    def __call__(self, *words, **options):
        products, path = Products(self.pipe.model), interpreted() if self.kernels else contextlib.nullcontext()
        with path, products, contextlib.suppress(Cancelled):
            song(self.pipe, *words, **{**SHORT, **options})
        return products.rows


@pytest.fixture
def maker(folder, monkeypatch):
    model = acefast.load(folder, device="cpu", dtype="float32").model
    monkeypatch.setattr(model, "decode", lambda z, *_: torch.zeros(len(z), 2, z.shape[1] * 1920))
    return lambda kernels: Made(kernels, Pipeline(model, "triton" if kernels else None))


def of(rows, *parts):
    """The weights of these parts that were multiplied."""
    return [name for name in rows if name.startswith(parts)]


@pytest.mark.parametrize("kernels", [False, True], ids=["references", "kernels"])
def test_a_song_and_another_of_the_same_prompt(maker, kernels):
    """Two seeds of one prompt; the second of two steps is guided. Then two more seeds, for one step."""
    made = maker(kernels)
    S, prompt, lyrics = (64, 192, 32) if kernels else (63, 162, 26)  # padded where the kernels run
    E = 192 if kernels else prompt + lyrics + 1
    options = dict(timesteps=(1.0, 0.5), steps=None, guidance_interval=(0.4, 0.8))
    rows = made(seed=[1, 2], **options)
    assert rows["context"] == [S]  # once, and for both
    assert rows["latents"] == [2 * S, 2 * S]
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}."
        assert rows[layer + "cross_attention.kv"] == [E]
        assert rows[layer + "cross_attention.v"] == [1]  # unconditional rows get a constant
        assert rows[layer + "cross_attention.q"] == [2 * S, 2 * S]
        assert rows[layer + "cross_attention.o"] == [1, 2 * S, 2 * S]
        split = 4 * S if i else 2 * S  # they are the conditional ones up to the first cross-attention
        assert rows[layer + "self_attention.qkv"] == rows[layer + "self_attention.o"] == [2 * S, split]
        assert rows[layer + "mlp.down"] == [2 * S, 4 * S]  # and are there in the interval alone
    assert rows["transformer.time.linear_1.weight"] == [2] and rows["transformer.time_r.linear_1.weight"] == [1]
    assert rows["text_encoder.layers.0.self_attn.q_proj.weight"] == rows["condition_encoder.text.weight"] == [prompt]
    assert rows["condition_encoder.lyric_embed.weight"] == [lyrics]
    assert rows["condition_encoder.timbre_embed.weight"] == [750]

    rows = made(seed=[3, 4], on_step=lambda info: False, **options)  # cancelled after a step
    assert rows["latents"] == [2 * S] and rows["context"] == [S]
    assert not of(rows, "text_encoder", "condition_encoder", "transformer.time")
    assert rows["transformer.layers.1.cross_attention.o"] == [2 * S]
    projected = [E][kernels:]  # there, keys and values still lie where the first song put them
    assert rows["transformer.condition.weight"] == rows["transformer.layers.0.cross_attention.kv"] == projected


def test_lyrics_are_kept_where_the_prompt_changes_and_the_other_way_round(maker):
    made = maker(kernels=False)
    lyrics, prompt = "condition_encoder.lyric", "text_encoder"
    made("drill", lyrics="[verse]\nla", steps=1)
    assert not of(made("trap", lyrics="[verse]\nla", steps=1), lyrics, "condition_encoder.timbre")
    rows = made("trap", lyrics="[verse]\nlo", steps=1)
    assert of(rows, lyrics) and not of(rows, prompt, "condition_encoder.timbre")
