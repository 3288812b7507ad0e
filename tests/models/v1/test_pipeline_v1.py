"""ACE-Step v1 behind ``acefast.load``: every task, batches, streams, memory, the command line."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import acefast
from acefast.bench import engines
from acefast.cli import main
from acefast.memory import Networks
from acefast.models.v1.tasks import frames_of
from acefast.pipeline import check
from acefast.testing import write_checkpoint
from tests.songs import sentence, velocities

pytestmark = pytest.mark.usefixtures("offline")
SONG = dict(prompt="boom bap, dusty drums", lyrics="[verse]\nhello night", language="en", duration=5.5, steps=3, seed=1)
CPU = torch.device("cpu")


def samples(frames: int) -> int:
    return -(-160 * 4096 * frames // 147)


@pytest.fixture(scope="module")
def song(v1_pipe):
    return v1_pipe.generate(**SONG)


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_a_song_is_48_khz_stereo_of_its_latents_and_the_same_again(v1_pipe, song):
    frames = frames_of(5.5)
    assert song.latents.shape == (frames, 128) and song.audio.shape == (2, samples(frames))
    assert song.sample_rate == 48_000 and np.isfinite(song.audio).all()
    assert np.abs(song.audio).max() == pytest.approx(10 ** (-1 / 20), abs=1e-6) and song.audio.std() > 1e-3
    assert song.request.steps == 3 and song.request.guidance_scale == 15 and song.codes is None
    assert np.array_equal(v1_pipe.generate(**SONG).audio, song.audio)
    assert far(v1_pipe.generate(**{**SONG, "seed": 2}).audio, song.audio) > 0.1


CHANGES = {
    "prompt": {"prompt": "trap"},
    "lyrics": {"lyrics": "[verse]\nother words"},
    "language": {"language": "de"},
    "cfg": {"guidance": "cfg"},
    "cfg_star": {"guidance": "cfg_star"},
    "double": {"guidance_text": 5.0, "guidance_lyric": 1.5},
    "interval": {"guidance_interval": 1.0},
    "decay": {"guidance_interval": 1.0, "guidance_decay": 1.0},
    "heun": {"solver": "heun"},
    "pingpong": {"solver": "pingpong"},
    "omega": {"omega": -100.0},
    "oss_steps": {"steps": None, "oss_steps": (1, 4, 9)},
    "noise": {"noise_source": "torch"},
    "erg_lyric": {"erg_lyric": False},
    "erg_tag": {"erg_tag": False},
}


@pytest.mark.parametrize("case", CHANGES)
def test_each_option_changes_the_song(v1_pipe, song, case):
    other = v1_pipe.generate(**{**SONG, **CHANGES[case]})
    assert other.latents.shape == song.latents.shape and not torch.equal(other.latents, song.latents)


def test_retake_is_text2music_with_variation(v1_pipe, song):
    retake = v1_pipe.generate(**SONG, task="retake", variation_seed=7)
    assert np.array_equal(retake.audio, v1_pipe.generate(**SONG, variation=0.5, variation_seed=7).audio)
    assert far(retake.audio, song.audio) > 0.1


def test_a_song_made_here_is_as_long_when_it_is_encoded(v1_pipe):
    for frames in (1, 2, 3, 7, 50, 64):
        assert v1_pipe.model.encode(np.zeros((2, samples(frames)), np.float32)).shape == (1, frames, 128)
    assert v1_pipe.model.encode(np.zeros((2, samples(3) + 3), np.float32)).shape == (1, 4, 128)


def test_a_repaint_keeps_the_latents_around_it(v1_pipe, song):
    options = {**SONG, "duration": None, "prompt": "drill", "seed": 3}
    made = v1_pipe.generate(**options, task="repaint", source=song, start=1.0, end=3.0)
    first, end = frames_of(1.0), frames_of(3.0)
    kept = v1_pipe.model.encode(song.audio)[0]
    assert made.latents.shape == kept.shape
    assert torch.equal(made.latents[:first], kept[:first]) and torch.equal(made.latents[end:], kept[end:])
    assert not torch.equal(made.latents[first:end], kept[first:end])


def test_an_extension_is_longer_at_both_ends(v1_pipe, song):
    options = {**SONG, "duration": None, "prompt": "drill", "seed": 3}
    made = v1_pipe.generate(**options, task="extend", source=song, start=-7.0, end=13.0)  # more than the source has
    left, kept = frames_of(7.0), v1_pipe.model.encode(song.audio)[0]
    assert made.latents.shape[0] == pytest.approx(frames_of(20.0), abs=1)
    assert torch.equal(made.latents[left : left + len(kept)], kept)
    assert made.latents[:left].std() > 0.1 and made.latents[left + len(kept) :].std() > 0.1


@pytest.mark.parametrize("options", [{"target_prompt": "trap"}, {"target_lyrics": "[verse]\nnew words"}])
def test_an_edit_has_the_sources_length_and_other_music(v1_pipe, song, options):
    edit = {**SONG, "duration": None, "seed": 3}
    made = v1_pipe.generate(**edit, task="edit", source=song, **options)
    assert made.audio.shape == song.audio.shape and not torch.equal(made.latents, song.latents)
    with pytest.raises(acefast.RequestError):
        v1_pipe.generate(**edit, task="edit", **options)


def test_audio2audio_comes_nearer_to_its_source_with_strength(v1_pipe, song):
    options = {**SONG, "duration": None, "steps": 12, "prompt": "drill", "seed": 3}
    source = v1_pipe.model.encode(song.audio)[0]
    made = [v1_pipe.generate(**options, task="audio2audio", source=song, strength=s).latents for s in (0.1, 0.8)]
    assert (made[1] - source).norm() < (made[0] - source).norm()


def test_a_batch_of_different_texts_is_its_songs_alone(v1_pipe, song):
    prompts, lyrics = [SONG["prompt"], "trap"], [SONG["lyrics"], ""]
    shared = {k: v for k, v in SONG.items() if k not in ("prompt", "lyrics")}
    together = v1_pipe.generate(prompts, lyrics, **shared)
    assert far(together[0].audio, song.audio) < 1e-4
    alone = v1_pipe.generate(prompts, lyrics, **shared, deterministic=True)
    assert np.array_equal(alone[0].audio, song.audio)
    assert far(together[1].audio, alone[1].audio) < 1e-4


def test_songs_of_different_lengths_are_made_apart_and_requests_may_be_mixed(v1_pipe, song):
    other = {**SONG, "duration": 7.0}
    made = v1_pipe.generate([acefast.Request(**SONG), acefast.Request(**other)])
    assert np.array_equal(made[0].audio, song.audio) and made[1].audio.shape == (2, samples(frames_of(7.0)))
    with v1_pipe.scheduler:
        assert np.array_equal(v1_pipe.submit(acefast.Request(**SONG)).result(60).audio, song.audio)


def test_what_cannot_be_made_is_told_before_anything_is(tiny_v1, v1_pipe, monkeypatch):
    calls = velocities(v1_pipe, monkeypatch)
    long = acefast.Request(**{**SONG, "prompt": "drum " * 300, "duration": 7.0}, lyrics_overflow="refuse")
    with pytest.raises(acefast.RequestError, match="prompt"):
        v1_pipe.generate([acefast.Request(**SONG), long])
    assert not calls
    source = np.zeros((2, 241 * 48_000), np.float32)
    with pytest.raises(acefast.RequestError, match="240 is the most"):
        check("rock", model=tiny_v1, task="repaint", source=source, start=1.0)
    assert check("rock", model=tiny_v1, duration=240)[0].guidance_interval == 0.5


def test_a_stream_of_one_song_is_the_song_and_segments_are_refused(v1_pipe):
    whole = v1_pipe.generate(**{**SONG, "duration": 14.0}, normalize=None)
    chunks = list(v1_pipe.stream(**{**SONG, "duration": 14.0}, normalize=None))
    assert len(chunks) > 1 and chunks[-1].final
    assert np.array_equal(np.concatenate([chunk.samples for chunk in chunks], 1), whole.audio)
    with pytest.raises(acefast.RequestError) as told:
        v1_pipe.stream("lo-fi", duration=1000.0)
    sentence(str(told.value), "makes no stream in segments")


def test_low_memory_makes_the_same_bytes_with_one_stages_networks(tiny_v1, song):
    pipe = acefast.load(tiny_v1, device="cpu", dtype="float32", memory="low")
    assert np.array_equal(pipe.generate(**SONG).audio, song.audio)
    assert set(pipe.model.residence.here) == {"decoder"}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_planned_weights_are_those_of_the_networks(tiny_v1, dtype):
    pipe = acefast.load(tiny_v1, device="cpu", dtype=dtype)
    planned = Networks.of(pipe.model.checkpoint).weights(dtype, CPU)
    assert planned == {n: sum(p.nbytes for p in getattr(pipe.model, n).parameters()) for n in planned}


def test_a_prompt_is_encoded_once(v1_pipe, monkeypatch):
    model, calls = v1_pipe.model, []
    model.encodings.clear()
    model.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    for seed in (1, 2):
        v1_pipe.generate(**{**SONG, "seed": seed})
    assert len(calls) == 2  # and once more, weakened
    model.text_encoder._forward_pre_hooks.clear()


def test_what_no_step_changes_is_computed_once_a_song(v1_pipe, monkeypatch):
    """Keys and values of every block, time embeddings; and a guided step's branches are one batch."""
    dit, counts = v1_pipe.model.transformer, Counter()
    hooks = [layer.cross_attention.kv.register_forward_hook(lambda *_: counts.update(["kv"])) for layer in dit.layers]
    hooks.append(dit.time.register_forward_hook(lambda *_: counts.update(["time"])))
    plain = dit.evaluate
    monkeypatch.setattr(dit, "evaluate", lambda *a: counts.update([f"rows {a[4].rows}"]) or plain(*a))
    v1_pipe.generate(**{**SONG, "steps": 4}, guidance_interval=0.5)
    for hook in hooks:
        hook.remove()
    assert counts == {"kv": len(dit.layers), "time": 1, "rows 1": 2, "rows 2": 2}


