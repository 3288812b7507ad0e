"""What the real code launches, without a GPU, a compiler or memory: on "meta" tensors, every launch is written down.

    recorded_step(Job("turbo", 240), sm=80)  # the calls of one step
    recorded_decode(Job("turbo", 240), DEVICES["a100-40"])  # of one tile, how many tiles, and of the last pass

A call is one of a launch wrapper in ``kernels/`` with its arguments, or one of the library, as its work.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from acefast.backends import emulated, use_backend
from acefast.cases import Arguments, Case, all_cases
from acefast.graphs import Graphs
from acefast.guidance import Guidance
from acefast.models.v15.dit import DiT
from acefast.models.v15.step import Step
from acefast.models.v15.vae import Decoder
from acefast.models.v15.vae_layers import Snake
from acefast.models.v15.vae_tiling import even_size, frames_that_fit, windows
from acefast.ops.pcm import pcm
from bench.calculator.gpus import Device
from bench.calculator.song import VAE, Job
from bench.calculator.work import Kernel, attention, matmul

FLASH, PRODUCTS = "_flash_attention_forward", ("aten.mm.", "aten.addmm")


@dataclass(frozen=True)
class Launch:
    """One of Triton's, before it is compiled."""

    name: str
    grid: tuple[int, int, int]
    constants: dict[str, Any]  # compile-time arguments, with the number of warps and of stages

    @property
    def programs(self) -> int:
        x, y, z = self.grid
        return x * y * z


@dataclass
class Call:
    """Of a wrapper, or of the library."""

    wrapper: Callable[..., Any] | None = None
    arguments: Arguments = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    library: Kernel | None = None


@contextlib.contextmanager
def recorded(sm: int) -> Iterator[list[Call]]:
    """Within the block Triton's kernels are chosen for ``sm`` and their launches written down, not made."""
    from triton.runtime.jit import JITFunction

    calls, inside = [], []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        bound = dict(zip(kernel.arg_names, args)) | options
        grid = grid(bound) if callable(grid) else grid
        constants = {p.name: bound[p.name] for p in kernel.params if p.is_constexpr and p.name in bound}
        constants |= {name: options[name] for name in ("num_warps", "num_stages") if name in options}
        if not inside:
            raise RuntimeError(f"{kernel.__name__} is launched outside of the wrappers that have cases")
        inside[-1].launches.append(Launch(kernel.__name__, (*grid, 1, 1)[:3], constants))

    def recording(wrapper: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(wrapper)
        def call(*args: Any, **options: Any) -> Any:
            bound = inspect.signature(wrapper).bind(*args, **options)
            bound.apply_defaults()
            calls.append(Call(wrapper, dict(bound.arguments)))
            inside.append(calls[-1])
            try:
                return wrapper(*args, **options)
            finally:
                inside.pop()

        return call

    with contextlib.ExitStack() as stack:
        for wrapper in {case.launch for case in all_cases()}:
            stack.enter_context(patch.object(_room(wrapper), wrapper.__name__, recording(wrapper)))
        stack.enter_context(patch.object(JITFunction, "run", run))
        stack.enter_context(emulated(sm))
        stack.enter_context(use_backend("triton"))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_Library(calls))
        yield calls


def recorded_case(case: Case, arguments: Arguments, sm: int) -> Call:
    """A case's one call."""
    with recorded(sm) as calls:
        getattr(_room(case.launch), case.launch.__name__)(**arguments)
    return calls[0]


def _room(wrapper: Callable[..., Any]) -> ModuleType:
    return importlib.import_module(wrapper.__module__)


class _Library(TorchDispatchMode):
    """Writes down the library's matrix products and its attention."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = str(op)
        if name.startswith(PRODUCTS):
            a, b = [t for t in args if isinstance(t, Tensor)][-2:]
            (m, k), n = a.shape, b.shape[1]
            added = m * n * a.itemsize if "addmm" in name and args[0].dim() == 2 else 0
            self.calls.append(Call(library=matmul("library", f"GEMM {m} x {n} x {k}", m, n, k, more=added)))
        elif FLASH in name:
            q, k, _, starts = [t for t in args if isinstance(t, Tensor)][-5:-1]
            songs, (_, heads, dim) = len(starts) - 1, q.shape
            rows = q.shape[0] // songs
            sizes = {"batch": songs, "heads": heads, "kv_heads": k.shape[1], "dim": dim}
            work = attention("library", "FlashAttention", **sizes, rows=rows, pairs=rows * rows, keys=rows)
            self.calls.append(Call(library=work))
        return op(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=256)
def recorded_step(job: Job, sm: int) -> list[Call]:
    """A step of the transformer and sampler; with guidance a guided one."""
    c, songs = job.config, job.batch
    states = _meta(songs, job.conditions, c.encoder_hidden_size)
    context = _meta(songs, job.frames, 2 * c.audio_acoustic_hidden_dim)
    with recorded(sm) as calls:
        model = _transformer(job.model.startswith("xl"), c)
        conditions, guidance = model.prepare(states, None, context), Guidance(7.0 if job.guidance else 1.0)
        shape = Step.shape_of(model, songs, conditions, 2, guidance)
        step = Step(model, shape, Graphs(torch.device("meta")))
        calls.clear()
        step.launch(job.guidance)
    return list(calls)


@functools.lru_cache(maxsize=256)
def recorded_decode(frames: int, songs: int, device: Device) -> tuple[int, list[Call], list[Call]]:
    """How many tiles, a tile's calls, and those of the last pass over the song, to its level in place."""
    decoder = _decoder()
    size = even_size(frames, frames_that_fit(decoder, songs, device.memory * 10**9), decoder.halo)
    tiles = len(list(windows(frames, size, decoder.halo)))
    with recorded(device.sm) as calls:
        tile = decoder.tile(songs, min(size, frames))
        calls.clear()
        tile.launch()
        launched = list(calls)
        calls.clear()
        audio = _meta(songs, VAE.audio_channels, frames * decoder.hop)
        pcm(audio, _meta(songs, dtype=torch.float64), peaks=tile.peaks, out=audio)
    return tiles, launched, list(calls)


@functools.lru_cache(maxsize=2)
def _transformer(xl: bool, config: Any) -> DiT:
    with torch.device("meta"):
        return DiT(config).to(torch.bfloat16)


@functools.cache
def _decoder() -> Decoder:
    with torch.device("meta"):
        decoder = Decoder(VAE).to(torch.float16)
    for layer in decoder.modules():
        if isinstance(layer, Snake):
            layer.float()
    return decoder


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
