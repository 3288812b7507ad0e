"""An ACE-Step 1.5 checkpoint in any layout under the official names, its tokeniser and its text encoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from acefast import checkpoint as common
from acefast import layouts, locate, sizes
from acefast.layouts import Bundle
from acefast.mapped import only_while_used
from acefast.models.v15 import names
from acefast.models.v15.config import Config, VAEConfig
from acefast.weights import CheckpointError, Source, load, open_file, read_tensor

if TYPE_CHECKING:
    from acefast.request import CheckpointTraits

END_OF_TEXT = "<|endoftext|>"  # both the padding and the end that the tokeniser appends
SILENCE_FRAMES = 15_000  # 600 s


@dataclass(kw_only=True)
class Checkpoint(common.Checkpoint):
    """See ``acefast.checkpoint.Checkpoint``; its layouts are "official", "diffusers", "comfyui" and "all-in-one"."""

    config: Config
    vae_config: VAEConfig
    text_config: dict[str, Any]  # arguments of transformers' Qwen3Config
    tokenizer_folders: tuple[Path, ...] = ()  # where its tokenizer.json may be

    family = "1.5"
    optional = ("silence_latent",)

    @cached_property
    def traits(self) -> CheckpointTraits:
        """What a request needs to know of the checkpoint for its defaults and its tasks."""
        from acefast.request import CheckpointTraits

        turbo = self.config.is_turbo
        hints = (locate.variant_of(self.name) or "", self.config.model_version)  # configs call sft and base the same
        version = next(
            (
                v
                for v in (h.removeprefix("xl-") for h in hints)
                if v in locate.VARIANTS and v.startswith("turbo") == turbo
            ),
            "turbo" if turbo else "base",
        )
        return CheckpointTraits(self.name, self.config.is_turbo, version, self.config.timbre_token)

    @cached_property
    def expected(self) -> dict[str, names.Shapes]:
        """The tensors of each part and their shapes, by the configs."""
        c, v = self.config, self.vae_config
        return {
            "transformer": names.transformer_tensors(c),
            "condition_encoder": names.condition_encoder_tensors(c),
            "audio_tokenizer": names.audio_tokenizer_tensors(c),
            "audio_detokenizer": names.audio_detokenizer_tensors(c),
            "vae": names.vae_encoder_tensors(v) | names.vae_decoder_tensors(v),
            "text_encoder": sizes.text_encoder_tensors(self.text_config),
        }

    def absent(self) -> list[str]:
        """The silence latent, where its layout has one."""
        return [] if self.layout not in ("official", "diffusers") or self._has_silence else ["silence_latent"]

    @property
    def _has_silence(self) -> bool:
        return "silence_latent" in self.index or (self.folder / "silence_latent.pt").is_file()

    def silence_latent(self, frames: int = SILENCE_FRAMES) -> Tensor | None:
        """The latents of digital silence, [frames, 64] float32, tiled beyond the file's 600 s.

        None where there is none (single files): encode silence with the VAE then, posterior mean; it is constant
        but for the first frames.
        Raises:
            CheckpointError: the file cannot be read or has another shape.
        """
        if "silence_latent" in self.index:
            stored = self.index["silence_latent"]
            with open_file(stored.file) as file:
                latent = read_tensor(file, stored).float().clone()
        else:
            path = self.folder / "silence_latent.pt"
            if not path.is_file():
                return None
            try:
                latent = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises whatever its reader met: zip, pickle, key or runtime errors
                raise CheckpointError(
                    f"{path} is not a tensor file ({type(error).__name__}); download it again"
                ) from error
            if isinstance(latent, Tensor) and latent.dim() == 3:
                latent = latent.transpose(1, 2)
        D = self.config.audio_acoustic_hidden_dim
        got = list(latent.shape) if isinstance(latent, Tensor) else type(latent).__name__
        held = latent.shape[1] if isinstance(latent, Tensor) and latent.dim() == 3 else 0
        if not held or got != [1, held, D]:
            raise CheckpointError(
                f"{self.name}: silence_latent must hold [1, frames, {D}], got {got}; download it again"
            )
        latent = latent[0].float()
        if not latent.isfinite().all():
            raise CheckpointError(f"{self.name}: silence_latent has NaN or infinite values; download it again")
        return latent.repeat(-(-frames // held), 1)[:frames].contiguous()

    def model(
        self,
        device: torch.device,
        dtype: torch.dtype,
        graphs: bool | None,
        memory: str,
        quantization: str | None = None,
    ) -> Any:
        """Its networks on a device, an ``acefast.models.v15.model.Model``."""
        from acefast.models.v15.model import Model

        return Model(self, device, dtype, graphs, memory, quantization)

    def tokenizer(self) -> Any:
        """The text encoder's tokeniser (``transformers.PreTrainedTokenizerFast``), from files only.

        It pads on the right with ``<|endoftext|>`` and appends one, which truncation keeps.
        Raises:
            CheckpointError: there is no tokenizer.json, or it is not of this text encoder.
        """
        from tokenizers import Tokenizer
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        file = self._tokenizer_file()
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the tokenizers library raises plain Exception
            raise CheckpointError(f"{file} is not a tokenizer file ({error}); download the checkpoint again") from error
        end, rows = tokenizer.token_to_id(END_OF_TEXT), self.text_config["vocab_size"]
        if end is None or tokenizer.get_vocab_size() > rows:
            raise CheckpointError(
                f"{file} is not the tokenizer of this text encoder: it needs {END_OF_TEXT} and at most {rows} tokens, "
                f"got {tokenizer.get_vocab_size()}; use the one of {locate.TEXT_REPO}"
            )
        if tokenizer.encode("a").ids[-1] != end:  # the plain Qwen3 tokeniser is the same but for this end
            tokenizer.post_processor = TemplateProcessing(
                single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, end)]
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token=END_OF_TEXT, eos_token=END_OF_TEXT, padding_side="right"
        )

    def _tokenizer_file(self) -> Path:
        for folder in locate.shared_folders(self.tokenizer_folders):
            for sub in ("", "tokenizer", "Qwen3-Embedding-0.6B", "text_encoder"):
                if (folder / sub / "tokenizer.json").is_file():
                    return folder / sub / "tokenizer.json"
        folder = locate.download(locate.TEXT_REPO, ["tokenizer.json"], "the text tokenizer", offline=self.offline)
        return folder / "tokenizer.json"


def read(bundle: Bundle, asked: str, offline: bool | None = None) -> Checkpoint:
    """Read the headers of a bundle, and of the audio and text parts, which may lie elsewhere.

    Args:
        asked: the name or path that was asked for.
    Raises:
        CheckpointError: a file is not readable, or a part is missing.
    """
    contents = layouts.read_bundle(bundle)
    own = (
        next(iter(bundle.parts.values()))[0].stem if bundle.layout in ("comfyui", "all-in-one") else bundle.folder.name
    )
    name = _name(asked, own)
    index, folders = contents.index, locate.shared_folders(bundle.beside)
    vae_folder = text_folder = None
    if "decoder.conv2.weight_v" not in index:
        files, vae_folder = _part_files("vae", folders, offline)
        index |= layouts.read_vae(files).index
    if "embed_tokens.weight" not in index:
        files, text_folder = _part_files("text_encoder", folders, offline)
        index |= layouts.read_text_encoder(files).index
    return Checkpoint(
        name=name,
        layout=bundle.layout,
        folder=bundle.folder,
        config=sizes.bundle_config(bundle, index, contents.metadata, name),
        vae_config=sizes.vae_config(vae_folder, index),
        text_config=sizes.text_config(text_folder, index),
        index=index,
        tokenizer_folders=tuple(dict.fromkeys([*([text_folder] if text_folder else []), *bundle.beside])),
        offline=offline,
        extra={"planner": contents.extra} if contents.extra else {},
    )


def _name(asked: str, own: str) -> str:
    """The model's canonical name where what was asked for or where it lies tells it, else its own."""
    for text in (
        Path(asked).name,
        own,
        re.sub(r"^ace_?step_(v?)1\.5_|_aio|_(bf16|fp16|fp32)$", "", own).replace("_", "-"),
    ):
        if variant := locate.variant_of(text):
            return locate.NAMES[variant]
    return own if "demo" not in (asked, own) else "demo"


