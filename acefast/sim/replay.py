"""Record and replay of a step on CPU tensors with a CUDA graph's semantics, so that code for graphs is testable.

As with a real graph

- recording runs nothing: memory from before is as it was, and what the step returns holds NaN until the first replay;
- a replay repeats the calls on the same addresses with the same Python values, whatever the caller has bound since;
- a replay overwrites what the one before it returned;
- recording refuses what makes the host wait.

Unlike with a real graph, memory made inside the step is not shared with other graphs, and a replay is no faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from acefast.sim.calls import PythonCalls, caller, decomposed, hazard, works, written
from acefast.sim.errors import SimError


class CaptureError(SimError):
    """The step did what a graph cannot hold."""


class _Call(NamedTuple):
    func: Any
    args: tuple
    kwargs: dict
    new: list[tuple[int, Tensor]]  # the results that have memory of their own, by position


class Recording:
    """A recorded step.

    Args:
        step: takes nothing and returns any structure of tensors; run it once before, so that its caches are filled.
    Raises:
        CaptureError: a call in it makes the host wait.
    """

    def __init__(self, step: Callable[[], Any]):
        recorder = _Recorder()
        try:
            with torch.inference_mode(), PythonCalls(recorder.device, recorder), recorder:
                self.outputs = step()
        finally:
            recorder.undo()
        self._calls = recorder.calls

    def __len__(self) -> int:
        """Number of calls a replay makes."""
        return len(self._calls)

    def replay(self) -> Any:
        """Run the calls again and return ``outputs``, the same tensors every time; clone what must survive."""
        with torch.inference_mode():
            for call in self._calls:
                results = tree_leaves(call.func(*call.args, **call.kwargs))
                for position, tensor in call.new:
                    tensor.copy_(results[position])
        return self.outputs


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.device = torch.device("cpu")
        self.calls: list[_Call] = []
        self.born: dict[int, torch.UntypedStorage] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # memory from before that was written to, and its contents
        self.scalars: set[int] = set()
        self.muted, self.pending = 0, None  # what PythonCalls expects; nothing runs after a finding

    def found(self, kind: str, op: str, reason: str) -> None:
        raise CaptureError(f"{op} cannot be captured: {reason}, at {caller()}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = decomposed(self, func, args, kwargs)
        if out is not NotImplemented:
            return out
        problem = hazard(func, args, kwargs, self.device, self.scalars)
        if problem is not None:
            self.found(problem[0], str(func), problem[1])
        writes = written(func, args, kwargs)
        for t in writes:
            storage = t.untyped_storage()
            if storage._cdata not in self.born and storage._cdata not in self.before:
                memory = _bytes(storage)
                self.before[storage._cdata] = memory, memory.clone()
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        kept = tree_map_only(Tensor, Tensor.detach, (args, kwargs))  # the step may reshape its tensors in place
        out = func(*args, **kwargs)
        known = {t.untyped_storage()._cdata for t in inputs}
        new = []
        for position, t in enumerate(tree_leaves(out)):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in known:
                new.append((position, t.detach()))
                self.born[t.untyped_storage()._cdata] = t.untyped_storage()
        if func._schema.name in ("aten::lift_fresh", "aten::scalar_tensor") and out.dim() == 0:
            self.scalars.add(out.untyped_storage()._cdata)
        if (new or writes) and (works(func) or func._schema.name == "aten::scalar_tensor"):
            self.calls.append(_Call(func, *kept, new))
        return out

    def undo(self) -> None:
        """Leave memory as if nothing had run."""
        with torch.inference_mode():
            for memory, contents in self.before.values():
                memory.copy_(contents)
            for storage in self.born.values():
                _bytes(storage).fill_(0xFF)  # NaN in every floating dtype


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
