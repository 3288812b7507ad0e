"""Sizes of the ACE-Step 1.5 networks, named as in the official ``config.json``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Config:
    """Sizes of a DiT bundle: transformer, condition encoder, audio tokenizer and detokenizer. Defaults: 2B turbo."""

    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    encoder_hidden_size: int = 2048
    encoder_intermediate_size: int = 6144
    encoder_num_attention_heads: int = 16
    encoder_num_key_value_heads: int = 8
    audio_acoustic_hidden_dim: int = 64  # latent channels
    patch_size: int = 2  # latent frames per token
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    sliding_window: int = 128  # even layers attend to |i - j| <= sliding_window tokens, odd layers to all
    text_hidden_dim: int = 1024
    timbre_fix_frame: int = 750
    num_lyric_encoder_hidden_layers: int = 8
    num_timbre_encoder_hidden_layers: int = 4
    num_attention_pooler_hidden_layers: int = 2
    pool_window_size: int = 5
    fsq_input_levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    timbre_token: bool = False  # XL puts a learned token in front of the timbre frames
    is_turbo: bool = True
    model_version: str = "turbo"
    is_lego_sft: bool = False  # trained on captions of single stems

    @property
    def in_channels(self) -> int:
        """Channels of the patch projection: source latents, mask and noisy latents."""
        return 3 * self.audio_acoustic_hidden_dim

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Read an official or diffusers ``config.json``; keys that inference does not use are ignored.

        Raises:
            ValueError: a value is of another kind than it must be.
        """
        kept = checked(values, {f.name: f.default for f in dataclasses.fields(cls)})
        kept.setdefault("timbre_token", values.get("encoder_hidden_size") is not None)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            if name in kept:
                kept.setdefault(f"encoder_{name}", kept[name])
        kept["is_turbo"] = kept.get("is_turbo", False) or kept.get("model_version") == "turbo"
        kept.setdefault("model_version", "turbo" if kept["is_turbo"] else "base")
        return cls(**kept)


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the Oobleck autoencoder, named as in its ``config.json``."""

    encoder_hidden_size: int = 128
    downsampling_ratios: tuple[int, ...] = (2, 4, 4, 6, 10)
    channel_multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    decoder_channels: int = 128
    decoder_input_channels: int = 64
    audio_channels: int = 2
    sampling_rate: int = 48_000

    @property
    def hop(self) -> int:
        """Audio samples per latent frame."""
        return math.prod(self.downsampling_ratios)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VAEConfig:
        """Read a diffusers ``config.json`` of ``AutoencoderOobleck``; raises as ``Config.from_dict``."""
        return cls(**checked(values, {f.name: f.default for f in dataclasses.fields(cls)}))


def checked(values: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    """The entries of a ``config.json`` that ``examples`` has, each of its example's kind; None counts as absent.

    Raises:
        ValueError: one is not, in a sentence.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it must be an object, got {values!r:.60}")
    kept = {}
    for name, example in examples.items():
        if (value := values.get(name)) is None:
            continue
        if isinstance(example, tuple):
            needs, fits = (
                "a list of whole numbers above 0",
                isinstance(value, (list, tuple)) and all(map(_whole, value)),
            )
            value = tuple(value) if fits else value
        elif isinstance(example, (bool, str)):
            needs, fits = "true or false" if isinstance(example, bool) else "text", type(value) is type(example)
        elif isinstance(example, int):
            needs, fits = "a whole number above 0", _whole(value)
        else:
            needs, fits = "a number above 0", type(value) in (int, float) and 0 < value < math.inf
        if not fits:
            raise ValueError(f"{name} must be {needs}, got {value!r:.60}")
        kept[name] = value
    return kept


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0
