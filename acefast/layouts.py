"""The layouts a checkpoint comes in, each read into one index under official tensor names; only headers are read.

official    a folder per part: acestep-v15-*/ (model.safetensors or shards, config.json, silence_latent.pt), vae/,
            Qwen3-Embedding-0.6B/
diffusers   a folder per module: transformer/, condition_encoder/, audio_tokenizer/, audio_token_detokenizer/, vae/, ...
comfyui     one file with the DiT bundle; text encoder and VAE are files beside it
all-in-one  one file with everything, under the prefixes model.diffusion_model., text_encoders.<name>. and vae.

These are ACE-Step 1.5's. v1 has two, which ``acefast.models.v1.checkpoint`` reads: official, the hub's four folders,
and all-in-one.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from acefast.models.v1.names import FOLDERS as V1_FOLDERS
from acefast.models.v15 import names
from acefast.values import shown
from acefast.weights import CheckpointError, Index, Stored, read_header

BUNDLE_KEY = "encoder.lyric_encoder.layers.0.input_layernorm.weight"  # only an ACE-Step 1.5 DiT bundle has it
V1_KEY = "genre_embedder.weight"  # only an ACE-Step v1 transformer has it
AIO_PREFIX, VAE_PREFIX = "model.diffusion_model.", "vae."
PLANNER_VOCABULARY = 217_204  # rows of the language models' embedding, whose 0.6B is as wide as the text encoder
FOLDERS = ("acestep-v15-*", "checkpoints/acestep-v15-*", "ACE-Step-v1-3.5B", "checkpoints/ACE-Step-v1-3.5B")
SINGLE_FILES = ("", "diffusion_models", "split_files/diffusion_models", "checkpoints", "all_in_one")
V1_FILE = "ace_step_v1_3.5b"
V1_REPO = "ACE-Step/ACE-Step-v1-3.5B"
SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# Buffers that are computed, not learned: rotary tables, and the quantizer's levels and their products.
_COMPUTED = re.compile(
    r"(.*\.)?(original_)?inv_freq"
    r"|tokenizer\.quantizer\.(layers\.\d+\.)?(_levels|_basis|scales|implicit_codebook|soft_clamp_input_value)"
)


@dataclass
class Bundle:
    """Where a DiT bundle lies and in which layout."""

    layout: str  # "official", "diffusers", "comfyui" or "all-in-one"
    folder: Path  # of the bundle; for a single file the folder it lies in
    parts: dict[str, list[Path]]  # "", diffusers folder or part of v1 -> safetensors files
    family: str = "1.5"  # or "v1"

    @property
    def beside(self) -> list[Path]:
        """Folders in which the audio and text parts are expected."""
        return [self.folder] if self.layout == "diffusers" else [self.folder, self.folder.parent]


@dataclass
class Contents:
    """What a set of files holds."""

    index: Index = field(default_factory=dict)  # official name -> where it is
    metadata: dict[str, str] = field(default_factory=dict)
    extra: list[Stored] = field(default_factory=list)  # of a planner in the same file: known, not used here

    def add(self, files: Iterable[Path], rename: Callable[[str], str | None]) -> None:
        """Index ``files``; ``rename`` gives the official name, or None for a planner's tensor."""
        for file in files:
            stored, metadata = read_header(file)
            self.metadata |= metadata
            for name, one in stored.items():
                official = rename(name)
                if official is None:
                    self.extra.append(one)
                elif not _COMPUTED.fullmatch(official):
                    self.index[official] = one


def find_bundle(path: Path) -> Bundle:
    """Detect the layout at ``path``, a folder or a single file; a file is taken itself, a shard with its siblings.

    Raises:
        CheckpointError: there are no usable weights, or several models.
    """
    if path.is_file():
        return _single_file(path)
    found = models_in(path)
    if len(found) > 1:
        listed = ", ".join(sorted(f.name for f in found))
        raise CheckpointError(f"{path} holds several models ({listed}); give the path of one of them")
    if not found:
        weight_files(path)  # says what is there instead
        raise CheckpointError(
            f"{path} holds no ACE-Step model; give a folder with acestep-v15-*/, transformer/ or "
            f"{V1_FOLDERS['dit']}/ in it"
        )
    if found != [path]:
        return find_bundle(found[0])
    if (path / V1_FOLDERS["dit"]).is_dir():
        return Bundle("official", path, {p: weight_files(path / sub) for p, sub in V1_FOLDERS.items()}, "v1")
    if (path / "transformer").is_dir():
        return Bundle("diffusers", path, {f: weight_files(path / f) for f in names.DIFFUSERS_PARTS})
    return Bundle("official", path, {"": weight_files(path)})


