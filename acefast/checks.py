"""Argument checks that every op shares: one sentence with the op, the argument, what it needs and what it got."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_shape(op: str, name: str, tensor: Tensor, shape: Sequence[int | None], letters: str) -> None:
    """Raise ValueError unless ``tensor`` has ``shape``; None stands for any size.

    ``letters`` names the sizes for the reader, such as ``"[B, T, C]"``.
    """
    got = tuple(tensor.shape)
    if len(got) != len(shape) or any(want is not None and want != have for want, have in zip(shape, got)):
        want = "[" + ", ".join("any" if s is None else str(s) for s in shape) + "]"
        raise ValueError(f"{op}: {name} must be {letters} = {want}, got {list(got)}")


def check_contiguous(op: str, name: str, tensor: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is contiguous."""
    if not tensor.is_contiguous():
        raise ValueError(
            f"{op}: {name} must be contiguous, got strides {tuple(tensor.stride())} for {list(tensor.shape)}; "
            "call .contiguous() first"
        )


def check_dtype(op: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless ``tensor`` is of ``dtype``."""
    if tensor.dtype != dtype:
        raise ValueError(f"{op}: {name} must be {dtype}, got {tensor.dtype}")


def is_rows(tensor: Tensor) -> bool:
    """Whether [..., C] is rows of C neighbours, all at one distance: what a kernel with a row stride can walk."""
    try:
        return tensor.view(-1, tensor.shape[-1]).stride(1) == 1
    except RuntimeError:  # the sizes in front do not fold into one
        return False


def rows_start_at(tensor: Tensor, bytes: int) -> bool:
    """Whether rows of [..., C] are of neighbours and each begins at a multiple of so many bytes, along whatever
    dimension they follow; of "meta" the strides alone tell."""
    place = 0 if tensor.is_meta else tensor.data_ptr()
    steps = [stride * tensor.itemsize for size, stride in zip(tensor.shape[:-1], tensor.stride()) if size > 1]
    return tensor.stride(-1) == 1 and all(n % bytes == 0 for n in (place, *steps))
