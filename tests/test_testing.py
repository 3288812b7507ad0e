"""Random checkpoints: other libraries load them, equal seeds give equal files, and the numbers stay in range."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from acefast.models.v15 import names
from acefast.models.v15.config import Config, VAEConfig
from acefast.random_weights import RandomTensors
from acefast.testing import TINY, TINY_BASE, TINY_VAE, TINY_XL, main, stable_audio_from_vae, write_checkpoint


@pytest.mark.parametrize("variant", ("base", "xl-turbo"))
def test_diffusers_loads_its_layout_and_makes_sound(tmp_path, variant):
    from diffusers import AceStepPipeline

    path = write_checkpoint(tmp_path, layout="diffusers", variant=variant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own weight_norm deprecation
        pipe = AceStepPipeline.from_pretrained(path, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.is_turbo == (variant != "base")
    generator = torch.Generator().manual_seed(0)
    audio = pipe("drums", lyrics="the song", audio_duration=2.0, num_inference_steps=2, generator=generator).audios
    audio = np.asarray(audio)
    assert audio.shape == (1, 2, 96_000) and np.isfinite(audio).all() and audio.std() > 0.01


WIDER = VAEConfig(encoder_hidden_size=32, decoder_channels=32, decoder_input_channels=16)


@pytest.mark.parametrize("vae", (TINY_VAE, WIDER), ids=("tiny", "wider"))
def test_the_audio_nets_keep_their_scale(tmp_path, vae):
    from diffusers import AutoencoderOobleck

    config = Config(**{**vars(TINY), "audio_acoustic_hidden_dim": vae.decoder_input_channels})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoencoderOobleck.from_pretrained(write_checkpoint(tmp_path, config=config, vae_config=vae) / "vae")
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        audio = model.decode(torch.randn(1, vae.decoder_input_channels, 4, generator=rng)).sample
        mean = model.encode(0.3 * torch.randn(1, 2, 4 * 1920, generator=rng)).latent_dist.mean
    assert 0.1 < audio.std() < 1.5 and 0.1 < mean.std() < 1.5


def test_equal_seeds_give_equal_files_and_others_differ(tmp_path):
    def digest(folder, seed):
        path = write_checkpoint(folder, seed=seed)
        return {f.relative_to(path): hashlib.sha256(f.read_bytes()).digest() for f in path.rglob("*.safetensors")}

    first, again, other = digest(tmp_path / "a", 1), digest(tmp_path / "b", 1), digest(tmp_path / "c", 2)
    assert first == again and all(first[f] != other[f] for f in first)


def test_values_follow_their_rules_and_repeat_without_rows_lining_up():
    random = RandomTensors(0)
    weight = random("decoder.layers.0.mlp.gate_proj.weight", (3000, 2048))  # more numbers than are drawn
    assert abs(weight.std() * 2048**0.5 - 1) < 0.01 and weight.unique(dim=0).shape == weight.shape
    assert abs(random("decoder.proj_out.1.weight", (512, 64, 2)).std() * 512**0.5 - 1) < 0.02
    norm = random("decoder.norm_out.weight", (2048,))
    assert abs(norm.mean() - 1) < 0.02 and abs(norm.std() - 0.1) < 0.02
    assert not torch.equal(norm, random("encoder.lyric_encoder.norm.weight", (2048,)))


@pytest.mark.parametrize("shapes", (names.vae_encoder_tensors, names.vae_decoder_tensors))
def test_single_file_vae_names_invert(shapes):
    for name in shapes(VAEConfig()):
        assert names.vae_from_stable_audio(stable_audio_from_vae(name)) == name


def test_the_tiny_configs_differ_where_the_models_do():
    assert TINY_XL.hidden_size != TINY_XL.encoder_hidden_size and TINY_XL.timbre_token and not TINY.timbre_token
    assert TINY_XL.num_attention_heads * TINY_XL.head_dim != TINY_XL.hidden_size
    assert TINY.is_turbo and not TINY_BASE.is_turbo and TINY_VAE.hop == 1920


def test_the_command_writes_and_prints_the_path(tmp_path, capsys):
    assert main([str(tmp_path / "x"), "--variant", "xl-turbo", "--layout", "aio", "--dtype", "bf16"]) == 0
    path = capsys.readouterr().out.strip()
    assert path.endswith("ace_step_1.5_xl_turbo_aio.safetensors")
    assert {t.dtype for t in load_file(path).values()} == {torch.bfloat16}
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--variant", "large"])
    assert "variant 'large' is unknown" in capsys.readouterr().err


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="layout must be one of"):
        write_checkpoint(tmp_path, layout="zip")
    with pytest.raises(ValueError, match="the VAE must make 8 latent channels, got decoder_input_channels=64"):
        write_checkpoint(tmp_path, vae_config=VAEConfig())
