"""Every tensor of an ACE-Step v1 checkpoint: its name and shape.

A name is the hub's, behind the part that it belongs to: ``dit.`` (with the lyric encoder), ``dcae.``, ``vocoder.`` and
``umt5.``. The tables are also what ``acefast.testing`` writes random checkpoints from.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

from acefast.models.v1.config import MELS, Config, DCAEConfig, VocoderConfig

Shapes = dict[str, tuple[int, ...]]

FOLDERS = {"dit": "ace_step_transformer", "dcae": "music_dcae_f8c8", "vocoder": "music_vocoder", "umt5": "umt5-base"}
PREFIXES = {  # of ComfyUI's single file
    "dit": "model.diffusion_model.",
    "dcae": "vae.dcae.",
    "vocoder": "vae.vocoder.",
    "umt5": "text_encoders.umt5base.transformer.",
}
SPIECE = "text_encoders.spiece_model"  # the text tokeniser in that file: SentencePiece's, as bytes
TIME_FEATURES = 256
REPA_WIDTHS = 1024, 768  # of the features that training compared with: MERT's and mHuBERT's

# What published files hold and inference never calls, as ``acefast info`` names it: projections of a direction of
# cross-attention that there is not, heads of training, and a window and filters, which are computed in fp32.
UNUSED = {
    "unused projections": re.compile(
        r"dit\.transformer_blocks\.\d+\.cross_attn\.(add_[qkv]_proj|to_add_out)\.(weight|bias)"
    ),
    "REPA heads": re.compile(r"dit\.projectors\.\d+\.\d+\.(weight|bias)"),
    "mel filters": re.compile(r"vocoder\.mel_transform\.(spectrogram\.window|mel_scale\.fb)"),
}


def _linear(prefix: str, out: int, inp: int) -> Shapes:
    return {f"{prefix}.weight": (out, inp), f"{prefix}.bias": (out,)}


def _norm(prefix: str, width: int) -> Shapes:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _conv(prefix: str, out: int, *others: int, bias: bool = True) -> Shapes:
    """A convolution of any rank; ``others``: inputs and kernel."""
    return {f"{prefix}.weight": (out, *others)} | ({f"{prefix}.bias": (out,)} if bias else {})


def _weight_normed(prefix: str, dim0: int, dim1: int, kernel: int, bias: int) -> Shapes:
    """Dim 0 is the output of a convolution and the input of a transposed one."""
    return {f"{prefix}.bias": (bias,), f"{prefix}.weight_g": (dim0, 1, 1), f"{prefix}.weight_v": (dim0, dim1, kernel)}


def transformer_tensors(c: Config) -> Shapes:
    """The diffusion transformer, as far as inference needs it (543 tensors)."""
    H, F, P = c.hidden_size, c.mlp_hidden_size, c.patch_hidden_size
    shapes = _conv("dit.proj_in.early_conv_layers.0", P, c.in_channels, *c.patch_size)
    shapes |= _norm("dit.proj_in.early_conv_layers.1", P) | _conv("dit.proj_in.early_conv_layers.2", H, P, 1, 1)
    shapes |= _linear("dit.timestep_embedder.linear_1", H, TIME_FEATURES)
    shapes |= _linear("dit.timestep_embedder.linear_2", H, H) | _linear("dit.t_block.1", 6 * H, H)
    for i in range(c.num_layers):
        block = f"dit.transformer_blocks.{i}"
        shapes[f"{block}.scale_shift_table"] = (6, H)
        for attn in ("attn", "cross_attn"):
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes |= _linear(f"{block}.{attn}.{name}", H, H)
        shapes |= _conv(f"{block}.ff.inverted_conv.conv", 2 * F, H, 1)
        shapes |= _conv(f"{block}.ff.depth_conv.conv", 2 * F, 1, 3)
        shapes |= _conv(f"{block}.ff.point_conv.conv", H, F, 1, bias=False)
    shapes["dit.final_layer.scale_shift_table"] = (2, H)
    return shapes | _linear("dit.final_layer.linear", c.out_channels * c.patch_size[0], H)


def condition_encoder_tensors(c: Config) -> Shapes:
    """The lyric encoder and the projections of speaker, text and lyrics (127 tensors)."""
    H, W, F = c.hidden_size, c.lyric_hidden_size, c.lyric_intermediate_size
    shapes = _linear("dit.speaker_embedder", H, c.speaker_embedding_dim)
    shapes |= _linear("dit.genre_embedder", H, c.text_embedding_dim) | _linear("dit.lyric_proj", H, W)
    shapes["dit.lyric_embs.weight"] = (c.lyric_encoder_vocab_size, W)
    shapes |= _linear("dit.lyric_encoder.embed.out.0", W, W) | _norm("dit.lyric_encoder.embed.out.1", W)
    for i in range(c.lyric_layers):
        layer = f"dit.lyric_encoder.encoders.{i}"
        for name in ("q", "k", "v", "out"):
            shapes |= _linear(f"{layer}.self_attn.linear_{name}", W, W)
        shapes[f"{layer}.self_attn.linear_pos.weight"] = (W, W)
        for name in ("pos_bias_u", "pos_bias_v"):
            shapes[f"{layer}.self_attn.{name}"] = (c.lyric_heads, W // c.lyric_heads)
        shapes |= _linear(f"{layer}.feed_forward.w_1", F, W) | _linear(f"{layer}.feed_forward.w_2", W, F)
        shapes |= _norm(f"{layer}.norm_ff", W) | _norm(f"{layer}.norm_mha", W)
    return shapes | _norm("dit.lyric_encoder.after_norm", W)


def unused_tensors(c: Config) -> Shapes:
    """What published checkpoints hold beside: cross-attention's other direction, heads and filters of training."""
    H, shapes = c.hidden_size, {}
    for i in range(c.num_layers):
        for name in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            shapes |= _linear(f"dit.transformer_blocks.{i}.cross_attn.{name}", H, H)
    for i, width in enumerate(REPA_WIDTHS):
        for layer, (out, inp) in zip((0, 2, 4), ((2 * H, H), (2 * H, 2 * H), (width, 2 * H))):
            shapes |= _linear(f"dit.projectors.{i}.{layer}", out, inp)
    return shapes | {
        "vocoder.mel_transform.spectrogram.window": (2048,),
        "vocoder.mel_transform.mel_scale.fb": (1025, MELS),
    }


