"""Shared fixtures: few threads, seeded random tensors, one tiny checkpoint of each kind, and something to listen to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import acefast
from acefast.models.v15.config import VAEConfig
from acefast.testing import write_checkpoint

# Half as wide as acefast.testing's own: most of a tiny song's time is its audio, at 48 kHz whatever the width.
NARROW_VAE = VAEConfig(encoder_hidden_size=2, decoder_channels=2, decoder_input_channels=8)


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
def tune() -> np.ndarray:
    """5.2 s of a pulsing chord with some noise: float32 [2, 249600] at 48 kHz, 130 latent frames."""
    t = np.arange(249_600) / 48_000
    tones = np.sin(2 * np.pi * np.array([[110.0], [165.0]]) * t) * (1 + np.sin(2 * np.pi * 2 * t)) / 5
    tune = (tones + 0.02 * np.random.default_rng(0).standard_normal(tones.shape)).astype(np.float32)
    tune.flags.writeable = False
    return tune