def test_no_convolution_has_one_tap(v1_pipe, song):
    """Those are matrix products of channels-last rows here; upstream spends half its time in them."""
    kernels = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "conv" in func.name() and len(args) > 1 and isinstance(args[1], torch.Tensor):
                kernels.add(tuple(args[1].shape[2:]))
            return func(*args, **(kwargs or {}))

    with Seen():
        v1_pipe.generate(**{**SONG, "duration": None, "steps": 1}, task="audio2audio", source=song, strength=0.0)
    assert kernels >= {(3, 3), (1, 7)} and all(max(kernel) > 1 for kernel in kernels)


def test_an_edit_in_low_memory_loads_each_network_once(tiny_v1, song, monkeypatch):
    """Texts of the source and of the target are encoded before the transformer takes the encoders' place."""
    pipe, loads = acefast.load(tiny_v1, device="cpu", dtype="float32", memory="low"), []
    plain = pipe.model._load
    monkeypatch.setattr(pipe.model, "_load", lambda kind, *c, **o: loads.append(kind.__name__) or plain(kind, *c, **o))
    made = pipe.generate(**{**SONG, "duration": None}, task="edit", source=song, target_prompt="jazz")
    assert made.audio.shape == song.audio.shape
    assert sorted(loads) == ["ConditionEncoder", "Decoder", "DiT", "Encoder"]


