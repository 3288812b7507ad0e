"""How much memory a song takes on a device, planned before it is made; and which policy that leaves.

    plan(Networks.named("turbo"), Job(240.0), torch.bfloat16, torch.device("cuda")).peak  # bytes

Where Triton's kernels are in force nearly all of it is static: weights, the arena of the steps, the buffers of a tile;
what is planned is what is allocated, counted from the same shapes, and a little for what comes and goes. Elsewhere the
working memory of the references is an estimate. Memory that no tensor lies in (the driver's, code, what an allocator
cannot use) is not in a plan; ``policy`` leaves room for it.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from acefast.backends import kernels_take
from acefast.checkpoint import Checkpoint, open_checkpoint
from acefast.devices import current
from acefast.locate import family_of, variant_of
from acefast.request import RequestError
from acefast.residence import POLICIES
from acefast.weights import CheckpointError

MB, GB = 10**6, 10**9
LIBRARY = 32 << 20  # scratch of cuBLAS on sm_90, for each stream: there is one more that captures graphs
SMALL = 16 << 20  # of a GPU's many small tensors: tables, clocks, positions, what allocations are rounded up by
ROOM = 1.03, 400 * MB  # times a GPU's plan and beyond it: the driver, code, memory that is in too small pieces


class Networks(ABC):
    """Sizes of a model's networks; a family has its own.

    Attributes:
        name: the model's.
        longest: seconds of the longest song; what "auto" makes room for.
        stages: the networks that work in each, named as the Model's, and the kinds of working memory.
    """

    name: str
    longest: ClassVar[float]
    stages: ClassVar[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]]

    @staticmethod
    def of(checkpoint: Checkpoint, quantization: str | None = None) -> Networks:
        """Of a checkpoint; ``quantization`` as of ``acefast.load``."""
        networks = _family(checkpoint.family).of_checkpoint(checkpoint)
        return dataclasses.replace(networks, quantization=quantization) if quantization else networks

    @staticmethod
    def named(model: str) -> Networks:
        """Of a checkpoint that is here, else of a published model by its name: nothing is downloaded.

        Raises:
            CheckpointError: it is neither.
        """
        try:
            return Networks.of(open_checkpoint(model, offline=True))
        except CheckpointError:
            variant = variant_of(model)
            if variant is None:
                raise
        return _family(family_of(variant)).published(variant)

    @classmethod
    @abstractmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Networks:
        """Of a checkpoint of the family."""

    @classmethod
    @abstractmethod
    def published(cls, variant: str) -> Networks:
        """Of a published model, by what ``acefast.locate.variant_of`` gives."""

    @abstractmethod
    def completed(self, job: Job) -> Job:
        """The job with the model's defaults in place of None."""

    @abstractmethod
    def weights(self, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
        """Bytes of each network in a pipeline of ``dtype``; a GPU rounds every tensor up."""

    @abstractmethod
    def work(
        self,
        job: Job,
        dtype: torch.dtype,
        device: torch.device,
        kernels: bool,
        total: int | None,
        captures: bool,
    ) -> tuple[dict[str, int], int]:
        """Working memory by kind, in bytes, and the frames of a tile; arguments as of ``plan``."""


def _family(family: str) -> type[Networks]:
    if family == "v1":
        from acefast.models.v1.plan import V1Networks

        return V1Networks
    from acefast.models.v15.plan import V15Networks

    return V15Networks


@dataclass(frozen=True)
class Job:
    """What is made."""

    seconds: float = 240.0
    songs: int = 1
    conditions: int | None = None  # tokens of prompt and lyrics; None: the most there can be
    steps: int | None = None  # None: the model's default
    guided: bool | None = None  # None: as the model's default is
    source: bool = False  # source or reference audio is encoded

    def or_else(self, **defaults: Any) -> Job:
        """With ``defaults`` in place of None."""
        return dataclasses.replace(self, **{n: v for n, v in defaults.items() if getattr(self, n) is None})


@dataclass(frozen=True)
class Plan:
    """Bytes on the device that computes."""

    networks: Networks
    job: Job
    device: str
    dtype: torch.dtype
    memory: str  # "fast" or "low"
    weights: dict[str, int]  # of each network that the job needs
    work: dict[str, int]  # of each kind of working memory, see ``Networks.work``
    tile_frames: int
    stages: dict[str, int]  # all that is held in each

    @property
    def peak(self) -> int:
        """Of the stage that holds most."""
        return max(self.stages.values())

    @property
    def way_out(self) -> str:
        """What to lower where it does not fit, and the plan in a clause."""
        what = "duration" if self.job.songs == 1 else "duration or the number of songs in the batch"
        takes = (["memory='low'"] if self.memory == "fast" else []) + (
            ["dtype='bfloat16'"] if self.dtype == torch.float32 else []
        )
        return f"lower {what}{', or take ' * bool(takes)}{' or '.join(takes)}; {self}"

    def lines(self) -> Iterator[tuple[str, int]]:
        """The plan as figures with their names; the last one is the peak."""
        yield from self.weights.items()
        yield from self.work.items()
        yield from ((f"while in {name}", size) for name, size in self.stages.items())
        yield "peak", self.peak

    def __str__(self) -> str:
        songs = f"{self.job.songs} song{'s' * (self.job.songs != 1)} of {self.job.seconds:g} s"
        work = ", ".join(f"{name} {size / GB:.2f}" for name, size in self.work.items() if size >= 5 * MB)
        parts = f"weights {sum(self.weights.values()) / GB:.2f}, {work}"
        return f"the plan of {songs} with memory={self.memory!r} is {self.peak / GB:.2f} GB ({parts})"


def plan(
    networks: Networks,
    job: Job,
    dtype: torch.dtype,
    device: torch.device,
    memory: str = "fast",
    *,
    total: int | None = None,
    kernels: bool | None = None,
) -> Plan:
    """The memory that ``job`` takes.

    Args:
        dtype: the pipeline's.
        device: where it runs; a GPU need not be there if the other two are given.
        memory: "fast" or "low".
        total: memory of the GPU, by which tiles are made; None: that of ``device``.
        kernels: whether Triton's kernels run; None: whether they would here.
    """
    job = networks.completed(job)
    if kernels is None:
        with current(device):
            kernels = kernels_take(torch.float16, device)
    if total is None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    unused = () if job.source else networks.stages["source"][0]
    weights = {name: size for name, size in networks.weights(dtype, device).items() if name not in unused}
    low, stages = memory == "low", {}
    work, tile_frames = networks.work(job, dtype, device, kernels, total, captures=kernels and not low)
    stays = set() if low or not kernels else {"steps", "tile"}  # from song to song
    for stage, (parts, kinds) in networks.stages.items():
        if parts[0] in weights:
            there = sum(weights[name] for name in (parts if low else weights))
            stages[stage] = there + sum(work[kind] for kind in {"libraries", "cache", *kinds} | stays)
    return Plan(networks, job, device.type, dtype, memory, weights, work, tile_frames, stages)


def policy(memory: str, networks: Networks, dtype: torch.dtype, device: torch.device) -> str:
    """What ``memory`` comes to here: "auto" is "fast" where the longest song fits into what is free, else "low".

    Raises:
        RequestError: ``memory`` is none of the three.
    """
    if memory not in POLICIES:
        raise RequestError(f"memory must be auto, low or fast, got {memory!r:.60}")
    free = free_memory(device) if memory == "auto" else None
    if memory != "auto" or free is None:
        return "fast" if memory == "auto" else memory
    return "fast" if fits(plan(networks, Job(networks.longest), dtype, device), free) else "low"


def fits(planned: Plan, free: int) -> bool:
    """Whether so many free bytes are enough."""
    factor, more = ROOM if planned.device == "cuda" else (1, 0)
    return planned.peak * factor + more <= free


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new model may take on ``device``; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = dict(line.split(":") for line in file)
        return int(found["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None


def module_bytes(kind: type[nn.Module], *configs: Any, dtype: torch.dtype, rounded: bool) -> int:
    """Bytes of a network's weights; ``rounded`` as a GPU's allocator does it."""
    with torch.device("meta"):
        module = kind(*configs)
    table = kind.weight_table(*configs)
    return tensor_bytes(((p.numel(), table[n].dtype or dtype) for n, p in module.named_parameters()), rounded)


def tensor_bytes(tensors: Iterable[tuple[int, torch.dtype]], rounded: bool) -> int:
    """Bytes of tensors, each given by its elements and their dtype."""
    sizes = (count * dtype.itemsize for count, dtype in tensors)
    return sum(map(held, sizes) if rounded else sizes)


def held(size: int) -> int:
    """What a GPU's allocator counts for so many bytes: in steps of 512, and a rest of up to 1 MiB of 2 MiB with it."""
    size = -(-size // 512) * 512
    whole = -(-size // (2 << 20)) * (2 << 20)
    return whole if size >= 10 << 20 and whole - size <= 1 << 20 else size
