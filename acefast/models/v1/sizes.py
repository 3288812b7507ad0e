"""Sizes of the networks in an ACE-Step v1 checkpoint: from its four ``config.json`` files, or from shapes.

The transformer's and the autoencoder's must give all that inference needs: what their classes have by default is
another model. What is in no ``config.json`` (the lyric encoder's depth) the shapes tell.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from acefast.layouts import read_json
from acefast.models.v1.config import MEL_HOP, MELS, RATE, Config, DCAEConfig, VocoderConfig
from acefast.models.v1.names import FOLDERS
from acefast.models.v15.config import checked
from acefast.sizes import METADATA_KEY, ByName, told
from acefast.weights import CheckpointError, Index

Sizes = tuple[Config, DCAEConfig, VocoderConfig, dict[str, Any]]  # the last: arguments of transformers' UMT5Config

UNSEEN = ("attention_head_dim", "rope_theta")  # of the transformer, in no shape
_LYRIC = ("lyric_layers", "lyric_heads", "lyric_intermediate_size", "patch_hidden_size")  # in no config.json
_TEXT_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_TEXT_DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}
# What the code takes as given, by part; a file that says otherwise is of another model.
_FIXED = {
    "dcae": {
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    },
    "vocoder": {
        **{"kernel_sizes": [7], "use_template": False, "sampling_rate": RATE, "n_fft": 2048, "win_length": 2048},
        **{"hop_length": MEL_HOP, "f_min": 40, "f_max": 16_000, "n_mels": MELS},
    },
    "umt5": {"feed_forward_proj": "gated-gelu"},
}


def read_configs(folder: Path, index: Index) -> Sizes:
    """Sizes of the hub layout in ``folder``.

    Raises:
        CheckpointError: a ``config.json`` is missing or damaged, or of a model that is built otherwise.
    """
    found = []
    for part, reader in (("dit", _transformer), ("dcae", _dcae), ("vocoder", _vocoder), ("umt5", _text)):
        path = folder / FOLDERS[part] / "config.json"
        found.append(told(reader, path, _fixed(part, path)))
    transformer, *others = found
    return dataclasses.replace(transformer, **_lyric_sizes(ByName(index))), *others


def infer_configs(index: Index, metadata: dict[str, str], file: Path) -> Sizes:
    """The same from shapes; what they do not show is the published model's, unless ``metadata`` of the file has it."""
    defaults = {name: getattr(Config(), name) for name in UNSEEN}
    given = told(json.loads, file, metadata.get(METADATA_KEY, "{}"))
    unseen = defaults | told(lambda values: checked(values, defaults), file, given)
    shapes = ByName(index)
    try:
        return infer_config(shapes, **unseen), infer_dcae(shapes), infer_vocoder(shapes), infer_text(shapes)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{file} has tensors of shapes that no ACE-Step v1 has; use an unmodified one") from error


def _fixed(part: str, path: Path) -> dict[str, Any]:
    """The values of a ``config.json``, if they are those that the code takes as given.

    A vocoder's or text encoder's class has them by default; an autoencoder's has others.
    """
    values = read_json(path)

    def check(values: dict[str, Any]) -> dict[str, Any]:
        for name, value in _FIXED.get(part, {}).items():
            got = values.get(name, None if part == "dcae" else value)
            if got != value:
                raise ValueError(f"{name} must be {value}, got {got!r:.60}")
        return values

    return told(check, path, values)


def _given(values: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    """All of ``examples`` from ``values``, each of its example's kind."""
    found = checked(values, examples)
    if missing := [name for name in examples if name not in found]:
        raise ValueError(f"{' and '.join(missing)} must be given, got none")
    return found


def _defaults(config: type, *apart: str) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(config) if field.name not in apart}


def _transformer(values: dict[str, Any]) -> Config:
    return Config(**_given(values, _defaults(Config, *_LYRIC)))


