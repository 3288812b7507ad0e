"""One call makes a song: request, conditions, diffusion, decode, Song."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acefast.backends import use_backend
from acefast.batches import Composed, make
from acefast.checkpoint import open_checkpoint
from acefast.devices import as_device, as_dtype, as_quantization, current
from acefast.diffusion import diffusion
from acefast.expand import expand
from acefast.lanes import Lane
from acefast.locate import default_model
from acefast.lora import set_lora
from acefast.lora_files import open_lora
from acefast.memory import Job, Networks, plan, policy
from acefast.options import COVER
from acefast.request import Request, RequestError
from acefast.scheduler import Scheduler
from acefast.song import Song
from acefast.stages import Progress, memory_told, stage
from acefast.tasks import Recording, Task, read_audio
from acefast.values import whole

if TYPE_CHECKING:
    from acefast.stream import Stream

_kept: dict[tuple, Pipeline] = {}  # the last model that generate() loaded


def generate(
    prompt: str | list[str],
    lyrics: str | list[str] = "",
    *,
    model: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    backend: str | None = None,
    memory: str = "auto",
    quantization: str | None = None,
    lora: str | os.PathLike | None = None,
    lora_weight: float = 1.0,
    **request: Any,
) -> Song | list[Song]:
    """Make a song, or a list of them where prompt, lyrics or seed is a list.

    The model is loaded on the first call and kept for the next one.

    Args:
        prompt: what the music is like.
        lyrics: the words, with section tags such as ``[verse]``.
        model: see ``load``; ``$ACEFAST_MODEL``, else ace-step-1.5-turbo, where none is given.
        device, dtype, backend, memory, quantization: see ``load``.
        lora, lora_weight: see ``Pipeline.set_lora``; None makes the song without one.
        request: every option of ``acefast.Request``, such as ``duration=60.0`` or ``seed=1``.
    Raises:
        RequestError, CheckpointError, BackendUnavailable: one sentence each, before work starts where possible.
    """
    place = dict(device=device, dtype=dtype, backend=backend, memory=memory, quantization=quantization)
    chosen = (model or default_model(), *place.values())
    if chosen not in _kept:
        check(prompt, lyrics, model=chosen[0], **request)
        _kept.clear()  # so that two models never share the memory
        _kept[chosen] = load(chosen[0], **place, lora=lora, lora_weight=lora_weight)
    _kept[chosen].set_lora(lora, lora_weight)
    return _kept[chosen].generate(prompt, lyrics, **request)


def check(
    prompt: str | list[str], lyrics: str | list[str] = "", *, model: str | os.PathLike | None = None, **request: Any
) -> list[Request]:
    """Refuse what can be refused without weights: looks at the options, at audio files, at a checkpoint's headers.

    Returns:
        the requests, one a song.
    Raises:
        RequestError, CheckpointError: one sentence each.
    """
    requests, _ = expand(prompt, lyrics, **request)
    recording, _ = read_audio(requests[0])
    checkpoint = open_checkpoint(model or default_model())
    requests = [r.for_checkpoint(checkpoint.traits) for r in requests]
    checkpoint.check_source(requests[0], recording)
    return requests


def load(
    model: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    backend: str | None = None,
    graphs: bool | None = None,
    memory: str = "auto",
    quantization: str | None = None,
    lora: str | os.PathLike | None = None,
    lora_weight: float = 1.0,
) -> Pipeline:
    """Open a checkpoint and put its networks on a device.

    Args:
        model: a name such as "ace-step-1.5-turbo" (``acefast info`` lists them), a folder or file, or a hub repo id.
        device: "cuda" where there is a GPU, else "cpu", where none is given.
        dtype: of weights and activations: bfloat16 where none is given, the dtype of published checkpoints (float32 on
            mps). A CPU that is slow at it still multiplies in float32; a GPU's kernels keep the audio autoencoder in
            float16 where its activations fit, else in bfloat16.
        backend: "reference", "triton", "cuda", "cpu" or "auto"; see ``acefast.use_backend``.
        graphs: whether a GPU's launches are captured as CUDA graphs and replayed: the same bytes, sooner. None: unless
            ``$ACEFAST_GRAPHS`` is 0, or memory is low.
        memory: "fast" keeps all networks on the device, "low" those of one stage at a time (``acefast.residence``);
            "auto" is "low" where the plan of the longest song (``acefast.memory``) does not fit into what is free.
        quantization: "int8" makes the transformer's large weights 8-bit integers, and what they are multiplied by: half
            the memory, and faster; songs differ a little (README, "8-bit weights"). 1.5, on a CPU, without a LoRA.
        lora, lora_weight: see ``Pipeline.set_lora``.
    Raises:
        CheckpointError: the checkpoint is missing, damaged or incomplete, or the LoRA does not fit it.
        RequestError: there is no such device, dtype or quantization here, or not memory enough.
        BackendUnavailable: the backend named cannot run here.
    """
    with use_backend(backend) if backend else contextlib.nullcontext():  # refused before anything is read
        device = as_device(device)
        dtype = as_dtype(dtype, device)
        checkpoint = open_checkpoint(model)
        quantization = as_quantization(quantization, device, checkpoint.family, lora)
        checkpoint.check()
        opened = None if lora is None else open_lora(lora, lora_weight, checkpoint)
        memory = policy(memory, Networks.of(checkpoint, quantization), dtype, device)
        with memory_told("loading", "take memory='low', dtype='bfloat16', or a device with more memory"):
            made = checkpoint.model(device, dtype, graphs, memory, quantization)
            set_lora(made, opened)
            return Pipeline(made, backend)


class Pipeline:
    """A loaded model that makes songs: one thread at a time composes, one decodes; the others wait.

    Attributes:
        scheduler: what ``submit`` puts songs into; another ``acefast.scheduler.Scheduler`` may take its place.
    """

    def __init__(self, model: Any, backend: str | None = None) -> None:
        self.model, self.backend = model, backend
        # where networks take turns on the device, nobody decodes beside
        self.composing = model.coding if model.memory == "low" else Lane(model.device)
        self.scheduler = Scheduler()

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.model.traits.name

    @property
    def lora(self) -> dict[str, Any] | None:
        """The LoRA that songs are made with, {"name", "weight"}; None: there is none."""
        return (lora := self.model.residence.lora) and {"name": lora.name, "weight": lora.weight}

    def set_lora(self, lora: str | os.PathLike | None, weight: float = 1.0) -> None:
        """Make all songs and segments that are not begun yet with a LoRA in place of the one before; None: without.

        It is merged into the weights where they lie: songs take no longer and graphs stay. Waits while another thread
        composes. The same file at the same weight is left as it is, unless it was written anew.

        Args:
            lora: a .safetensors file, a folder or a hub repository "org/name" with pytorch_lora_weights.safetensors.
            weight: -3 to 3, how strongly it acts: 0 not at all, 1 as it is loaded upstream.
        Raises:
            CheckpointError: not found, or does not fit. RequestError: a bad weight, amid a song. The one before stays.
        """
        if self.composing.mine:
            raise RequestError("the LoRA cannot change amid a song; call set_lora when the song is made")
        as_quantization(self.model.quantization, self.model.device, self.model.checkpoint.family, lora)
        opened = None if lora is None else open_lora(lora, weight, self.model.checkpoint, self.model.residence.lora)
        with self.at_work(), memory_told("the LoRA", "take memory='low', or a device with more memory"):
            set_lora(self.model, opened)

    def generate(
        self,
        prompt: str | Request | list[str] | list[Request],
        lyrics: str | list[str] = "",
        *,
        progress: Progress | None = None,
        **request: Any,
    ) -> Song | list[Song]:
        """Make a song, or a list of them where ``prompt``, ``lyrics`` or ``seed`` is a list.

        Lists must have one length; what is not a list serves every song, as do all other options. ``acefast.Request``
        objects may stand for prompts and all the rest. What can be made together is, up to eight songs
        (``acefast.batches``), one such batch after the other.

        Args:
            progress: called as ``progress(stage, done, total)``; stages are "text", "diffusion", "decode" and "finish".
            request: every option of ``acefast.Request``.
        Raises:
            RequestError: one sentence, before work starts where the reason can be known then.
            acefast.sampling.Cancelled: ``on_step`` stopped the song.
        """
        requests, many = self.requests(prompt, lyrics, **request)
        songs = make(self, requests, progress or (lambda *_: None))
        return songs if many else songs[0]

    def submit(
        self, prompt: str | Request, lyrics: str = "", *, wait: bool = True, progress: Progress | None = None, **options
    ) -> Future[Song]:
        """Have a song made by ``scheduler``'s threads, with whatever else is asked for meanwhile.

        ``acefast.scheduler.Scheduler`` tells which are made together, and how errors and ``cancel`` end one song alone.

        Args:
            wait: for room where the queue is full; False refuses.
            progress: as of ``generate``, of the batch that the song is in; called from the scheduler's threads.
            options: of ``acefast.Request``, where ``prompt`` is none.
        Raises:
            RequestError: the request cannot work, or there is no room for it.
        """
        return self.scheduler.submit(self, prompt, lyrics, wait=wait, progress=progress, **options)

    def stream(self, prompt: str, lyrics: str = "", **options: Any) -> Stream:
        """Audio as it is made, in chunks: ``for chunk in pipe.stream("boom bap", duration=60): play(chunk.samples)``.

        One song is composed whole and then decoded window after window, its first second first (on a GPU's kernels its
        first 4.8, see ``acefast.models.v15.vae_tiling``). A longer one, or one without an end (``duration=math.inf``),
        is made of segments that go on from one another. See ``acefast.stream.Stream``, which this returns, for chunks,
        level, options of its own, ``update`` and ``close``.

        Raises:
            RequestError: one sentence, here where the reason can be known before work starts, else from the loop.
        """
        from acefast.stream import Stream

        return Stream(self, prompt, lyrics, **options)

    def warmup(
        self,
        durations: Sequence[float] = (60.0,),
        batches: Sequence[int] = (1,),
        prompt: str = "boom bap, 90 bpm, dusty drums",
        lyrics: str = "",
        **options: Any,
    ) -> None:
        """Make a batch of songs of every duration, so that later ones of such sizes wait for nothing but their music.

        On a GPU that compiles and loads kernels and captures graphs, which then are kept until a larger song needs a
        larger arena. Sizes are rounded up: that of a song by its duration, that of its conditions by the length of
        ``prompt`` and ``lyrics``.

        Args:
            durations: in seconds.
            batches: numbers of songs, of different prompts.
            options: of ``acefast.Request``, as later songs will have them.
        Raises:
            RequestError: see ``generate``; or a number of songs is none.
        """
        batches = [whole("batches", songs, 1, 64, "numbers of songs, 1 to 64") for songs in batches]
        sizes = sorted(itertools.product(durations, batches), key=lambda size: -size[0] * size[1])
        kept = self.model.graphs, self.model.tile_graphs
        with self.at_work():
            self.model.encodings.clear()  # so that texts are encoded, whose graphs these are
        with kept[0].pinning(), kept[1].pinning():
            for _ in range(2):
                arenas = []
                for duration, songs in sizes:
                    prompts = [f"{prompt}, {i}" for i in range(songs)] if songs > 1 else prompt
                    made = self.generate(prompts, lyrics, **{"seed": 0, **options}, duration=duration)
                    arenas.append([graphs.arena_bytes for graphs in kept])
                    if songs == 1:  # a stream's tiles are other ones
                        with self.at_work(self.model.coding):
                            list(self.model.decode_tiles(made.latents[None].to(self.model.device)))
                    arenas.append([graphs.arena_bytes for graphs in kept])
                if not arenas or arenas[0] == arenas[-1]:
                    break  # else an arena has grown meanwhile, which forgot what was captured before

    def requests(self, prompt: Any, lyrics: Any = "", **options: Any) -> tuple[list[Request], bool]:
        """The requests of a call, with the checkpoint's defaults, and whether several were asked for."""
        requests, many = expand(prompt, lyrics, **options)
        return [r.for_checkpoint(self.model.traits) for r in requests], many

    @contextlib.contextmanager
    def at_work(self, lane: Lane | None = None, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """What work on the model happens in: no gradients, its device and backend, and no other thread's work there.

        Args:
            lane: ``composing`` if not given, or ``model.coding``: one thread may decode while another composes.
            waiting: see ``acefast.lanes.Lane.work``.
        """
        backend = use_backend(self.backend) if self.backend else contextlib.nullcontext()
        lane, coding = self.composing if lane is None else lane, self.model.coding
        # Who composes may wait for the autoencoder, so who waits to compose, amid a song's tiles, does not hold it.
        apart = contextlib.nullcontext() if lane is coding else coding.left()
        with current(self.model.device), apart, lane.work(waiting), torch.inference_mode(), backend:
            yield

    def lower(self, requests: list[Request], seconds: float, source: bool = False) -> str:
        """What to lower where memory runs out, and the plan of a batch whose songs are ``seconds`` long."""
        model, steps, guided = self.model, requests[0].steps, requests[0].guidance_scale != 1
        job = Job(seconds, len(requests), steps=steps, guided=guided, source=source)
        networks = Networks.of(model.checkpoint, model.quantization)
        return plan(networks, job, model.dtype, model.device, model.memory).way_out

    def compose(
        self,
        requests: list[Request],
        audio: tuple[Recording | None, np.ndarray | None],
        progress: Progress,
        timings: dict[str, float],
        *,
        task: Task | None = None,
        stacklevel: int | None = None,
    ) -> Composed:
        """All of a batch but its audio; the stages "text" and "diffusion", within ``at_work``.

        Args:
            audio: source and reference, what ``model.check`` gives for the requests.
            task: in place of the requests' own.
            stacklevel: of the warnings of what is cut, as seen from here; None leaves them to the caller.
        """
        model, request = self.model, requests[0]
        recording, reference = audio

        def told(*words: Any) -> None:
            with model.graphs.apart():  # whoever is called may make a song
                progress(*words)

        timesteps = model.timesteps(request)
        seconds = task.seconds if task else recording.seconds if recording else request.duration
        seconds = seconds or len(request.codes) / 5  # diffusers' semantics: as long as its codes
        lower = partial(self.lower, requests, seconds, recording is not None or reference is not None)
        with stage("text", timings, told, way_out=lower):
            task = task or model.task(requests, recording)
            noise = model.noise(requests, task)
            cuts = [model.cuts(r, task.told(r)) for r in requests]
            for sentence in dict.fromkeys(itertools.chain(*cuts)) if stacklevel else ():
                warnings.warn(sentence, stacklevel=stacklevel)
            fading = request.strength is not None and request.strength < 1 and request.acts_as in COVER
            conditions, other = model.conditions(requests, task, reference, timesteps, and_text2music=fading)
            sampled = diffusion(model, requests, task, noise, timesteps, conditions, other)
        with stage("diffusion", timings, told, len(timesteps), lower) as report:
            latents = sampled(report)
        return Composed(*task.whole(latents), cuts, self.lora)
