"""The plan of a song's memory against what is allocated; the policies: which networks are on the device, and when."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

import acefast
from acefast import memory, stages
from acefast.backends import use_backend
from acefast.cli import main
from acefast.graphs import Graphs
from acefast.memory import GB, Job, Networks, plan
from acefast.models.v15 import vae
from acefast.models.v15.buffers import Shape, padded_conditions, padded_steps, padded_tokens
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.dit import DiT
from acefast.models.v15.step import Step
from acefast.models.v15.text import encode_lyrics, encode_prompt
from tests.live_bytes import LiveBytes

GPU, CPU = torch.device("cuda"), torch.device("cpu")
FULL = ("turbo", "base", "xl-turbo", "xl-base")
LOADED = ("text_encoder", "condition_encoder", "transformer", "decoder")


def on_gpu(name, job, policy="fast", gigabytes=80):
    return plan(Networks.named(name), job, torch.bfloat16, GPU, policy, total=gigabytes * GB, kernels=True)


def meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def full_size(kind, config):
    with torch.device("meta"):
        return kind(config).to(torch.bfloat16)


# -- the plan against what is allocated --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", ("tiny", "tiny_base"))
def test_weights_are_those_of_the_loaded_networks(name, dtype, request):
    pipe = acefast.load(request.getfixturevalue(name), device="cpu", dtype=dtype)
    parts = (*LOADED, "encoder", "audio_tokenizer", "audio_detokenizer")
    planned = Networks.of(pipe.model.checkpoint).weights(dtype, CPU)
    assert planned == {n: sum(p.nbytes for p in getattr(pipe.model, n).parameters()) for n in planned}
    assert set(planned) == set(parts)


def test_published_models_need_no_weights_on_disk(offline):
    weights = {name: on_gpu(name, Job()).weights for name in FULL}
    assert weights["turbo"] == weights["base"] and round(weights["turbo"]["transformer"] / GB, 1) == 3.2
    assert round(weights["xl-base"]["transformer"] / GB, 1) == 8.4
    with pytest.raises(acefast.CheckpointError, match="unknown"):
        Networks.named("nothing")


@pytest.mark.parametrize("songs, seconds", [(1, 240.0), (3, 60.0)])
@pytest.mark.parametrize("name", FULL)
def test_the_arena_of_the_steps_is_what_is_planned(name, songs, seconds):
    """At full size; what lies beside the arena is small and within what is planned for small things."""
    job, networks = Job(seconds, songs), Networks.named(name)
    planned, given = on_gpu(name, job), networks.completed(job)
    model = full_size(DiT, networks.config)
    tokens = padded_tokens(math.ceil(seconds * 25 / 2))
    shape = Shape(songs, songs, tokens, padded_conditions(given.conditions), padded_steps(given.steps), given.guided)
    graphs = Graphs(torch.device("meta"))
    with LiveBytes() as counted:
        step = Step(model, shape, graphs)
    assert graphs.arena_bytes == planned.work["steps"]
    assert step.latents.is_meta and 0 < counted.peak - graphs.arena_bytes < memory.SMALL


@pytest.mark.parametrize("name", ("turbo", "xl-base"))
def test_what_is_computed_beside_the_arena_is_within_the_plan(name):
    """A schedule's modulations, of which the time embedding's weights in fp32 are most."""
    job, networks = Job(240.0), Networks.named(name)
    model, steps = full_size(DiT, networks.config), networks.completed(job).steps
    with torch.inference_mode(), LiveBytes() as counted:
        model.scheduled([1 - i / steps for i in range(steps)])
    assert 0.6 < counted.peak / on_gpu(name, job).work["sampling"] <= 1


def test_the_longest_prompt_and_lyrics_are_within_the_plan():
    from acefast.models.v15.checkpoint import empty_text_encoder

    networks = Networks.named("turbo")
    text = empty_text_encoder(networks.text_config).to(torch.bfloat16)
    text.rotary_emb = text.rotary_emb.to_empty(device="meta")
    both = text, full_size(ConditionEncoder, networks.config)
    peaks = []
    for encode, rows in ((encode_prompt, 256), (encode_lyrics, 2048)):
        with torch.inference_mode(), LiveBytes() as counted:
            encode(both, meta(1, rows, dtype=torch.int64))
        peaks.append(counted.peak)
    assert 0.6 < max(peaks) / on_gpu("turbo", Job()).work["text"] <= 1


@pytest.mark.parametrize("gigabytes, songs, seconds", [(80, 1, 240.0), (8, 2, 61.0), (24, 1, 12.0)])
def test_a_tiles_memory_is_what_is_planned(gigabytes, songs, seconds, no_launches):
    """Full size, the tiles that a GPU of that size would be given; beside it a song's audio and what leaves it."""
    planned = on_gpu("turbo", Job(seconds, songs), gigabytes=gigabytes)
    with torch.device("meta"):
        decoder = vae.Decoder(Networks.named("turbo").vae_config)
    for name, parameter in decoder.named_parameters():
        parameter.data = parameter.data if "snake" in name else parameter.data.half()
    with torch.inference_mode(), use_backend("triton"), LiveBytes() as counted:
        vae.decode(decoder, meta(songs, round(25 * seconds), 64, dtype=torch.float32), planned.tile_frames)
    assert {"_conv1d", "_residual_unit", "_audio_conv1d"} <= set(no_launches)
    assert decoder.graphs.arena_bytes == planned.work["tile"]
    assert 0 < counted.peak - planned.work["tile"] <= planned.work["song"] + memory.SMALL


