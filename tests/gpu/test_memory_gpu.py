"""The plan of a song's memory on a GPU against what was allocated; both policies; what is said where it runs out."""

from __future__ import annotations

import contextlib
import gc

import numpy as np
import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

import acefast
from acefast.expand import expand
from acefast.memory import Job, Networks, plan
from acefast.models.v15.config import Config, VAEConfig
from acefast.stages import OutOfMemory
from acefast.testing import write_checkpoint

DEVICE = "cuda"
# 0.5 GB in bf16: what is not static, cuBLAS' scratch above all, is a small part of the whole
CONFIG = Config(
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    encoder_hidden_size=1024,
    encoder_intermediate_size=3072,
    encoder_num_attention_heads=8,
    encoder_num_key_value_heads=4,
    text_hidden_dim=512,
    num_lyric_encoder_hidden_layers=4,
    num_timbre_encoder_hidden_layers=2,
    num_attention_pooler_hidden_layers=1,
    is_turbo=False,
    model_version="base",
)
VAE = VAEConfig(encoder_hidden_size=64, decoder_channels=64)
SONG = dict(seed=3, duration=60.0, steps=4)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("small"), config=CONFIG, vae_config=VAE, dtype=torch.bfloat16)


@contextlib.contextmanager
def loaded(folder, memory):
    """A pipeline, and the bytes that torch had allocated before it was loaded."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # which otherwise stay for the life of the process
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    yield acefast.load(folder, device=DEVICE, memory=memory), before


def planned(pipe, songs=1):
    model = pipe.model
    (request,), _ = expand("drill", **SONG)
    tokens = model.tokens(request.for_checkpoint(model.traits), SONG["duration"])
    job = Job(SONG["duration"], songs, 1 + sum(len(t.ids) for t in tokens), SONG["steps"])
    return plan(Networks.of(model.checkpoint), job, model.dtype, model.device, model.memory)


def measured(pipe, before):
    """A song, and the peak of another one with everything in place: what stays and what comes and goes."""
    first = pipe.generate("trap", **SONG).audio
    torch.cuda.reset_peak_memory_stats()
    second = pipe.generate("drill", **SONG).audio
    torch.cuda.synchronize()
    return (first, second), torch.cuda.max_memory_allocated() - before


def test_songs_take_what_is_planned_and_low_makes_the_same_ones_with_less(folder):
    made, peaks = {}, {}
    for memory in ("fast", "low"):
        with loaded(folder, memory) as (pipe, before):
            assert pipe.model.memory == memory
            made[memory], peaks[memory] = measured(pipe, before)
            told = planned(pipe)
            if memory == "low":
                assert set(pipe.model.residence.here) == {"decoder"}
                transformer, weights = pipe.model.residence.away["transformer"]
                assert all(t.device.type == "cpu" for t in transformer.parameters())
                assert all(t.is_pinned() for t in weights)
                del transformer, weights
            del pipe
        assert peaks[memory] <= told.peak <= 1.1 * peaks[memory], f"{peaks[memory]} bytes; {told}"
    assert peaks["low"] < 0.75 * peaks["fast"]
    for fast, low in zip(made["fast"], made["low"]):
        assert fast.any() and np.array_equal(fast, low)


def test_what_does_not_fit_is_refused_with_the_plan_and_leaves_the_rest_working(folder):
    with loaded(folder, "fast") as (pipe, _):
        song = pipe.generate("drill", **SONG).audio
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
        try:
            with pytest.raises(OutOfMemory) as caught:
                pipe.generate("drill", **{**SONG, "seed": list(range(8))})
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        for words in (
            "ran out of memory when",
            "lower duration or the number of songs",
            "memory='low'",
            "plan of 8 songs",
        ):
            assert words in str(caught.value)
        del caught  # and the frames that it holds
        assert np.array_equal(pipe.generate("drill", **SONG).audio, song)
        del pipe


def test_auto_takes_fast_where_everything_fits(folder):
    with loaded(folder, "auto") as (pipe, before):
        assert pipe.model.memory == "fast"
        beside = torch.cuda.memory_allocated() - before - sum(planned(pipe).weights.values())
        assert -(2 << 20) < beside < 72 << 20  # tables; scratch of cuBLAS
        del pipe
