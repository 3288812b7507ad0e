"""Everything that cannot work is refused, from end to end: one sentence that names the thing and says the way out, the
right exception from Python and exit code from the command line, and nothing written.

What each reader refuses in detail is in test_options.py, test_request.py, test_audio.py and test_checkpoint_errors.py;
what goes wrong later in test_errors_midway.py.
"""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import acefast
from acefast.cli import main
from tests.songs import from_python, from_shell, sentence

pytestmark = pytest.mark.usefixtures("offline")
DIT = "acestep-v15-turbo/model.safetensors"


# -- checkpoints: CheckpointError, exit code 3 -------------------------------------------------------------------------


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def corrupt(file: Path) -> None:
    file.write_bytes(b"\xff" * 200)


def a_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"weights": [0.0] * 100}))


def three_tensors_wrong(file: Path) -> None:
    tensors = load_file(file)
    del tensors["decoder.norm_out.weight"]
    tensors["decoder.proj_in.1.bias"] = torch.zeros(7)
    tensors["decoder.extra"] = torch.zeros(3)
    save_file(tensors, file)


DAMAGED = [
    (truncated, DIT, ("model.safetensors", "download")),
    (corrupt, "vae/diffusion_pytorch_model.safetensors", ("diffusion_pytorch_model.safetensors", "download")),
    (a_pickle, DIT, ("model.safetensors", "pickle")),
    (
        three_tensors_wrong,
        DIT,
        (
            "missing",
            "decoder.norm_out.weight",
            "unknown",
            "decoder.extra",
            "wrong shape",
            "proj_in.1.bias",
            "[7]",
            "use",
        ),
    ),
    (Path.unlink, DIT, ("acestep-v15-turbo",)),
]


@pytest.mark.parametrize(("damage", "part", "words"), DAMAGED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_checkpoint_is_refused(tiny, tmp_path, folder, capsys, damage, part, words):
    model = shutil.copytree(tiny, tmp_path / "model")
    damage(model / part)
    told = from_python(folder, acefast.CheckpointError, *words, model=model)
    assert from_shell(folder, capsys, 3, ["-o", "x.wav", "--model", str(model)]) == told


def test_a_model_that_is_nowhere_is_refused(folder, capsys):
    typo = "ace-step-1.5-trubo"
    told = from_python(folder, acefast.CheckpointError, typo, "ace-step-1.5-turbo", model=typo)
    assert from_shell(folder, capsys, 3, ["-o", "x.wav", "--model", typo]) == told
    from_python(folder, acefast.CheckpointError, "ace-step-1.5-turbo", "ACEFAST_MODELS", "downloads are off")
    (folder / "empty").mkdir()
    from_python(folder, acefast.CheckpointError, "empty", model="./empty")
    from_shell(folder, capsys, 3, ["-o", "x.wav", "--model", "./missing"], "missing", "give")


# -- requests: RequestError, exit code 2 -------------------------------------------------------------------------------


REQUESTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"duration": 4}, ("duration", "5 to 600 seconds", "4")),
    ({"duration": 601}, ("duration", "5 to 600 seconds", "601")),
    ({"bpm": 29}, ("bpm", "30 to 300", "29")),
    ({"bpm": "fast"}, ("bpm", "30 to 300", "fast")),
    ({"key": "H dur"}, ("key", "C# minor", "H dur")),
    ({"language": "klingon"}, ("language", "Spanish", "klingon")),
    ({"time_signature": "5/4"}, ("time_signature", "6/8", "5/4")),
    ({"task": "cover"}, ("source", "task='cover'", "give")),
    ({"task": "coverr"}, ("task", "nearest", "'cover'")),
    ({"guidance_scale": 7.0}, ("guidance_scale", "ace-step-1.5-turbo", "distilled", "-sft or -base")),
    ({"task": "extract", "source": "tune.wav", "track": "drums"}, ("extract", "base")),
    ({"steps": 0}, ("steps", "1 to 200", "0")),
    ({"dtype": "int8"}, ("dtype", "bfloat16", "int8")),
    ({"device": "cdua"}, ("device", "cdua", "cpu")),
    ({"device": "meta"}, ("device", "meta", "'cpu'")),
    ({"device": "cuda:99"}, ("device", "cuda:99", "'cpu'")),
    ({"reference": "missing.wav"}, ("reference", "missing.wav", "check")),
    ({"reference": "empty.wav"}, ("reference", "empty.wav", "0 bytes")),
    ({"reference": "text.wav"}, ("reference", "text.wav", "not audio", "ffmpeg")),
    ({"reference": "one.wav"}, ("reference", "1 sample ", "longer")),
    ({"reference": "nan.wav"}, ("reference", "NaN")),
    ({"task": "cover", "source": "missing.wav"}, ("source", "missing.wav", "check")),
    ({"task": "cover", "source": "short.wav"}, ("source", "2.00 seconds", "5 to 600")),
    ({"task": "repaint", "source": "tune.wav", "start": 9.0}, ("start", "5.20 seconds", "extend")),
    ({"task": "repaint", "source": "tune.wav", "start": 1.0, "end": 9.0}, ("end", "5.20 seconds", "extend")),
    ({"task": "repaint", "source": "tune.wav", "start": -1.0}, ("start", "-1", "extend")),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), REQUESTS, ids=[" ".join(map(str, r[0].values())) for r in REQUESTS])
