"""The files of LoRAs: where they are, which tensors they may hold, and what each of them is for in a checkpoint."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acefast import locate
from acefast.checkpoint import Checkpoint
from acefast.lora import Adapter, LoRA
from acefast.values import real, shown
from acefast.weights import CheckpointError, Stored, access_told, listing, open_file, read_header, stamp

FILE = "pytorch_lora_weights.safetensors"  # in a folder or a hub repository
METADATA = "lora_adapter_metadata"  # JSON: PEFT's config, in files of newer diffusers
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HALF = re.compile(r"(.+)\.lora_([AB])\.weight")
# What an official name is preceded by in an index: nothing in 1.5's, a part in v1's. Prefixes that other programs put
# before it (PEFT's base_model.model., ComfyUI's diffusion_model.) would be taken off in ``_names``.
ROOTS = ("", "dit.")
WAY_OUT = f"give a .safetensors file, a folder with {FILE}, or a hub id such as ACE-Step/ACE-Step-v1-chinese-rap-LoRA"
WEIGHTS = -3, 3

Faults = dict[str, list[str]]  # what is wrong, and the names of what it is wrong with


@access_told()
def find(lora: str | os.PathLike, *, offline: bool | None = None) -> tuple[Path, str]:
    """The file of ``lora``, a file, a folder or a hub id, and its name for people.

    Raises:
        CheckpointError: there is none, or it is not here and cannot be downloaded.
    """
    if not isinstance(lora, (str, os.PathLike)) or not os.fspath(lora):
        raise CheckpointError(f"a LoRA must be a path or a hub id, got {shown(lora)}; {WAY_OUT}")
    path, repo = Path(lora).expanduser(), str(lora)
    path = next((found for folder in (Path(), *locate.model_folders()) if (found := folder / path).exists()), path)
    if path.is_dir() and not (path / FILE).is_file():
        raise CheckpointError(f"{path} holds no {FILE}; {WAY_OUT}")
    if path.exists():
        file = path / FILE if path.is_dir() else path
        return file, file.resolve().parent.name if file.name == FILE else file.stem
    if not HUB_ID.fullmatch(repo) or ".." in repo or repo.endswith(".safetensors"):
        raise CheckpointError(f"there is no LoRA {shown(repo)}; {WAY_OUT}")
    found = locate.snapshot(repo)
    if found is None or not (found / FILE).is_file():
        found = locate.download(repo, [FILE], f"LoRA {repo}", offline=offline, way_out=WAY_OUT)
    if not (found / FILE).is_file():
        raise CheckpointError(f"{repo} on the hub holds no {FILE}; {WAY_OUT}")
    return found / FILE, repo


def open_lora(lora: str | os.PathLike, weight: float, checkpoint: Checkpoint, known: LoRA | None = None) -> LoRA:
    """Find, read and check a LoRA; reads nothing of the model's weights.

    Args:
        weight: -3 to 3, multiplies what the file adds.
        known: returned where it is the same, of a file that was not written since.
    Raises:
        CheckpointError: it is not found, or naming all in it that does not fit ``checkpoint``.
        RequestError: the weight is out of range.
    """
    weight = real("lora_weight", weight, *WEIGHTS, "{} to {}".format(*WEIGHTS))
    file, name = find(lora, offline=checkpoint.offline)
    mark = stamp(file)
    if known is not None and (known.file, known.stamp, known.weight) == (file, mark, weight):
        return known
    stored, metadata = read_header(file)
    faults: Faults = defaultdict(list)
    halves = _halves(stored, faults)
    unused = [module for module in halves if any(map(checkpoint.is_unused, _names(module)))]
    if unused:
        warnings.warn(
            f"{name}: ignored are {len(unused)} module(s) that no song needs: {listing(unused)}", stacklevel=3
        )
    if not halves:
        raise CheckpointError(
            f"{file} holds no LoRA: none of its {len(stored)} tensors is named <module>.lora_A.weight; {WAY_OUT}"
        )
    needed = {module: pair for module, pair in halves.items() if module not in unused}
    fitting = {module: found for module, pair in needed.items() if (found := _fit(module, pair, checkpoint, faults))}
    scales = _scales(
        metadata.get(METADATA), {module: down.shape[0] for module, (_, down, _) in fitting.items()}, faults
    )
    adapters: dict[str, Adapter] = {}
    with open_file(file) as opened:
        for module, (target, *pair) in fitting.items():
            # Copies: whoever trains writes over the file, which a mapping would not survive.
            down, up = (opened.get_tensor(half.name).clone() for half in pair)
            if not (down.isfinite().all() and up.isfinite().all()):
                faults["module(s) with NaN or infinite values"].append(module)
            if target in adapters:
                faults["module(s) named twice"].append(module)
            adapters[target] = Adapter(down, up, weight * scales.get(module, 1.0))
    if any(faults.values()):
        told = "; ".join(f"{len(some)} {what}: {listing(some)}" for what, some in faults.items() if some)
        raise CheckpointError(
            f"{file} is no LoRA for {checkpoint.name}: {told}; use one that was trained on this model"
        )
    return LoRA(name, weight, file, mark, adapters)


def _halves(stored: Mapping[str, Stored], faults: Faults) -> dict[str, dict[str, Stored]]:
    """A and B of each module."""
    halves: dict[str, dict[str, Stored]] = {}
    for key, one in sorted(stored.items()):
        if ".lora_embedding_" in key:
            faults["tensor(s) of embeddings, of which none are merged"].append(key)
        elif (named := HALF.fullmatch(key)) and one.dtype.is_floating_point:
            halves.setdefault(named[1], {})[named[2]] = one
        else:
            faults["tensor(s) not understood"].append(key)
    return halves


def _names(module: str) -> list[str]:
    """What a module's weight may be called in an index."""
    return [f"{root}{module}.weight" for root in ROOTS]


