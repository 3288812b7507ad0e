"""LoRA: a small file that changes linear layers of a model, merged into its weights; swapped and removed at run time.

    pipe.set_lora("rap.safetensors", weight=0.8)  # W + 0.8 * scale * B @ A in every layer that it names
    pipe.set_lora(None)                           # the bits of the checkpoint again

A LoRA names modules of the official model, ``transformer_blocks.7.attn.to_q``, and our tensors are made of the tensors
of many such modules by a weight table. So a tensor is made anew as ``acefast.weights.load`` made it: its official
tensors are read from the checkpoint's files, each gets its term, in fp32, the table's entry combines them, and what
comes out is rounded once and copied to where the tensor lies. Nothing else in the model knows of it: addresses stay, so
do CUDA graphs and static memory, and songs cost what they cost before.

The files are the pristine copy. It takes no memory, where one of what the published rap LoRA touches would be 2.5 GB in
16 bits, and no swap drifts, as none begins with what the one before it left. On a CPU a tensor may be a view of the
mapped file: the mapping is private, so that pages are copied as they are written to and the file never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acefast.panels import COLUMNS, rows_of, to_panels
from acefast.weights import CheckpointError, Index, Source, Stamp, Stored, read, stack, stamp


class Adapter(NamedTuple):
    """What is added to one official weight [out, in]: ``scale * up @ down``."""

    down: Tensor  # A, [r, in]
    up: Tensor  # B, [out, r]
    scale: float  # by the file: alpha / r, or alpha / sqrt(r); without metadata 1


@dataclass(frozen=True, eq=False)
class LoRA:
    """A file that has been read and fits its checkpoint. Its tensors lie in the host's memory, in the file's dtype."""

    name: str  # for people: a hub id, else the file's name, or its folder's
    weight: float
    file: Path
    stamp: Stamp
    adapters: dict[str, Adapter]  # by their weight's name in the checkpoint's index

    def merge(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Merge it into a network that has been loaded just now; as ``remake``."""
        remake(module, tensors, self.adapters.keys(), self)


def set_lora(model: Any, lora: LoRA | None) -> None:
    """Have the networks of ``model`` work with ``lora`` in place of the one before it, None: with none.

    What is not loaded yet gets it when it is. Nobody may be composing.

    Args:
        model: with a ``residence`` and ``forget``.
    Raises:
        CheckpointError: the checkpoint's files cannot be read again; the LoRA before it stays.
    """
    residence = model.residence
    before, own = residence.lora, set(lora.adapters) if lora is not None else set()
    if lora is before and residence.merged == own:
        return
    residence.merged |= own  # and stays so, if all fails: the next one makes all of it anew
    try:
        _remake_all(residence, residence.merged, lora)
    except BaseException:
        _remake_all(residence, residence.merged, before)
        raise
    finally:
        model.forget()
    residence.lora, residence.merged = lora, own


def _remake_all(residence: Any, names: Set[str], lora: LoRA | None) -> None:
    for module, tensors in residence.weights():
        remake(module, tensors, names, lora)
        if hasattr(module, "forget"):
            module.forget()


@torch.no_grad()
def remake(module: nn.Module, tensors: Mapping[str, Tensor], names: Set[str], lora: LoRA | None) -> None:
    """Make anew, in place, what of ``module`` is made of the official tensors ``names``.

    Args:
        module: filled by ``acefast.weights.load``.
        tensors: its own by name, or stand-ins of their shapes and dtypes.
        lora: what is added to the official tensors; None: nothing.
    Raises:
        CheckpointError: a file of the checkpoint is gone or is another one by now; nothing has been written.
    """
    table, index, stamps = module.origin
    touched = {ours: source for ours, source in table.items() if not names.isdisjoint(source.names)}
    for file in {index[name].file for source in touched.values() for name in source.names}:
        if stamps[file] is None or stamp(file) != stamps[file]:
            raise CheckpointError(f"{file} has changed since the model was loaded from it; load the model again")
    for ours, source in touched.items():
        merge_into(tensors[ours], source, index, lora.adapters if lora is not None else {})


def merge_into(target: Tensor, source: Source, index: Index, adapters: Mapping[str, Adapter]) -> None:
    """Write what ``source``, an entry of a weight table, is with ``adapters``; without any the bits that ``load`` made.

    Of layers that are stacked one is there in fp32 at a time.
    """
    if target.shape[2:] == (COLUMNS, 2):  # panels
        rows = target.new_empty(rows_of(target), 2 * target.shape[1])
        merge_into(rows, source, index, adapters)
        target.copy_(to_panels(rows))
        return
    stored, device = [index[name] for name in source.names], target.device
    if adapters.keys().isdisjoint(source.names):
        target.copy_(read(source, index, tuple(target.shape), device, target.dtype))
        return
    official = (_with_term(name, one, device, adapters.get(name)) for name, one in zip(source.names, stored))
    if source.combine in (None, stack):
        for rows, weight in zip(target.split([one.shape[0] for one in stored]), official):
            rows.copy_(weight)
    else:
        target.copy_(source.combine(*official))


def _with_term(name: str, stored: Stored, device: torch.device, adapter: Adapter | None) -> Tensor:
    weight = read(Source((name,)), {name: stored}, stored.shape, device, torch.float32)
    if adapter is None:
        return weight
    down, up = (half.to(device, torch.float32) for half in (adapter.down, adapter.up))
    return (up @ down).mul_(adapter.scale).add_(weight)