def test_a_request_that_cannot_work_is_refused(tiny, folder, capsys, tune, options, words):
    soundfile.write("tune.wav", tune.T, 48_000, "FLOAT")
    soundfile.write("short.wav", tune.T[:96_000], 48_000, "FLOAT")
    soundfile.write("one.wav", tune.T[:1], 48_000, "FLOAT")
    soundfile.write("nan.wav", np.where(np.arange(len(tune.T))[:, None] == 7, np.nan, tune.T), 48_000, "FLOAT")
    Path("text.wav").write_text("no audio at all")
    Path("empty.wav").touch()
    length = {} if "source" in options else {"duration": 5}
    told = from_python(folder, acefast.RequestError, *words, model=tiny, **{"duration": None, **length, **options})
    flags = [word for n, v in {**length, **options}.items() for word in (f"--{n.replace('_', '-')}", str(v))]
    typed = from_shell(folder, capsys, 2, ["-o", "x.wav", "--model", str(tiny), *flags])
    assert typed.split(", got")[0] == told.split(", got")[0]  # a number that was typed is told as text


@pytest.mark.parametrize(
    ("python", "shell", "near"),
    [
        ("bmp", "--bmp", "bpm"),
        ("guidence_scale", "--guidence-scale", "guidance"),
        ("inference_steps", "--inference-steps", "steps"),  # its name in another runtime
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(folder, capsys, python, shell, near):
    from_python(folder, acefast.RequestError, "unknown option", python, f"nearest known one is '{near}", **{python: 90})
    for arguments in ([shell, "90", "-o", "x.wav"], ["-o", "x.wav", f"{shell}=90"], [shell, "90"]):
        from_shell(folder, capsys, 2, arguments, f"unknown option {shell}", f"nearest known one is --{near}")


def test_lyrics_too_long_are_cut_and_told_or_refused(tiny, folder, capsys):
    lyrics = "la " * 640 + "the very end " * 40  # 2047 tokens fit, and the tiny tokeniser has one for a letter
    options = {"model": tiny, "dtype": "float32", "lyrics": lyrics}
    cut = r"lyrics is too long: its last \d+ tokens were cut, from .*very end"
    with pytest.warns(UserWarning, match=cut) as told:
        song = acefast.generate("boom bap", duration=5, steps=1, seed=1, **options)
    assert song.warnings == [sentence(str(told[0].message))] == song.metadata()["warnings"]
    assert np.isfinite(song.audio).all()
    words = ("lyrics", "would be lost", "shorten")
    refused = from_python(folder, acefast.RequestError, *words, lyrics_overflow="refuse", **options)
    flags = ["--model", str(tiny), "--duration", "5", "--lyrics", lyrics, "--lyrics-overflow", "refuse"]
    assert from_shell(folder, capsys, 2, ["-o", "x.wav", *flags]) == refused
    assert main(["generate", "boom bap", "--steps", "1", "-o", "x.wav", *flags[:-2]]) == 0
    assert "lyrics is too long" in sentence(capsys.readouterr().err[len("acefast: ") : -1])


@pytest.mark.usefixtures("undecoded")
def test_a_prompt_too_long_loses_its_hints_first_and_is_told_or_refused(tiny, tiny_pipe, folder, capsys, recwarn):
    """255 tokens fit, and the tiny tokeniser has one for a letter; the hints stand behind the prompt."""

    def cut(prompt: str, **options) -> list[str]:
        return tiny_pipe.generate(prompt, duration=5, steps=1, seed=1, bpm=90, **options).warnings

    (told,) = cut("x" * 300)
    fits = 300 - int(re.search(r"last (\d+) tokens", told)[1])
    assert cut("x" * fits) == []
    (told,) = cut("x" * (fits + 10))
    assert told.endswith("on, and with them duration") and "last 10 tokens" in told
    (told,) = cut("x" * 300, key="Am")
    sentence(told, "prompt is too long", "and with them bpm, key and duration")
    assert all(str(w.message).startswith("prompt is too long") for w in recwarn)
    options = {"model": tiny, "dtype": "float32", "lyrics_overflow": "refuse", "prompt": "x" * 300}
    refused = from_python(folder, acefast.RequestError, "prompt must fit 255 tokens", "shorten", **options)
    assert tiny_pipe.generate("x" * fits, duration=5, steps=1, bpm=90, lyrics_overflow="refuse").warnings == []
    flags = ["--model", str(tiny), "--duration", "5", "--lyrics-overflow", "refuse", "-o", "x.wav"]
    assert main(["generate", "x" * 300, *flags]) == 2 and list(folder.iterdir()) == []
    assert capsys.readouterr().err == f"acefast: {refused}\n"


# -- files -------------------------------------------------------------------------------------------------------------


OUTPUTS = [
    ("nowhere/x.wav", ("nowhere", "does not exist", "make it")),
    ("file/x.wav", ("file", "folder")),  # a file in the folder's place
    ("/proc/x.wav", ("/proc/x.wav", "cannot write", "another")),  # not even root writes here
    ("x.aac", ("x.aac", ".wav, .flac, .mp3, .ogg, .opus")),
    ("x", ("x", ".wav")),
    ("sub.wav", ("sub.wav", "not a regular file")),  # a folder in the file's place
]


@pytest.mark.parametrize(("output", "words"), OUTPUTS, ids=[output for output, _ in OUTPUTS])
def test_an_impossible_output_is_refused_before_the_model_is_looked_for(folder, capsys, tiny_pipe, output, words):
    if output.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    Path("file").touch()
    Path("sub.wav").mkdir()
    told = from_shell(folder, capsys, 2, ["-o", output, "--model", "./missing"], "output", *words)
    song = acefast.Song(np.zeros((2, 4800), np.float32))
    with pytest.raises(acefast.RequestError) as caught:
        song.save(output)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "x.flac", "--subtype", "float32"], ("float32", ".wav")),
        (["-o", "x.wav", "--subtype", "int8"], ("int8", "int24", "--help")),
        (["-o", "x.wav", "--plot", "x.jpg"], ("x.jpg", ".png")),
        (["-o", "x.wav", "--plot", "nowhere/x.png"], ("nowhere", "does not exist")),
        (["-o", "x.wav", "--json"], ("x.json", "not a regular file")),
        (["-o", "x.wav", "--seed", "1,2", "--json"], ("x-2.wav", "not a regular file")),
        (["-o", "x.wav", "--seed", "3,0,0"], ("seed 0", "twice")),
        (["-o", "x.wav", "--seed", "1,two"], ("seed", "two")),
        (["-o", "x.wav", "--backend", "cudaa"], ("cudaa", "reference")),
        (["-o", "x.wav", "--steps"], ("--steps", "--help")),
        (["-o", "x.wav", "--noise", "1"], ("unknown option --noise",)),
        (["-o", "x.wav", "--lyrics", "missing.txt"], ("missing.txt", "words")),
        (["-o", "x.wav", "--lyrics", "latin.txt"], ("latin.txt", "UTF-8")),
        (["-o", "x.wav", "dusty", "drums"], ("'dusty'", "quotes")),
        ([], ("-o FILE", ".wav")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_shell_is_told_what_is_wrong_before_the_model_is_looked_for(folder, capsys, arguments, words, tiny):
    Path("x.json").mkdir()
    Path("x-2.wav").mkdir()
    Path("latin.txt").write_bytes("später".encode("latin-1"))
    model = str(tiny) if "cudaa" in arguments else "./missing"
    from_shell(folder, capsys, 2, ["--model", model, *arguments], *words)


@pytest.mark.parametrize("arguments", [[], ["generat"], ["info", "--jsn"], ["info", "a", "b"]], ids=" ".join)
def test_a_command_line_that_is_not_understood_is_one_sentence(capsys, arguments):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    sentence(err.removeprefix("acefast: ")[:-1])
