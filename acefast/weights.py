"""How a module's tensor is made of a checkpoint's: the entry of every model's weight table."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Source(NamedTuple):
    """Where one of our tensors comes from; fusing happens here, once, at load."""

    names: tuple[str, ...]  # official tensor names, see acefast.models.v15.names
    combine: Callable[..., Tensor] | None = None  # takes those tensors in the file's dtype; None: the one as it is
    dtype: torch.dtype | None = None  # stored dtype; None: the model's


WeightTable = dict[str, Source]


def stack(*tensors: Tensor) -> Tensor:
    """Rows of several linear layers with one input, as one layer."""
    return torch.cat(tensors)
