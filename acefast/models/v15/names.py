"""Every tensor of an ACE-Step 1.5 checkpoint: its official name and shape, and its name in the other layouts.

The official names are the ones our loader speaks; files in another layout are renamed to them first. The tables are
also what ``acefast.testing`` writes random checkpoints from.
"""

from __future__ import annotations

import re

from acefast.models.v15.config import Config, VAEConfig

Shapes = dict[str, tuple[int, ...]]


def _attention(prefix: str, width: int, heads: int, kv_heads: int, head_dim: int) -> Shapes:
    return {
        f"{prefix}.q_proj.weight": (heads * head_dim, width),
        f"{prefix}.k_proj.weight": (kv_heads * head_dim, width),
        f"{prefix}.v_proj.weight": (kv_heads * head_dim, width),
        f"{prefix}.o_proj.weight": (width, heads * head_dim),
        f"{prefix}.q_norm.weight": (head_dim,),
        f"{prefix}.k_norm.weight": (head_dim,),
    }


def _mlp(prefix: str, width: int, intermediate: int) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (intermediate, width),
        f"{prefix}.up_proj.weight": (intermediate, width),
        f"{prefix}.down_proj.weight": (width, intermediate),
    }


def _linear(prefix: str, out: int, inp: int) -> Shapes:
    return {f"{prefix}.weight": (out, inp), f"{prefix}.bias": (out,)}


def _encoder_stack(prefix: str, c: Config, layers: int) -> Shapes:
    """``layers`` pre-norm encoder layers and the final norm, at the encoder's width."""
    width, shapes = c.encoder_hidden_size, {}
    for i in range(layers):
        layer = f"{prefix}.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
        }
        shapes |= _attention(
            f"{layer}.self_attn", width, c.encoder_num_attention_heads, c.encoder_num_key_value_heads, c.head_dim
        )
        shapes |= _mlp(f"{layer}.mlp", width, c.encoder_intermediate_size)
    return shapes | {f"{prefix}.norm.weight": (width,)}


def transformer_tensors(c: Config) -> Shapes:
    """The diffusion transformer (476 tensors in the 2B models, 628 in XL)."""
    H, D = c.hidden_size, c.audio_acoustic_hidden_dim
    shapes: Shapes = {
        "decoder.proj_in.1.weight": (H, c.in_channels, c.patch_size),
        "decoder.proj_in.1.bias": (H,),
        "decoder.proj_out.1.weight": (H, D, c.patch_size),
        "decoder.proj_out.1.bias": (D,),
        "decoder.norm_out.weight": (H,),
        "decoder.scale_shift_table": (1, 2, H),
    }
    shapes |= _linear("decoder.condition_embedder", H, c.encoder_hidden_size)
    for name in ("time_embed", "time_embed_r"):
        shapes |= _linear(f"decoder.{name}.linear_1", H, 256)
        shapes |= _linear(f"decoder.{name}.linear_2", H, H)
        shapes |= _linear(f"decoder.{name}.time_proj", 6 * H, H)
    for i in range(c.num_hidden_layers):
        layer = f"decoder.layers.{i}"
        shapes[f"{layer}.scale_shift_table"] = (1, 6, H)
        for norm in ("self_attn_norm", "cross_attn_norm", "mlp_norm"):
            shapes[f"{layer}.{norm}.weight"] = (H,)
        for attn in ("self_attn", "cross_attn"):
            shapes |= _attention(f"{layer}.{attn}", H, c.num_attention_heads, c.num_key_value_heads, c.head_dim)
        shapes |= _mlp(f"{layer}.mlp", H, c.intermediate_size)
    return shapes


def condition_encoder_tensors(c: Config) -> Shapes:
    """Text projector, lyric encoder, timbre encoder and the null condition (141 tensors)."""
    W = c.encoder_hidden_size
    shapes: Shapes = {"encoder.text_projector.weight": (W, c.text_hidden_dim), "null_condition_emb": (1, 1, W)}
    shapes |= _linear("encoder.lyric_encoder.embed_tokens", W, c.text_hidden_dim)
    shapes |= _encoder_stack("encoder.lyric_encoder", c, c.num_lyric_encoder_hidden_layers)
    shapes |= _linear("encoder.timbre_encoder.embed_tokens", W, c.audio_acoustic_hidden_dim)
    shapes["encoder.timbre_encoder.special_token"] = (1, 1, W)
    return shapes | _encoder_stack("encoder.timbre_encoder", c, c.num_timbre_encoder_hidden_layers)


def audio_tokenizer_tensors(c: Config) -> Shapes:
    """25 Hz latents to 5 Hz codes (32 tensors)."""
    W, levels = c.encoder_hidden_size, len(c.fsq_input_levels)
    shapes = _linear("tokenizer.audio_acoustic_proj", W, c.audio_acoustic_hidden_dim)
    shapes |= _linear("tokenizer.attention_pooler.embed_tokens", W, W)
    shapes["tokenizer.attention_pooler.special_token"] = (1, 1, W)
    shapes |= _encoder_stack("tokenizer.attention_pooler", c, c.num_attention_pooler_hidden_layers)
    shapes |= _linear("tokenizer.quantizer.project_in", levels, W)
    return shapes | _linear("tokenizer.quantizer.project_out", W, levels)


def audio_detokenizer_tensors(c: Config) -> Shapes:
    """5 Hz codes to 25 Hz latent hints (28 tensors)."""
    W = c.encoder_hidden_size
    shapes = _linear("detokenizer.embed_tokens", W, W)
    shapes["detokenizer.special_tokens"] = (1, c.pool_window_size, W)
    shapes |= _encoder_stack("detokenizer", c, c.num_attention_pooler_hidden_layers)
    return shapes | _linear("detokenizer.proj_out", c.audio_acoustic_hidden_dim, W)


