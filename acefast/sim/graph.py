"""Whether a step can be captured as a CUDA graph: shown without a GPU.

A captured step is replayed on the addresses, shapes and Python values it met once, and nothing in it may wait for the
GPU. ``check_step`` runs a step a few times, watches every ATen call, and reports what would break that:

    sync        a value or a size read back to the host: ``.item()``, ``if tensor``, ``nonzero``, ``x[mask]``
    copy        a copy between host and device that the host waits for
    allocation  memory made inside the step, beyond the buffers declared as ``static``
    moving      an input that lies elsewhere in the next run
    host        an input that lies on the host, whose value a graph would keep
    dynamic     other calls or other shapes in the next run
    baked       a Python value that is another one in the next run; a graph would keep the first
    random      numbers drawn inside the step

Tensors on "cpu", on "meta" (full size without memory) or fake ones on "cuda" stand for the GPU's. The host is "cpu";
where the step's own device is "cpu" too, every tensor counts as one of the device and ``.cpu()`` as a read-back.

Not seen: what bypasses torch's dispatcher (report a Triton launch with ``note_launch``), scratch memory within a call,
device-wide synchronisation, and calls that launch more than one kernel, which count as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acefast.sim.calls import (
    PythonCalls,
    arguments,
    base_name,
    caller,
    decomposed,
    hazard,
    storage_id,
    works,
    written,
)
from acefast.sim.errors import SimError

KINDS = ("sync", "copy", "allocation", "moving", "host", "dynamic", "baked", "random")


@dataclass
class Finding:
    """One reason against capture, at one line."""

    kind: str  # one of KINDS
    op: str
    reason: str
    where: str  # file:line of the innermost caller outside torch
    count: int = 1  # calls per step
    bytes: int = 0  # allocated per step

    def __str__(self) -> str:
        size = f", {self.bytes} bytes" if self.bytes else ""
        return f"{self.where}: {self.kind}: {self.op}: {self.reason} ({self.count} x{size})"


@dataclass
class Report:
    """What ``check_step`` saw in one run of the step."""

    findings: list[Finding] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)  # ATen calls that do work on the device; views do none
    undeclared: list[str] = field(default_factory=list)  # inputs not in ``static``, which must outlive the graph too
    stopped: str | None = None  # the error that ended the run: the device had no value to read back

    def of(self, kind: str) -> list[Finding]:
        """The findings of one kind, in the order met."""
        if kind not in KINDS:
            raise ValueError(f"graph: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        return [f for f in self.findings if f.kind == kind]

    def count(self, kind: str) -> int:
        """How many calls of a step the findings of one kind stand for."""
        return sum(f.count for f in self.of(kind))

    @property
    def allocated_bytes(self) -> int:
        return sum(f.bytes for f in self.findings)

    def require(self, *, allow: tuple[str, ...] = ()) -> Report:
        """Return the report, or raise ``GraphUnsafe`` where it has a finding of a kind not in ``allow``."""
        if self.stopped or any(f.kind not in allow for f in self.findings):
            raise GraphUnsafe(str(self))
        return self

    def __str__(self) -> str:
        lines = [f"{self.launches.total()} launches, {len(self.findings)} findings", *map(str, self.findings)]
        return "\n".join([*lines, f"stopped: {self.stopped}"] if self.stopped else lines)


class GraphUnsafe(SimError):
    """A step that must be capturable is not."""


def check_step(
    step: Callable[[], Any],
    *,
    static: Any = (),
    device: torch.device | str | None = None,
    runs: int = 2,
    warmup: int = 1,
    between: Callable[[int], Any] | None = None,
) -> Report:
    """Run ``step`` under watch, as inference, and report what a captured graph could not do.

    Args:
        step: what would be captured; it takes nothing and returns any structure.
        static: the tensors a graph may count on, in any structure, modules included: inputs, outputs, arena, weights.
            A view declares all of its memory.
        device: where the step's tensors live; None: that of the first of ``static``, or "cpu".
        runs: watched runs; all later ones are compared with the first.
        warmup: runs before these, whose findings do not count: tables and caches fill up there.
        between: called with 0, 1, ... after every run, to change what a caller would change between replays.
    Returns:
        the first watched run's report, with what differs in the later ones. Temporaries are kept until it is complete:
        use meta tensors for large sizes.
    """
    declared = list(_tensors(static))
    place = torch.device(device or (declared[0].device if declared else "cpu"))
    keys = {storage_id(t) for t in declared}
    traces: list[_Trace] = []
    for run in range(warmup + runs):
        trace = _Trace(place, keys)
        with torch.inference_mode(), PythonCalls(place, trace), trace:
            _running.append(trace)
            try:
                step()
            except Exception as error:
                if trace.pending is None:
                    raise
                trace.report.stopped = f"{type(error).__name__}: {error}"
                return trace.report
            finally:
                _running.remove(trace)
        if run >= warmup:
            traces.append(trace)
        if between is not None:
            between(run)
    first = traces[0]
    for later in traces[1:]:
        first.compare(later)
    return first.report


def note_launch(name: str, *tensors: Tensor) -> None:
    """Tell a running ``check_step`` of a launch that bypasses torch's dispatcher; otherwise do nothing."""
    for trace in _running:
        trace.note(name, list(tensors))


@dataclass
class _Call:
    op: str
    where: str
    shapes: list  # of inputs and outputs
    values: str  # its other arguments
    inputs: dict[int, tuple]  # position of an input from outside the step -> its address


