"""A tiny checkpoint of ACE-Step v1, and its pipeline."""

from __future__ import annotations

import pytest

import acefast
from acefast.testing import write_checkpoint


@pytest.fixture(scope="session")
def tiny_v1(tmp_path_factory):
    """Folder of a tiny random v1 checkpoint in the hub's layout; tests that change it copy it first."""
    return write_checkpoint(tmp_path_factory.mktemp("v1"), variant="v1")


@pytest.fixture(scope="session")
def v1_pipe(tiny_v1):
    return acefast.load(tiny_v1, device="cpu", dtype="float32")