def _dcae(values: dict[str, Any]) -> DCAEConfig:
    encoder, decoder = (
        _given(values, {f"{side}_block_out_channels": (1,)})[f"{side}_block_out_channels"]
        for side in ("encoder", "decoder")
    )
    if encoder != decoder:
        raise ValueError(f"decoder_block_out_channels must be the encoder's {list(encoder)}, got {list(decoder)}")
    found = DCAEConfig(block_out_channels=encoder, **_given(values, _defaults(DCAEConfig, "block_out_channels")))
    inner = len(encoder) - 1
    for side in ("encoder", "decoder"):
        _same_length(found, f"{side}_layers_per_block", "block_out_channels")
        blocks, scales = (values.get(f"{side}_{name}") for name in ("block_types", "qkv_multiscales"))
        if blocks != ["ResBlock"] * inner + ["EfficientViTBlock"]:
            raise ValueError(f"{side}_block_types must be ResBlock and at last EfficientViTBlock, got {blocks!r:.80}")
        if not isinstance(scales, list) or scales[inner:] != [[5]]:  # residual blocks have none, whatever it says
            raise ValueError(f"{side}_qkv_multiscales must be {inner + 1} lists, the last [5], got {scales!r:.60}")
    return found


def _vocoder(values: dict[str, Any]) -> VocoderConfig:
    found = VocoderConfig(**checked(values, _defaults(VocoderConfig, "resblock_dilations")))
    name, kernels = "resblock_dilation_sizes", len(found.resblock_kernel_sizes)
    dilations = values.get(name, [list(found.resblock_dilations)] * kernels)
    if not isinstance(dilations, list) or not dilations or dilations != dilations[:1] * kernels:
        raise ValueError(f"{name} must be {kernels} times the same list, got {dilations!r:.80}")
    one = _given({name: dilations[0]}, {name: (1,)})[name]
    return _sound(dataclasses.replace(found, resblock_dilations=one))


def _text(values: dict[str, Any]) -> dict[str, Any]:
    sizes = _given(values, dict.fromkeys(_TEXT_SIZES, 1))
    return _TEXT_DEFAULTS | checked(values, _TEXT_DEFAULTS) | sizes


def _sound(v: VocoderConfig) -> VocoderConfig:
    """The vocoder's sizes, if they fit each other; raises ValueError."""
    _same_length(v, "dims", "depths")
    _same_length(v, "upsample_kernel_sizes", "upsample_rates")
    if math.prod(v.upsample_rates) != MEL_HOP:
        raise ValueError(f"upsample_rates must be numbers that make {MEL_HOP}, got {list(v.upsample_rates)}")
    return v


def _same_length(config: DCAEConfig | VocoderConfig, name: str, other: str) -> None:
    count, needed = len(getattr(config, name)), len(getattr(config, other))
    if count != needed:
        raise ValueError(f"{name} must be {needed} numbers, as many as {other}, got {count}")


def _lyric_sizes(shapes: ByName) -> dict[str, int]:
    lyric = "dit.lyric_encoder.encoders"
    first = {
        "lyric_heads": f"{lyric}.0.self_attn.pos_bias_u",
        "lyric_intermediate_size": f"{lyric}.0.feed_forward.w_1.weight",
        "patch_hidden_size": "dit.proj_in.early_conv_layers.0.weight",
    }
    return {"lyric_layers": shapes.count(lyric), **{name: (*shapes(tensor), 1)[0] for name, tensor in first.items()}}


