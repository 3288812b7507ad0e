"""A checkpoint of either model family under one set of names: its sizes, its tensors, and what is wrong with it.

``open_checkpoint`` reads headers only; ``load`` fills a module from it. Real weights are found in this order: an
explicit path, ``$ACEFAST_MODELS``, the hub's cache, a download. What only one family has lies in
``acefast.models.v15.checkpoint`` and ``acefast.models.v1.checkpoint``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from acefast import layouts
from acefast.locate import find
from acefast.weights import CheckpointError, Index, Stored, access_told, listing, load

if TYPE_CHECKING:
    from acefast.request import CheckpointTraits, Request
    from acefast.tasks import Recording

__all__ = ["Checkpoint", "CheckpointError", "Part", "find", "load", "open_checkpoint"]


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint, as ``acefast info`` shows it."""

    name: str
    bytes: int
    params: int
    dtype: torch.dtype  # of most of its bytes
    files: tuple[Path, ...]


@dataclass(kw_only=True)
class Checkpoint(ABC):
    """A checkpoint whose headers have been read; ``check`` says whether it is whole, ``load`` takes weights from it."""

    name: str  # "ace-step-1.5-turbo", or the folder's or file's own name
    layout: str
    folder: Path  # of the transformer; of the single file with it
    index: Index  # official tensor name -> file, name in the file, shape, dtype
    extra: dict[str, list[Stored]] = field(default_factory=dict, repr=False)  # by what they are: known, not loaded
    offline: bool | None = None

    family: ClassVar[str]  # "1.5" or "v1"
    optional: ClassVar[tuple[str, ...]] = ()  # tensors that may be there

    @property
    @abstractmethod
    def traits(self) -> CheckpointTraits:
        """What a request needs to know of the checkpoint for its defaults and its tasks."""

    @property
    @abstractmethod
    def expected(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """The tensors of each part and their shapes, by the configs."""

    @abstractmethod
    def model(
        self,
        device: torch.device,
        dtype: torch.dtype,
        graphs: bool | None,
        memory: str,
        quantization: str | None = None,
    ) -> Any:
        """The family's ``Model``: its networks on a device, see ``acefast.load``."""

    @abstractmethod
    def tokenizer(self) -> Any:
        """The text encoder's tokeniser (``transformers.PreTrainedTokenizerFast``), from files only."""

    @property
    def parts(self) -> list[Part]:
        """Its networks with their sizes in the files."""
        found = {name: [self.index[n] for n in shapes if n in self.index] for name, shapes in self.expected.items()}
        return [_part(name, stored) for name, stored in found.items() if stored]

    @property
    def unused(self) -> list[Part]:
        """What its files hold beside, which is never loaded."""
        return [_part(name, stored) for name, stored in self.extra.items()]

    def check_source(self, request: Request, recording: Recording | None) -> None:  # noqa: B027, any source will do
        """Refuse a request's source that the model cannot work on: RequestError."""

    def is_unused(self, name: str) -> bool:
        """Whether ``name`` is of a tensor that published checkpoints hold and no song needs: there are none."""
        return False

    def absent(self) -> list[str]:
        """What is missing beside tensors."""
        return []

    def check(self) -> None:
        """Compare every tensor with what the model needs.

        Raises:
            CheckpointError: naming all the tensors that are unknown, missing, of a wrong shape or quantised.
        """
        expected = {n: shape for shapes in self.expected.values() for n, shape in shapes.items()}
        missing = [n for n in expected if n not in self.index] + self.absent()
        unknown = [n for n in self.index if n not in expected and n not in self.optional]
        wrong = [
            f"{n} must be {list(shape)}, got {list(self.index[n].shape)}"
            for n, shape in expected.items()
            if n in self.index and self.index[n].shape != tuple(shape)
        ]
        whole = [n for n in expected if n in self.index and not self.index[n].dtype.is_floating_point]
        found = (("missing", missing), ("unknown", unknown), ("of a wrong shape", wrong), ("of whole numbers", whole))
        told = [f"{len(some)} tensor(s) {what}: {listing(some)}" for what, some in found if some]
        if told:
            raise CheckpointError(
                f"{self.name} in {self.folder} does not fit its config: {'; '.join(told)}; "
                "use a complete, unmodified one"
            )


def _part(name: str, stored: list[Stored]) -> Part:
    by_dtype = Counter()
    for one in stored:
        by_dtype[one.dtype] += one.bytes
    params = sum(one.params for one in stored)
    files = tuple(dict.fromkeys(one.file for one in stored))
    return Part(name, by_dtype.total(), params, by_dtype.most_common(1)[0][0], files)


@access_told()
def open_checkpoint(model: str | os.PathLike, *, offline: bool | None = None, paths: bool = True) -> Checkpoint:
    """Find ``model``, detect its family and layout, and read its headers.

    Args:
        model, offline, paths: as ``find`` takes them.
    Raises:
        CheckpointError: it is not found, not readable, or lacks a part.
    """
    bundle = layouts.find_bundle(find(model, offline=offline, paths=paths))
    if bundle.family == "v1":
        from acefast.models.v1.checkpoint import read
    else:
        from acefast.models.v15.checkpoint import read
    return read(bundle, str(model), offline)
