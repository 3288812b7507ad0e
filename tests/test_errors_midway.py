"""What goes wrong while a song is made: numbers that are none, too little memory, a full disk. One sentence each."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import acefast
from acefast.ops.philox import philox_normal
from tests.songs import from_python, from_shell, sentence

pytestmark = pytest.mark.usefixtures("offline")


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


@pytest.mark.parametrize("answer", [True, "stop", 0, torch.zeros(1), torch.zeros(1, 128, 7)], ids=lambda x: str(x)[:9])
def test_an_answer_of_on_step_that_is_none_is_refused(tiny_pipe, answer):
    words = ("on_step must return None, False or latents [1, 128, 8]", "got")
    refused_by(tiny_pipe, *words, on_step=lambda info: answer)


def test_noise_of_any_real_numbers_is_taken(tiny_pipe):
    for noise in (
        np.zeros((128, 8), np.int64),
        np.zeros((128, 16), np.float64)[::-1, ::-2],
        torch.zeros(128, 8).half(),
    ):
        assert tiny_pipe.generate("boom bap", duration=5, steps=1, noise=noise).latents.shape == (128, 8)


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
    (RuntimeError("could not create a primitive"), ("primitive",)),
    (RuntimeError("std::bad_alloc"), ("bad_alloc",)),
]


@pytest.mark.parametrize(("error", "words"), NO_MEMORY, ids=["cuda", "cpu", "mps", "numpy", "python", "onednn", "c++"])
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


def test_out_of_memory_while_audio_is_read_says_so(tiny, tiny_pipe, folder, capsys, tune, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError(NUMPY)

    monkeypatch.setattr("acefast.tasks.load_audio", fail)
    words = ("reading audio ran out of memory", "7.45 GiB", "shorter recording")
    refused_by(tiny_pipe, *words, reference=tune)
    refused_by(tiny_pipe, *words, task="cover", source=tune, duration=None)
    arguments = ["-o", "x.wav", "--task", "cover", "--source", "tune.wav", "--model", str(tiny)]
    from_shell(folder, capsys, 2, arguments, *words)


def test_out_of_memory_anywhere_else_is_one_sentence_of_the_shell(tiny, folder, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("acefast.pipeline.open_checkpoint", fail)
    from_shell(folder, capsys, 2, ["-o", "x.wav", "--model", str(tiny)], "ran out of memory", "lower duration")


def test_another_runtime_error_is_not_taken_for_lack_of_memory(tiny_pipe, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(tiny_pipe.model, "velocity", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        tiny_pipe.generate("boom bap", duration=5, steps=1)


def test_a_song_that_cannot_be_saved_leaves_nothing(command, folder, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    assert command("boom bap", "-o", "x.wav", "--duration", "5", "--steps", "1") == 2
    sentence(capsys.readouterr().err[len("acefast: ") : -1], "No space left", "left nothing behind")
    assert list(folder.iterdir()) == []


def test_no_error_hides_behind_a_warning(tiny_pipe):
    """A plain song warns of nothing at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_pipe.generate("boom bap", "la la", duration=5, steps=1)