def _fit(
    module: str, pair: Mapping[str, Stored], checkpoint: Checkpoint, faults: Faults
) -> tuple[str, Stored, Stored] | None:
    """The weight that a module's A and B are for, and they; None for what cannot be, which ``faults`` tells."""
    target = next((name for name in _names(module) if name in checkpoint.index), None)
    if target is None:
        faults["module(s) that the model lacks"].append(module)
        return None
    if len(pair) == 1:
        faults["module(s) with lora_A or lora_B alone"].append(module)
        return None
    down, up, shape = pair["A"], pair["B"], checkpoint.index[target].shape
    if {len(shape), len(down.shape), len(up.shape)} != {2}:
        faults["module(s) that are no linear layers, of which alone any are merged"].append(module)
        return None
    (out, inp), rank = shape, max(down.shape[0], 1)
    wrong = [
        f"{half.name} must be {need}, got {list(half.shape)}"
        for half, need in ((down, [rank, inp]), (up, [out, rank]))
        if list(half.shape) != need
    ]
    faults["tensor(s) of a wrong shape"] += wrong
    return None if wrong else (target, down, up)


def _scales(raw: str | None, ranks: Mapping[str, int], faults: Faults) -> dict[str, float]:
    """What each module's B @ A is multiplied by: by PEFT's config where the file brings one, else 1.

    Older diffusers wrote none, and what loads such files takes alpha for the rank, whatever they were trained with:
    the published rap LoRA, trained at 32 / sqrt(256) = 2, acts at 1.
    Source: diffusers' get_peft_kwargs, PEFT's LoraConfig and get_pattern_key.
    """
    if raw is None:
        return {}
    try:
        config = json.loads(raw)
        told = {
            module: (_told(config, "r", "rank_pattern", module), _told(config, "lora_alpha", "alpha_pattern", module))
            for module in ranks
        }
        root, dora = config.get("use_rslora"), config.get("use_dora")
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, re.error) as error:
        faults["entry of its metadata not understood"].append(f"{METADATA} ({shown(str(error))})")
        return {}
    if dora:
        faults["entry of its metadata that is not merged"].append("use_dora")
    faults["module(s) of another rank than its metadata tells"] += [
        m for m, rank in ranks.items() if rank != told[m][0]
    ]
    return {m: alpha / (math.sqrt(rank) if root else rank) for m, (rank, alpha) in told.items() if rank > 0}


def _told(config: Mapping[str, Any], name: str, patterns: str, module: str) -> float:
    """A number of PEFT's config, for the module: of the first pattern that its name ends in, else that of all."""
    own = (n for p, n in (config.get(patterns) or {}).items() if re.match(rf"(.*\.)?({p})$", module))
    number = float(next(own, config[name]))
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return number
