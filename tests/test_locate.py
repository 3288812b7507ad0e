"""Models are found in the promised order, and names from requests stay in the folders meant for them."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

import acefast
from acefast.checkpoint import find, open_checkpoint
from acefast.inventory import list_models
from acefast.report import checkpoint as about
from acefast.testing import write_checkpoint
from tests.checkpoints import LAYOUTS, in_hub, refusal

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")


def test_an_explicit_path_wins_then_the_model_folders_then_the_hubs_cache(written, tmp_path, monkeypatch):
    hub = shutil.copytree(written("official"), in_hub("ACE-Step/Ace-Step1.5"))
    assert find("turbo") == hub / "acestep-v15-turbo"
    assert open_checkpoint("ace-step-1.5-turbo").name == "ace-step-1.5-turbo"

    shutil.copytree(written("official"), tmp_path / "models")
    monkeypatch.setenv("ACEFAST_MODELS", os.pathsep.join([str(tmp_path / "absent"), str(tmp_path / "models")]))
    assert find("turbo") == tmp_path / "models/acestep-v15-turbo"
    assert find(written("official")) == written("official")
    assert [m.name for m in list_models() if not m.problem] == ["ace-step-1.5-turbo", "demo"]


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
        if source is None:
            source = write_checkpoint(tmp_path, variant="sft") / "acestep-v15-sft"
        shutil.copytree(source, in_hub(f"ACE-Step/{repo}"))
    checkpoint = open_checkpoint("sft")
    checkpoint.check()
    assert checkpoint.traits.version == "sft" and checkpoint.index["norm.weight"].file.parent.name.startswith("Qwen3")
    assert checkpoint.tokenizer().pad_token_id is not None
    assert {m.name for m in list_models()} == {"ace-step-1.5-turbo", "ace-step-1.5-sft", "demo"}


def test_a_download_takes_only_the_models_own_files(written, downloads):
    downloads.answer = written("official")
    assert find("turbo", offline=False) == written("official") / "acestep-v15-turbo"
    ((repo, patterns),) = downloads
    assert repo == "ACE-Step/Ace-Step1.5" and all(p.startswith("acestep-v15-turbo/") for p in patterns)
    assert not any(p.endswith((".py", "/*")) for p in patterns)


def test_a_failed_download_says_what_where_and_what_to_do(downloads):
    text = refusal(find, "base", offline=False)
    assert "ACE-Step/acestep-v15-base could not be downloaded (no route)" in text and "--model demo" in text


@pytest.mark.parametrize(
    "part, file",
    [
        ("acestep-v15-turbo", "model.safetensors"),
        ("acestep-v15-turbo", "silence_latent.pt"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("Qwen3-Embedding-0.6B", "model.safetensors"),
    ],
)
def test_an_interrupted_download_goes_on(written, downloads, part, file):
    hub = shutil.copytree(written("official"), in_hub("ACE-Step/Ace-Step1.5"))
    (hub / part / file).unlink()
    assert "could not be downloaded (no route)" in refusal(open_checkpoint, "turbo")
    downloads.answer = written("official")
    open_checkpoint("turbo").check()
    assert len(downloads) == 2 and all(p.startswith(f"{part}/") for _, patterns in downloads for p in patterns)


@pytest.mark.parametrize("part", ["transformer", "audio_tokenizer", "vae", "text_encoder"])
def test_an_interrupted_download_of_the_diffusers_layout_goes_on(written, downloads, part):
    hub = shutil.copytree(written("diffusers"), in_hub("someone/song-model"))
    assert find("someone/song-model") == hub and not downloads
    next((hub / part).glob("*.safetensors")).unlink()
    downloads.answer = written("diffusers")
    assert find("someone/song-model") == written("diffusers") and len(downloads) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_repository_in_the_hubs_cache_needs_no_network(written, layout):
    path = written(layout, "base")
    root = path if path.is_dir() else path.parent if layout == "aio" else path.parent.parent
    shutil.copytree(root, in_hub("someone/song-model") / ("split_files" if layout == "comfyui" else ""))
    open_checkpoint("someone/song-model").check()


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


@pytest.mark.parametrize("model", [None, 5, "", b"turbo"])
def test_what_is_no_name_is_refused_in_one_sentence(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    assert "known are" in refusal(acefast.load, model)


def test_models_are_listed_under_the_names_that_load_them(written, tmp_path, monkeypatch):
    models = tmp_path / "models"
    shutil.copytree(written("official"), models / "mine")
    shutil.copytree(written("diffusers", "base"), models / "theirs")
    shutil.copy(written("comfyui", "base"), models / "finetune.safetensors")
    shutil.copytree(written("official") / "vae", models / "vae")
    shutil.copytree(written("official") / "Qwen3-Embedding-0.6B", models / "Qwen3-Embedding-0.6B")
    save_file({"x": torch.zeros(1)}, models / "adapter.safetensors")
    (models / "notes.txt").touch()
    monkeypatch.setenv("ACEFAST_MODELS", str(models))
    found = {m.name: m for m in list_models()}
    assert {*found} == {"mine", "theirs", "finetune", "demo"} and not any(m.problem for m in found.values())
    for name in found:
        assert open_checkpoint(name).index == found[name].checkpoint.index
    assert about(found["finetune"].checkpoint)["path"] == str(models / "finetune.safetensors")
    assert about(found["theirs"].checkpoint)["path"] == str(models / "theirs")
