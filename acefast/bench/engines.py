"""The modes of ``acefast bench``: what makes the song, and where its stages begin and end.

    eager    diffusers' pipeline as it is
    compile  the same with torch.compile over its transformer and its decoder
    fused    acefast's kernels, launched one by one: Triton on a GPU, the references on a CPU
    graph    the same launches as captured CUDA graphs, which is how acefast runs on a GPU

Every mode makes the same song from the same weights: diffusers' semantics, so that frames and conditions agree. Stages:
``prep`` (text and conditions), ``step`` each, ``decode``, ``copy`` to the host, ``finish`` (fades, Song objects). The
level is set on the device: within ``copy`` in ours; within ``finish``, which comes before it, in diffusers'.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from acefast.bench.procedure import Mark, Once
from acefast.checkpoint import open_checkpoint
from acefast.devices import current

PROMPT = "boom bap, 90 bpm, dusty drums, warm bass, vinyl crackle, a low and steady voice"
LYRICS = "[verse]\n" + "concrete and rain, the night is a metronome\n" * 24
COMPILER = "inductor"
NO_GPU = "CUDA graphs need a GPU and torch sees none"


class ModeUnavailable(RuntimeError):
    """A mode cannot run here; one sentence without its name."""


@dataclass(frozen=True)
class Job:
    """One song, or a batch of them."""

    seconds: float
    batch: int
    steps: int

    @property
    def prompts(self) -> list[str]:
        """Different songs of one length in tokens: no work is shared within the batch."""
        return [f"{PROMPT}, take {i % 10}" for i in range(self.batch)]

    @property
    def lyrics(self) -> list[str]:
        """Likewise."""
        return [f"{LYRICS}take {i % 10}" for i in range(self.batch)]


class Fused:
    """acefast's own pipeline; its progress marks the stages."""

    graphs = False

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype, backend: str | None) -> None:
        from acefast.pipeline import load

        self.pipe = load(path, device=device, dtype=dtype, backend=backend, graphs=self.graphs)

    def song(self, job: Job) -> Once:
        """A function that makes the songs of ``job`` and marks their stages."""

        def once(mark: Mark) -> Any:
            def progress(stage: str, done: int, total: int) -> None:
                if stage == "diffusion":
                    mark("step" if done else "prep")
                elif stage == "decode" and done:
                    mark("decode")  # a tile
                elif stage == "finish":
                    mark("finish" if done else "copy")

            own = dict(language="en") if self.pipe.model.traits.family == "v1" else dict(bpm=90, semantics="diffusers")
            options = dict(duration=job.seconds, steps=job.steps, **own)
            seeds = list(range(job.batch))
            self.pipe.model.encodings.clear()  # every run encodes its words, as diffusers does
            return self.pipe.generate(job.prompts, job.lyrics, seed=seeds, progress=progress, **options)

        return once


class Graph(Fused):
    """The same with CUDA graphs; a capture that failed is no measurement of them."""

    graphs = True

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype, backend: str | None) -> None:
        if device.type != "cuda":
            raise ModeUnavailable(f"CUDA graphs need a GPU and the device is {device.type!r}")
        super().__init__(path, device, dtype, backend)

    def song(self, job: Job) -> Once:
        once = super().song(job)

        def told(mark: Mark) -> Any:
            made = once(mark)
            if failed := {*self.pipe.model.graphs.failed, *self.pipe.model.tile_graphs.failed}:
                raise ModeUnavailable(f"{', '.join(sorted(failed))} could not be captured")
            return made

        return told


class Eager:
    """diffusers' pipeline; a hook, its own callback and its decoder's end mark the stages."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype, backend: str | None) -> None:
        self.device, traits = device, open_checkpoint(path).traits
        if traits.family == "v1":
            raise ModeUnavailable("diffusers has no pipeline of ACE-Step v1")
        if not (path / "model_index.json").is_file():
            raise ModeUnavailable(f"diffusers reads its own layout only and {path.name} has another")
        try:
            from diffusers import AceStepPipeline
        except (ImportError, RuntimeError) as error:  # diffusers wraps what an import of its own raises
            reason = str(error).strip().splitlines()[0]
            raise ModeUnavailable(f"this diffusers has no ACE-Step 1.5 pipeline: {reason}") from error

        self.steps, self.shift, self.guidance = traits.defaults("diffusers")
        with _silent():
            self.pipe = AceStepPipeline.from_pretrained(path, torch_dtype=dtype).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.mark: Mark = lambda stage: None
        self.begins = False
        self.pipe.transformer.register_forward_pre_hook(self._prepared)
        decode = self.pipe.vae.decode

        @functools.wraps(decode)
        def decoded(*args: Any, **kwargs: Any) -> Any:
            audio = decode(*args, **kwargs)
            self.mark("decode")
            return audio

        self.pipe.vae.decode = decoded

    def _prepared(self, *_: Any) -> None:
        if self.begins:
            self.begins = False
            self.mark("prep")

    def song(self, job: Job) -> Once:
        def once(mark: Mark) -> Any:
            self.mark, self.begins = mark, True
            seeds = [torch.Generator(self.device).manual_seed(i) for i in range(job.batch)]
            with torch.inference_mode(), current(self.device):
                audio = self.pipe(
                    prompt=job.prompts,
                    lyrics=job.lyrics,
                    audio_duration=job.seconds,
                    bpm=90,
                    num_inference_steps=job.steps,
                    shift=self.shift,
                    guidance_scale=self.guidance,
                    generator=seeds,
                    callback_on_step_end=lambda *_: mark("step"),
                ).audios
                mark("finish")
                audio = audio.float().cpu()
                mark("copy")
            return audio

        return once


class Compiled(Eager):
    """The same, compiled: every shape anew, so that no case runs what was made for another."""

    def song(self, job: Job) -> Once:
        torch._dynamo.reset()
        for module in (self.pipe.transformer, self.pipe.vae.decoder):
            module.compile(backend=COMPILER, dynamic=False)
        once = super().song(job)

        def told(mark: Mark) -> Any:
            try:
                return once(mark)
            except Exception as error:  # of the compiler, of which there are many kinds; its tools may be missing
                if not type(error).__module__.startswith("torch._"):
                    raise
                said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
                reason = " ".join(said[: 1 + said[0].endswith(":")])[:200]
                raise ModeUnavailable(f"torch.compile fails here: {reason}") from error

        return told


MODES: dict[str, Callable[..., Any]] = {"eager": Eager, "compile": Compiled, "fused": Fused, "graph": Graph}


def why_unavailable(mode: str) -> str:
    """Why ``mode`` cannot run here whatever the model, in a few words; empty when it can."""
    if mode == "graph" and not torch.cuda.is_available():
        return NO_GPU
    if mode in ("eager", "compile") and importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed; pip install diffusers==0.42.1"
    return ""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No warnings and no progress bars of diffusers and transformers within the block."""
    from diffusers.utils import logging as theirs
    from transformers.utils import logging as others

    levels = [(logging, logging.get_verbosity()) for logging in (theirs, others)]
    for logging, _ in levels:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logging, level in levels:
            logging.set_verbosity(level)
            logging.enable_progress_bar()


def forget() -> None:
    """Give back the memory of an engine that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
