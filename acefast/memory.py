"""How much memory a song takes on a device, planned before it is made; and which policy that leaves.

    plan(Networks.named("turbo"), Job(240.0), torch.bfloat16, torch.device("cuda")).peak  # bytes

Where Triton's kernels are in force nearly all of it is static: weights, the arena of the steps, the buffers of a tile;
what is planned is what is allocated, counted from the same shapes, and a little for what comes and goes. Elsewhere the
working memory of the references is an estimate. Memory that no tensor lies in (the driver's, code, what an allocator
cannot use) is not in a plan; ``policy`` leaves room for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from acefast.checkpoint import Checkpoint, open_checkpoint
from acefast.conditions import CACHE_BYTES
from acefast.config_files import text_config_for
from acefast.devices import current
from acefast.locate import NAMES, variant_of
from acefast.models.v15 import vae
from acefast.models.v15.buffers import Shape, padded_conditions, padded_steps, padded_tokens, plan_bytes, step_plan
from acefast.models.v15.codes import AudioDetokenizer, AudioTokenizer
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.config import Config, VAEConfig
from acefast.models.v15.dit import DiT
from acefast.models.v15.layers import residual_dtype
from acefast.models.v15.tasks import frames_of
from acefast.models.v15.vae_range import compute_dtype
from acefast.models.v15.vae_tiling import TILE_FRAMES, arena_bytes, even_size, frames_that_fit, kernels_take
from acefast.prompts import LYRIC_TOKENS, TEXT_TOKENS
from acefast.request import RequestError
from acefast.residence import POLICIES
from acefast.sizes import text_encoder_tensors
from acefast.weights import CheckpointError

MB, GB = 10**6, 10**9
LIBRARY = 32 << 20  # scratch of cuBLAS on sm_90, for each stream: there is one more that captures graphs
SMALL = 16 << 20  # of a GPU's many small tensors: tables, clocks, positions, what allocations are rounded up by
LONGEST_SONG = 600.0  # seconds: what "auto" makes room for
ROOM = 1.03, 400 * MB  # times a GPU's plan and beyond it: the driver, code, memory that is in too small pieces
STAGES = {  # networks that work in each, named as the Model's, and the kinds of working memory
    "text": (("text_encoder", "condition_encoder"), ("text",)),
    "source": (("encoder", "audio_tokenizer", "audio_detokenizer"), ("tile",)),
    "diffusion": (("transformer",), ("steps", "sampling")),
    "decode": (("decoder",), ("tile", "song")),
}
SIXTEEN = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Networks:
    """Sizes of a model's networks."""

    name: str
    config: Config
    vae_config: VAEConfig
    text_config: dict[str, Any] = dataclasses.field(hash=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Networks:
        return cls(checkpoint.name, checkpoint.config, checkpoint.vae_config, checkpoint.text_config)

    @classmethod
    def named(cls, model: str) -> Networks:
        """Of a checkpoint that is here, else of a published model by its name: nothing is downloaded.

        Raises:
            CheckpointError: it is neither.
        """
        try:
            return cls.of(open_checkpoint(model, offline=True))
        except CheckpointError:
            variant = variant_of(model)
            if variant is None:
                raise
        from acefast.testing import full_size

        config = dataclasses.replace(full_size(variant)["config"], is_turbo="turbo" in variant)
        return cls(NAMES[variant], config, VAEConfig(), text_config_for(config))

    def weights(self, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
        """Bytes of each network in a pipeline of ``dtype``; a GPU rounds every tensor up."""
        return _weights(self, dtype, device.type == "cuda", compute_dtype(dtype, device))


@dataclass(frozen=True)
class Job:
    """What is made."""

    seconds: float = 240.0
    songs: int = 1
    conditions: int = TEXT_TOKENS + 1 + LYRIC_TOKENS  # tokens of prompt, timbre and lyrics: the most there can be
    steps: int | None = None  # None: 8 for turbo, else 50
    guided: bool | None = None  # None: unless turbo
    source: bool = False  # source or reference audio is encoded

    def for_model(self, config: Config) -> Job:
        """With the model's defaults in place of None."""
        steps = self.steps or (8 if config.is_turbo else 50)
        guided = not config.is_turbo if self.guided is None else self.guided
        return dataclasses.replace(self, steps=steps, guided=guided)


@dataclass(frozen=True)
class Plan:
    """Bytes on the device that computes."""

    networks: Networks
    job: Job
    device: str
    dtype: torch.dtype
    memory: str  # "fast" or "low"
    weights: dict[str, int]  # of each network that the job needs
    work: dict[str, int]  # of each kind of working memory, see ``work_of``
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
    job = job.for_model(networks.config)
    if kernels is None:
        with current(device):
            kernels = kernels_take(torch.float16, device)
    if total is None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    unused = () if job.source else STAGES["source"][0]
    weights = {name: size for name, size in networks.weights(dtype, device).items() if name not in unused}
    low, stages = memory == "low", {}
    work, tile_frames = work_of(networks, job, dtype, device, kernels, total, captures=kernels and not low)
    stays = set() if low or not kernels else {"steps", "tile"}  # from song to song
    for stage, (parts, kinds) in STAGES.items():
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
    return "fast" if fits(plan(networks, Job(LONGEST_SONG), dtype, device), free) else "low"


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


@cache
def _weights(networks: Networks, dtype: torch.dtype, rounded: bool, vae_dtype: torch.dtype) -> dict[str, int]:
    def of(kind: type[nn.Module], config: Any, dtype: torch.dtype) -> int:
        with torch.device("meta"):
            module = kind(config)
        table = kind.weight_table(config)
        return total((p.numel(), table[name].dtype or dtype) for name, p in module.named_parameters())

    def total(tensors: Any) -> int:
        sizes = (count * kind.itemsize for count, kind in tensors)
        return sum(map(held, sizes) if rounded else sizes)

    c, v = networks.config, networks.vae_config
    text = text_encoder_tensors(networks.text_config).values()
    return {
        "transformer": of(DiT, c, dtype),
        "condition_encoder": of(ConditionEncoder, c, dtype),
        "text_encoder": total((math.prod(shape), dtype) for shape in text),
        "decoder": of(vae.Decoder, v, vae_dtype),
        "encoder": of(vae.Encoder, v, vae_dtype),
        "audio_tokenizer": of(AudioTokenizer, c, dtype),
        "audio_detokenizer": of(AudioDetokenizer, c, dtype),
    }


def held(size: int) -> int:
    """What a GPU's allocator counts for so many bytes: in steps of 512, and a rest of up to 1 MiB of 2 MiB with it."""
    size = -(-size // 512) * 512
    whole = -(-size // (2 << 20)) * (2 << 20)
    return whole if size >= 10 << 20 and whole - size <= 1 << 20 else size


def work_of(
    networks: Networks,
    job: Job,
    dtype: torch.dtype,
    device: torch.device,
    kernels: bool,
    total: int | None,
    captures: bool,
) -> tuple[dict[str, int], int]:
    """Working memory by kind, and the frames of a tile.

    text       what the encoders of prompt and lyrics need for one song
    cache      prompts and lyrics encoded, kept by content, and where one is encoded
    steps      the steps' arena: activations, conditions with their keys and values, modulations
    sampling   beside it: latents, noise, a schedule's modulations and a weight of the time embedding in fp32
    tile       buffers of the audio autoencoder
    song       while it is decoded: its latents and audio in fp32; of a GPU two tiles' on their way to the host, else
               what it is finished in
    libraries  of a GPU: scratch of cuBLAS and many small things
    """
    c, v, gpu, size = networks.config, networks.vae_config, device.type == "cuda", dtype.itemsize
    frames, rows = frames_of(job.seconds, "official"), padded_conditions(job.conditions)
    encoded = rows * c.encoder_hidden_size * size
    text = rows * (3 * c.encoder_intermediate_size + 8 * networks.config.text_hidden_dim) * size + 6 * encoded
    tokens = padded_tokens(-(-frames // c.patch_size))
    shape = Shape(job.songs, job.songs, tokens, rows, padded_steps(job.steps), guided=bool(job.guided))
    arena = step_plan(c, shape, dtype, residual_dtype(dtype))
    steps, latents = plan_bytes(arena), 4 * job.songs * frames * c.audio_acoustic_hidden_dim
    schedule = 4 * job.steps * (6 * c.num_hidden_layers + 2) * c.hidden_size
    if not kernels:  # activations come and go, and attention is computed in fp32
        kept = plan_bytes({name: arena[name] for name in ("cache", "context", "modulation", "modulation_out")})
        steps = kept + 3 * (steps - kept)
    tile, tile_frames = _tile(v, job.songs, frames, device, kernels and dtype in SIXTEEN, total)
    frame = 4 * job.songs * v.audio_channels * v.hop  # of audio in fp32
    audio = (frames + 2 * min(tile_frames, frames)) * frame if gpu else 3 * frames * frame
    return {
        "text": text,
        "cache": min(CACHE_BYTES, job.songs * encoded) + encoded,
        "steps": steps,
        "sampling": 6 * latents + schedule + 4 * 6 * c.hidden_size**2,
        "tile": tile,
        "song": 2 * latents + audio,
        "libraries": LIBRARY * (1 + captures) + SMALL if gpu else 0,
    }, tile_frames


def _tile(
    v: VAEConfig, songs: int, frames: int, device: torch.device, kernels: bool, total: int | None
) -> tuple[int, int]:
    """Memory and frames of a tile of the decoder; one of the encoder takes the same."""
    with torch.device("meta"):
        decoder = vae.Decoder(v)
    if kernels:
        decoder.conv1.weight.data = decoder.conv1.weight.data.half()
        most = frames_that_fit(decoder, songs, total) if total else TILE_FRAMES["decode"]  # the latter in an emulation
        size = even_size(frames, most, decoder.halo)
        return arena_bytes(decoder.levels(size), songs, torch.float16), size
    size = min(frames, TILE_FRAMES["decode"])
    levels = decoder.levels(size)
    if device.type == "cpu":  # its outer blocks run over spans, see acefast.models.v15.vae
        widest = math.prod(levels[max(len(levels) - 1 - vae.SPAN_BLOCKS, 0)])
        return int(4.2 * 4 * songs * widest), size
    folded = 2 * 4 * sum(p.numel() for p in decoder.parameters())
    return int(3.2 * 4 * songs * math.prod(levels[-1])) + folded, size
