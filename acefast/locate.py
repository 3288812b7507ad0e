"""Where weights are: an explicit path, ``$ACEFAST_MODELS``, the hub's cache, a download, in this order."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from acefast.layouts import SHARD, SINGLE_FILES, V1_FILE, V1_FOLDERS, V1_REPO, models_in
from acefast.models.v15.names import DIFFUSERS_PARTS
from acefast.weights import CheckpointError, access_told

PREFIX = "ace-step-1.5-"
VARIANTS = ("turbo", "turbo-shift1", "turbo-shift3", "turbo-continuous", "sft", "base", "xl-turbo", "xl-sft", "xl-base")
V1 = "ace-step-v1-3.5b"
DEFAULT = PREFIX + "turbo"
NAMES = {variant: PREFIX + variant for variant in VARIANTS} | {"v1": V1}  # of published models, by their short ones
MAIN_REPO = "ACE-Step/Ace-Step1.5"  # the turbo model, and the audio and text parts that every model shares
TEXT_REPO = "Qwen/Qwen3-Embedding-0.6B"
DEMO = Path(__file__).parent / "demo"
WAY_OUT = "put it into a folder of $ACEFAST_MODELS, or try `--model demo`, which works offline"

# What a download takes of a repository: weights as safetensors, sizes, tokeniser, silence; never code.
_FILES = ("*.safetensors", "*.json", "merges.txt", "vocab.txt", "silence_latent.pt")
_V1_FILES = tuple(f"{folder}/{pattern}" for folder in V1_FOLDERS.values() for pattern in _FILES[:2])


def variant_of(name: str) -> str | None:
    """The variant that ``name`` means ("turbo", "ace-step-1.5-turbo", "acestep-v15-turbo"; "v1"), or None."""
    short = name.lower().removeprefix(PREFIX).removeprefix("acestep-v15-").removesuffix("-diffusers")
    short = {V1: "v1", "v1-3.5b": "v1"}.get(short.replace("_", "-"), short)
    return short if short in NAMES else None


def default_model() -> str:
    """The model that is taken where none is named."""
    return os.environ.get("ACEFAST_MODEL") or DEFAULT


def family_of(variant: str) -> str:
    """The model family, "1.5" or "v1", of what ``variant_of`` gives."""
    return "v1" if variant == "v1" else "1.5"


@access_told()
def find(model: str | os.PathLike, *, offline: bool | None = None, paths: bool = True) -> Path:
    """The folder or file of ``model``.

    Args:
        model: a path, a model name ("ace-step-1.5-turbo", short "turbo"; "ace-step-v1-3.5b", short "v1"), ``demo``,
            the name of a folder or file in ``$ACEFAST_MODELS``, or a hub repository "org/name". A bare model name
            always means the model; write "./turbo" for a folder of that name.
        offline: do not download; None asks ``$HF_HUB_OFFLINE``.
        paths: False where ``model`` comes from a request: only names are taken then, never a path.
    Raises:
        CheckpointError: there is no such model, or it is not here and cannot be downloaded.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise CheckpointError(f"model must be a name or a path, got {model!r:.60}; {_known('')}")
    name = os.fspath(model)
    if paths and _is_path(model):
        path = Path(name).expanduser()
        if not path.exists():
            raise CheckpointError(f"there is no folder or file {path}; give an existing one or a model name")
        return path
    repo = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name)
    if not repo and not re.fullmatch(r"\w[\w. +-]*", name):
        raise CheckpointError(f"model name {name!r} is not understood; {_known(name)}")
    if name.lower().endswith("-q4-k-m"):
        raise CheckpointError(f"{name} holds int4 weights, which are not supported; take {V1}")
    if ".." in name:
        raise CheckpointError(f"model name {name!r} must not leave the model folder; {_known(name)}")
    if name == "demo":
        return DEMO
    variant = None if repo else variant_of(name)
    for folder in model_folders():
        if found := _in_folder(folder, name if not repo else "", variant):
            return found
    if not repo and not variant:
        raise CheckpointError(f"model {name!r} is unknown; {_known(name)}")
    repo_id, sub = (name, "") if repo else _repo(variant)
    if (found := snapshot(repo_id)) and any(map(_is_whole_model, models_in(found / sub))):
        return found / sub
    patterns = [f"{sub}/{p}" for p in _FILES] if sub else [p for f in _FILES for p in (f, f"*/{f}")]
    if repo_id == V1_REPO:
        patterns = list(_V1_FILES)
    return download(repo_id, patterns, name, offline=offline) / sub


def _is_path(model: str | os.PathLike) -> bool:
    name = os.fspath(model)
    if not isinstance(model, str) or name.startswith((".", "~", "/")) or name.endswith(".safetensors"):
        return True
    named = variant_of(name) or name == "demo"
    return bool(name) and not named and (Path(name).exists() or "\\" in name or name.count("/") > 1)


def _repo(variant: str) -> tuple[str, str]:
    """(hub repository, folder in it) of an official model."""
    if variant == "v1":
        return V1_REPO, ""
    return (MAIN_REPO, "acestep-v15-turbo") if variant == "turbo" else (f"ACE-Step/acestep-v15-{variant}", "")