def test_a_lora_changes_the_song_and_its_removal_restores_it(tiny_v1, tmp_path, song):
    from safetensors.torch import save_file

    halves, modules = {}, ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.cross_attn.to_v", "speaker_embedder")
    pipe = acefast.load(tiny_v1, device="cpu", dtype="float32")
    for i, module in enumerate((*modules, "lyric_encoder.encoders.0.self_attn.linear_k")):
        out, width = pipe.model.checkpoint.index[f"dit.{module}.weight"].shape
        halves[f"{module}.lora_A.weight"] = torch.randn(2, width, generator=torch.Generator().manual_seed(i))
        halves[f"{module}.lora_B.weight"] = torch.randn(out, 2, generator=torch.Generator().manual_seed(i + 9))
    save_file(halves, tmp_path / "rap.safetensors")
    pipe.set_lora(tmp_path / "rap.safetensors", 0.5)
    other = pipe.generate(**SONG)
    assert far(other.audio, song.audio) > 0.1 and other.lora == {"name": "rap", "weight": 0.5}
    pipe.set_lora(None)
    again = pipe.generate(**SONG)
    assert torch.equal(again.latents, song.latents) and again.lora is None


def test_a_song_of_no_words_needs_no_vocabulary(tiny_v1, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_v1, tmp_path / "v1")
    for file in folder.rglob("*vocab*.json"):
        file.unlink()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    pipe = acefast.load(folder, device="cpu", dtype="float32")
    assert pipe.generate(**{**SONG, "lyrics": ""}).audio.std() > 0
    with pytest.raises(acefast.CheckpointError) as told:
        pipe.generate(**SONG)
    assert "lyric vocabulary of ACE-Step v1 is not on this machine" in str(told.value)


def test_both_layouts_make_the_same_song(tmp_path, song):
    file = write_checkpoint(tmp_path, variant="v1", layout="aio")
    made = acefast.load(file, device="cpu", dtype="float32").generate(**SONG)
    assert far(made.audio, song.audio) < 1e-5


def test_the_command_line_makes_a_song_and_plans_one(tiny_v1, folder, capsys):
    words = ["--lyrics", "[verse]\nhello night", "--language", "en", "--duration", "5.5", "--steps", "2", "--seed", "1"]
    assert main(["generate", "boom bap", *words, "--model", str(tiny_v1), "-o", "x.wav", "--quiet"]) == 0
    assert (folder / "x.wav").stat().st_size > 44 + 4 * samples(frames_of(5.5)) - 8
    capsys.readouterr()
    assert main(["info", "--plan", "v1", "--duration", "60", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert round(facts["plan"]["weights"]["transformer"] / 1e9, 1) == 5.0
    assert main(["generate", "boom bap", "--bpm", "90", "--model", str(tiny_v1), "-o", "y.wav"]) == 2
    assert "write it into the prompt" in capsys.readouterr().err


def test_bench_measures_a_song_and_knows_that_diffusers_has_none(tiny_v1, monkeypatch):
    monkeypatch.setattr(engines, "LYRICS", "[verse]\nconcrete and rain\n")
    marks = []
    (song,) = engines.Fused(tiny_v1, CPU, torch.float32, None).song(engines.Job(5.2, 1, 2))(marks.append)
    assert marks[:3] == ["prep", "step", "step"] and marks[-2:] == ["copy", "finish"] and {*marks[3:-2]} == {"decode"}
    assert song.request.guidance_scale == 15.0
    with pytest.raises(engines.ModeUnavailable, match="no pipeline of ACE-Step v1"):
        engines.Eager(tiny_v1, CPU, torch.float32, None)
