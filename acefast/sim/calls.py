"""ATen calls as a CUDA graph sees them: which make the host wait, which launch something, and who called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
_NO_LAUNCH = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_"}
_NO_LAUNCH |= {"set_", "lift_fresh", "scalar_tensor", "_local_scalar_dense", "equal"}
# Python-level calls that reach the dispatcher on some devices only
_READS = {"tolist", "numpy", "cpu", "__array__", "__repr__", "__format__"}
_BUILDS = {"tensor", "as_tensor", "asarray", "new_tensor"}


def hazard(func: Any, args: tuple, kwargs: dict, device: torch.device, scalars: set) -> tuple[str, str] | None:
    """(kind, reason) why the host waits in this call, or None.

    ``scalars`` are the storages of tensors that torch made of Python numbers, which on a GPU stay on the host.
    """
    name = base_name(func)
    inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if not any(t.device.type == device.type for t in inputs):
        target = kwargs.get("device")
        if name != "_to_copy" or target is None or torch.device(target).type != device.type:
            return None
    if name in ("_to_copy", "copy_"):
        bound = arguments(func, args, kwargs)
        source = bound["self"].device if name == "_to_copy" else bound["src"].device
        target = torch.device(bound["device"] or source) if name == "_to_copy" else bound["self"].device
        if source.type != target.type and "cpu" in (source.type, target.type) and not bound["non_blocking"]:
            return "copy", f"the host waits for a copy from {source.type} to {target.type}"
        return None
    if name in _INDEXING:
        bound = arguments(func, args, kwargs)
        masks = [t for t in bound["indices"] if isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8)]
        values = bound.get("values")
        if not masks or (values is not None and values.numel() == 1 and storage_id(values) in scalars):
            return None  # x[mask] = number is a masked fill
        return "sync", "a boolean mask as index: the number of its ones is read back"
    if torch.Tag.data_dependent_output in func.tags or name == "_linalg_check_errors":
        return "sync", "a value is read back to the host"
    if torch.Tag.dynamic_output_shape in func.tags and arguments(func, args, kwargs).get("output_size") is None:
        return "sync", "the size of its result depends on the data and is read back"
    return None


class PythonCalls(TorchFunctionMode):
    """Finds read-backs and uploads that do not always reach the dispatcher, and hands them to ``sink.found``."""

    def __init__(self, device: torch.device, sink: Any):
        super().__init__()
        self.device, self.sink = device, sink

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        problem = self._before(name, args)
        if problem is not None:
            self.sink.found(*problem)
        quiet = problem is not None or name in _BUILDS  # the dispatcher may meet the same once more
        self.sink.muted += quiet
        try:
            out = func(*args, **kwargs)
        finally:
            self.sink.muted -= quiet
        if problem is not None:
            self.sink.pending = None
        if name in _BUILDS and isinstance(out, Tensor) and not (args and args[0] is out):
            on_device = out.device.type == self.device.type
            if on_device and (out.device.type != "cpu" or kwargs.get("device") is not None or out.dim()):
                self.sink.found("copy", name, "a tensor made of Python values is uploaded")
                self.sink.pending = None
        return out

    def _before(self, name: str, args: tuple) -> tuple[str, str, str] | None:
        if not args or not isinstance(args[0], Tensor) or args[0].device.type != self.device.type:
            return None
        if name in _READS:
            return "sync", name, "values are read back to the host"
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(i, list) or type(i).__module__ == "numpy" for i in index):
                return "copy", name, "a list as index is uploaded"
        return None


def decomposed(mode: TorchDispatchMode, func: Any, args: tuple, kwargs: dict) -> Any:
    """The result of a composite call whose parts ``mode`` watches instead; NotImplemented for one to watch itself.

    Scaled dot product attention stays whole: it is one launch on a GPU, and its parts depend on the device.
    """
    if base_name(func) == "scaled_dot_product_attention":
        return NotImplemented
    with mode:
        return func.decompose(*args, **kwargs)


def written(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors among a call's arguments that it writes to."""
    if not func._schema.is_mutable:
        return []
    bound = arguments(func, args, kwargs)
    targets = [bound.get(a.name) for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [t for t in tree_leaves(targets) if isinstance(t, Tensor)]


def works(func: Any) -> bool:
    """Whether a call that has new memory or writes to old one does anything on the device."""
    return base_name(func) not in _NO_LAUNCH and torch.Tag.inplace_view not in func.tags


def caller() -> str:
    """file:line of the innermost frame that is neither torch's nor the checker's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_TORCH, _HERE)):
        frame = frame.f_back
    path = frame.f_code.co_filename
    inside = path.startswith(os.getcwd() + os.sep)
    return f"{os.path.relpath(path) if inside else path}:{frame.f_lineno}"


def base_name(func: Any) -> str:
    """``mm`` of ``aten::mm``."""
    return func._schema.name.partition("::")[2]


def arguments(func: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """A call's arguments by name, defaults included."""
    names = [a.name for a in func._schema.arguments]
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return {**defaults, **dict(zip(names, args)), **kwargs}


def storage_id(t: Tensor) -> int:
    """The same for all views of one memory, on meta and fake tensors too; valid while that memory lives."""
    return t.untyped_storage()._cdata
