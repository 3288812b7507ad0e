"""The command line: every option reaches the song, files are named as told, the bar keeps to terminals, Ctrl-C leaves
nothing, exit codes are the promised ones. tests/test_errors.py holds what is refused.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch

from acefast import pipeline
from acefast.audio import read_tags
from acefast.cli import main
from acefast.request import options

ROOT = Path(__file__).parents[1]
SHORT = ["--duration", "5", "--steps", "1"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.delenv("ACEFAST_MODELS", raising=False)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(folder, tiny, tiny_base, tiny_pipe, tiny_base_pipe, monkeypatch):
    """``acefast generate`` in this process, on models that are loaded already: its exit code."""
    pipes = {str(tiny): tiny_pipe, str(tiny_base): tiny_base_pipe}
    monkeypatch.setattr(pipeline, "load", lambda model, **_: pipes[model])
    return lambda *words, base=False: main(["generate", *words, "--model", str(tiny_base if base else tiny)])


@pytest.fixture
def generate(command, folder, capsys, tiny_pipe, tiny_base_pipe, monkeypatch):
    """The same: the JSON beside an x.wav of silence, as decoding is most of a tiny song's time."""
    for pipe in (tiny_pipe, tiny_base_pipe):
        monkeypatch.setattr(
            pipe.model, "decode", lambda latents, _: torch.zeros(len(latents), 2, latents.shape[1] * 1920)
        )

    def run(*arguments: str, base: bool = False) -> dict:
        assert command(*arguments, "-o", "x.wav", "--json", base=base) == 0
        assert capsys.readouterr().err == ""
        return json.loads((folder / "x.json").read_text())

    return run


