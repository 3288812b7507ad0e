"""A whole song: its stages as lists of kernels, and what they take.

latency(Job("turbo", 240), DEVICES["a100-40"], "target")["total"]  # seconds
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from acefast.models.v15.config import Config, VAEConfig
from acefast.testing import FULL_XL
from bench.calculator import decoder, transformer
from bench.calculator.gpus import Device
from bench.calculator.work import TUNING, Kernel, total

MODELS = ("turbo", "base", "xl-turbo", "xl-base")
STAGES = ("prep", "dit", "decode", "finish")
FRAME_RATE = 25.0  # latent frames a second
VAE = VAEConfig()

# Roughly what compiling the whole graph with CUDA graphs leaves, by topic: ("fused", f) is f times the target of the
# fused plan, ("eager", f) f times eager's GPU time; chains of elementwise kernels fuse, libraries stay as they are.
COMPILED = {
    **{"norm+mod+residual": ("fused", 1.3), "qk-norm+rope": ("fused", 1.5), "time embedding": ("eager", 0.4)},
    **{"swiglu": ("eager", 0.5), "sampler": ("eager", 0.3), "cross-attn": ("eager", 0.6), "vae snake": ("eager", 0.0)},
    **{"vae layout": ("eager", 0.93), "text encoder": ("eager", 0.5)},
    **{"lyric encoder": ("eager", 0.7), "timbre encoder": ("eager", 0.7)},
}


@dataclass(frozen=True)
class Job:
    """A request: 8 steps without guidance for turbo, 50 with guidance at every step for base, unless said otherwise."""

    model: str
    seconds: float
    batch: int = 1
    steps: int | None = None
    guided: bool | None = None
    text: int = 100  # tokens, as are the lyrics
    lyrics: int = 400
    cached: bool = False  # eager: cross attention's keys and values once a song

    @property
    def config(self) -> Config:
        return FULL_XL if self.model.startswith("xl") else Config()

    @property
    def frames(self) -> int:
        return math.ceil(self.seconds * FRAME_RATE)

    @property
    def conditions(self) -> int:
        return self.text + self.lyrics + 1

    @property
    def number_of_steps(self) -> int:
        return self.steps or (8 if self.model.endswith("turbo") else 50)

    @property
    def guidance(self) -> bool:
        return self.model.endswith("base") if self.guided is None else self.guided


Plan = dict[str, tuple[int, list[Kernel]]]  # stage -> how often, kernels


def plan(job: Job, plain: bool = False) -> Plan:
    """``plain``: as PyTorch would launch it."""
    c, rows = job.config, transformer.tokens(job.config, job.frames)
    given = (rows, job.batch, job.conditions, job.guidance)
    prep = transformer.conditions_work(c, rows, job.batch, job.text, job.lyrics, job.number_of_steps, plain=plain)
    if plain:
        done, tiles = decoder.decoded(job.frames, decoder.EAGER_TILE, decoder.EAGER_HALO)
        step = transformer.eager(c, *given, cached=job.cached)
        decode = (tiles, decoder.eager(VAE, math.ceil(done / tiles), job.batch))
        finish = []
    else:
        step = transformer.fused(c, *given)
        decode = (1, decoder.fused(VAE, decoder.decoded(job.frames)[0], job.batch))
        finish = decoder.finish(VAE, job.frames, job.batch)
    return {"prep": (1, prep), "dit": (job.number_of_steps, step), "decode": decode, "finish": (1, finish)}


def latency(job: Job, device: Device, kind: str) -> dict[str, float]:
    """Seconds by stage; ``kind``: "floor", "target", "eager" or "eager-gpu", which leaves host time out."""
    found = {}
    for stage, (times, kernels) in plan(job, kind.startswith("eager")).items():
        if kind.startswith("eager"):
            gpu = total(kernels, lambda k: k.eager(device))
            host = sum(k.launches for k in kernels) * TUNING.host_us * 1e-6
            seconds = gpu if kind == "eager-gpu" else max(gpu, host)
        else:
            seconds = total(kernels, lambda k: getattr(k, kind)(device))
        found[stage] = times * seconds
    return found | {"total": sum(found.values())}


def compiled(job: Job, device: Device) -> dict[str, float]:
    """Seconds by stage of PyTorch compiled as a whole, with CUDA graphs: a rough estimate, see COMPILED."""
    fused, found = plan(job), {}
    for stage, (times, kernels) in plan(job, plain=True).items():
        seconds = 0.0
        for topic in {k.topic for k in (*kernels, *fused[stage][1])}:
            source, share = COMPILED.get(topic, ("eager", 1.0))
            if source == "eager":
                seconds += times * share * total([k for k in kernels if k.topic == topic], lambda k: k.eager(device))
            else:
                repeat, planned = fused[stage]
                seconds += repeat * share * total([k for k in planned if k.topic == topic], lambda k: k.target(device))
        found[stage] = seconds
    return found | {"total": sum(found.values())}


def work(job: Job, plain: bool = False) -> dict[str, dict[str, float]]:
    """TFLOP, GB and launches by stage."""
    return {
        stage: {
            "tflop": times * sum(k.flops * k.launches for k in kernels) / 1e12,
            "gb": times * sum(k.bytes * k.launches for k in kernels) / 1e9,
            "launches": times * sum(k.launches for k in kernels),
        }
        for stage, (times, kernels) in plan(job, plain).items()
    }
