"""Shared fixtures: few threads, seeded tensors, a tiny checkpoint of each kind, something to hear, a place to work."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import acefast
from acefast import cli, pipeline
from acefast.backends import emulated
from acefast.conditions import ConditionCache
from acefast.kernel_config import Config
from acefast.models.v15 import step, text
from acefast.models.v15.config import VAEConfig
from acefast.pipeline import Pipeline
from acefast.testing import write_checkpoint

# Half as wide as acefast.testing's own: most of a tiny song's time is its audio, at 48 kHz whatever the width.
NARROW_VAE = VAEConfig(encoder_hidden_size=2, decoder_channels=2, decoder_input_channels=8)


def _kernels_of_this_tree() -> None:
    """acefast.kernels is the kernels/ beside acefast/, also where neither or another copy is installed."""
    root = Path(__file__).parents[1]
    if Path(acefast.__file__).parents[1] == root:
        spec = importlib.util.spec_from_file_location("acefast.kernels", root / "kernels/__init__.py")
        acefast.kernels = sys.modules["acefast.kernels"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(acefast.kernels)


_kernels_of_this_tree()
sys.path.append(str(Path(__file__).parents[1]))  # for bench/; behind the acefast that is installed


@pytest.fixture(autouse=True, scope="session")
def _quiet_threads() -> None:
    torch.set_num_threads(1)  # on tensors this small a second thread costs more than it does


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a tiny random turbo checkpoint in the official layout; tests that change it copy it first."""
    return write_checkpoint(tmp_path_factory.mktemp("turbo"), variant="turbo", vae_config=NARROW_VAE)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The same of a base checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("base"), variant="base", vae_config=NARROW_VAE)


@pytest.fixture(scope="session")
def tiny_pipe(tiny):
    return acefast.load(tiny, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny_base_pipe(tiny_base):
    return acefast.load(tiny_base, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny_v1(tmp_path_factory):
    """Folder of a tiny random v1 checkpoint in the hub's layout; tests that change it copy it first."""
    return write_checkpoint(tmp_path_factory.mktemp("v1"), variant="v1")


@pytest.fixture(scope="session")
def v1_pipe(tiny_v1):
    return acefast.load(tiny_v1, device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def nothing_is_known_from_another_test(request):
    """What one test encoded, perhaps by a stand-in of its own, is no other's."""
    for name in {"tiny_pipe", "tiny_base_pipe"} & set(request.fixturenames):
        request.getfixturevalue(name).model.encodings.clear()


@pytest.fixture
def own_pipe(tiny_pipe):
    """The tiny turbo model with lanes and a scheduler that no other test uses."""
    pipe = Pipeline(tiny_pipe.model)
    yield pipe
    pipe.scheduler.close()


@pytest.fixture(scope="session")
def tune() -> np.ndarray:
    """5.2 s of a pulsing chord with some noise: float32 [2, 249600] at 48 kHz, 130 latent frames."""
    t = np.arange(249_600) / 48_000
    tones = np.sin(2 * np.pi * np.array([[110.0], [165.0]]) * t) * (1 + np.sin(2 * np.pi * 2 * t)) / 5
    tune = (tones + 0.02 * np.random.default_rng(0).standard_normal(tones.shape)).astype(np.float32)
    tune.flags.writeable = False
    return tune


@pytest.fixture
def offline(monkeypatch, tmp_path_factory):
    """No network, no models but those a test names, and none kept from an earlier test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    for name in ("ACEFAST_MODELS", "ACEFAST_MODEL", "ACEFAST_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pipeline, "_kept", {})


@pytest.fixture
def undecoded(monkeypatch, tiny_pipe, tiny_base_pipe):
    """Songs of silence, for tests that do not listen: decoding is most of a tiny song's time. No words are known."""
    for pipe in (tiny_pipe, tiny_base_pipe):
        monkeypatch.setattr(pipe.model, "encodings", ConditionCache())
        monkeypatch.setattr(
            pipe.model, "decode", lambda latents, *_: torch.zeros(len(latents), 2, latents.shape[1] * 1920)
        )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def command(folder, tiny, tiny_base, tiny_pipe, tiny_base_pipe, monkeypatch):
    """``acefast generate`` in this process, on models that are loaded already: its exit code."""
    pipes = {str(tiny): tiny_pipe, str(tiny_base): tiny_base_pipe}
    monkeypatch.setattr(pipeline, "load", lambda model, **_: pipes[model])
    return lambda *words, base=False: cli.main(["generate", *words, "--model", str(tiny_base if base else tiny)])


@pytest.fixture
def no_launches(monkeypatch) -> Iterator[Counter]:
    """A GPU of sm_80 is emulated on which launches of Triton's kernels do nothing: how many there were, by name."""
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from triton.runtime.jit import JITFunction

    launched = Counter()
    monkeypatch.setattr(JITFunction, "run", lambda kernel, *args, **options: launched.update([kernel.__name__]))
    with emulated(80):
        yield launched


@pytest.fixture
def few_programs(monkeypatch):
    """For whole models in Triton's interpreter, whose time goes by the number of programs: songs padded to 32 rows."""
    from acefast.kernels import qk_norm_rope, residual_norm

    monkeypatch.setattr(step, "padded_tokens", lambda tokens: -(-tokens // 32) * 32)
    monkeypatch.setitem(text.STEPS, "lyrics", 32)
    for kernel in (residual_norm, qk_norm_rope):
        monkeypatch.setitem(kernel.CONFIGS, ("narrow", 80), Config({"ROWS": 64}, num_warps=1))
