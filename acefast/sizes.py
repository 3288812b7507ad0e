"""Sizes of the networks in a checkpoint: from its ``config.json`` files, or where it has none from shapes."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from acefast.layouts import Bundle, read_json
from acefast.models.v15.config import Config, VAEConfig, checked
from acefast.models.v15.names import Shapes
from acefast.weights import CheckpointError, Index

METADATA_KEY = "acefast.config"  # in a single file's header: the fields that shapes do not show
UNSEEN = (
    "sliding_window",
    "rms_norm_eps",
    "rope_theta",
    "timbre_fix_frame",
    "fsq_input_levels",
    "timbre_token",
    "is_lego_sft",
)

_TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
_TEXT_DEFAULTS = {
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}


def bundle_config(bundle: Bundle, index: Index, metadata: dict[str, str], name: str) -> Config:
    """Sizes of a DiT bundle.

    ``name`` tells turbo from the others where nothing else does: a name with "sft" or "base" in it (merges too) is not
    turbo.
    """
    if bundle.layout == "official" and (bundle.folder / "config.json").is_file():
        return told(Config.from_dict, bundle.folder / "config.json", read_json(bundle.folder / "config.json"))
    if bundle.layout == "diffusers" and (bundle.folder / "transformer/config.json").is_file():
        return told(Config.from_dict, bundle.folder, _from_diffusers(bundle.folder))
    kind = next((v for v in ("sft", "base") if v in name), "turbo")
    config = dataclasses.replace(infer_config(index), is_turbo=kind == "turbo", model_version=kind)
    examples = {name: getattr(config, name) for name in UNSEEN}
    unseen = told(json.loads, bundle.folder, metadata.get(METADATA_KEY, "{}"))
    return dataclasses.replace(config, **told(lambda values: checked(values, examples), bundle.folder, unseen))


def told(reader: Callable[[Any], Any], where: Path, values: Any) -> Any:
    """``reader(values)``, its ValueError told as a CheckpointError that says where they come from."""
    try:
        return reader(values)
    except ValueError as error:
        raise CheckpointError(f"{where} has a damaged config: {error}; download the checkpoint again") from error


def _from_diffusers(folder: Path) -> dict[str, Any]:
    """The four configs of the diffusers layout as one official config."""
    values = read_json(folder / "transformer/config.json")
    encoder = _optional_json(folder / "condition_encoder/config.json")
    codes = _optional_json(folder / "audio_tokenizer/config.json")
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    merged = dict(values)
    # This layout writes encoder_hidden_size for every model; only where it differs is the model an XL.
    hidden = values.get("hidden_size")
    merged["timbre_token"] = (values.get("encoder_hidden_size") or hidden) != hidden
    merged |= {f"encoder_{s}": encoder[s] for s in sizes if s in encoder}
    for key in ("text_hidden_dim", "num_lyric_encoder_hidden_layers", "num_timbre_encoder_hidden_layers"):
        merged |= {key: encoder[key]} if key in encoder else {}
    for key in ("pool_window_size", "fsq_input_levels", "num_attention_pooler_hidden_layers"):
        merged |= {key: codes[key]} if key in codes else {}
    return merged


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def vae_config(folder: Path | None, index: Index) -> VAEConfig:
    """Sizes of the VAE in ``folder``; None or no config there: from the shapes."""
    if folder and (folder / "config.json").is_file():
        return told(VAEConfig.from_dict, folder / "config.json", read_json(folder / "config.json"))
    return infer_vae_config(index)


def text_config(folder: Path | None, index: Index) -> dict[str, Any]:
    """Arguments of transformers' ``Qwen3Config`` for the text encoder in ``folder``, or from the shapes."""
    if folder and (folder / "config.json").is_file():
        return told(_text_arguments, folder / "config.json", read_json(folder / "config.json"))
    return infer_text_config(index)


def _text_arguments(values: dict[str, Any]) -> dict[str, Any]:
    known = checked(values, dict.fromkeys(_TEXT_SIZES, 1) | _TEXT_DEFAULTS)
    if missing := [name for name in _TEXT_SIZES if name not in known]:
        raise ValueError(f"{' and '.join(missing)} must be given, got none")
    dropped = ("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", *_TEXT_DEFAULTS)
    defaults = {} if "rope_parameters" in values else _TEXT_DEFAULTS  # newer files keep rope_theta in there
    return {k: v for k, v in values.items() if k not in dropped} | defaults | known


