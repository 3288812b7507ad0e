"""What several test files do with tiny songs, and how they hold errors to their one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import acefast
from acefast.cli import main

HOP = 1920  # samples of a latent frame


def song(pipe, prompt="boom bap", **options):
    """A short song; source tasks and codes have a length of their own."""
    own = {"seed": 1, "steps": 2}
    if not {"source", "codes"} & options.keys():
        own["duration"] = 5.0
    return pipe.generate(prompt, **{**own, **options})


def same(a, b) -> bool:
    return torch.equal(a.latents, b.latents) and np.array_equal(a.audio, b.audio)


def distance(a, b) -> float:
    """Relative, of two songs' latents."""
    return float((a.latents - b.latents).norm() / b.latents.norm())


def velocities(pipe, monkeypatch) -> list[dict]:
    """What every later call of the velocity model is given, filled as it is called."""
    calls, real = [], pipe.model.velocity

    def watched(latents, t, conditions, **options):
        calls.append({"latents": latents, "t": t, "conditions": conditions, **options})
        return real(latents, t, conditions, **options)

    monkeypatch.setattr(pipe.model, "velocity", watched)
    return calls


def counted(monkeypatch, owner, name) -> list:
    """The arguments of every later call of ``owner.name``."""
    calls, real = [], getattr(owner, name)

    def watched(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, watched)
    return calls


def latents_of(pipe, audio) -> torch.Tensor:
    """[1, T, D]: the posterior's mean, as tasks take it."""
    return pipe.model.encode(audio.copy())[0]


def quiet_decode(pipe, monkeypatch, gain=0.02):
    """Random weights shout: scale the decoded audio to below full scale, so that levels are left alone."""
    real = pipe.model.decode
    monkeypatch.setattr(pipe.model, "decode", lambda *args: real(*args) * gain)


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
