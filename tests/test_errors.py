"""Every way a song can fail, from end to end: one sentence that names the thing and says the way out, the right
exception from Python and exit code from the command line, and nothing written.

What each reader refuses in detail is in test_options.py, test_request.py, test_audio.py and test_checkpoint_errors.py.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import acefast
from acefast import pipeline
from acefast.cli import main
from acefast.ops.philox import philox_normal

DIT = "acestep-v15-turbo/model.safetensors"


@pytest.fixture(autouse=True)
def no_network_and_no_models(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.delenv("ACEFAST_MODELS", raising=False)
    monkeypatch.setattr(pipeline, "_kept", {})


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in; it must be empty again, but for what the test itself puts there."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def sentence(text: str, *words: str) -> str:
    """Assert that ``text`` is one printable sentence that has all ``words``."""
    assert text.isprintable() and 20 < len(text) < 450 and text[-1] not in " .:;,", text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return text


def inventory(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def from_python(folder: Path, kind: type[Exception], *words: str, **options: Any) -> str:
    """``acefast.generate`` refuses, in one sentence."""
    before = inventory(folder)
    with pytest.raises(kind) as caught:
        acefast.generate(options.pop("prompt", "boom bap"), **{"duration": 5, "steps": 1, **options})
    assert inventory(folder) == before
    return sentence(str(caught.value), *words)


def from_shell(folder: Path, capsys, code: int, arguments: list[str], *words: str) -> str:
    """``acefast generate`` ends with ``code`` and one line on standard error."""
    before = inventory(folder)
    assert main(["generate", "boom bap", *arguments]) == code
    assert inventory(folder) == before
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("acefast: ") and err.endswith("\n")
    return sentence(err.removeprefix("acefast: ")[:-1], *words)


# -- checkpoints: CheckpointError, exit code 3 ------------------------------------------------------------------------


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


# -- requests: RequestError, exit code 2 ------------------------------------------------------------------------------

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
        ("audio_duration", "--audio-duration", "duration"),  # its name in another runtime
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
    sentence(str(told[0].message))
    assert np.isfinite(song.audio).all()
    words = ("lyrics", "would be lost", "shorten")
    refused = from_python(folder, acefast.RequestError, *words, lyrics_overflow="refuse", **options)
    flags = ["--model", str(tiny), "--duration", "5", "--lyrics", lyrics, "--lyrics-overflow", "refuse"]
    assert from_shell(folder, capsys, 2, ["-o", "x.wav", *flags]) == refused
    assert main(["generate", "boom bap", "--steps", "1", "-o", "x.wav", *flags[:-2]]) == 0
    assert "lyrics is too long" in sentence(capsys.readouterr().err[len("acefast: ") : -1])


# -- numbers that are none, and memory --------------------------------------------------------------------------------


def refused_by(pipe, *words: str, **options: Any) -> str:
    with pytest.raises(acefast.RequestError) as caught:
        pipe.generate("boom bap", **{"duration": 5, "steps": 2, **options})
    return sentence(str(caught.value), *words)


def test_nan_in_the_noise_is_refused(tiny_pipe):
    noise = philox_normal([1], (128, 8))[0]
    noise[3, 3] = torch.nan
    refused_by(tiny_pipe, "noise", "NaN", "leave noise out", noise=noise)
    refused_by(tiny_pipe, "noise", "[T, 8]", "128", "[100, 8]", noise=torch.zeros(100, 8))


def test_nan_in_the_latents_is_refused(tiny_pipe, monkeypatch):
    refused_by(tiny_pipe, "latents", "NaN", "on_step", on_step=lambda info: info.latents * torch.nan)
    real = tiny_pipe.model.velocity
    monkeypatch.setattr(tiny_pipe.model, "velocity", lambda *a, **k: real(*a, **k) / 0)
    refused_by(tiny_pipe, "latents", "2 steps", "another seed")


def test_nan_in_the_audio_is_refused(tiny_pipe, monkeypatch, tune):
    real = tiny_pipe.model.decode
    monkeypatch.setattr(tiny_pipe.model, "decode", lambda *a: real(*a) * torch.nan)
    refused_by(tiny_pipe, "audio", "NaN", "float32")
    refused_by(tiny_pipe, "audio", "NaN", "float32", duration=None, task="repaint", source=tune, start=1.0, end=2.0)


CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.25 GiB is free."
    " Process 1 has 77.90 GiB memory in use."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: not enough memory: "
    "you tried to allocate 2147483648 bytes."
)
NUMPY = "Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"
NO_MEMORY = [
    (torch.OutOfMemoryError(CUDA), ("2.50 GiB", "1.25 GiB of 79.15 GiB free")),
    (RuntimeError(CPU), ("2.00 GiB",)),
    (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB). Tried to allocate 256.00 MB"), ("256.00 MB",)),
    (MemoryError(NUMPY), ("7.45 GiB",)),
    (MemoryError(), ()),
]


@pytest.mark.parametrize(("error", "words"), NO_MEMORY, ids=["cuda", "cpu", "mps", "numpy", "python"])
def test_out_of_memory_tells_stage_amount_and_what_to_lower(tiny_pipe, monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    for stage, name in (("text", "conditions"), ("diffusion", "velocity"), ("decode", "decode")):
        with monkeypatch.context() as patch:
            patch.setattr(tiny_pipe.model, name, fail)
            refused_by(tiny_pipe, f"{stage} ran out of memory", "lower duration", *words)


def test_out_of_memory_while_loading_says_so(tiny, folder, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError(CPU)

    monkeypatch.setattr("acefast.models.v15.model.load_text_encoder", fail)
    words = ("loading ran out of memory", "2.00 GiB", "bfloat16")
    from_python(folder, acefast.RequestError, *words, model=tiny)
    from_shell(folder, capsys, 2, ["-o", "x.wav", "--duration", "5", "--model", str(tiny)], *words)


def test_another_runtime_error_is_not_taken_for_lack_of_memory(tiny_pipe, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(tiny_pipe.model, "velocity", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        tiny_pipe.generate("boom bap", duration=5, steps=1)


# -- files ------------------------------------------------------------------------------------------------------------

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


def test_a_song_that_cannot_be_saved_leaves_nothing(tiny_pipe, folder, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "load", lambda *args, **kwargs: tiny_pipe)
    monkeypatch.setattr(pipeline, "check", lambda *args, **kwargs: None)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    from_shell(
        folder, capsys, 2, ["-o", "x.wav", "--duration", "5", "--steps", "1"], "No space left", "left nothing behind"
    )


def test_no_error_hides_behind_a_warning(tiny_pipe):
    """A plain song warns of nothing at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_pipe.generate("boom bap", "la la", duration=5, steps=1)
