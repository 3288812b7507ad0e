"""Tiny checkpoints to test on, and what several test files do with them.

Test files import its functions before pytest takes its fixtures, too late for its asserts: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from acefast import checkpoint as ck
from acefast.checkpoint import CheckpointError
from acefast.testing import write_checkpoint
from acefast.weights import open_file, read_tensor

LAYOUTS = {"official": "official", "diffusers": "diffusers", "comfyui": "comfyui", "aio": "all-in-one"}


@pytest.fixture
def no_network_and_no_models(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.delenv("ACEFAST_MODELS", raising=False)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Tiny checkpoints, written once; tests that change files copy them first."""
    found = {}

    def write(layout, variant="turbo"):
        if (layout, variant) not in found:
            folder = tmp_path_factory.mktemp(f"{layout}-{variant}")
            found[layout, variant] = write_checkpoint(folder, layout=layout, variant=variant)
        return found[layout, variant]

    return write


@pytest.fixture
def copy(written, tmp_path):
    def make(layout="official", variant="turbo"):
        path = written(layout, variant)
        root = path if path.is_dir() else path.parent if layout == "aio" else path.parent.parent
        shutil.copytree(root, tmp_path / "copy")
        return tmp_path / "copy" / path.relative_to(root)

    return make


@pytest.fixture
def downloads(monkeypatch):
    """What is asked of the hub, (repository, patterns), each request failing or answered by ``downloads.answer``."""
    asked, real = Downloads(), huggingface_hub.snapshot_download

    def snapshot_download(repo, *, allow_patterns=None, cache_dir, local_files_only=False):
        if local_files_only:
            return real(repo, cache_dir=cache_dir, local_files_only=True)
        asked.append((repo, allow_patterns))
        if asked.answer is None:
            raise ConnectionError("no route\nto host")
        return str(asked.answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return asked


class Downloads(list):
    answer: Path | None = None


def in_hub(repo: str) -> Path:
    """The folder of the only snapshot of ``repo`` in the hub's cache, still to be made."""
    hub = Path(os.environ["HF_HUB_CACHE"]) / f"models--{repo.replace('/', '--')}"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text("abc")
    return hub / "snapshots/abc"


def tensors(checkpoint: ck.Checkpoint) -> dict[str, torch.Tensor]:
    with contextlib.ExitStack() as stack:
        files = {file: stack.enter_context(open_file(file)) for file in {s.file for s in checkpoint.index.values()}}
        return {name: read_tensor(files[s.file], s).clone() for name, s in checkpoint.index.items()}


def edit(file: Path, change) -> None:
    values = load_file(file)
    change(values)
    save_file(values, file)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and not text.endswith("."), text
    return text