def infer_config(shapes: ByName, attention_head_dim: int, rope_theta: float) -> Config:
    """Sizes of the transformer and its lyric encoder from their shapes."""
    width = shapes("dit.proj_in.early_conv_layers.2.weight")[0]
    _, channels, *kernel = shapes("dit.proj_in.early_conv_layers.0.weight")
    vocabulary, lyric_width = shapes("dit.lyric_embs.weight")
    return Config(
        num_layers=shapes.count("dit.transformer_blocks"),
        num_attention_heads=width // attention_head_dim,
        attention_head_dim=attention_head_dim,
        mlp_ratio=shapes("dit.transformer_blocks.0.ff.point_conv.conv.weight")[1] / width,
        in_channels=channels,
        out_channels=shapes("dit.final_layer.linear.weight")[0] // kernel[0],
        patch_size=tuple(kernel),
        rope_theta=rope_theta,
        speaker_embedding_dim=shapes("dit.speaker_embedder.weight")[1],
        text_embedding_dim=shapes("dit.genre_embedder.weight")[1],
        lyric_encoder_vocab_size=vocabulary,
        lyric_hidden_size=lyric_width,
        **_lyric_sizes(shapes),
    )


def infer_dcae(shapes: ByName) -> DCAEConfig:
    """Sizes of the mel autoencoder from its shapes."""
    stages = shapes.count("dcae.encoder.down_blocks")
    encoder, decoder = (
        [shapes.count(f"dcae.{blocks}.{i}") - (i + 1 < stages) for i in range(stages)]  # one convolution changes size
        for blocks in ("encoder.down_blocks", "decoder.up_blocks")
    )
    widths = [shapes("dcae.encoder.conv_in.weight")[0]]
    for i, layers in enumerate(encoder[:-1]):
        widths.append(shapes(f"dcae.encoder.down_blocks.{i}.{layers}.conv.weight")[0])
    attention = f"dcae.encoder.down_blocks.{stages - 1}.0.attn.to_qkv_multiscale.0.proj_out.weight"
    return DCAEConfig(
        in_channels=shapes("dcae.encoder.conv_in.weight")[1],
        latent_channels=shapes("dcae.encoder.conv_out.weight")[0],
        attention_head_dim=shapes(attention)[1],
        block_out_channels=tuple(widths),
        encoder_layers_per_block=tuple(encoder),
        decoder_layers_per_block=tuple(decoder),
    )


def infer_vocoder(shapes: ByName) -> VocoderConfig:
    """Sizes of the vocoder from its shapes; a transposed convolution's stride is half its kernel."""
    stages, layers, ups = "vocoder.backbone.stages", "vocoder.backbone.channel_layers", "vocoder.head.ups"
    width, channels, _ = shapes(f"{layers}.0.0.weight")
    count = shapes.count(stages)
    kernels = [shapes(f"{ups}.{i}.weight_v")[2] for i in range(shapes.count(ups))]
    blocks = range(shapes.count("vocoder.head.resblocks") // len(kernels))
    found = VocoderConfig(
        input_channels=channels,
        depths=tuple(shapes.count(f"{stages}.{s}") for s in range(count)),
        dims=(width, *(shapes(f"{layers}.{s}.1.weight")[0] for s in range(1, count))),
        upsample_rates=tuple(kernel // 2 for kernel in kernels),
        upsample_kernel_sizes=tuple(kernels),
        resblock_kernel_sizes=tuple(shapes(f"vocoder.head.resblocks.{i}.convs1.0.weight_v")[2] for i in blocks),
        upsample_initial_channel=shapes("vocoder.head.conv_pre.weight_v")[0],
        pre_conv_kernel_size=shapes("vocoder.head.conv_pre.weight_v")[2],
        post_conv_kernel_size=shapes("vocoder.head.conv_post.weight_v")[2],
    )
    return _sound(found)


def infer_text(shapes: ByName) -> dict[str, Any]:
    """Arguments of ``UMT5Config`` from the shapes of the text encoder."""
    layer = "umt5.encoder.block.0.layer"
    vocabulary, width = shapes("umt5.shared.weight")
    buckets, heads = shapes(f"{layer}.0.SelfAttention.relative_attention_bias.weight")
    return {
        **_TEXT_DEFAULTS,
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes(f"{layer}.0.SelfAttention.q.weight")[0] // heads,
        "d_ff": shapes(f"{layer}.1.DenseReluDense.wo.weight")[1],
        "num_layers": shapes.count("umt5.encoder.block"),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }
