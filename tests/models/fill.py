"""Tiny networks with the same random weights, ours and diffusers'."""

from __future__ import annotations

import inspect

import torch
from diffusers import AceStepTransformer1DModel
from diffusers.pipelines.ace_step import modeling_ace_step as theirs
from torch import Tensor, nn

from acefast.models.v15 import names
from acefast.models.v15.config import Config

TABLES = (
    names.transformer_tensors,
    names.condition_encoder_tensors,
    names.audio_tokenizer_tensors,
    names.audio_detokenizer_tensors,
)
TINY = Config(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    encoder_hidden_size=64,
    encoder_intermediate_size=96,
    encoder_num_attention_heads=4,
    encoder_num_key_value_heads=2,
    audio_acoustic_hidden_dim=8,
    text_hidden_dim=24,
    num_lyric_encoder_hidden_layers=3,
    num_timbre_encoder_hidden_layers=4,
)
# Like XL: wider than its encoder, query width unlike its own, four query heads to a key head, a timbre token.
TINY_XL = Config(
    **{
        **TINY.__dict__,
        "hidden_size": 80,
        "intermediate_size": 112,
        "num_attention_heads": 8,
        "timbre_token": True,
    }
)
DIFFUSERS = {
    "transformer": AceStepTransformer1DModel,
    "condition_encoder": theirs.AceStepConditionEncoder,
    "audio_tokenizer": theirs.AceStepAudioTokenizer,
    "audio_token_detokenizer": theirs.AceStepAudioTokenDetokenizer,
}


def official_tensors(config: Config, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of a bundle at a scale that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for table in TABLES:
        for name, shape in table(config).items():
            x = torch.randn(shape, generator=generator)
            if "norm" in name:
                x = 1 + 0.2 * x
            elif name.endswith("weight"):
                x /= (shape[0] if "proj_out.1" in name else x[0].numel()) ** 0.5
            elif "bias" in name or "table" in name:
                x *= 0.2
            tensors[name] = x
    return tensors


def ours(kind: type[nn.Module], config: Config, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32):
    """One of our modules, filled through its weight table."""
    with torch.device("meta"):
        module = kind(config)
    table = kind.weight_table(config)
    state = module.state_dict()
    assert table.keys() == state.keys()
    for name, source in table.items():
        parts = [tensors[n] for n in source.names]
        tensor = source.combine(*parts) if source.combine else parts[0].view(state[name].shape)
        assert tensor.shape == state[name].shape, name
        state[name] = tensor.to(source.dtype or dtype).contiguous()
    module.load_state_dict(state, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def diffusers(folder: str, config: Config, tensors: dict[str, Tensor]):
    """Diffusers' module of that folder with the same weights."""
    kind = DIFFUSERS[folder]
    values = {**config.__dict__, "fsq_dim": config.encoder_hidden_size}
    values["timbre_hidden_dim"] = config.audio_acoustic_hidden_dim
    values["in_channels"] = config.in_channels
    if folder != "transformer":
        for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            values[key] = values[f"encoder_{key}"]
    known = inspect.signature(kind.__init__).parameters
    module = kind(**{k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if k in known})
    state = {}
    for name, tensor in tensors.items():
        where, their_name = names.diffusers_from_official(name)
        if where == folder:
            state[their_name] = tensor
    missing = module.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"silence_latent"}
    return module.eval().requires_grad_(False)


def relative(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance, in fp64."""
    return float((got.double() - want.double()).norm() / want.double().norm())