def _snake(prefix: str, channels: int) -> Shapes:
    return {f"{prefix}.alpha": (1, channels, 1), f"{prefix}.beta": (1, channels, 1)}


def _conv(prefix: str, dim0: int, dim1: int, kernel: int, bias: int | None) -> Shapes:
    """A weight-normed convolution; dim 0 is the output of a Conv1d and the input of a ConvTranspose1d."""
    shapes = {f"{prefix}.weight_g": (dim0, 1, 1), f"{prefix}.weight_v": (dim0, dim1, kernel)}
    return shapes | ({f"{prefix}.bias": (bias,)} if bias else {})


def _residual_units(prefix: str, channels: int) -> Shapes:
    shapes: Shapes = {}
    for u in (1, 2, 3):
        unit = f"{prefix}.res_unit{u}"
        shapes |= _snake(f"{unit}.snake1", channels) | _conv(f"{unit}.conv1", channels, channels, 7, channels)
        shapes |= _snake(f"{unit}.snake2", channels) | _conv(f"{unit}.conv2", channels, channels, 1, channels)
    return shapes


def vae_encoder_tensors(v: VAEConfig) -> Shapes:
    """Audio to latents (183 tensors)."""
    widths = [v.encoder_hidden_size * m for m in (1, *v.channel_multiples)]
    shapes = _conv("encoder.conv1", v.encoder_hidden_size, v.audio_channels, 7, v.encoder_hidden_size)
    for b, (stride, cin, cout) in enumerate(zip(v.downsampling_ratios, widths, widths[1:])):
        block = f"encoder.block.{b}"
        shapes |= _residual_units(block, cin) | _snake(f"{block}.snake1", cin)
        shapes |= _conv(f"{block}.conv1", cout, cin, 2 * stride, cout)
    shapes |= _snake("encoder.snake1", widths[-1])
    return shapes | _conv("encoder.conv2", 2 * v.decoder_input_channels, widths[-1], 3, 2 * v.decoder_input_channels)


def vae_decoder_tensors(v: VAEConfig) -> Shapes:
    """Latents to audio (182 tensors)."""
    widths = [v.decoder_channels * m for m in (1, *v.channel_multiples)][::-1]
    shapes = _conv("decoder.conv1", widths[0], v.decoder_input_channels, 7, widths[0])
    for b, (stride, cin, cout) in enumerate(zip(v.downsampling_ratios[::-1], widths, widths[1:])):
        block = f"decoder.block.{b}"
        shapes |= _snake(f"{block}.snake1", cin) | _conv(f"{block}.conv_t1", cin, cout, 2 * stride, cout)
        shapes |= _residual_units(block, cout)
    shapes |= _snake("decoder.snake1", widths[-1])
    return shapes | _conv("decoder.conv2", v.audio_channels, widths[-1], 7, None)


# Diffusers splits the bundle into folders. (its folder, prefix of the official names there)
DIFFUSERS_PARTS = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}
_DIFFUSERS = (
    (".to_q.", ".q_proj."),
    (".to_k.", ".k_proj."),
    (".to_v.", ".v_proj."),
    (".to_out.0.", ".o_proj."),
    (".norm_q.", ".q_norm."),
    (".norm_k.", ".k_norm."),
    ("decoder.proj_in_conv.", "decoder.proj_in.1."),
    ("decoder.proj_out_conv.", "decoder.proj_out.1."),
)


def official_from_diffusers(folder: str, name: str) -> str:
    """Official name of tensor ``name`` in the diffusers folder ``folder``."""
    if name in ("null_condition_emb", "silence_latent"):
        return name
    name = DIFFUSERS_PARTS[folder] + name
    for theirs, official in _DIFFUSERS:
        name = name.replace(theirs, official)
    return name


def diffusers_from_official(name: str) -> tuple[str, str]:
    """(diffusers folder, name there) of an official name; the inverse of ``official_from_diffusers``."""
    if name in ("null_condition_emb", "silence_latent"):
        return "condition_encoder", name
    folder, prefix = next((f, p) for f, p in DIFFUSERS_PARTS.items() if name.startswith(p))
    for theirs, official in _DIFFUSERS:
        name = name.replace(official, theirs)
    return folder, name[len(prefix) :]


def vae_from_stable_audio(name: str) -> str:
    """Our (diffusers) VAE name of a stable-audio-tools style name such as ``decoder.layers.1.layers.0.alpha``."""
    name = name.replace(".parametrizations.weight.original0", ".weight_g")
    name = name.replace(".parametrizations.weight.original1", ".weight_v")
    side, rest = name.split(".", 1)
    if not rest.startswith("layers."):
        return name
    top, rest = re.fullmatch(r"layers\.(\d+)\.(.*)", rest).groups()
    if top == "0":
        return f"{side}.conv1.{rest}"
    if top == "6":
        return f"{side}.snake1.{rest}"
    if top == "7":
        return f"{side}.conv2.{rest}"
    block = f"{side}.block.{int(top) - 1}"
    inner, rest = re.fullmatch(r"layers\.(\d+)\.(.*)", rest).groups()
    first_unit = 0 if side == "encoder" else 2
    if first_unit <= int(inner) < first_unit + 3:
        kind, rest = re.fullmatch(r"layers\.(\d)\.(.*)", rest).groups()
        part = ("snake1", "conv1", "snake2", "conv2")[int(kind)]
        return f"{block}.res_unit{int(inner) - first_unit + 1}.{part}.{rest}"
    own = {"encoder": {3: "snake1", 4: "conv1"}, "decoder": {0: "snake1", 1: "conv_t1"}}[side]
    return f"{block}.{own[int(inner)]}.{rest}"