def models_in(path: Path) -> list[Path]:
    """What looks like a model in the folder ``path``: itself, or the folders or files of models in it."""
    if path.name == V1_FOLDERS["dit"]:
        return [path.parent]
    own = (path / "config.json").is_file() and any(path.glob("*.safetensors"))
    split = any((path / sub).is_dir() for sub in ("transformer", V1_FOLDERS["dit"]))
    if own or split or any(path.glob("model*.safetensors")):
        return [path]
    found = [f for pattern in FOLDERS for f in sorted(path.glob(pattern)) if f.is_dir()]
    if not found:
        for sub in SINGLE_FILES:
            found += [
                *(path / sub).glob("acestep_v1.5_*.safetensors"),
                *(path / sub).glob("ace_step_1.5_*.safetensors"),
                *(path / sub).glob(f"{V1_FILE}*.safetensors"),
            ]
    return found


def _single_file(path: Path) -> Bundle:
    if path.suffix == ".gguf":
        raise CheckpointError(f"{path} is a GGUF file, which is not supported; use the safetensors of this model")
    if path.parent.name == V1_FOLDERS["dit"]:  # one of the four that make the model
        return find_bundle(path.parent)
    if shard := SHARD.fullmatch(path.name):
        shards = sorted(path.parent.glob(f"{glob.escape(shard[1])}-*-of-{shard[2]}.safetensors"))
        if len(shards) != int(shard[2]):
            raise CheckpointError(f"{path.parent} has {len(shards)} of {int(shard[2])} shards; download the others too")
        return Bundle("official", path.parent, {"": shards})
    stored, _ = read_header(path)
    if AIO_PREFIX + BUNDLE_KEY in stored:
        return Bundle("all-in-one", path.parent, {"": [path]})
    if BUNDLE_KEY in stored:
        return Bundle("official" if _config_fits(path, stored) else "comfyui", path.parent, {"": [path]})
    if AIO_PREFIX + V1_KEY in stored:
        return Bundle("all-in-one", path.parent, {"": [path]}, "v1")
    if V1_KEY in stored:
        raise CheckpointError(f"{path} is ACE-Step v1's transformer alone; give the folder of its four parts")
    raise CheckpointError(
        f"{path} is not an ACE-Step model: it has neither {BUNDLE_KEY} nor {V1_KEY}; give the transformer's file"
    )


def _config_fits(path: Path, stored: dict[str, Stored]) -> bool:
    """Whether the config.json beside a file is the file's own: of as many layers of that width."""
    if not (path.parent / "config.json").is_file():
        return False
    config = read_json(path.parent / "config.json")
    layers = {m[1] for name in stored if (m := re.match(r"decoder\.layers\.(\d+)\.", name))}
    norm = stored.get("decoder.norm_out.weight")
    width = None if norm is None else norm.shape[0]
    return (config.get("hidden_size"), config.get("num_hidden_layers")) == (width, len(layers))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one part: the single file, or all the shards its index names.

    Raises:
        CheckpointError: there are none, only pickles, a shard is missing, or it is not clear which to take.
    """
    for single in ("model.safetensors", "diffusion_pytorch_model.safetensors"):
        if (folder / single).is_file():
            return [folder / single]
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = sorted(folder / name for name in _shard_names(index))
        if absent := [f.name for f in shards if not f.is_file()]:
            raise CheckpointError(f"{folder} lacks the shard(s) {', '.join(absent)}; download the checkpoint again")
        if shards:
            return shards
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 or (files and all(SHARD.fullmatch(f.name) for f in files)):
        return files
    if files:
        raise CheckpointError(f"{folder} holds several weight files ({', '.join(f.name for f in files)}); keep one")
    pickles = [f.name for f in sorted(folder.glob("*")) if f.suffix in _PICKLES and f.name != "silence_latent.pt"]
    if any(name.endswith("_int4wo.bin") for name in pickles):
        raise CheckpointError(f"{folder} holds int4 weights, which are not supported; take those of {V1_REPO}")
    if pickles:
        raise CheckpointError(
            f"{folder} holds a pickle ({pickles[0]}), which can run code when read; convert it to safetensors"
        )
    state = "has no safetensors file in it" if folder.is_dir() else "does not exist"
    raise CheckpointError(f"{folder} {state}; download the checkpoint again or give another path")


def _shard_names(index: Path) -> set[str]:
    """The files that a shard index names."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index} must hold a weight_map of tensors to files; download the checkpoint again")
    if outside := [name for name in places.values() if Path(name).name != name]:
        raise CheckpointError(f"{index} names the file {shown(outside[0])}, which is not beside it; download it again")
    return {*places.values()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object.

    Raises:
        CheckpointError: it cannot be read or is not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); download the checkpoint again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}; download it again")
    return values


