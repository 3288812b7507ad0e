"""Audio tokenizer and detokenizer against diffusers' with the same weights."""

from __future__ import annotations

import pytest
import torch

from acefast.models.v15 import names
from acefast.models.v15.codes import AudioDetokenizer, AudioTokenizer
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.config import Config
from acefast.models.v15.dit import DiT
from tests.models.fill import TABLES, TINY, diffusers, official_tensors, ours, relative

GATE = 1e-5  # relative L2 in fp32: two orders of summation
PROJECT_OUT = {"tokenizer.quantizer.project_out.weight", "tokenizer.quantizer.project_out.bias"}


@pytest.fixture(scope="module")
def tensors():
    return official_tensors(TINY)


def latents(batch, frames, seed=1):
    return torch.randn(batch, frames, TINY.audio_acoustic_hidden_dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frames", (1, 4, 5, 6, 123, 250))
def test_codes_equal_diffusers(tensors, frames):
    z, silence = latents(2, frames), latents(1, 10, seed=2)
    got = ours(AudioTokenizer, TINY, tensors).tokenize(z, silence[0])
    _, want = diffusers("audio_tokenizer", TINY, tensors).tokenize(z, silence)
    assert got.dtype == torch.int64 and got.shape == (2, -(-frames // 5))
    assert torch.equal(got, want[..., 0])


def test_codes_are_spread_so_that_equality_says_something(tensors):
    codes = ours(AudioTokenizer, TINY, tensors).tokenize(latents(2, 250), latents(1, 10)[0])
    assert codes.unique().numel() > 80


def test_last_code_is_filled_up_with_the_beginning_of_silence(tensors):
    mine, z, silence = ours(AudioTokenizer, TINY, tensors), latents(1, 7), latents(1, 10, seed=2)
    assert torch.equal(mine.tokenize(z, silence[0]), mine.tokenize(torch.cat((z, silence[:, :3]), 1), silence[0]))


def test_hints_equal_diffusers(tensors):
    codes = torch.randint(0, 64000, (2, 17), generator=torch.Generator().manual_seed(1))
    got = ours(AudioDetokenizer, TINY, tensors)(codes)
    quantized = diffusers("audio_tokenizer", TINY, tensors).quantizer.get_output_from_indices(codes)
    want = diffusers("audio_token_detokenizer", TINY, tensors)(quantized)
    assert got.shape == want.shape == (2, 85, TINY.audio_acoustic_hidden_dim)
    assert relative(got, want) <= GATE


def test_hints_of_a_code_depend_on_that_code_alone(tensors):
    mine = ours(AudioDetokenizer, TINY, tensors)
    hints = mine(torch.tensor([[5, 40000, 5]]))
    assert relative(hints[:, :5], hints[:, 10:]) <= GATE
    assert relative(hints[:, 5:10], mine(torch.tensor([[40000]]))) <= GATE


def test_quantizer_stays_fp32_in_a_bf16_model(tensors):
    for kind in (AudioTokenizer, AudioDetokenizer):
        module = ours(kind, TINY, tensors, torch.bfloat16)
        assert module.project.weight.dtype == torch.float32 and module.embed.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype, gate", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=str)
def test_sixteen_bit_hints_stay_near_fp32(tensors, dtype, gate):
    rounded = {name: t.to(dtype).float() for name, t in tensors.items()}
    codes = torch.arange(0, 64000, 999)[None]
    want = ours(AudioDetokenizer, TINY, rounded)(codes)
    got = ours(AudioDetokenizer, TINY, rounded, dtype)(codes)
    assert got.dtype == dtype and relative(got, want) <= gate


def test_bf16_tokenizer_runs_and_mostly_agrees(tensors):
    """Pooling in bf16 moves a few inputs over a step's edge; diffusers' does the same."""
    rounded = {name: t.bfloat16().float() for name, t in tensors.items()}
    z, silence = latents(1, 500), latents(1, 10)[0]
    want = ours(AudioTokenizer, TINY, rounded).tokenize(z, silence)
    got = ours(AudioTokenizer, TINY, rounded, torch.bfloat16).tokenize(z, silence)
    assert (got == want).float().mean() > 0.8


def test_wrong_shapes_are_refused_with_a_sentence(tensors):
    mine = ours(AudioTokenizer, TINY, tensors)
    with pytest.raises(ValueError, match="tokenize: silence must be"):
        mine.tokenize(latents(1, 4), latents(1, 4))
    with pytest.raises(ValueError, match="tokenize: latents must be"):
        mine.tokenize(latents(1, 4)[..., 1:], latents(1, 4)[0])


@pytest.mark.parametrize("config", (Config(), TINY), ids=["2B", "tiny"])
def test_the_four_networks_use_every_official_tensor_once(config):
    """The quantizer's way out is the detokenizer's way in, and belongs to it alone."""
    used = [
        name
        for kind in (DiT, ConditionEncoder, AudioTokenizer, AudioDetokenizer)
        for source in kind.weight_table(config).values()
        for name in source.names
    ]
    official = [name for table in TABLES for name in table(config)]
    assert sorted(used) == sorted(official)
    assert set(official) - set(names.audio_detokenizer_tensors(config)) >= PROJECT_OUT
    detokenizer = {n for s in AudioDetokenizer.weight_table(config).values() for n in s.names}
    assert detokenizer >= PROJECT_OUT


@pytest.mark.parametrize(
    "config, total",
    [
        (Config(), 2_393_872_518),
        (
            Config(
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=32,
                num_attention_heads=32,
                timbre_token=True,
            ),
            4_987_310_726,
        ),
    ],
    ids=["2B", "XL"],
)
def test_full_size_networks_have_the_published_number_of_parameters(config, total):
    with torch.device("meta"):
        modules = [kind(config) for kind in (DiT, ConditionEncoder, AudioTokenizer, AudioDetokenizer)]
    repeated_bias = config.audio_acoustic_hidden_dim  # the output's, stored once for each frame of a token
    assert sum(p.numel() for module in modules for p in module.parameters()) == total + repeated_bias