# (folder of the part, or pattern of a single file with it), in the order they are tried
_WHERE = {
    "vae": (("vae",), ("vae/ace_1.5_vae*.safetensors", "ace_1.5_vae*.safetensors")),
    "text_encoder": (
        ("Qwen3-Embedding-0.6B", "text_encoder"),
        tuple(f"{sub}qwen_0.6b_ace15*.safetensors" for sub in ("text_encoders/", "clip/", "")),
    ),
}


def _part_files(part: str, folders: list[Path], offline: bool | None) -> tuple[list[Path], Path | None]:
    """The weight files of a part that models share, and the folder with its config where it has one."""
    subs, patterns = _WHERE[part]
    for base in folders:
        for sub in subs:
            folder = base / sub
            cut_short = folder.is_relative_to(locate.hub_cache()) and not locate.is_whole(folder)
            if not cut_short and ((folder / "config.json").is_file() or any(folder.glob("*model*.safetensors*"))):
                return layouts.weight_files(folder), folder
        for pattern in patterns:
            if files := sorted(base.glob(pattern)):
                return files[:1], None
    what = {"vae": "the audio autoencoder (vae)", "text_encoder": "the text encoder (Qwen3-Embedding-0.6B)"}[part]
    root = locate.download(locate.MAIN_REPO, [f"{subs[0]}/*"], what, offline=offline)
    return layouts.weight_files(root / subs[0]), root / subs[0]


def empty_text_encoder(text_config: dict[str, Any]) -> nn.Module:
    """The text encoder, a ``transformers.Qwen3Model``, on "meta"; ``text_config``: arguments of its Qwen3Config."""
    from transformers import Qwen3Config

    from acefast.models.v15.layers import Linear
    from acefast.models.v15.text_encoder import TextEncoder

    with torch.device("meta"):
        model = TextEncoder(Qwen3Config(**text_config, attn_implementation="sdpa"))
        for module in [*model.modules()]:  # ours are faster on a CPU that is slow at 16 bits
            for name, layer in [*module.named_children()]:
                if type(layer) is nn.Linear:
                    setattr(module, name, Linear(layer.in_features, layer.out_features, layer.bias is not None))
    return model.eval()


def load_text_encoder(
    checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    """The text encoder, a ``transformers.Qwen3Model`` in eval mode: ids [B, L] to ``last_hidden_state`` [B, L, 1024].

    Raises:
        CheckpointError: tensors are missing or of a wrong shape.
    """
    model = empty_text_encoder(checkpoint.text_config)
    model.rotary_emb = type(model.rotary_emb)(model.config).to(device)  # its tables are computed, not stored
    load(model, {name: Source((name,)) for name in model.state_dict()}, checkpoint, device, dtype)
    only_while_used(model.layers, model.origin.stamps)
    return model