def test_stages_add_up_to_the_peak():
    for memory_, policies in (("fast", LOADED), ("low", ("transformer",))):
        p = on_gpu("turbo", Job(240.0), memory_)
        beside = p.work["libraries"] + p.work["cache"] + p.work["steps"] + p.work["sampling"]
        static = p.work["tile"] if memory_ == "fast" else 0
        assert p.stages["diffusion"] == sum(p.weights[n] for n in policies) + beside + static
        assert p.peak == max(p.stages.values()) and set(p.stages) == {"text", "diffusion", "decode"}
    assert on_gpu("turbo", Job(240.0), "low").peak < 0.55 * on_gpu("turbo", Job(240.0)).peak
    assert "encoder" in on_gpu("turbo", Job(source=True)).weights


@pytest.mark.parametrize("duration, songs", [(12.0, 1), (5.2, 2)])
def test_a_song_on_a_cpu_takes_about_what_is_planned(tiny_pipe, duration, songs):
    """Tensors alone; the plan holds what numpy has as well."""
    model = tiny_pipe.model
    planned = plan(Networks.of(model.checkpoint), Job(duration, songs, conditions=64), model.dtype, CPU)
    with LiveBytes() as counted:
        tiny_pipe.generate("drill", seed=list(range(songs)), duration=duration, steps=1)
    assert 0.5 < counted.peak / (planned.peak - sum(planned.weights.values())) <= 1


# -- policies ----------------------------------------------------------------------------------------------------------


def test_auto_is_low_where_the_longest_song_does_not_fit(tiny, monkeypatch):
    networks = Networks.named(str(tiny))
    needed = plan(networks, Job(600.0), torch.float32, CPU).peak
    for free, expected in ((needed, "fast"), (needed - 1, "low"), (None, "fast")):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert acefast.load(tiny, device="cpu", dtype="float32").model.memory == expected
        assert acefast.load(tiny, device="cpu", dtype="float32", memory="low").model.memory == "low"
        assert acefast.load(tiny, device="cpu", dtype="float32", memory="fast").model.memory == "fast"
    with pytest.raises(acefast.RequestError, match="memory must be auto, low or fast, got 'slow'"):
        acefast.load(tiny, device="cpu", memory="slow")


def test_a_gpus_free_memory_counts_what_torch_holds_back_and_room_is_left(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GB, 24 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 * GB)
    assert memory.free_memory(GPU) == 7 * GB
    planned = on_gpu("turbo", Job(240.0))
    assert memory.fits(planned, round(1.2 * planned.peak)) and not memory.fits(planned, round(1.03 * planned.peak))


def test_the_machine_says_what_is_free():
    assert memory.free_memory(torch.device("mps")) is None
    free = memory.free_memory(CPU)
    assert free is None or free > 0


