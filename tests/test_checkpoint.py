"""Every layout is read whole under one set of names, with its sizes, its tokeniser and its silence."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from acefast.checkpoint import open_checkpoint
from acefast.models.v15.checkpoint import load_text_encoder
from acefast.testing import TINY, TINY_BASE, TINY_VAE, TINY_XL, write_checkpoint
from tests.checkpoints import LAYOUTS, edit, refusal, tensors

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")


@pytest.mark.parametrize("variant", ("turbo", "base", "xl-turbo", "xl-sft"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens_whole_with_the_sizes_it_was_written_with(written, layout, variant):
    checkpoint = open_checkpoint(written(layout, variant))
    checkpoint.check()
    version = variant.removeprefix("xl-")
    xl = TINY_XL if variant.startswith("xl-") else TINY
    wanted = dataclasses.replace(xl, is_turbo=version == "turbo", model_version=version)
    assert (checkpoint.layout, checkpoint.config, checkpoint.vae_config) == (LAYOUTS[layout], wanted, TINY_VAE)
    assert checkpoint.traits.version == version and checkpoint.traits.is_turbo == (version == "turbo")
    assert checkpoint.traits.xl == variant.startswith("xl-")
    if layout != "diffusers":  # whose folder does not carry the model's name
        assert checkpoint.name == f"ace-step-1.5-{variant}"


@pytest.mark.parametrize("variant", ("turbo", "xl-turbo"))
def test_layouts_hold_the_same_tensors_under_official_names(written, variant):
    reference = tensors(open_checkpoint(written("official", variant)))
    for layout in ("diffusers", "comfyui", "aio"):
        other = tensors(open_checkpoint(written(layout, variant)))
        other.pop("silence_latent", None)
        assert other.keys() == reference.keys()
        for name, value in reference.items():
            assert torch.equal(value, other[name]), (layout, name)


def test_silence_latent_is_the_same_in_both_folder_layouts_and_none_in_single_files(written):
    official = open_checkpoint(written("official")).silence_latent()
    assert official.shape == (15_000, 8) and official.dtype == torch.float32
    assert torch.equal(official, open_checkpoint(written("diffusers")).silence_latent())
    assert open_checkpoint(written("comfyui")).silence_latent() is None
    longer = open_checkpoint(written("official")).silence_latent(15_010)
    assert torch.equal(longer[15_000:], official[:10])


def test_shards_equal_one_file(written, tmp_path):
    path = write_checkpoint(tmp_path, shard_bytes=500_000)
    assert len(list(path.glob("acestep-v15-turbo/model-*.safetensors"))) > 3
    whole, sharded = tensors(open_checkpoint(written("official"))), tensors(open_checkpoint(path))
    assert all(torch.equal(value, sharded[name]) for name, value in whole.items())


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_precision_files_open(tmp_path, dtype):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, dtype=dtype))
    checkpoint.check()
    assert {part.dtype for part in checkpoint.parts} == {dtype}


def test_the_folder_of_the_transformer_and_its_file_open_like_the_root(written):
    root = written("official")
    for path in (root / "acestep-v15-turbo", root / "acestep-v15-turbo/model.safetensors"):
        assert open_checkpoint(path).index == open_checkpoint(root).index


def test_a_file_that_is_named_is_taken_itself(copy):
    folder = copy() / "acestep-v15-turbo"
    shutil.copy(folder / "model.safetensors", folder / "finetune.safetensors")
    checkpoint = open_checkpoint(folder / "finetune.safetensors")
    checkpoint.check()
    assert checkpoint.layout == "official" and checkpoint.config.is_turbo
    assert checkpoint.index["null_condition_emb"].file.name == "finetune.safetensors"


def test_a_shard_stands_for_all_of_its_own(tmp_path):
    folder = write_checkpoint(tmp_path, shard_bytes=500_000) / "acestep-v15-turbo"
    shard = folder / "model-00002-of-00005.safetensors"
    assert open_checkpoint(shard).index == open_checkpoint(folder).index
    shutil.copy(shard, folder / "model.safetensors")
    open_checkpoint(shard).check()
    (folder / "model-00003-of-00005.safetensors").unlink()
    assert "has 4 of 5 shards" in refusal(open_checkpoint, shard)


@pytest.mark.parametrize("config", [{}, {"hidden_size": 64, "num_hidden_layers": 28}, {"hidden_size": 1024}], ids=str)
def test_a_config_of_something_else_beside_a_single_file_is_left_alone(copy, config):
    file = copy("comfyui", "base")
    (file.parent / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(file)
    checkpoint.check()
    assert (checkpoint.layout, checkpoint.traits.version) == ("comfyui", "base")


def test_sizes_come_from_shapes_where_a_single_file_says_nothing(copy):
    path = copy("comfyui", "xl-turbo")
    edit(path, lambda values: None)  # drops the header's metadata, as in files of others
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    assert checkpoint.config == dataclasses.replace(TINY_XL, sliding_window=128)  # the published models' value


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_stems_is_known_by_its_config(tmp_path, layout):
    config = dataclasses.replace(TINY_BASE, is_lego_sft=True)
    assert open_checkpoint(write_checkpoint(tmp_path, config=config, layout=layout)).config == config


def test_a_folded_vae_folds_to_the_same_weights(copy):
    path = copy("comfyui")
    before = tensors(open_checkpoint(path))

    def fold(values):
        for name in [n for n in values if n.endswith(".weight_v")]:
            v, g = values.pop(name), values.pop(name[:-1] + "g")
            values[name[:-2]] = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1)

    edit(path.parent.parent / "vae/ace_1.5_vae.safetensors", fold)
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    after = tensors(checkpoint)
    g, v = "decoder.block.2.conv_t1.weight_g", "decoder.block.2.conv_t1.weight_v"
    folded = before[g] * before[v] / before[v].flatten(1).norm(dim=1).view(-1, 1, 1)
    torch.testing.assert_close(after[v], folded)
    torch.testing.assert_close(after[g], before[g])


def test_computed_buffers_are_ignored_and_a_planner_is_listed(copy):
    path = copy("aio")

    def add(values):
        values["model.diffusion_model.tokenizer.quantizer.layers.0._levels"] = torch.tensor([8, 8, 8, 5, 5, 5])
        values["model.diffusion_model.decoder.rotary_emb.inv_freq"] = torch.ones(8)
        values["text_encoders.qwen3_06b.logit_scale"] = torch.tensor(4.6)
        values["text_encoders.qwen3_2b.transformer.model.embed_tokens.weight"] = torch.ones(10, 64)

    edit(path, add)
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    assert checkpoint.parts[-1].name == "text_encoder" and [part.name for part in checkpoint.unused] == ["planner"]


def test_text_encoder_equals_transformers_own_loading(written):
    from transformers import AutoTokenizer, Qwen3Model

    path = written("official") / "Qwen3-Embedding-0.6B"
    checkpoint = open_checkpoint(written("official"))
    ids = torch.tensor([checkpoint.tokenizer()("the singing").input_ids])
    assert ids[0].tolist() == AutoTokenizer.from_pretrained(path)("the singing").input_ids
    ours = load_text_encoder(checkpoint, "cpu", torch.float32)
    theirs = Qwen3Model.from_pretrained(path).float().eval()
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).last_hidden_state, theirs(input_ids=ids).last_hidden_state)
    assert not any(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokenizer_pads_right_and_keeps_the_end_when_it_truncates(written, layout):
    tokenizer = open_checkpoint(written(layout)).tokenizer()
    end = tokenizer.pad_token_id
    batch = tokenizer(["a long line of text", "b"], padding=True, truncation=True, max_length=6)
    assert [row[-1] for row in batch.input_ids] == [end, end] and len(batch.input_ids[0]) == 6
    assert batch.attention_mask[1] == [1, 1, 0, 0, 0, 0]
    assert tokenizer("x<|endoftext|>y").input_ids.count(end) == 2  # recognised inside the text as one token


def test_tokenizer_of_the_plain_text_model_gets_its_end(copy):
    path = copy()
    file = path / "Qwen3-Embedding-0.6B/tokenizer.json"
    values = json.loads(file.read_text()) | {"post_processor": None}
    file.write_text(json.dumps(values))
    tokenizer = open_checkpoint(path).tokenizer()
    assert tokenizer("a").input_ids[-1] == tokenizer.pad_token_id