def _residual_block(prefix: str, C: int) -> Shapes:
    shapes = _conv(f"{prefix}.conv1", C, C, 3, 3) | _conv(f"{prefix}.conv2", C, C, 3, 3, bias=False)
    return shapes | _norm(f"{prefix}.norm", C)


def _vit_block(prefix: str, C: int, head_dim: int) -> Shapes:
    attn, ff = f"{prefix}.attn", f"{prefix}.conv_out"
    shapes: Shapes = {f"{attn}.to_{name}.weight": (C, C) for name in "qkv"}
    shapes |= {
        f"{attn}.to_qkv_multiscale.0.proj_in.weight": (3 * C, 1, 5, 5),
        f"{attn}.to_qkv_multiscale.0.proj_out.weight": (3 * C, head_dim, 1, 1),
        f"{attn}.to_out.weight": (C, 2 * C),
    }
    shapes |= _norm(f"{attn}.norm_out", C) | _conv(f"{ff}.conv_inverted", 8 * C, C, 1, 1)
    shapes |= _conv(f"{ff}.conv_depth", 8 * C, 1, 3, 3) | _conv(f"{ff}.conv_point", C, 4 * C, 1, 1, bias=False)
    return shapes | _norm(f"{ff}.norm", C)


def _stage(c: DCAEConfig, prefix: str, stage: int, layers: int, first: int) -> Shapes:
    """``layers`` blocks of a stage, numbered from ``first``."""
    width, last = c.block_out_channels[stage], stage == len(c.block_out_channels) - 1
    shapes: Shapes = {}
    for i in range(first, first + layers):
        block = f"{prefix}.{stage}.{i}"
        shapes |= _vit_block(block, width, c.attention_head_dim) if last else _residual_block(block, width)
    return shapes


def dcae_encoder_tensors(c: DCAEConfig) -> Shapes:
    """Mel frames to latents; in a stage the strided convolution comes last."""
    widths = c.block_out_channels
    shapes = _conv("dcae.encoder.conv_in", widths[0], c.in_channels, 3, 3)
    for i, layers in enumerate(c.encoder_layers_per_block):
        shapes |= _stage(c, "dcae.encoder.down_blocks", i, layers, 0)
        if i + 1 < len(widths):
            shapes |= _conv(f"dcae.encoder.down_blocks.{i}.{layers}.conv", widths[i + 1], widths[i], 3, 3)
    return shapes | _conv("dcae.encoder.conv_out", c.latent_channels, widths[-1], 3, 3)


