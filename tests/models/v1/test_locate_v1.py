"""ACE-Step v1 is found under its names: in model folders, in the hub's cache, by a download of what is safe to read."""

from __future__ import annotations

import os
import shutil

import pytest

import acefast
from acefast import report
from acefast.checkpoint import find, open_checkpoint
from acefast.inventory import list_models
from acefast.locate import variant_of
from acefast.models.v1.names import FOLDERS
from tests.checkpoints import in_hub, refusal

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")
NAME, REPO = "ace-step-v1-3.5b", "ACE-Step/ACE-Step-v1-3.5B"


@pytest.mark.parametrize("name", [NAME, "v1-3.5b", "v1", "ACE-Step-v1-3.5B", "ace_step_v1_3.5b"])
def test_names_mean_the_model(name):
    assert variant_of(name) == "v1"


@pytest.mark.parametrize("name", ["v1.5", "v15-turbo", "ace-step-v1", "acestep-v1", "v1-turbo"])
def test_others_do_not(name):
    assert variant_of(name) is None


@pytest.mark.parametrize("sub", ["", "ACE-Step-v1-3.5B", "checkpoints/ACE-Step-v1-3.5B", NAME])
def test_model_folders_hold_the_hubs_layout(written, tmp_path, monkeypatch, sub):
    shutil.copytree(written("official", "v1"), tmp_path / "models" / sub)
    monkeypatch.setenv("ACEFAST_MODELS", os.pathsep.join([str(tmp_path / "absent"), str(tmp_path / "models")]))
    for name in (NAME, "v1"):
        checkpoint = open_checkpoint(name)
        assert (checkpoint.name, checkpoint.folder) == (NAME, tmp_path / "models" / sub)
    assert {m.name: m.problem for m in list_models()} == {NAME: "", "demo": ""}


@pytest.mark.parametrize("file", ["ace_step_v1_3.5b.safetensors", "ace_step_v1_3.5b_bf16.safetensors"])
@pytest.mark.parametrize("sub", ["", "checkpoints", "all_in_one"])
def test_model_folders_hold_comfyuis_file(written, tmp_path, monkeypatch, sub, file):
    (tmp_path / sub).mkdir(exist_ok=True)
    shutil.copy(written("aio", "v1"), tmp_path / sub / file)
    monkeypatch.setenv("ACEFAST_MODELS", str(tmp_path))
    assert find("v1") == tmp_path / sub / file and open_checkpoint(NAME).name == NAME
    assert open_checkpoint(tmp_path).layout == "all-in-one"


def test_a_folder_that_holds_the_model_is_taken(written, tmp_path):
    shutil.copytree(written("official", "v1"), tmp_path / "ACE-Step-v1-3.5B")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.name == NAME and checkpoint.folder == tmp_path / "ACE-Step-v1-3.5B"
    shutil.copytree(written("official"), tmp_path, dirs_exist_ok=True)
    assert "holds several models (ACE-Step-v1-3.5B, acestep-v15-turbo)" in refusal(open_checkpoint, tmp_path)


def test_both_families_are_listed_side_by_side(written, tmp_path, monkeypatch):
    shutil.copytree(written("official"), tmp_path, dirs_exist_ok=True)
    shutil.copytree(written("official", "v1"), tmp_path / "mine")
    shutil.copy(written("aio", "v1"), tmp_path / "merge.safetensors")
    monkeypatch.setenv("ACEFAST_MODELS", str(tmp_path))
    found = {m.name: m for m in list_models()}
    assert {*found} == {"ace-step-1.5-turbo", "mine", "merge", "demo"} and not any(m.problem for m in found.values())
    assert {name: m.checkpoint.family for name, m in found.items() if name in ("mine", "merge")} == dict.fromkeys(
        ("mine", "merge"), "v1"
    )
    assert "model    mine  official layout, v1, " in report.as_text(report.machine())
    assert open_checkpoint("mine").index == found["mine"].checkpoint.index


@pytest.mark.parametrize("name", [NAME, REPO])
def test_the_hubs_cache_needs_no_network(written, name):
    hub = shutil.copytree(written("official", "v1"), in_hub(REPO))
    assert find(name) == hub and open_checkpoint(name).name == NAME
    assert {m.name: m.path for m in list_models()}[NAME] == hub


@pytest.mark.parametrize("name", [NAME, "v1", REPO])
def test_a_download_takes_weights_and_json_of_the_four_folders(written, downloads, name):
    downloads.answer = written("official", "v1")
    assert find(name, offline=False) == downloads.answer
    ((repo, patterns),) = downloads
    assert repo == REPO
    assert {*patterns} == {f"{folder}/*.{kind}" for folder in FOLDERS.values() for kind in ("safetensors", "json")}


@pytest.mark.parametrize(
    "file",
    ["ace_step_transformer/diffusion_pytorch_model.safetensors", "music_vocoder", "umt5-base/tokenizer.json"],
)
def test_an_interrupted_download_goes_on(written, downloads, file):
    hub = shutil.copytree(written("official", "v1"), in_hub(REPO))
    assert find("v1") == hub and not downloads
    shutil.rmtree(hub / file) if (hub / file).is_dir() else (hub / file).unlink()
    downloads.answer = written("official", "v1")
    assert find("v1") == downloads.answer and len(downloads) == 1


def test_without_weights_one_sentence_says_what_is_missing():
    text = refusal(acefast.load, NAME)
    assert f"{NAME} is not on this machine" in text and "--model demo" in text
    assert "did you mean 'ace-step-v1-3.5b'?" in refusal(find, "ace-step-v1-3.5")


@pytest.mark.parametrize("name", [f"{REPO}-q4-K-M", "ace-step-v1-3.5b-q4-k-m"])
def test_the_quantised_sibling_is_refused(name):
    assert f"{name} holds int4 weights, which are not supported; take {NAME}" in refusal(find, name)