def read_bundle(bundle: Bundle) -> Contents:
    """Index a bundle; for an all-in-one file also its text encoder and VAE."""
    contents = Contents()
    for part, files in bundle.parts.items():
        if bundle.layout == "diffusers":
            contents.add(files, lambda name, part=part: names.official_from_diffusers(part, name))
        elif bundle.layout == "all-in-one":
            stored, _ = read_header(files[0])
            group = _text_group(stored)
            contents.add(files, lambda name, group=group: _official_from_aio(name, group))
        else:
            contents.add(files, lambda name: name)
    _fold_vae_names(contents.index)
    return contents


def _text_group(stored: dict[str, Stored]) -> str:
    """Prefix of the text encoder in an all-in-one file; the other groups are language models."""
    width = stored.get(f"{AIO_PREFIX}encoder.text_projector.weight")
    for name, one in stored.items():
        if match := re.fullmatch(r"(text_encoders\.[^.]+\.)(transformer\.)?(model\.)?embed_tokens\.weight", name):
            vocabulary, hidden = one.shape
            if vocabulary != PLANNER_VOCABULARY and width is not None and hidden == width.shape[1]:
                return match[1]
    return "text_encoders.qwen3_06b."


def _official_from_aio(name: str, text_group: str) -> str | None:
    if name.startswith(AIO_PREFIX):
        return name[len(AIO_PREFIX) :]
    if name.startswith(VAE_PREFIX):
        return official_vae_name(name[len(VAE_PREFIX) :])
    if name.startswith(text_group):
        inner = name[len(text_group) :].removeprefix("transformer.")
        return None if inner == "logit_scale" else official_text_name(inner)  # a constant of every ComfyUI text model
    return None if name.startswith("text_encoders.") else name


def official_text_name(name: str) -> str:
    """Text encoder names are official without the ``model.`` that some exports put in front."""
    return name.removeprefix("model.")


def official_vae_name(name: str) -> str:
    """Official (diffusers) VAE name of any style's; a name of no style is left as it is."""
    try:
        return names.vae_from_stable_audio(name)
    except (AttributeError, KeyError, IndexError, ValueError):
        return name


def read_vae(files: Iterable[Path]) -> Contents:
    """Index a VAE's files."""
    contents = Contents()
    contents.add(files, official_vae_name)
    _fold_vae_names(contents.index)
    return contents


def read_text_encoder(files: Iterable[Path]) -> Contents:
    """Index a text encoder's files."""
    contents = Contents()
    contents.add(files, official_text_name)
    return contents


def _fold_vae_names(index: Index) -> None:
    """Bring folded convolutions and flat snake parameters of a VAE to the official names and shapes, in place."""
    conv = re.compile(r"(encoder|decoder)\.(conv[12]|block\.\d+\.(res_unit\d\.)?conv(_t)?[12])\.weight")
    snake = re.compile(r"(encoder|decoder)\.(block\.\d+\.)?(res_unit\d\.)?snake[12]\.(alpha|beta)")
    for name, one in list(index.items()):
        if conv.fullmatch(name):
            index[f"{name}_v"] = index.pop(name)
            shape = (one.shape[0], *[1] * (len(one.shape) - 1))
            index[f"{name}_g"] = one._replace(shape=shape, dtype=torch.float32, norm=True)
        elif snake.fullmatch(name) and len(one.shape) == 1:
            index[name] = one._replace(shape=(1, one.shape[0], 1))