class ByName:
    """Shapes by official name; a missing one becomes a CheckpointError."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def __call__(self, name: str) -> tuple[int, ...]:
        if name not in self.index:
            raise CheckpointError(f"the checkpoint lacks {name}, which tells its sizes; use a complete one")
        return self.index[name].shape

    def count(self, prefix: str) -> int:
        """How many layers there are under ``prefix``."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
        return 1 + max((int(m[1]) for name in self.index if (m := pattern.match(name))), default=-1)

    def attention(self, prefix: str) -> tuple[int, int, int]:
        """(head_dim, heads, key and value heads) of an attention."""
        head_dim = self(f"{prefix}.q_norm.weight")[0]
        return head_dim, *(self(f"{prefix}.{p}_proj.weight")[0] // head_dim for p in "qk")


def infer_config(index: Index) -> Config:
    """Sizes of a DiT bundle from its shapes; what shapes do not show has the published models' values."""
    shapes = ByName(index)
    dit, lyric = "decoder.layers.0", "encoder.lyric_encoder.layers.0"
    hidden, encoder_hidden = shapes("decoder.condition_embedder.weight")
    head_dim, heads, kv_heads = shapes.attention(f"{dit}.self_attn")
    _, encoder_heads, encoder_kv_heads = shapes.attention(f"{lyric}.self_attn")
    _, channels, patch = shapes("decoder.proj_out.1.weight")
    return Config(
        hidden_size=hidden,
        intermediate_size=shapes(f"{dit}.mlp.gate_proj.weight")[0],
        num_hidden_layers=shapes.count("decoder.layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        encoder_hidden_size=encoder_hidden,
        encoder_intermediate_size=shapes(f"{lyric}.mlp.gate_proj.weight")[0],
        encoder_num_attention_heads=encoder_heads,
        encoder_num_key_value_heads=encoder_kv_heads,
        audio_acoustic_hidden_dim=channels,
        patch_size=patch,
        text_hidden_dim=shapes("encoder.text_projector.weight")[1],
        num_lyric_encoder_hidden_layers=shapes.count("encoder.lyric_encoder.layers"),
        num_timbre_encoder_hidden_layers=shapes.count("encoder.timbre_encoder.layers"),
        num_attention_pooler_hidden_layers=shapes.count("detokenizer.layers"),
        pool_window_size=shapes("detokenizer.special_tokens")[1],
        timbre_token=hidden != encoder_hidden,
    )


def infer_vae_config(index: Index) -> VAEConfig:
    """Sizes of the VAE from its shapes."""
    shapes = ByName(index)
    width, audio_channels, _ = shapes("encoder.conv1.weight_v")
    convs = [shapes(f"encoder.block.{b}.conv1.weight_v") for b in range(shapes.count("encoder.block"))]
    return VAEConfig(
        encoder_hidden_size=width,
        downsampling_ratios=tuple(kernel // 2 for _, _, kernel in convs),
        channel_multiples=tuple(out // width for out, _, _ in convs),
        decoder_channels=shapes("decoder.conv2.weight_v")[1],
        decoder_input_channels=shapes("decoder.conv1.weight_v")[1],
        audio_channels=audio_channels,
    )


def infer_text_config(index: Index) -> dict[str, Any]:
    """Sizes of the text encoder from its shapes."""
    shapes = ByName(index)
    vocabulary, hidden = shapes("embed_tokens.weight")
    head_dim, heads, kv_heads = shapes.attention("layers.0.self_attn")
    return _TEXT_DEFAULTS | {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": shapes("layers.0.mlp.gate_proj.weight")[0],
        "num_hidden_layers": shapes.count("layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def text_encoder_tensors(c: dict[str, Any]) -> Shapes:
    """Every tensor of the text encoder and its shape (310 in Qwen3-Embedding-0.6B)."""
    H, F, D = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * D, c["num_key_value_heads"] * D
    shapes: Shapes = {"embed_tokens.weight": (c["vocab_size"], H), "norm.weight": (H,)}
    for i in range(c["num_hidden_layers"]):
        attn, mlp = f"layers.{i}.self_attn", f"layers.{i}.mlp"
        shapes |= {
            f"layers.{i}.input_layernorm.weight": (H,),
            f"layers.{i}.post_attention_layernorm.weight": (H,),
            f"{attn}.q_proj.weight": (q, H),
            f"{attn}.k_proj.weight": (kv, H),
            f"{attn}.v_proj.weight": (kv, H),
            f"{attn}.o_proj.weight": (H, q),
            f"{attn}.q_norm.weight": (D,),
            f"{attn}.k_norm.weight": (D,),
            f"{mlp}.gate_proj.weight": (F, H),
            f"{mlp}.up_proj.weight": (F, H),
            f"{mlp}.down_proj.weight": (H, F),
        }
    return shapes
