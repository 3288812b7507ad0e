"""The command line: every option reaches the song, files are named and written as told, ``info`` tells what is here.

What it is as a process is in tests/test_cli_process.py, what it refuses in tests/test_errors.py.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import acefast
from acefast import commands
from acefast.audio import read_tags
from acefast.cli import main
from acefast.request import options

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("offline")
SHORT = ["--duration", "5", "--steps", "1"]


@pytest.fixture
def generate(command, undecoded, folder, capsys):
    """``acefast generate -o x.wav --json``, silent: what the JSON tells."""

    def run(*arguments: str, base: bool = False) -> dict:
        assert command(*arguments, "-o", "x.wav", "--json", base=base) == 0
        assert capsys.readouterr().err == ""
        return json.loads((folder / "x.json").read_text())

    return run


GROUPS = {
    "words": (
        ["--lyrics", "[verse]\nla la", "--language", "Spanish", "--bpm", "90", "--key", "c# min"],
        {"lyrics": "[verse]\nla la", "language": "es", "bpm": 90, "key": "C# minor"},
    ),
    "hints": (
        ["--time-signature", "6/8", "--instrumental", "--instruction", "Play", *SHORT],
        {"time_signature": "6", "instrumental": True, "instruction": "Play", "duration": 5.0, "steps": 1},
    ),
    "noise": (
        ["--variation", "0.25", "--variation-seed", "7", "--noise-source", "torch"],
        {"variation": 0.25, "variation_seed": 7, "noise_source": "torch"},
    ),
    "sampler": (
        ["--solver", "heun", "--sigma-shift", "2", "--dcw", "double"],
        {"solver": "heun", "sigma_shift": 2.0, "dcw": "double"},
    ),
    "timesteps": (["--timesteps", "0.9,0.4"], {"timesteps": [0.9, 0.4], "steps": 2}),
    "habits": (
        ["--semantics", "diffusers", "--pad-mode", "upstream", "--deterministic"],
        {"semantics": "diffusers", "pad_mode": "upstream", "deterministic": True},
    ),
    "roundings": (["--precision", "upstream"], {"precision": "upstream"}),
    "level": (
        ["--normalize", "-6", "--fade-in", "0.5", "--fade-out", ".5", "--lyrics-overflow", "refuse"],
        {"normalize": -6.0, "fade_in": 0.5, "fade_out": 0.5, "lyrics_overflow": "refuse"},
    ),
    "codes": (["--codes", "1,2,3", "--strength", "0.5"], {"codes": [1, 2, 3], "strength": 0.5}),
    "cover": (
        ["--task", "cover-nofsq", "--source", "tune.wav", "--cover-noise", "0.5", "--posterior", "sample"],
        {"task": "cover-nofsq", "source": "tune.wav", "cover_noise": 0.5, "posterior": "sample"},
    ),
    "repaint": (
        ["--task", "repaint", "--source", "tune.wav", "--start", "1.5", "--end", "3", "--repaint-mode", "conservative"],
        {"task": "repaint", "start": 1.5, "end": 3.0, "repaint_mode": "conservative"},
    ),
    "extend": (
        ["--task", "extend", "--source", "tune.wav", "--start", "-1", "--chunk-mask", "ones"],
        {"task": "extend", "start": -1.0, "chunk_mask": "ones"},
    ),
    "reference": (["--reference", "tune.wav"], {"reference": "tune.wav"}),
}
BASE_GROUPS = {
    "apg": (
        ["--guidance-scale", "4", "--guidance-momentum", "-.5", "--guidance-norm", "1", "--guidance-eta", "0.1"],
        {"guidance_scale": 4.0, "guidance_momentum": -0.5, "guidance_norm": 1.0, "guidance_eta": 0.1},
    ),
    "adg": (
        ["--guidance", "adg", "--guidance-interval", "0.2,0.9"],
        {"guidance": "adg", "guidance_interval": [0.2, 0.9]},
    ),
    "lego": (["--task", "lego", "--source", "tune.wav", "--track", "drums"], {"task": "lego", "track": "drums"}),
    "complete": (
        ["--task", "complete", "--source", "tune.wav", "--tracks", "bass,vocals"],
        {"task": "complete", "tracks": ["bass", "vocals"]},
    ),
}


@pytest.mark.parametrize("name", [*GROUPS, *BASE_GROUPS])
def test_options_reach_the_song(generate, folder, tune, name):
    soundfile.write(folder / "tune.wav", tune.T, 48_000, "FLOAT")
    arguments, expected = (GROUPS | BASE_GROUPS)[name]
    length = ["--duration", "5"] * (not {"--source", "--codes", "--duration"} & {*arguments})
    steps = ["--steps", "1"] * (not {"--steps", "--timesteps"} & {*arguments})
    told = generate("boom bap", "--seed", "3", *length, *steps, *arguments, base=name in BASE_GROUPS)
    assert (told["prompt"], told["seed"]) == ("boom bap", 3)
    assert {key: told["options"].get(key) for key in expected} == expected


def test_every_option_that_has_a_flag_is_tried_above():
    tried = {
        word[2:].replace("-", "_") for words, _ in (GROUPS | BASE_GROUPS).values() for word in words if word[:2] == "--"
    }
    only_v1 = {name for name, about in options().items() if about.models == ("v1",)}
    assert tried | {"prompt", "seed", "noise", "on_step"} == {*options()} - only_v1


def test_options_of_v1_reach_the_request(monkeypatch, capsys):
    told = {}
    monkeypatch.setattr("acefast.pipeline.check", lambda prompt, **given: told.update(given) or sys.exit())
    words = "--no-erg-tag --omega -3 --oss-steps 1,5 --guidance-interval 0.3 --guidance-text 5 --guidance-lyric 1.5"
    with pytest.raises(SystemExit):
        main(["generate", "rock", "-o", "x.wav", *words.split()])
    kept = {
        "model": told["model"],
        "lyrics": "",
        "erg_tag": False,
        "omega": -3.0,
        "oss_steps": (1, 5),
        "guidance_interval": 0.3,
    }
    assert told == kept | {"guidance_text": 5.0, "guidance_lyric": 1.5}
    assert main(["generate", "rock", "-o", "x.wav", "--erg-tag"]) == 2
    assert "--no-erg-tag" in capsys.readouterr().err


def test_a_negative_number_is_a_value_not_an_option(generate, folder, tune):
    soundfile.write(folder / "tune.wav", tune.T, 48_000, "FLOAT")
    extend = ["boom bap", "--task", "extend", "--source", "tune.wav", "--steps", "1"]
    for words in (["--start", "-5"], ["--start=-5"], ["--start", "-5.0"]):
        assert generate(*extend, *words)["duration"] == pytest.approx(10.2)


def test_prompt_stands_before_or_behind_the_options(generate):
    for words in (["boom bap", *SHORT], [*SHORT, "boom bap"], ["--instrumental", "boom bap", *SHORT]):
        assert generate(*words)["prompt"] == "boom bap"


@pytest.mark.parametrize("name", ["verse.txt", "verse.LRC", "verse"])
def test_lyrics_come_from_a_file(generate, folder, name):
    (folder / name).write_text("\ufeff[verse]\nčau, 你好\n", "utf-8")
    assert generate("boom bap", *SHORT, "--lyrics", name)["options"]["lyrics"] == "[verse]\nčau, 你好\n"


def test_an_edits_words_come_from_a_file(folder):
    (folder / "new.txt").write_text("[verse]\nother words", "utf-8")
    args = commands._parser().parse_args(["generate", "boom bap", "--task", "edit", "--target-lyrics", "new.txt"])
    assert commands._request(args)["target_lyrics"] == "[verse]\nother words"
    args.option_target_lyrics = "none.txt"
    with pytest.raises(acefast.RequestError, match=r"^target_lyrics: file 'none.txt' cannot be read"):
        commands._request(args)


def test_lyrics_come_from_standard_input(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("[chorus]\nhey"))
    assert generate("boom bap", *SHORT, "--lyrics", "-")["options"]["lyrics"] == "[chorus]\nhey"


@pytest.mark.parametrize(
    "words", ["la la", "你" * 100, "- a dash", "one\ntwo.txt", "a/b"], ids=["plain", "long", "dash", "lines", "slash"]
)
def test_other_lyrics_are_the_words_themselves(generate, words):
    assert generate("boom bap", *SHORT, "--lyrics", words)["options"]["lyrics"] == words


def test_help_says_what_there_is_in_whole_sentences(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    about = " ".join(capsys.readouterr().out.partition("\n\n")[2].partition("\n\n")[0].split())
    assert about.startswith("Make songs") and about.endswith(".")


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for name in options():
        words = name.replace("_", "-")
        assert name in ("prompt", "noise", "on_step") or f"--{words}" in text or f"--no-{words}" in text


# -- files -------------------------------------------------------------------------------------------------------------


def test_several_seeds_make_several_files(command, folder, capsys):
    assert command("boom bap", *SHORT, "--seed", "1,2", "-o", "beat.flac", "--plot", "p.png", "--json") == 0
    found = {"beat-1.flac", "beat-2.flac", "beat-1.json", "beat-2.json", "p-1.png", "p-2.png"}
    assert {path.name for path in folder.iterdir()} == found
    assert [json.loads((folder / f"beat-{seed}.json").read_text())["seed"] for seed in (1, 2)] == [1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["beat-1.flac", "beat-2.flac"]
    assert re.fullmatch(r"beat-1.flac: 5.12 s, seed 1, made in \d+\.\d\d s", lines[0])


@pytest.mark.parametrize(
    ("name", "arguments", "subtype"),
    [
        ("x.wav", [], "PCM_16"),
        ("x.wav", ["--subtype", "float32"], "FLOAT"),
        ("x.flac", ["--subtype", "int24"], "PCM_24"),
        ("x.mp3", [], "MPEG_LAYER_III"),
        ("x.ogg", [], "VORBIS"),
        ("X.OPUS", [], "OPUS"),
    ],
)
def test_extension_and_subtype_choose_the_format(command, folder, name, arguments, subtype):
    assert command("boom bap", *SHORT, "-o", name, "--quiet", *arguments) == 0
    assert soundfile.info(name).subtype == subtype
    assert [path.name for path in folder.iterdir()] == [name]


def test_json_and_picture_tell_of_the_song(generate, folder):
    told = generate("boom bap", *SHORT, "--seed", "4", "--plot", "x.png")
    assert told["sample_rate"] == 48_000 and told["duration"] == 5.12 and told["model"] == "ace-step-1.5-turbo"
    assert set(told["timings"]) == {"text", "diffusion", "decode", "finish"}
    assert (folder / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["x.wav", "x.mp3", "x.ogg"])
def test_the_tags_of_the_file_make_the_song_again(command, folder, tiny_pipe, tune, name):
    soundfile.write(folder / "tune.wav", tune.T, 48_000, "FLOAT")
    arguments = ['čau \n"boom"', "--lyrics", "[verse]\n你好", "--bpm", "90", "--steps", "2", "--solver", "sde"]
    arguments += ["--task", "cover", "--source", "tune.wav", "--strength", "0.5"]
    assert command(*arguments, "-o", name) == 0
    told = json.loads(read_tags(name)["comment"])
    again = tiny_pipe.generate(told["prompt"], seed=told["seed"], **told["options"])
    again.save(f"again{name[1:]}")
    first, second = (soundfile.read(file)[0] for file in (name, f"again{name[1:]}"))
    assert np.array_equal(first, second)


# -- info --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path, tiny, tiny_base, monkeypatch) -> Path:
    """A model folder: two good ones and one without weights."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/ace-step-1.5-turbo").symlink_to(tiny)
    (tmp_path / "models/ace-step-1.5-base").symlink_to(tiny_base)
    (tmp_path / "models/acestep-mine").mkdir()
    monkeypatch.setenv("ACEFAST_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_info_lists_models_devices_and_backends(models, capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = {model["name"]: model for model in facts["models"]}
    assert {"ace-step-1.5-turbo", "ace-step-1.5-base", "acestep-mine"} <= found.keys()
    turbo = found["ace-step-1.5-turbo"]
    assert turbo["layout"] == "official" and turbo["version"] == "turbo"
    assert turbo["bytes"] == sum(part["bytes"] for part in turbo["parts"]) > 0
    assert {"transformer", "condition_encoder", "vae", "text_encoder"} <= {part["name"] for part in turbo["parts"]}
    assert "safetensors" in found["acestep-mine"]["problem"]
    assert facts["devices"][0]["device"] == "cpu" and facts["devices"][0]["memory"] > 0
    assert facts["backends"]["reference"] == "available"
    assert facts["versions"]["torch"] and set(facts["backends"]) == {"reference", "triton", "cuda", "cpu"}


def test_info_reads_well(models, capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^model +ace-step-1\.5-turbo +official layout, turbo, [\d.]+ MB ", text, re.M)
    assert re.search(r"^ +transformer +[\d.]+ M +[\d.]+ [kM]B +float32$", text, re.M)
    assert re.search(r"^model +acestep-mine: cannot be used: ", text, re.M)
    assert re.search(r"^device +cpu ", text, re.M) and re.search(r"^backend +reference +available$", text, re.M)
    assert re.search(r"^backend +cuda +(available|acefast was installed without|torch sees no)", text, re.M)
    assert re.search(r"^cuda +ahead of time +\w+", text, re.M) and re.search(r"^cuda +at first use +\w+", text, re.M)


def test_info_of_one_model_downloads_nothing(models, downloads, capsys):
    assert main(["info", "turbo", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["name"] == "ace-step-1.5-turbo"
    assert main(["info", "ace-step-1.5-xl-sft"]) == 3
    assert "ace-step-1.5-xl-sft" in capsys.readouterr().err and not downloads


def test_info_without_models_says_where_to_put_them(capsys):
    assert main(["info"]) == 0
    assert "no other models found" in (text := capsys.readouterr().out) and "ACEFAST_MODELS" in text