def model_folders() -> list[Path]:
    """The folders of ``$ACEFAST_MODELS``."""
    return [Path(p).expanduser() for p in os.environ.get("ACEFAST_MODELS", "").split(os.pathsep) if p]


def _in_folder(folder: Path, name: str, variant: str | None) -> Path | None:
    if not folder.is_dir():
        return None
    if variant == "v1":
        roots = ("", "ACE-Step-v1-3.5B", "checkpoints/ACE-Step-v1-3.5B", V1)
        whole = (folder / sub for sub in roots if (folder / sub / V1_FOLDERS["dit"]).is_dir())
        return next(whole, next(_comfy_files(folder, variant), None))
    if variant:
        official = f"acestep-v15-{variant}"
        for sub in (official, f"checkpoints/{official}", f"Ace-Step1.5/{official}", f"{PREFIX}{variant}/{official}"):
            if has_weights(folder / sub):
                return folder / sub
        for sub in (f"{PREFIX}{variant}", f"{official}-diffusers"):
            if (folder / sub).is_dir():
                return folder / sub
        return next(_comfy_files(folder, variant), None)
    return next((folder / n for n in (name, f"{name}.safetensors") if name and (folder / n).exists()), None)


def _comfy_files(folder: Path, variant: str) -> Iterator[Path]:
    """Single files of ``variant`` under the names ComfyUI's own downloads have."""
    stem = re.escape(variant.replace("-", "_"))
    names = re.escape(V1_FILE) if variant == "v1" else rf"acestep_v1\.5_{stem}|ace_step_1\.5_{stem}_aio"
    pattern = re.compile(rf"({names})(_(bf16|fp16|fp32))?\.safetensors")
    for sub in SINGLE_FILES:
        if (folder / sub).is_dir():
            yield from sorted(f for f in (folder / sub).iterdir() if pattern.fullmatch(f.name))


def has_weights(folder: Path) -> bool:
    """Whether ``folder`` holds safetensors files."""
    return folder.is_dir() and any(folder.glob("*.safetensors"))


def hub_cache() -> Path:
    """The hub's cache folder, from the environment as it is now."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if "HF_HOME" in os.environ:
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(repo_id: str) -> Path | None:
    """What the hub's cache holds of ``repo_id``, whole or cut short by an interruption; None: nothing."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, cache_dir=hub_cache(), local_files_only=True))
    except (OSError, ValueError):  # not there, or no name that the hub would have
        return None


def is_whole(path: Path) -> bool:
    """Whether the weights of ``path``, a folder or one file, are all there: an interrupted download leaves some out."""
    if (path / "transformer").is_dir():
        return all(is_whole(path / part) for part in (*DIFFUSERS_PARTS, "vae", "text_encoder"))
    if (path / V1_FOLDERS["dit"]).is_dir():
        tokenizer = path / V1_FOLDERS["umt5"] / "tokenizer.json"
        return tokenizer.is_file() and all(is_whole(path / sub) for sub in V1_FOLDERS.values())
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    shards = [m for f in files if (m := SHARD.fullmatch(f.name))]
    return bool(files) and (not shards or len(shards) == int(shards[0][2]))


def _is_whole_model(path: Path) -> bool:
    single = path.is_file() or any((path / sub).is_dir() for sub in ("transformer", V1_FOLDERS["dit"]))
    return is_whole(path) and (single or (path / "silence_latent.pt").is_file())


def shared_folders(beside: Sequence[Path]) -> list[Path]:
    """Where the parts that every model shares (audio, text, tokeniser) may be: beside the model first."""
    folders = list(beside)
    for folder in model_folders():
        folders += [folder, *(folder / s for s in ("checkpoints", "Ace-Step1.5", "split_files"))]
        folders += sorted(f for f in folder.glob(f"{PREFIX}*") if f.is_dir())
    folders += [found for repo in (MAIN_REPO, TEXT_REPO) if (found := snapshot(repo))]
    return [f for f in dict.fromkeys(folders) if f.is_dir()]


def is_offline(offline: bool | None) -> bool:
    """Whether downloads are off, by the argument or else by ``$HF_HUB_OFFLINE``."""
    return (
        offline if offline is not None else os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    )


def download(
    repo_id: str, patterns: Sequence[str], what: str, *, offline: bool | None = None, way_out: str = WAY_OUT
) -> Path:
    """The hub's snapshot of ``repo_id`` with the files that match ``patterns``, downloaded with a progress bar.

    Raises:
        CheckpointError: downloads are off or this one failed.
    """
    looked = [str(f) for f in model_folders()] or ["$ACEFAST_MODELS (not set)"]
    missing = f"{what} is not on this machine (looked in {', '.join([*looked, str(hub_cache())])})"
    if is_offline(offline):
        raise CheckpointError(f"{missing} and downloads are off; {way_out}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(patterns), cache_dir=hub_cache()))
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(
            f"{missing} and {repo_id} could not be downloaded ({reason.strip()}); {way_out}"
        ) from error


def _known(name: str) -> str:
    local = [f.name for folder in model_folders() if folder.is_dir() for f in folder.iterdir()]
    names = [*NAMES.values()]
    near = difflib.get_close_matches(name, [*names, *NAMES, *local], n=1, cutoff=0.5)
    return (
        f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}, a local path and org/name on the hub"
    )
