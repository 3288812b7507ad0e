"""The ``config.json`` files of the folder layouts, written from our configs; the inverse of ``acefast.sizes``."""

from __future__ import annotations

import dataclasses
from typing import Any

from acefast.models.v1.config import MEL_HOP, MELS, RATE, DCAEConfig, VocoderConfig
from acefast.models.v1.config import Config as V1Config
from acefast.models.v15.config import Config


def text_config_for(config: Config) -> dict[str, Any]:
    """Arguments of ``Qwen3Config`` for a text encoder of this width: the real one's at 1024, else two small layers."""
    full = config.text_hidden_dim == 1024
    return {
        "vocab_size": 151_669 if full else 384,
        "hidden_size": config.text_hidden_dim,
        "intermediate_size": 3072 if full else 2 * config.text_hidden_dim,
        "num_hidden_layers": 28 if full else 2,
        "num_attention_heads": 16 if full else 4,
        "num_key_value_heads": 8 if full else 2,
        "head_dim": 128 if full else 16,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }


def official_config(c: Config) -> dict[str, Any]:
    """The official ``config.json``: an XL's names its encoders' sizes, a 2B model's does not."""
    values = dataclasses.asdict(c) | {"model_type": "acestep", "in_channels": c.in_channels}
    if not c.timbre_token:
        for key in [k for k in values if k.startswith("encoder_")]:
            if values[key] != values[key.removeprefix("encoder_")]:
                raise ValueError(
                    f"write_checkpoint: {key} may differ from the transformer's only with timbre_token=True"
                )
            del values[key]
    del values["timbre_token"]
    return values


def diffusers_config(part: str, c: Config) -> dict[str, Any]:
    """The ``config.json`` of a folder of the diffusers layout."""
    shared = {"head_dim": c.head_dim, "rope_theta": c.rope_theta, "rms_norm_eps": c.rms_norm_eps}
    shared["sliding_window"] = c.sliding_window
    D = c.audio_acoustic_hidden_dim
    if part == "transformer":
        return {
            "_class_name": "AceStepTransformer1DModel",
            **shared,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads,
            "in_channels": c.in_channels,
            "audio_acoustic_hidden_dim": D,
            "patch_size": c.patch_size,
            "encoder_hidden_size": c.encoder_hidden_size,
            "is_turbo": c.is_turbo,
            "model_version": c.model_version,
            **({"is_lego_sft": True} if c.is_lego_sft else {}),
        }
    shared |= {
        "hidden_size": c.encoder_hidden_size,
        "intermediate_size": c.encoder_intermediate_size,
        "num_attention_heads": c.encoder_num_attention_heads,
        "num_key_value_heads": c.encoder_num_key_value_heads,
    }
    if part == "condition_encoder":
        return {
            "_class_name": "AceStepConditionEncoder",
            **shared,
            "text_hidden_dim": c.text_hidden_dim,
            "timbre_hidden_dim": D,
            "num_lyric_encoder_hidden_layers": c.num_lyric_encoder_hidden_layers,
            "num_timbre_encoder_hidden_layers": c.num_timbre_encoder_hidden_layers,
        }
    shared |= {"audio_acoustic_hidden_dim": D, "pool_window_size": c.pool_window_size}
    shared["num_attention_pooler_hidden_layers"] = c.num_attention_pooler_hidden_layers
    if part == "audio_token_detokenizer":
        return {"_class_name": "AceStepAudioTokenDetokenizer", **shared}
    levels = {"fsq_dim": c.encoder_hidden_size, "fsq_input_levels": c.fsq_input_levels, "fsq_input_num_quantizers": 1}
    return {"_class_name": "AceStepAudioTokenizer", **shared, **levels}


MODEL_INDEX = {
    "_class_name": "AceStepPipeline",
    "vae": ["diffusers", "AutoencoderOobleck"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "AceStepTransformer1DModel"],
    "condition_encoder": ["ace_step", "AceStepConditionEncoder"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "audio_tokenizer": ["ace_step", "AceStepAudioTokenizer"],
    "audio_token_detokenizer": ["ace_step", "AceStepAudioTokenDetokenizer"],
}


def umt5_config_for(config: V1Config) -> dict[str, Any]:
    """Arguments of ``UMT5Config`` for a text encoder of this width: umt5-base's at 768, else ten small layers."""
    full = config.text_embedding_dim == 768
    return {
        "vocab_size": 256_384 if full else 384,
        "d_model": config.text_embedding_dim,
        "d_kv": 64 if full else 8,
        "d_ff": 2048 if full else 2 * config.text_embedding_dim,
        "num_layers": 12 if full else 10,  # entropy-rectified guidance weakens layers 8 and 9
        "num_heads": 12 if full else 4,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    }


def v1_configs(c: V1Config, d: DCAEConfig, v: VocoderConfig, text: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ``config.json`` of each part of ACE-Step v1, whose names ``acefast.models.v1.names`` has."""
    inner = len(d.block_out_channels) - 1
    transformer = {
        "_class_name": "ACEStepTransformer2DModel",
        **{name: getattr(c, name) for name in ("num_layers", "num_attention_heads", "attention_head_dim")},
        **{name: getattr(c, name) for name in ("mlp_ratio", "in_channels", "out_channels", "patch_size", "rope_theta")},
        **{name: getattr(c, name) for name in ("speaker_embedding_dim", "text_embedding_dim")},
        **{name: getattr(c, name) for name in ("lyric_encoder_vocab_size", "lyric_hidden_size")},
        **{"inner_dim": c.hidden_size, "max_position": 32_768, "max_height": 16, "max_width": 32_768},
        **{"ssl_encoder_depths": [8, 8], "ssl_names": ["mert", "m-hubert"], "ssl_latent_dims": [1024, 768]},
    }
    autoencoder = {"_class_name": "AutoencoderDC", "scaling_factor": 0.41407}
    for side, layers in (("encoder", d.encoder_layers_per_block), ("decoder", d.decoder_layers_per_block)):
        autoencoder |= {
            f"{side}_block_out_channels": d.block_out_channels,
            f"{side}_block_types": ["ResBlock"] * inner + ["EfficientViTBlock"],
            f"{side}_layers_per_block": layers,
            f"{side}_qkv_multiscales": [[]] * inner + [[5]],
        }
    autoencoder |= {name: getattr(d, name) for name in ("in_channels", "latent_channels", "attention_head_dim")}
    autoencoder |= {"downsample_block_type": "Conv", "upsample_block_type": "interpolate"}
    autoencoder |= {"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}
    vocoder = {"_class_name": "ADaMoSHiFiGANV1", **dataclasses.asdict(v), "num_mels": v.dims[-1], "kernel_sizes": [7]}
    dilations = vocoder.pop("resblock_dilations")
    vocoder |= {"resblock_dilation_sizes": [dilations] * len(v.resblock_kernel_sizes), "use_template": False}
    vocoder |= {"drop_path_rate": 0.0, "sampling_rate": RATE, "n_fft": 2048, "win_length": 2048, "hop_length": MEL_HOP}
    vocoder |= {"f_min": 40, "f_max": 16_000, "n_mels": MELS}
    umt5 = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", **text, "tie_word_embeddings": False}
    return {"dit": transformer, "dcae": autoencoder, "vocoder": vocoder, "umt5": umt5}
