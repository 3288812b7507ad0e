"""The weights that are measured: those found here, else random ones of the model's full size. Nothing is downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from acefast import locate
from acefast.request import RequestError
from acefast.weights import CheckpointError


@dataclass(frozen=True)
class Weights:
    name: str
    path: Path
    kind: str  # "checkpoint" or "random"


def find(model: str | os.PathLike) -> Path | None:
    """The weights of ``model`` on this machine; None where it is a known model without any here.

    Raises CheckpointError where ``model`` is neither known nor there.
    """
    try:
        return locate.find(model, offline=True)
    except CheckpointError:
        if locate.variant_of(os.fspath(model)) is None:
            raise
        return None


def write_random(model: str, folder: Path, dtype: torch.dtype) -> Weights:
    """Random weights of the full size of ``model`` in ``folder``, in a layout that every mode reads.

    Their magnitudes are those of trained ones, as power and clocks depend on data. Those that lie there are taken.

    Raises:
        RequestError: ``model`` has no size that is known, or the folder holds something else.
    """
    from acefast.testing import full_size, write_checkpoint

    variant = locate.variant_of(model)
    if variant is None:
        raise RequestError(f"random weights are made for the published models, such as turbo, and not for {model!r}")
    name, done = locate.NAMES[variant], folder / f"{variant}-{str(dtype).removeprefix('torch.')}.random"
    if not done.exists():
        if folder.exists() and any(folder.iterdir()):
            raise RequestError(
                f"weights: {str(folder)!r} holds other files or unfinished weights; empty it or name another"
            )
        layout = "official" if variant == "v1" else "diffusers"
        write_checkpoint(folder, layout=layout, variant=variant, dtype=dtype, **full_size(variant))
        done.touch()  # last: a folder without it is not whole
    return Weights(name, folder, "random")