def dcae_decoder_tensors(c: DCAEConfig) -> Shapes:
    """Latents to mel frames; the innermost stage has the highest number, and its enlarging convolution comes first."""
    widths = c.block_out_channels
    shapes = _conv("dcae.decoder.conv_in", widths[-1], c.latent_channels, 3, 3)
    for i, layers in enumerate(c.decoder_layers_per_block):
        inner = i + 1 < len(widths)
        if inner:
            shapes |= _conv(f"dcae.decoder.up_blocks.{i}.0.conv", widths[i], widths[i + 1], 3, 3)
        shapes |= _stage(c, "dcae.decoder.up_blocks", i, layers, int(inner))
    return (
        shapes
        | _norm("dcae.decoder.norm_out", widths[0])
        | _conv("dcae.decoder.conv_out", c.in_channels, widths[0], 3, 3)
    )


def vocoder_tensors(c: VocoderConfig) -> Shapes:
    """Mel frames to audio (711 tensors): ConvNeXt's, then HiFi-GAN's with weight norm."""
    dims = c.dims
    shapes = _conv("vocoder.backbone.channel_layers.0.0", dims[0], c.input_channels, 7)
    shapes |= _norm("vocoder.backbone.channel_layers.0.1", dims[0])
    for i, (inp, out) in enumerate(itertools.pairwise(dims), start=1):
        shapes |= _norm(f"vocoder.backbone.channel_layers.{i}.0", inp)
        shapes |= _conv(f"vocoder.backbone.channel_layers.{i}.1", out, inp, 1)
    for s, (depth, C) in enumerate(zip(c.depths, dims)):
        for b in range(depth):
            block = f"vocoder.backbone.stages.{s}.{b}"
            shapes[f"{block}.gamma"] = (C,)
            shapes |= _conv(f"{block}.dwconv", C, 1, 7) | _norm(f"{block}.norm", C)
            shapes |= _linear(f"{block}.pwconv1", 4 * C, C) | _linear(f"{block}.pwconv2", C, 4 * C)
    shapes |= _norm("vocoder.backbone.norm", dims[-1])
    return shapes | _vocoder_head(c)


def _vocoder_head(c: VocoderConfig) -> Shapes:
    width, kernels = c.upsample_initial_channel, c.resblock_kernel_sizes
    shapes = _weight_normed("vocoder.head.conv_pre", width, c.dims[-1], c.pre_conv_kernel_size, width)
    for i, kernel in enumerate(c.upsample_kernel_sizes):
        inp, width = width, width // 2
        shapes |= _weight_normed(f"vocoder.head.ups.{i}", inp, width, kernel, width)
        for j, size in enumerate(kernels):
            for convs in ("convs1", "convs2"):
                for d in range(len(c.resblock_dilations)):
                    name = f"vocoder.head.resblocks.{i * len(kernels) + j}.{convs}.{d}"
                    shapes |= _weight_normed(name, width, width, size, width)
    return shapes | _weight_normed("vocoder.head.conv_post", 1, width, c.post_conv_kernel_size, 1)


def text_encoder_tensors(c: dict[str, Any]) -> Shapes:
    """UMT5's encoder, by the arguments of transformers' ``UMT5Config`` (122 tensors in umt5-base)."""
    H, F, heads = c["d_model"], c["d_ff"], c["num_heads"]
    inner = heads * c["d_kv"]
    shapes: Shapes = {"umt5.shared.weight": (c["vocab_size"], H), "umt5.encoder.final_layer_norm.weight": (H,)}
    for i in range(c["num_layers"]):
        attn, ff = (f"umt5.encoder.block.{i}.layer.{n}" for n in (0, 1))
        shapes |= {f"{attn}.SelfAttention.{name}.weight": (inner, H) for name in "qkv"}
        shapes |= {
            f"{attn}.SelfAttention.o.weight": (H, inner),
            f"{attn}.SelfAttention.relative_attention_bias.weight": (c["relative_attention_num_buckets"], heads),
            f"{attn}.layer_norm.weight": (H,),
            f"{ff}.DenseReluDense.wi_0.weight": (F, H),
            f"{ff}.DenseReluDense.wi_1.weight": (F, H),
            f"{ff}.DenseReluDense.wo.weight": (H, F),
            f"{ff}.layer_norm.weight": (H,),
        }
    return shapes


def unused_kind(name: str) -> str | None:
    """Which of ``UNUSED`` a tensor is of; None: it is needed or unknown."""
    return next((kind for kind, pattern in UNUSED.items() if pattern.fullmatch(name)), None)


def plain(name: str) -> str:
    """A name with weight norm's older spelling, whichever it has."""
    name = name.replace(".parametrizations.weight.original0", ".weight_g")
    return name.replace(".parametrizations.weight.original1", ".weight_v")
