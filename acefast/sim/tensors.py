"""A launch's keyword arguments as memory: copies that keep views and overlaps, and the arrays behind addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from acefast.sim.launch import Pointer


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def copy_of(arguments: dict[str, Any], floating: torch.dtype | None = None) -> dict[str, Any]:
    """The same arguments on memory of their own; what overlapped overlaps again, strides and offsets stay.

    Args:
        floating: the dtype that floating-point tensors, and dtypes among the arguments, become; None leaves them.
    """
    memory: dict[tuple[int, torch.dtype], Tensor] = {}

    def copy(t: Tensor) -> Tensor:
        key = t.untyped_storage().data_ptr(), t.dtype
        if key not in memory:
            memory[key] = whole(t).to(floating if floating and t.is_floating_point() else t.dtype, copy=True)
        return memory[key].as_strided(t.shape, t.stride(), t.storage_offset())

    return _replaced(arguments, copy, lambda d: floating if floating and d.is_floating_point else d)


def whole(t: Tensor) -> Tensor:
    """All that lies in the memory ``t`` is a view of, [n]."""
    storage = t.untyped_storage()
    return torch.empty(0, dtype=t.dtype, device=t.device).set_(storage, 0, (storage.nbytes() // t.itemsize,))


def share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


class Arrays:
    """The memory of some CPU tensors as numpy bytes; launches write to it in place."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.bytes = {}
        for t in tensors:
            storage = t.untyped_storage()
            if storage.data_ptr() not in self.bytes:
                self.bytes[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()

    def at(self, address: int) -> Pointer | None:
        """The pointer to an address, if it lies in one of the tensors' memory."""
        for start, array in self.bytes.items():
            if start <= address < start + max(1, array.nbytes):
                return Pointer(array, address - start)
        return None


def _replaced(value: Any, tensor: Callable[[Tensor], Tensor], dtype: Callable[[torch.dtype], torch.dtype]) -> Any:
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, torch.dtype):
        return dtype(value)
    if isinstance(value, dict):
        return {name: _replaced(item, tensor, dtype) for name, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_replaced(item, tensor, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
