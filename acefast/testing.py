"""Random checkpoints of any size in every layout, for tests, benchmarks and trying things out without the real weights.

    python -m acefast.testing FOLDER --size full --variant turbo --layout official --dtype bf16

The songs are noise, but every network runs at its real cost and every loader sees a real folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from acefast.config_files import MODEL_INDEX, diffusers_config, official_config, text_config_for
from acefast.layouts import AIO_PREFIX
from acefast.locate import variant_of
from acefast.models.v1.config import Config as V1Config
from acefast.models.v1.config import DCAEConfig, VocoderConfig
from acefast.models.v15 import names
from acefast.models.v15.config import Config, VAEConfig
from acefast.random_weights import SILENCE_FRAMES, Item, RandomTensors, write_safetensors, write_sharded
from acefast.sizes import METADATA_KEY, UNSEEN, text_encoder_tensors
from acefast.testing_v1 import LAYOUTS as V1_LAYOUTS
from acefast.testing_v1 import TINY_DCAE, TINY_V1, TINY_VOCODER, Writer

__all__ = [
    *("LAYOUTS", "TINY", "TINY_BASE", "TINY_DCAE", "TINY_V1", "TINY_VAE", "TINY_VOCODER", "TINY_XL"),
    *("full_size", "main", "write_checkpoint"),
]

LAYOUTS = ("official", "diffusers", "comfyui", "aio")
END_OF_TEXT = "<|endoftext|>"

TINY = Config(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    encoder_hidden_size=64,
    encoder_intermediate_size=128,
    encoder_num_attention_heads=4,
    encoder_num_key_value_heads=2,
    audio_acoustic_hidden_dim=8,
    sliding_window=16,
    text_hidden_dim=32,
    num_lyric_encoder_hidden_layers=2,
    num_timbre_encoder_hidden_layers=2,
    num_attention_pooler_hidden_layers=1,
)
TINY_BASE = dataclasses.replace(TINY, is_turbo=False, model_version="base")
# An XL in small: the transformer is wider than its encoders, and its queries wider than itself.
TINY_XL = dataclasses.replace(
    TINY, hidden_size=96, intermediate_size=160, num_hidden_layers=5, num_attention_heads=8, timbre_token=True
)
# 8 latent channels instead of 64: diffusers makes the encoder as wide as its output, and 128 wide is slow at 48 kHz.
TINY_VAE = VAEConfig(encoder_hidden_size=16, decoder_channels=4, decoder_input_channels=8)
FULL_XL = Config(
    hidden_size=2560, intermediate_size=9728, num_hidden_layers=32, num_attention_heads=32, timbre_token=True
)


def write_checkpoint(
    folder: str | os.PathLike,
    *,
    config: Config | V1Config | None = None,
    vae_config: VAEConfig = TINY_VAE,
    dcae_config: DCAEConfig = TINY_DCAE,
    vocoder_config: VocoderConfig = TINY_VOCODER,
    layout: str = "official",
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shard_bytes: int | None = None,
) -> Path:
    """Write a random, well-scaled checkpoint; the same seed gives the same official tensors in every layout.

    Args:
        folder: created where it does not exist.
        config: sizes; None for the tiny ones of ``variant``.
        vae_config: of 1.5; ``dcae_config`` and ``vocoder_config``: of v1.
        layout: "official", "diffusers", "comfyui" (three files) or "aio" (all in one file); v1 has the first and last.
        variant: as in model names, "turbo", "xl-base" or "v1"; it decides ``is_turbo`` and the names of folders and
            files. None: as ``config`` says.
        dtype: of all weights: bfloat16, float16 or float32.
        shard_bytes: split the larger files of the folder layouts into shards of this size.
    Returns:
        What ``acefast.load`` takes: the folder, or the DiT's file in the single-file layouts. A v1 checkpoint has a
        made-up lyric vocabulary, ``vocab.json``, beside it.
    Raises:
        ValueError: the layout or the variant is not known, or the sizes do not fit each other.
    """
    v1 = variant_of(variant) == "v1" if variant else isinstance(config, V1Config)
    layouts = V1_LAYOUTS if v1 else LAYOUTS
    if layout not in layouts:
        raise ValueError(f"write_checkpoint: layout must be one of {', '.join(layouts)}, got {layout!r}")
    if v1:
        sizes = (config or TINY_V1, dcae_config, vocoder_config)
        return getattr(Writer(Path(folder), *sizes, dtype, RandomTensors(seed), shard_bytes), layout)()
    if variant is not None and variant_of(variant) is None:
        raise ValueError(f"write_checkpoint: variant {variant!r} is unknown; give one as in ace-step-1.5-VARIANT")
    variant = variant_of(variant) if variant else None
    if config is None:
        config = TINY_XL if variant and variant.startswith("xl-") else TINY
    if config.audio_acoustic_hidden_dim != vae_config.decoder_input_channels:
        raise ValueError(
            f"write_checkpoint: the VAE must make {config.audio_acoustic_hidden_dim} latent channels, "
            f"got decoder_input_channels={vae_config.decoder_input_channels}"
        )
    if variant is None:
        variant = ("xl-" if config.timbre_token else "") + ("turbo" if config.is_turbo else "base")
    version = variant.removeprefix("xl-").partition("-")[0]
    config = dataclasses.replace(config, is_turbo=version == "turbo", model_version=version)
    writer = _Writer(Path(folder), config, vae_config, variant, dtype, RandomTensors(seed), shard_bytes)
    return getattr(writer, layout)()


def full_size(variant: str) -> dict[str, Any]:
    """What makes ``write_checkpoint`` write a model of its published size."""
    if variant_of(variant) == "v1":
        return {"config": V1Config(), "dcae_config": DCAEConfig(), "vocoder_config": VocoderConfig()}
    return {"config": FULL_XL if "xl-" in variant else Config(), "vae_config": VAEConfig()}


@dataclasses.dataclass
class _Writer:
    folder: Path
    config: Config
    vae_config: VAEConfig
    variant: str
    dtype: torch.dtype
    random: RandomTensors
    shard_bytes: int | None

    def __post_init__(self) -> None:
        c, v = self.config, self.vae_config
        self.text_config = text_config_for(c)
        self.bundle = (
            names.transformer_tensors(c)
            | names.condition_encoder_tensors(c)
            | names.audio_tokenizer_tensors(c)
            | names.audio_detokenizer_tensors(c)
        )
        self.vae = names.vae_encoder_tensors(v) | names.vae_decoder_tensors(v)
        self.text = text_encoder_tensors(self.text_config)

    def items(self, shapes: names.Shapes, rename: Callable[[str], str] = str) -> list[Item]:
        """Entries of a file: random values by official name, under the name the layout has."""
        return [(rename(n), s, lambda n=n, s=s: self.random.pieces(n, s)) for n, s in shapes.items()]

    def official(self) -> Path:
        dit = self.folder / f"acestep-v15-{self.variant}"
        write_sharded(dit, "model", self.items(self.bundle), self.dtype, self.shard_bytes)
        _write_json(dit / "config.json", official_config(self.config))
        D = self.config.audio_acoustic_hidden_dim
        torch.save(self.random.silence(D).transpose(1, 2).contiguous(), dit / "silence_latent.pt")
        self._vae(self.folder / "vae")
        self._text_encoder(self.folder / "Qwen3-Embedding-0.6B")
        write_tokenizer(self.folder / "Qwen3-Embedding-0.6B")
        return self.folder

    def diffusers(self) -> Path:
        parts: dict[str, list[Item]] = {}
        silence = {"silence_latent": (1, SILENCE_FRAMES, self.config.audio_acoustic_hidden_dim)}
        for name, shape, values in self.items(self.bundle | silence):
            part, theirs = names.diffusers_from_official(name)
            parts.setdefault(part, []).append((theirs, shape, values))
        for part, items in parts.items():
            folder = self.folder / part
            write_sharded(folder, "diffusion_pytorch_model", items, self.dtype, self.shard_bytes)
            _write_json(folder / "config.json", diffusers_config(part, self.config))
        self._vae(self.folder / "vae")
        self._text_encoder(self.folder / "text_encoder")
        write_tokenizer(self.folder / "tokenizer")
        scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1, "shift": 1.0}
        _write_json(self.folder / "scheduler/scheduler_config.json", scheduler)
        _write_json(self.folder / "model_index.json", MODEL_INDEX)
        return self.folder

    def comfyui(self) -> Path:
        file = self.folder / "diffusion_models" / f"acestep_v1.5_{self.variant.replace('-', '_')}.safetensors"
        write_safetensors(file, self.items(self.bundle), self.dtype, self._metadata())
        text = self.folder / "text_encoders/qwen_0.6b_ace15.safetensors"
        write_safetensors(text, self.items(self.text, "model.{}".format), self.dtype)
        write_safetensors(self.folder / "vae/ace_1.5_vae.safetensors", self._stable_audio_vae(""), self.dtype)
        write_tokenizer(self.folder / "tokenizer")
        return file

    def aio(self) -> Path:
        file = self.folder / f"ace_step_1.5_{self.variant.replace('-', '_')}_aio.safetensors"
        items = self.items(self.bundle, f"{AIO_PREFIX}{{}}".format)
        items += self.items(self.text, "text_encoders.qwen3_06b.transformer.model.{}".format)
        write_safetensors(file, items + self._stable_audio_vae("vae."), self.dtype, self._metadata())
        write_tokenizer(self.folder / "tokenizer")
        return file

    def _vae(self, folder: Path) -> None:
        write_sharded(folder, "diffusion_pytorch_model", self.items(self.vae), self.dtype)
        _write_json(
            folder / "config.json", {"_class_name": "AutoencoderOobleck", **dataclasses.asdict(self.vae_config)}
        )

    def _text_encoder(self, folder: Path) -> None:
        write_sharded(folder, "model", self.items(self.text), self.dtype, self.shard_bytes)
        _write_json(
            folder / "config.json", {"architectures": ["Qwen3Model"], "model_type": "qwen3", **self.text_config}
        )

    def _stable_audio_vae(self, prefix: str) -> list[Item]:
        """The VAE in the single-file style; the file with everything has the newer weight-norm names."""
        items = []
        for name, shape in self.vae.items():
            theirs = stable_audio_from_vae(name)
            if prefix:
                theirs = theirs.replace(".weight_g", ".parametrizations.weight.original0")
                theirs = theirs.replace(".weight_v", ".parametrizations.weight.original1")
            flat = (shape[1],) if name.endswith((".alpha", ".beta")) else shape
            items.append((prefix + theirs, flat, lambda name=name, shape=shape: self.random.pieces(name, shape)))
        return items

    def _metadata(self) -> dict[str, str]:
        values = dataclasses.asdict(self.config)
        return {METADATA_KEY: json.dumps({key: values[key] for key in UNSEEN})}


def stable_audio_from_vae(name: str) -> str:
    """The single-file style's name of an official VAE name; the inverse of ``names.vae_from_stable_audio``."""
    parts = name.split(".")
    side, rest = parts[0], parts[1:]
    if rest[0] != "block":
        return ".".join([side, "layers", {"conv1": "0", "snake1": "6", "conv2": "7"}[rest[0]], rest[1]])
    block, inner = [side, "layers", str(int(rest[1]) + 1), "layers"], rest[2]
    if inner.startswith("res_unit"):
        unit = int(inner[-1]) - 1 + (0 if side == "encoder" else 2)
        return ".".join(
            [*block, str(unit), "layers", str(("snake1", "conv1", "snake2", "conv2").index(rest[3])), rest[4]]
        )
    own = {"encoder": {"snake1": 3, "conv1": 4}, "decoder": {"snake1": 0, "conv_t1": 1}}[side][inner]
    return ".".join([*block, str(own), rest[3]])


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokeniser of 256 bytes and a few merges that, like the real one, appends ``<|endoftext|>``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("in", "g"), ("Ġ", "a"), ("e", "r"), ("o", "n"), ("Ġ", "the")]
    vocabulary = {token: i for i, token in enumerate([*letters, *("".join(m) for m in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    end = tokenizer.token_to_id(END_OF_TEXT)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", pair=f"$A {END_OF_TEXT} $B {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, end)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    _write_json(folder / "tokenizer_config.json", {**values, "padding_side": "right", "model_max_length": 32_768})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """``python -m acefast.testing``: write a checkpoint and print its path."""
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    parser = argparse.ArgumentParser("python -m acefast.testing", description="Write a random ACE-Step checkpoint.")
    parser.add_argument("folder", help="where to write it")
    parser.add_argument(
        "--size", choices=("tiny", "full"), default="tiny", help="full: 6.3 GB as bf16, XL 11.5 GB, v1 7.7 GB"
    )
    parser.add_argument("--variant", default="turbo", help="turbo, base, sft, xl-turbo, ..., v1 (default: turbo)")
    parser.add_argument("--layout", choices=LAYOUTS, default="official")
    parser.add_argument("--dtype", choices=dtypes, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    sizes = full_size(args.variant) if args.size == "full" else {}
    try:
        path = write_checkpoint(
            args.folder, **sizes, layout=args.layout, variant=args.variant, dtype=dtypes[args.dtype], seed=args.seed
        )
    except ValueError as error:
        parser.error(str(error))
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
