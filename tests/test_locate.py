"""Models are found in the promised order, and names from requests stay in the folders meant for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from acefast import checkpoint as ck
from acefast import locate
from acefast.checkpoint import find, open_checkpoint
from acefast.testing import write_checkpoint
from tests.checkpoints import LAYOUTS, refusal

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")


def test_an_explicit_path_wins_then_the_model_folders_then_the_hubs_cache(written, tmp_path, monkeypatch):
    hub = Path(os.environ["HF_HUB_CACHE"]) / "models--ACE-Step--Ace-Step1.5"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text("abc")
    shutil.copytree(written("official"), hub / "snapshots/abc")
    assert find("turbo") == hub / "snapshots/abc/acestep-v15-turbo"
    assert open_checkpoint("ace-step-1.5-turbo").name == "ace-step-1.5-turbo"

    shutil.copytree(written("official"), tmp_path / "models")
    monkeypatch.setenv("ACEFAST_MODELS", os.pathsep.join([str(tmp_path / "absent"), str(tmp_path / "models")]))
    assert find("turbo") == tmp_path / "models/acestep-v15-turbo"
    assert find(written("official")) == written("official")
    assert [m.name for m in ck.list_models() if not m.problem] == ["ace-step-1.5-turbo"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_model_folders_hold_any_layout(written, copy, monkeypatch, layout):
    path = copy(layout)
    folder = path if path.is_dir() else path.parent if layout == "aio" else path.parent.parent
    if layout == "diffusers":
        folder = folder.rename(folder.parent / "acestep-v15-turbo-diffusers").parent
    monkeypatch.setenv("ACEFAST_MODELS", str(folder))
    checkpoint = open_checkpoint("ace-step-1.5-turbo")
    checkpoint.check()
    assert (checkpoint.name, checkpoint.layout) == ("ace-step-1.5-turbo", LAYOUTS[layout])


def test_a_model_of_its_own_repository_takes_shared_parts_from_the_main_one(written, tmp_path, monkeypatch):
    for repo, source in (("Ace-Step1.5", written("official")), ("acestep-v15-sft", None)):
        hub = Path(os.environ["HF_HUB_CACHE"]) / f"models--ACE-Step--{repo}"
        (hub / "refs").mkdir(parents=True)
        (hub / "refs/main").write_text("abc")
        if source is None:
            source = write_checkpoint(tmp_path, variant="sft") / "acestep-v15-sft"
        shutil.copytree(source, hub / "snapshots/abc")
    checkpoint = open_checkpoint("sft")
    checkpoint.check()
    assert checkpoint.traits.version == "sft" and checkpoint.index["norm.weight"].file.parent.name.startswith("Qwen3")
    assert checkpoint.tokenizer().pad_token_id is not None
    assert {m.name for m in ck.list_models()} == {"ace-step-1.5-turbo", "ace-step-1.5-sft"}


def test_a_download_takes_only_the_models_own_files(written, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo, allow_patterns, cache_dir):
        asked.append((repo, allow_patterns))
        return str(written("official"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find("turbo", offline=False) == written("official") / "acestep-v15-turbo"
    ((repo, patterns),) = asked
    assert repo == "ACE-Step/Ace-Step1.5" and all(p.startswith("acestep-v15-turbo/") for p in patterns)
    assert not any(p.endswith((".py", "/*")) for p in patterns)


def test_a_failed_download_says_what_where_and_what_to_do(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    text = refusal(find, "base", offline=False)
    assert "ACE-Step/acestep-v15-base could not be downloaded (no route)" in text and "acefast.testing" in text


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "..", "~root/x", "a\\b", "turbo/..", ".hidden", "", "x\0y"]
)
def test_a_name_from_a_request_never_leaves_the_model_folder(tmp_path, monkeypatch, name):
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").mkdir()
    monkeypatch.setenv("ACEFAST_MODELS", str(tmp_path / "models"))
    refusal(find, name, paths=False)


def test_names_without_weights_are_refused_in_one_sentence(tmp_path, monkeypatch):
    text = refusal(find, "ace-step-1.5-turbo")
    assert "not on this machine" in text and "$ACEFAST_MODELS" in text and os.environ["HF_HUB_CACHE"] in text
    assert "did you mean 'ace-step-1.5-turbo'?" in refusal(find, "ace-step-1.5-trubo")
    assert "known are" in refusal(find, "zzz")
    assert "downloads are off" in refusal(find, "someone/some-model")
    assert "no folder or file" in refusal(find, tmp_path / "absent")
    if not locate.DEMO.is_dir():
        assert "no demo" in refusal(find, "demo")
