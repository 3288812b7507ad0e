"""Random v1 checkpoints: other libraries load them, equal seeds give equal files, and the numbers stay in range."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from acefast.models.v1.config import Config, DCAEConfig, VocoderConfig
from acefast.random_weights import RandomTensors
from acefast.testing import TINY_V1, full_size, main, write_checkpoint

SCALE, SHIFT = 0.1786, -1.9091  # of latents, in the pipeline


def test_equal_seeds_give_equal_files_and_others_differ(tmp_path):
    def digest(folder, seed):
        path = write_checkpoint(folder, variant="v1", seed=seed)
        return {f.relative_to(path): hashlib.sha256(f.read_bytes()).digest() for f in path.rglob("*.safetensors")}

    first, again, other = digest(tmp_path / "a", 1), digest(tmp_path / "b", 1), digest(tmp_path / "c", 2)
    assert len(first) == 4 and first == again and all(first[f] != other[f] for f in first)


def test_the_autoencoder_keeps_its_scale(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    folder = write_checkpoint(tmp_path, variant="v1") / "music_dcae_f8c8"
    model = diffusers.AutoencoderDC.from_pretrained(folder)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mel = model.decoder(torch.randn(1, 8, 16, 8, generator=rng) / SCALE + SHIFT)
        latents = (model.encoder(0.4 * torch.randn(1, 2, 128, 64, generator=rng)) - SHIFT) * SCALE
    assert mel.shape == (1, 2, 128, 64) and 0.15 < mel.std() < 0.6 and mel.mean().abs() < 0.4  # -1 .. 1 is a mel frame
    assert mel.std(-1).mean() > 0.1 and latents.shape == (1, 8, 16, 8) and 0.3 < latents.std() < 2


def test_values_follow_their_rules():
    random, wide = RandomTensors(0), (512, 2048)
    for name in ("dit.transformer_blocks.0.attn.to_q.weight", "dcae.decoder.up_blocks.3.0.attn.to_q.weight"):
        assert abs(random(name, wide).std() * 2048**0.5 - 1) < 0.02
    assert abs(random("dit.lyric_embs.weight", wide).std() - 1) < 0.02
    assert abs(random("umt5.encoder.block.0.layer.0.SelfAttention.q.weight", wide).std() * 2048**0.5 * 8 - 1) < 0.02
    for name, mean in (("vocoder.head.ups.0.weight_g", 2.3), ("vocoder.head.ups.5.weight_g", 1.6)):
        assert abs(random(name, (2048, 1, 1)).mean() / mean - 1) < 0.02
    for name, mean in (("vocoder.backbone.stages.0.0.gamma", 0.3), ("dit.lyric_encoder.after_norm.weight", 1.0)):
        assert abs(random(name, (2048,)).mean() / mean - 1) < 0.02
    assert abs(random("dit.transformer_blocks.0.scale_shift_table", (6, 512)).std() - 0.1) < 0.01


@pytest.mark.parametrize("layout", ("official", "aio"))
def test_a_made_up_lyric_vocabulary_lies_beside(tmp_path, layout):
    path = write_checkpoint(tmp_path, variant="v1", layout=layout)
    tokenizer = Tokenizer.from_file(str((path if path.is_dir() else path.parent) / "vocab.json"))
    assert tokenizer.get_vocab_size() == TINY_V1.lyric_encoder_vocab_size == 6693
    special = {"[STOP]": 0, "[UNK]": 1, "[SPACE]": 2, "[en]": 259, "[START]": 261, "[zh-cn]": 5023, "[break]": 6692}
    assert {text: tokenizer.token_to_id(text) for text in special} == special
    ids = tokenizer.encode("[en]the[SPACE]song[verse]").ids
    assert ids[0] == 259 and ids[2] == 2 and ids[-1] == 6683 and 1 not in ids
    assert tokenizer.encode("the").tokens == ["the"] and tokenizer.encode("[nothing]").ids[0] == 1
    assert json.loads(tokenizer.to_str())["pre_tokenizer"]["type"] == "Whitespace"


def test_the_published_size_is_known():
    assert full_size("v1") == {"config": Config(), "dcae_config": DCAEConfig(), "vocoder_config": VocoderConfig()}


def test_the_command_writes_and_prints_the_path(tmp_path, capsys):
    assert main([str(tmp_path / "x"), "--variant", "v1", "--layout", "aio", "--dtype", "bf16"]) == 0
    path = capsys.readouterr().out.strip()
    assert path.endswith("ace_step_v1_3.5b.safetensors")
    assert {t.dtype for t in load_file(path).values()} == {torch.bfloat16, torch.uint8}
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--variant", "v1", "--layout", "diffusers"])
    assert "layout must be one of official, aio, got 'diffusers'" in capsys.readouterr().err