def shell(*arguments: str | Path, folder: Path) -> dict:
    """What subprocess needs to run ``acefast`` in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    return dict(args=[sys.executable, "-m", "acefast.cli", *map(str, arguments)], cwd=folder, env=environment)


class Terminal:
    """A process whose standard error is a terminal of 100 columns."""

    def __init__(self, *arguments: str | Path, folder: Path) -> None:
        self.own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.process = subprocess.Popen(**shell(*arguments, folder=folder), stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        self.text = ""

    def read(self, until: str = "(?!)") -> bool:
        """Read until a pattern has been shown, or to the end; whether it has."""
        while not re.search(until, self.text):
            try:
                got = os.read(self.own, 4096)
            except OSError:  # the other side is closed
                got = b""
            if not got:
                return False
            self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", got.decode("utf-8", "ignore"))
        return True

    def end(self) -> int:
        """The exit code; what was left to read has been read."""
        self.read()
        os.close(self.own)
        return self.process.wait()


# -- options ----------------------------------------------------------------------------------------------------------

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
        ["--semantics", "diffusers", "--pad-mode", "upstream", "--precision", "upstream", "--deterministic"],
        {"semantics": "diffusers", "pad_mode": "upstream", "precision": "upstream", "deterministic": True},
    ),
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
    assert tried | {"prompt", "seed", "noise", "on_step"} == {*options()}


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


def test_lyrics_come_from_standard_input(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("[chorus]\nhey"))
    assert generate("boom bap", *SHORT, "--lyrics", "-")["options"]["lyrics"] == "[chorus]\nhey"


@pytest.mark.parametrize(
    "words", ["la la", "你" * 100, "- a dash", "one\ntwo.txt", "a/b"], ids=["plain", "long", "dash", "lines", "slash"]
)
def test_other_lyrics_are_the_words_themselves(generate, words):
    assert generate("boom bap", *SHORT, "--lyrics", words)["options"]["lyrics"] == words


# -- files ------------------------------------------------------------------------------------------------------------


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


# -- bar, warnings, interruption --------------------------------------------------------------------------------------


STAGES = {"loading": "1/1", "reading": "1/1", "composing": "3/3", "rendering": "128/128", "finishing": "1/1"}


def test_bar_shows_stages_steps_and_times_on_a_terminal(tiny, folder):
    arguments = ["--duration", "5", "--steps", "3", "-o", "x.wav", "--model", tiny]
    terminal = Terminal("generate", "boom bap", *arguments, folder=folder)
    assert terminal.end() == 0
    for stage, count in STAGES.items():  # name, bar, steps, elapsed, remaining
        assert re.search(rf"{stage} +\S+ +{count} +\d:\d\d:\d\d +0:00:00", terminal.text), terminal.text[-1000:]
    assert [path.name for path in folder.iterdir()] == ["x.wav"]


def test_bar_is_off_where_there_is_no_terminal(tiny, folder):
    arguments = shell("generate", "boom bap", *SHORT, "-o", "x.wav", "--model", tiny, "--seed", "5", folder=folder)
    made = subprocess.run(**arguments, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    assert re.fullmatch(r"x\.wav: 5\.12 s, seed 5, made in [\d.]+ s\n", made.stdout)


def test_quiet_turns_off_the_bar_and_the_closing_line(command, monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert command("boom bap", *SHORT, "-o", "x.wav", "--quiet") == 0
    assert terminal.getvalue() == capsys.readouterr().out == ""
    assert command("boom bap", *SHORT, "-o", "x.wav") == 0
    assert "composing" in terminal.getvalue()


def test_a_warning_is_one_line_and_told_once(command, capsys, tune, folder):
    soundfile.write(folder / "tune.wav", tune.T, 48_000, "FLOAT")
    cover = ["--task", "cover", "--source", "tune.wav", "--strength", "0.5", "--steps", "1"]
    assert command("dust " * 400, *cover, "-o", "x.wav", "--normalize", "off") == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.startswith("acefast: ") for line in told)
    assert "prompt is too long" in told[0] and "above full scale" in told[1]


def test_ctrl_c_stops_a_process_and_leaves_nothing(tiny, folder):
    arguments = ["--duration", "120", "--steps", "200", "-o", "x.wav", "--json", "--model", tiny]
    terminal = Terminal("generate", "boom bap", *arguments, folder=folder)
    assert terminal.read(until=r"composing +\S+ +[1-9]\d*/200"), terminal.text[-1000:]
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert "200/200" not in terminal.text and "rendering" not in terminal.text
    assert terminal.text.rstrip().endswith("acefast: interrupted; no unfinished file is left")
    assert list(folder.iterdir()) == [] and terminal.process.stdout.read() == b""


def test_ctrl_c_is_heard_within_the_step(command, folder, tiny_pipe, monkeypatch, capsys):
    real, steps = tiny_pipe.model.velocity, []

    def interrupted(*args, **kwargs):
        steps.append(args[1])
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(tiny_pipe.model, "velocity", interrupted)
    assert command("boom bap", "--steps", "9", "--duration", "5", "-o", "x.wav") == 130
    assert len(steps) == 3 and list(folder.iterdir()) == []
    assert capsys.readouterr().err == "acefast: interrupted; no unfinished file is left\n"


@pytest.mark.parametrize("old", [b"", b"an older song"], ids=["no file yet", "a file to replace"])
def test_ctrl_c_while_saving_leaves_what_was_there(command, folder, monkeypatch, old):
    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)

    if old:
        (folder / "x.wav").write_bytes(old)
    monkeypatch.setattr(soundfile.SoundFile, "write", interrupted)
    assert command("boom bap", *SHORT, "-o", "x.wav", "--json") == 130
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == ({"x.wav": old} if old else {})


# -- info -------------------------------------------------------------------------------------------------------------


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
    assert re.search(r"^backend +cuda +(available|this installation|torch sees no)", text, re.M)


def test_info_of_one_model_downloads_nothing(models, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("info must not download"))
    assert main(["info", "turbo", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["name"] == "ace-step-1.5-turbo"
    assert main(["info", "ace-step-1.5-xl-sft"]) == 3
    assert "ace-step-1.5-xl-sft" in capsys.readouterr().err


def test_info_without_models_says_where_to_put_them(capsys):
    assert main(["info"]) == 0
    assert "no models found" in (text := capsys.readouterr().out) and "ACEFAST_MODELS" in text


# -- the process ------------------------------------------------------------------------------------------------------


def test_exit_codes_are_the_processs_own(folder):
    codes = {}
    for name, arguments in {
        "request": ["generate", "x", "-o", "x.wav", "--bpm", "1"],
        "checkpoint": ["generate", "x", "-o", "x.wav", "--model", "./missing"],
    }.items():
        made = subprocess.run(**shell(*arguments, folder=folder), capture_output=True, text=True)
        codes[name] = made.returncode
        assert made.stdout == "" and made.stderr.startswith("acefast: ") and made.stderr.count("\n") == 1
    assert codes == {"request": 2, "checkpoint": 3} and list(folder.iterdir()) == []


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for name in options():
        assert name in ("prompt", "noise", "on_step") or f"--{name.replace('_', '-')}" in text