# -- out of memory, and the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ("fast", "low"))
def test_out_of_memory_answers_with_the_plan_and_what_to_lower(tiny, policy, monkeypatch):
    pipe = acefast.load(tiny, device="cpu", dtype="float32", memory=policy)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    job = Job(5.2, 2)
    told = str(plan(Networks.of(pipe.model.checkpoint), job, torch.float32, CPU, policy))
    for stage, name in (("text", "conditions"), ("diffusion", "velocity"), ("decode", "decode")):
        with monkeypatch.context() as patch:
            patch.setattr(pipe.model, name, fail)
            with pytest.raises(stages.OutOfMemory) as caught:
                pipe.generate("drill", seed=[1, 2], duration=5.2, steps=1)
        message = str(caught.value)
        assert message.startswith(f"{stage} ran out of memory when 2.50 GiB more were asked for; lower duration or")
        assert ("memory='low'" in message.split("; ")[1]) == (policy == "fast") and "\n" not in message
        assert message.endswith(told) and f"2 songs of 5.2 s with memory={policy!r} is " in told and "weights" in told


def test_the_plan_in_the_answer_is_of_the_songs_own_steps_guidance_and_length(tiny_base_pipe, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    jobs, real = [], memory.plan
    monkeypatch.setattr(
        "acefast.pipeline.plan", lambda networks, job, *how: jobs.append(job) or real(networks, job, *how)
    )
    monkeypatch.setattr(tiny_base_pipe.model, "conditions", fail)
    for options in (
        {"duration": 5.2, "steps": 3, "guidance_scale": 1.0},
        {"codes": [1] * 30, "semantics": "diffusers"},
        {"codes": [1] * 30},
    ):
        with pytest.raises(stages.OutOfMemory):
            tiny_base_pipe.generate("drill", **options)
    assert jobs == [
        Job(5.2, 1, steps=3, guided=False),
        Job(6.0, 1, steps=8, guided=True),
        Job(6.0, 1, steps=50, guided=True),
    ]


def test_info_plans_a_model_that_is_not_here(offline, capsys):
    assert main(["info", "--plan", "xl-base", "--duration", "120", "--batch", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    planned = on_gpu("xl-base", Job(120.0, 2))
    assert facts["plan"]["peak"]["fast"] == planned.peak and facts["plan"]["weights"] == planned.weights
    takes = {d["device"]: d["takes"] for d in facts["devices"]}
    assert (takes["a GPU of 8 GB"], takes["a GPU of 12 GB"], takes["a GPU of 80 GB"]) == (None, "low", "fast")
    assert "cpu" in takes
    assert main(["info", "--plan", "turbo"]) == 0
    text = capsys.readouterr().out
    assert "1 song of 240 s" in text
    for name in (*LOADED, *planned.work, "peak"):
        assert re.search(rf"^ +{name} +[\d.]+ [GM]B", text, re.M), name
    assert re.search(r"^device +a GPU of 8 GB: fast .*, low .*: (fast|low) fits$", text, re.M)


@pytest.mark.parametrize(
    "words, told",
    [
        (["--plan", "turbo", "--duration", "1000"], "duration must be 5 to 600 seconds"),
        (["--plan", "turbo", "--batch", "1.5"], "batch must be a whole number above 0"),
        (["--batch", "2"], "--batch has no use without --plan MODEL"),
        (["turbo", "--plan", "turbo"], "got both"),
        (["--plan", "turbo", "--dtype", "int8"], "dtype must be"),
    ],
)
def test_info_refuses_a_plan_that_cannot_be(words, told, capsys):
    assert main(["info", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_command_passes_the_policy_on(tiny, folder, monkeypatch):
    asked, load = [], acefast.pipeline.load
    monkeypatch.setattr("acefast.pipeline.load", lambda model, **how: asked.append(how) or load(model, **how))
    words = ["generate", "drill", "-o", "x.wav", "--duration", "5", "--steps", "1", "--model", str(tiny)]
    assert main([*words, "--device", "cpu", "--memory", "low"]) == 0 and asked[0]["memory"] == "low"
    assert main([*words, "--memory", "tiny"]) == 2


def test_the_readmes_figures_are_the_plans():
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    jobs = [Job(60.0), Job(240.0), Job(600.0), Job(240.0, 4)]
    for name in FULL:
        peaks = [[on_gpu(name, job, policy, gigabytes=24).peak for policy in ("fast", "low")] for job in jobs]
        cells = [f"{fast / GB:.1f} / {low / GB:.1f}" for fast, low in peaks]
        assert f"| {name} | {' | '.join(cells)} |" in readme
