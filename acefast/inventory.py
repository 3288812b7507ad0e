"""The models on this machine, for ``acefast info``; nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acefast import layouts, locate
from acefast.checkpoint import Checkpoint, open_checkpoint
from acefast.weights import CheckpointError, access_told


@dataclass(frozen=True)
class Listing:
    """A model found on this machine; ``problem`` says why it cannot be used, and is empty when it can."""

    name: str
    path: Path
    checkpoint: Checkpoint | None
    problem: str = ""


@access_told()
def list_models() -> list[Listing]:
    """The models in ``$ACEFAST_MODELS``, in the hub's cache and in the package, each under a name that loads it."""
    found: dict[Path, str] = {}
    for variant, name in locate.NAMES.items():
        try:
            found.setdefault(locate.find(variant, offline=True), name)
        except CheckpointError:
            continue
    found[locate.DEMO] = "demo"
    for folder in locate.model_folders():
        for child in sorted(folder.iterdir()) if folder.is_dir() else []:
            known = any(child == path or child in path.parents for path in found)
            if not known and child.name not in layouts.V1_FOLDERS.values() and _is_model(child):
                found[child] = child.name.removesuffix(".safetensors")
    return [_listing(name, path) for path, name in found.items()]


def _is_model(path: Path) -> bool:
    """Whether ``path`` is a model, or by its name was meant to be one and its problem is worth telling."""
    try:
        if path.is_dir():
            if (path / "model_index.json").is_file() or path.name.startswith("acestep"):
                return True
            if (path / layouts.V1_FOLDERS["dit"]).is_dir():
                return True
        elif path.suffix != ".safetensors":
            return False
        bundle = layouts.find_bundle(path)
        return bundle.family == "v1" or layouts.BUNDLE_KEY in layouts.read_bundle(bundle).index
    except CheckpointError:
        return False
    except OSError:  # without access
        return True


def _listing(name: str, path: Path) -> Listing:
    try:
        checkpoint = open_checkpoint(path, offline=True)
        checkpoint.check()
    except CheckpointError as error:
        return Listing(name, path, None, str(error))
    checkpoint.name = name  # in the hub's cache the folder's own name is a commit
    return Listing(name, path, checkpoint)