class _Trace(TorchDispatchMode):
    """One run of a step."""

    def __init__(self, device: torch.device, static: set[int]):
        super().__init__()
        self.device, self.static = device, static
        self.report = Report()
        self.calls: list[_Call] = []
        self.born: set[int] = set()  # storages made inside the step
        self.outside: set[int] = set()  # storages from before that are not declared
        self.scalars: set[int] = set()
        self.alive: list = []  # storages met, so that none's id is given to another one
        self.muted, self.pending = 0, None

    def found(self, kind: str, op: str, reason: str, where: str | None = None, size: int = 0) -> None:
        """Add a finding; what is found again at the same line counts up."""
        where = where or caller()
        if kind in ("sync", "copy", "host"):
            if self.muted and kind != "host":
                return
            self.pending = op  # an error from here on, until the call is through, is its consequence
        for f in self.report.findings:
            if (f.kind, f.op, f.reason, f.where) == (kind, op, reason, where):
                f.count, f.bytes = f.count + 1, f.bytes + size
                return
        self.report.findings.append(Finding(kind, op, reason, where, 1, size))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        out = decomposed(self, func, args, kwargs)
        if out is not NotImplemented:
            return out
        leaves = tree_leaves((args, kwargs))
        inputs = [t for t in leaves if isinstance(t, Tensor)]
        if base_name(func) == "lift_fresh":  # the tensor made of Python values, not yet seen
            self._add(inputs[0], self.born)
        problem = hazard(func, args, kwargs, self.device, self.scalars)
        if problem is not None:
            self.found(problem[0], str(func), problem[1])
        if _draws(func, args, kwargs):
            self.found("random", str(func), "numbers are drawn inside the step")
        call = self._call(str(func), inputs, copies=base_name(func) in ("copy_", "_to_copy"))
        writes = written(func, args, kwargs)
        sizes = [t.untyped_storage().nbytes() for t in writes]
        out = func(*args, **kwargs)
        if not self.muted:
            self.pending = None
        known = {storage_id(t) for t in inputs}
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        new = [t for t in outputs if storage_id(t) not in known and storage_id(t) not in self.static]
        for t in new:
            self._add(t, self.born)
        if base_name(func) in ("lift_fresh", "scalar_tensor"):
            self.scalars.update(storage_id(t) for t in outputs if t.dim() == 0)
        else:
            grown = sum(max(0, t.untyped_storage().nbytes() - old) for t, old in zip(writes, sizes))
            size = sum({storage_id(t): t.untyped_storage().nbytes() for t in new if self._here(t)}.values()) + grown
            if size:
                self.found("allocation", str(func), "memory is made inside the step", call.where, size)
        call.shapes += [_shape(t) for t in outputs]
        call.values = repr([a for a in leaves if not isinstance(a, Tensor)])
        if works(func) and any(self._here(t) and t.numel() for t in [*new, *writes]):
            self.report.launches[str(func)] += 1
        return out

    def note(self, name: str, tensors: list[Tensor]) -> None:
        """A launch that came past the dispatcher."""
        self._call(name, tensors)
        self.pending = None
        self.report.launches[name] += 1

    def compare(self, later: _Trace) -> None:
        """Add what differs in a later run."""
        for a, b in zip(self.calls, later.calls):
            if a.op != b.op:
                self.found("dynamic", b.op, f"the first run called {a.op} here", b.where)
                return
            for i, address in b.inputs.items():
                if a.inputs.get(i, address) != address:
                    self.found("moving", b.op, f"tensor {i} of its inputs lies elsewhere in a later run", b.where)
            if a.shapes != b.shapes:
                self.found("dynamic", b.op, f"shapes differ from run to run: {a.shapes}, then {b.shapes}", b.where)
            elif a.values != b.values:
                self.found("baked", b.op, f"values differ from run to run: {a.values}, then {b.values}", b.where)
        if len(self.calls) != len(later.calls):
            longer = max(self.calls, later.calls, key=len)
            extra = longer[min(len(self.calls), len(later.calls))]
            self.found("dynamic", extra.op, "called in some runs only", extra.where)

    def _call(self, op: str, inputs: list[Tensor], copies: bool = False) -> _Call:
        call = _Call(op, caller(), [_shape(t) for t in inputs], "", {})
        self.calls.append(call)
        meets_device = any(self._here(t) for t in inputs)
        for i, t in enumerate(inputs):
            key = storage_id(t)
            if key not in self.born:
                call.inputs[i] = _address(t)
                if key not in self.static and key not in self.outside:
                    self._add(t, self.outside)
                    self.report.undeclared.append(f"{t.dtype} {list(t.shape)} at {call.where}")
            if not self._here(t) and not copies:
                if key not in self.born:
                    self.found("host", op, f"tensor {i} of its inputs lies on the host", call.where)
                elif meets_device and t.dim():
                    self.found("host", op, f"tensor {i} of its inputs was made on the host", call.where)
        return call

    def _here(self, t: Tensor) -> bool:
        return t.device.type == self.device.type

    def _add(self, t: Tensor, keys: set[int]) -> None:
        keys.add(storage_id(t))
        self.alive.append(t.untyped_storage())


_running: list[_Trace] = []


def _tensors(tree: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.nn.Module):
            yield from leaf.parameters()
            yield from leaf.buffers()
        elif isinstance(leaf, Tensor):
            yield leaf


def _draws(func: Any, args: tuple, kwargs: dict) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    bound = arguments(func, args, kwargs)
    if "dropout_p" not in bound and "dropout" in base_name(func):
        return bound.get("train") is not False and bound.get("p") != 0
    return bound.get("dropout_p") != 0


def _address(t: Tensor) -> tuple:
    storage = t.untyped_storage()
    pointer = 0 if storage.device.type == "meta" else storage.data_ptr()
    return storage._cdata, pointer, t.storage_offset(), t.stride()


def _shape(t: Tensor) -> tuple:
    return tuple(t.shape), t.dtype
