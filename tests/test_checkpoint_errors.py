"""Whatever is wrong with a checkpoint is told in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from acefast.checkpoint import open_checkpoint
from acefast.inventory import list_models
from acefast.sizes import METADATA_KEY
from acefast.testing import write_checkpoint
from acefast.weights import SHOWN
from tests.checkpoints import edit, refusal

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")


DIT = "acestep-v15-turbo/model.safetensors"


def test_unknown_missing_wrong_and_quantised_tensors_come_in_one_error(copy):
    path = copy()

    def spoil(values):
        values["decoder.layers.0.extra.weight"] = torch.zeros(1)
        values["decoder.norm_out.weight"] = torch.zeros(65)
        values["decoder.layers.1.mlp.up_proj.weight"] = torch.zeros(128, 64, dtype=torch.int8)
        del values["null_condition_emb"]

    edit(path / DIT, spoil)
    edit(path / "vae/diffusion_pytorch_model.safetensors", lambda values: values.pop("decoder.conv2.weight_g"))
    edit(
        path / "Qwen3-Embedding-0.6B/model.safetensors", lambda values: values.update({"lm_head.weight": torch.ones(1)})
    )
    text = refusal(open_checkpoint(path).check)
    assert "2 tensor(s) missing: null_condition_emb, decoder.conv2.weight_g" in text
    assert "2 tensor(s) unknown: decoder.layers.0.extra.weight, lm_head.weight" in text
    assert "1 tensor(s) of a wrong shape: decoder.norm_out.weight must be [64], got [65]" in text
    assert "1 tensor(s) of whole numbers: decoder.layers.1.mlp.up_proj.weight" in text


def test_a_long_list_is_cut_and_counted(copy):
    path = copy()
    edit(path / DIT, lambda values: [values.pop(n) for n in list(values) if n.startswith("decoder.layers.2.")])
    text = refusal(open_checkpoint(path).check)
    assert "19 tensor(s) missing" in text
    edit(path / DIT, lambda values: [values.pop(n) for n in list(values) if n.startswith("decoder.layers.1.")])
    assert f"and {38 - SHOWN} more" in refusal(open_checkpoint(path).check)


def truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 1000)


def as_pickle(file: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, file)


def as_old_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"weight": 1}))


def as_lfs_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


SPOILED = {
    truncate: "truncated or corrupt",
    (lambda file: file.write_bytes(b"")): "truncated or corrupt",
    (lambda file: file.write_bytes(os.urandom(8) + b"?" * 500)): "truncated or corrupt",
    as_pickle: "is a pickle",
    as_old_pickle: "is a pickle",
    as_lfs_pointer: "git-lfs pointer",
    (lambda file: file.rename(file.with_name("pytorch_model.bin"))): "holds a pickle (pytorch_model.bin)",
    (lambda file: file.unlink()): "no safetensors file",
    (lambda file: file.with_name("config.json").write_text("{")): "not readable JSON",
    (lambda file: file.with_name("config.json").write_text("[]")): "must hold a JSON object",
    (
        lambda file: edit(file, lambda v: v.update(x=torch.zeros(1).to(torch.float8_e4m3fn)))
    ): "neither bf16, fp16 nor fp32",
    (lambda file: shutil.rmtree(file.parent)): "no safetensors file",
    (lambda file: shutil.copytree(file.parent, file.parent.with_name("acestep-v15-sft"))): "several models",
    (lambda file: shutil.rmtree(file.parent.parent / "vae")): "the audio autoencoder (vae) is not on this machine",
    (lambda file: shutil.rmtree(file.parent.parent / "Qwen3-Embedding-0.6B")): "the text encoder",
}


@pytest.mark.parametrize("spoil, reason", SPOILED.items(), ids=[str(i) for i in range(len(SPOILED))])
def test_unusable_files_are_refused_in_one_sentence(copy, spoil, reason):
    path = copy()
    spoil(path / DIT)
    assert reason in refusal(open_checkpoint, path)


def test_a_missing_shard_is_named(tmp_path):
    path = write_checkpoint(tmp_path, shard_bytes=500_000)
    gone = sorted(path.glob("acestep-v15-turbo/model-*"))[1]
    gone.unlink()
    assert f"lacks the shard(s) {gone.name}" in refusal(open_checkpoint, path)


def test_a_single_file_that_is_not_this_model_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "is not an ACE-Step model: it has neither" in refusal(open_checkpoint, tmp_path / "other.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refusal(open_checkpoint, tmp_path / "model.gguf")
    (tmp_path / "empty").mkdir()
    assert "no safetensors file" in refusal(open_checkpoint, tmp_path / "empty")


def test_silence_and_tokenizer_files_that_are_not_are_refused(copy):
    path = copy()
    checkpoint = open_checkpoint(path)
    silence = path / "acestep-v15-turbo/silence_latent.pt"
    silence.write_bytes(b"not a tensor")
    assert "is not a tensor file" in refusal(checkpoint.silence_latent)
    torch.save(torch.zeros(1, 5, 100), silence)
    assert "must hold [1, frames, 8], got [1, 100, 5]" in refusal(checkpoint.silence_latent)
    torch.save(torch.zeros(1, 8, 0), silence)
    assert "must hold [1, frames, 8], got [1, 0, 8]" in refusal(checkpoint.silence_latent)
    tokenizer = path / "Qwen3-Embedding-0.6B/tokenizer.json"
    tokenizer.write_text("{}")
    assert "is not a tokenizer file" in refusal(checkpoint.tokenizer)
    tokenizer.unlink()
    assert "the text tokenizer is not on this machine" in refusal(checkpoint.tokenizer)


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_a_silence_latent_that_is_missing_is_told(copy, layout):
    path = copy(layout)
    if layout == "official":
        (path / "acestep-v15-turbo/silence_latent.pt").unlink()
    else:
        edit(path / "condition_encoder/diffusion_pytorch_model.safetensors", lambda v: v.pop("silence_latent"))
    assert "1 tensor(s) missing: silence_latent" in refusal(open_checkpoint(path).check)


DIT_CONFIG, VAE_CONFIG, TEXT_CONFIG = (
    f"{folder}/config.json" for folder in ("acestep-v15-turbo", "vae", "Qwen3-Embedding-0.6B")
)
DAMAGED = [
    *[(DIT_CONFIG, {"num_hidden_layers": value}) for value in ("4", 4.0, -1, True, [4])],
    *[(DIT_CONFIG, {"fsq_input_levels": value}) for value in (5, "888555", [8, "8"], [8, 0])],
    *[(DIT_CONFIG, values) for values in ({"rope_theta": "x"}, {"is_turbo": "false"}, {"model_version": 1})],
    *[(VAE_CONFIG, {"downsampling_ratios": 4}), (VAE_CONFIG, {"audio_channels": "2"})],
    *[(TEXT_CONFIG, {name: None}) for name in ("head_dim", "hidden_size")],
    *[(TEXT_CONFIG, values) for values in ({"num_hidden_layers": "2"}, {"rope_theta": "x"})],
]


@pytest.mark.parametrize("file, values", DAMAGED, ids=str)
def test_a_damaged_config_is_told_by_file_and_name(copy, file, values):
    path = copy()
    config = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(config | values))
    text = refusal(open_checkpoint, path)
    assert f"{path / file} has a damaged config: {next(iter(values))} must be" in text


def test_a_damaged_config_of_the_other_layouts_is_told(copy, tmp_path):
    path = copy("diffusers")
    (path / "transformer/config.json").write_text("{}")
    assert "does not fit its config" in refusal(open_checkpoint(path).check)
    (path / "audio_tokenizer/config.json").write_text(json.dumps({"fsq_input_levels": 5}))
    assert "fsq_input_levels must be a list" in refusal(open_checkpoint, path)
    file = write_checkpoint(tmp_path / "single", layout="comfyui")
    for metadata in ("[", '{"sliding_window": "x"}', "3"):
        save_file(load_file(file), file, {METADATA_KEY: metadata})
        assert "has a damaged config" in refusal(open_checkpoint, file)


def test_a_shard_index_without_its_map_is_told(tmp_path):
    path = write_checkpoint(tmp_path, shard_bytes=500_000)
    (index,) = path.glob("acestep-v15-turbo/*.index.json")
    for weight_map in ([1], {"a": 1}, None):
        index.write_text(json.dumps({"weight_map": weight_map}))
        assert "must hold a weight_map" in refusal(open_checkpoint, path)


def test_what_the_system_does_not_let_us_look_at_is_one_sentence(copy, monkeypatch):
    path = copy()
    monkeypatch.setenv("ACEFAST_MODELS", str(path.parent))
    assert "File name too long; check its name" in refusal(open_checkpoint, "a" * 5000)
    assert len(refusal(open_checkpoint, "./" + "a" * 5000)) < 400
    real = Path.is_dir

    def shut(self, **options):  # tests may run as root, whom no mode stops
        if path in self.parents:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)

    monkeypatch.setattr(Path, "is_dir", shut)
    assert "cannot be read: Permission denied; check" in refusal(open_checkpoint, path)
    assert [m.problem.count("Permission denied") for m in list_models() if m.name != "demo"] == [1]


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_a_silence_latent_with_nan_is_refused(copy, layout):
    path = copy(layout)
    for file in path.rglob("silence_latent.pt"):
        torch.save(torch.load(file).index_fill(-1, torch.tensor([3]), torch.nan), file)
    for file in path.rglob("condition_encoder/*.safetensors"):
        edit(file, lambda values: values["silence_latent"].fill_(torch.nan))
    assert "silence_latent has NaN" in refusal(open_checkpoint(path).silence_latent)
