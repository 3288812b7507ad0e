"""UMT5's encoder out of a v1 checkpoint, beside transformers' own loading of the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acefast.checkpoint import open_checkpoint
from acefast.config_files import umt5_config_for
from acefast.lora import Adapter, LoRA, remake
from acefast.models.v1 import names
from acefast.models.v1.checkpoint import empty_text_encoder, load_text_encoder
from acefast.residence import named
from acefast.testing_v1 import TINY_V1
from tests.checkpoints import edit, refusal

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")
GATES = {torch.float32: 1e-6, torch.bfloat16: 2e-2}  # relative L2; bf16: products that are summed in another order
TEXTS = ["boom bap, 90 bpm, dusty drums", "lo-fi"]


def theirs(path, dtype):
    from transformers import UMT5EncoderModel

    return UMT5EncoderModel.from_pretrained(path / names.FOLDERS["umt5"]).to(dtype).eval()


def states(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokens).last_hidden_state[tokens.attention_mask.bool()].float()


@pytest.mark.parametrize("layout", ("official", "aio"))
@pytest.mark.parametrize("dtype", GATES, ids=str)
def test_it_equals_transformers_own_loading(written, dtype, layout):
    checkpoint = open_checkpoint(written(layout, "v1"))
    tokens = checkpoint.tokenizer()(TEXTS, padding=True, return_tensors="pt")
    ours, reference = load_text_encoder(checkpoint, "cpu", dtype), theirs(written("official", "v1"), dtype)
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())
    assert {p.dtype for p in ours.parameters()} == {dtype}
    a, b = states(ours, tokens), states(reference, tokens)
    assert (a - b).norm() <= GATES[dtype] * b.norm() and 0.5 < b.std() < 2
    exact = states(theirs(written("official", "v1"), torch.float32), tokens)  # bf16 is as near to fp32 as transformers'
    assert (a - exact).norm() <= max(1.2 * (b - exact).norm(), 1e-6 * exact.norm())


@pytest.mark.parametrize("dtype", GATES, ids=str)
def test_its_embedding_is_held_once_and_in_fp32_is_the_mapped_file(written, dtype):
    checkpoint = open_checkpoint(written("official", "v1"))
    model = load_text_encoder(checkpoint, "cpu", dtype)
    assert model.shared is model.encoder.embed_tokens
    held = {p.untyped_storage().data_ptr(): p.numel() for p in model.parameters()}
    assert sum(held.values()) == sum(torch.Size(s).numel() for s in checkpoint.expected["text_encoder"].values())


def test_its_names_are_those_of_the_table_at_full_size():
    config = umt5_config_for(TINY_V1) | {"vocab_size": 256_384, "d_model": 768, "d_kv": 64, "d_ff": 2048}
    config |= {"num_layers": 12, "num_heads": 12}
    model = empty_text_encoder(config)
    theirs = {f"umt5.encoder.{name}": tuple(t.shape) for name, t in model.encoder.state_dict().items()}
    theirs["umt5.shared.weight"] = theirs.pop("umt5.encoder.embed_tokens.weight")
    assert theirs == names.text_encoder_tensors(config) and all(p.is_meta for p in model.parameters())


def test_a_missing_tensor_is_told(copy):
    path = copy("official", "v1")
    name = "encoder.block.9.layer.0.SelfAttention.q.weight"
    edit(path / names.FOLDERS["umt5"] / "model.safetensors", lambda values: values.pop(name))
    assert f"lacks 1 tensor(s): umt5.{name}" in refusal(load_text_encoder, open_checkpoint(path))


def test_its_embedding_too_has_a_lora_merged_and_taken_off(written):
    """It has two names in the module and one in the checkpoint."""
    checkpoint = open_checkpoint(written("official", "v1"))
    model = load_text_encoder(checkpoint, dtype=torch.float32)
    before, (rows, width) = model.shared.weight.clone(), model.shared.weight.shape
    adapter = Adapter(torch.ones(1, width), torch.ones(rows, 1), 0.5)
    lora = LoRA("x", 1.0, Path("x"), None, {"umt5.shared.weight": adapter})
    lora.merge(model, named(model))
    assert torch.equal(model.encoder.embed_tokens.weight, before + 0.5)
    remake(model, named(model), lora.adapters.keys(), None)
    assert torch.equal(model.shared.weight, before)
