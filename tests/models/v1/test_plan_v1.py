"""The plan of v1's memory at full size against what is allocated, on meta tensors, by the references."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import acefast.ops.spectral_conv1d as spectral
import acefast.ops.spectral_conv2d as spectral2d
import acefast.ops.winograd2d as winograd2d
from acefast.backends import use_backend
from acefast.memory import GB, Job, Networks, plan
from acefast.models.v1 import codec, local
from acefast.models.v1.conditions import ConditionEncoder
from acefast.models.v1.config import FRAME
from acefast.models.v1.dit import DiT
from acefast.models.v1.dit_layer import Evaluation
from acefast.models.v1.tasks import frames_of
from tests.live_bytes import LiveBytes

CPU, LAYERS = torch.device("cpu"), 3
BACKENDS = "reference", "triton"


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def full_size(kind, config):
    with torch.device("meta"):
        return kind(config).to(torch.bfloat16)


@pytest.fixture(scope="module")
def networks():
    return Networks.named("v1")


def test_weights_of_the_published_model_need_none_on_disk(networks, offline):
    weights = {name: round(size / 1e9, 2) for name, size in networks.weights(torch.bfloat16, CPU).items()}
    want = {"transformer": 4.99, "condition_encoder": 0.19, "text_encoder": 0.56}
    assert {name: weights[name] for name in want} == want
    assert networks.completed(Job()) == Job(240.0, 1, 4353, 60, True)


@pytest.mark.parametrize("seconds, conditions", [(240.0, 512), (30.0, 512), (240.0, 4353)])
def test_a_guided_steps_memory_is_within_the_plan(networks, seconds, conditions):
    config = dataclasses.replace(networks.config, num_layers=LAYERS)
    networks, H = dataclasses.replace(networks, config=config), config.hidden_size
    dit, frames = full_size(DiT, config), frames_of(seconds)
    with torch.inference_mode(), LiveBytes() as counted:
        states = meta(2, conditions, H)
        kept = dit.keys_values(states, meta(2, dtype=torch.float32))
        latents, times = meta(1, frames, 128, dtype=torch.float32), meta(7, H, dtype=torch.float32)
        made = dit.evaluate(latents, times[:6], times[6], kept, Evaluation(2, dit.rope(frames), None))
    assert made.shape == (2, frames, 128)
    job = networks.completed(Job(seconds, conditions=conditions))
    planned = networks.work(job, torch.bfloat16, CPU, False, None, False)[0]["steps"]
    assert 0.6 < counted.peak / planned <= 1


@pytest.mark.parametrize("tokens", [300, 1000, 4096])
def test_long_lyrics_are_within_the_plan(networks, tokens):
    encoder = full_size(ConditionEncoder, networks.config)
    with torch.inference_mode(), LiveBytes() as counted:
        encoder.lyric_encode(meta(1, tokens, dtype=torch.int64))
    job = networks.completed(Job(60.0, conditions=1 + 256 + tokens))
    planned = networks.work(job, torch.bfloat16, CPU, False, None, False)[0]["text"]
    assert 0.5 < counted.peak / planned <= 1


@pytest.mark.parametrize("kernels", [False, True], ids=["references", "kernels"])
@pytest.mark.parametrize("seconds", [240.0, 20.0])
def test_the_codecs_memory_is_within_the_plan(networks, seconds, kernels, monkeypatch, request):
    """As on a CPU, with the vocoder's transformed weights, and with kernels, whose launches do nothing."""
    launched = request.getfixturevalue("no_launches") if kernels else {}
    device = torch.device("cuda") if kernels else CPU
    for op in (spectral, spectral2d):
        monkeypatch.setattr(op, "tables", lambda *given, tables=op.tables: [t.to("meta") for t in tables(*given)])
    monkeypatch.setattr(winograd2d, "NUMBERS", 1 << 23)  # steps to be counted one by one: 16 times fewer
    decoder = full_size(lambda n: codec.Decoder(*codec.decoder_configs(n, device)), networks)
    encoder = full_size(lambda n: codec.Encoder(*codec.encoder_configs(n, device)), networks)
    frames, tile = frames_of(seconds), codec.tile_frames_on(device)
    middle = frames // 2
    latents, audio = meta(1, frames, 128, dtype=torch.float32), meta(2, frames * FRAME, dtype=torch.float32)
    peaks = []
    with torch.inference_mode(), use_backend(BACKENDS[kernels]):
        with LiveBytes() as counted:
            rows, middle, tile = (
                local.Rows(decoder.latent(latents), 0, frames),
                frames // 2,
                codec.tile_frames_on(device),
            )
            local.run(decoder.steps(), rows, middle * FRAME, min(middle + tile, frames) * FRAME)
        peaks.append(counted.peak)
        with LiveBytes() as counted:
            codec.encode_resampled(encoder, audio, tile)
        peaks.append(counted.peak + audio.nbytes)
    assert ("_conv1d" in launched) == kernels
    job = Job(seconds, source=True)
    planned = plan(networks, job, torch.bfloat16, device, "low", total=80 * GB, kernels=kernels)
    for stage, part, peak in zip(("decode", "source"), ("decoder", "encoder"), peaks):
        work = planned.stages[stage] - planned.weights[part] - planned.work["libraries"] - planned.work["cache"]
        assert 0.25 < peak / work <= 1
