"""One call makes a song: request, conditions, diffusion, decode, Song."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acefast import repaint, sampling
from acefast.backends import use_backend
from acefast.batches import Composed, make
from acefast.checkpoint import open_checkpoint
from acefast.conditions import Conditions
from acefast.devices import as_device, as_dtype, current
from acefast.guidance import Guidance, blended, guided
from acefast.lanes import Lane
from acefast.noise import start_noise, start_times
from acefast.options import COVER
from acefast.request import Request, RequestError, expand
from acefast.scheduler import Scheduler
from acefast.song import Song
from acefast.stages import Progress, memory_told, stage
from acefast.tasks import Recording, Task, read_audio
from acefast.values import shown

if TYPE_CHECKING:
    from acefast.stream import Stream

DEFAULT_MODEL = "ace-step-1.5-turbo"

_kept: dict[tuple, Pipeline] = {}  # the last model that generate() loaded


def generate(
    prompt: str | list[str],
    lyrics: str | list[str] = "",
    *,
    model: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    backend: str | None = None,
    **request: Any,
) -> Song | list[Song]:
    """Make a song, or a list of them where prompt, lyrics or seed is a list.

    The model is loaded on the first call and kept for the next one.

    Args:
        prompt: what the music is like.
        lyrics: the words, with section tags such as ``[verse]``.
        model: see ``load``; ``$ACEFAST_MODEL``, else ace-step-1.5-turbo, where none is given.
        device, dtype, backend: see ``load``.
        request: every option of ``acefast.Request``, such as ``duration=60.0`` or ``seed=1``.
    Raises:
        RequestError, CheckpointError, BackendUnavailable: one sentence each, before work starts where possible.
    """
    model = model or default_model()
    chosen = (model, device, dtype, backend)
    if chosen not in _kept:
        check(prompt, lyrics, model=model, **request)
        _kept.clear()  # so that two models never share the memory
        _kept[chosen] = load(model, device=device, dtype=dtype, backend=backend)
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
    read_audio(requests[0])
    traits = open_checkpoint(model or default_model()).traits
    return [r.for_checkpoint(traits) for r in requests]


def default_model() -> str:
    """The model that is taken where none is named."""
    return os.environ.get("ACEFAST_MODEL") or DEFAULT_MODEL


def load(
    model: str | os.PathLike,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    backend: str | None = None,
) -> Pipeline:
    """Open a checkpoint and put its networks on a device.

    Args:
        model: a name such as "ace-step-1.5-turbo" (``acefast info`` lists them), a folder or file, or a hub repo id.
        device: "cuda" where there is a GPU, else "cpu", where none is given.
        dtype: of weights and activations: bfloat16 where none is given, the dtype of published checkpoints (float32 on
            mps). A CPU that is slow at it still multiplies in float32; a GPU's kernels keep the audio autoencoder in
            float16 where its activations fit, else in bfloat16.
        backend: "reference", "triton", "cuda", "cpu" or "auto"; see ``acefast.use_backend``.
    Raises:
        CheckpointError: the checkpoint is missing, damaged or incomplete.
        RequestError: there is no such device or dtype here, or not memory enough.
        BackendUnavailable: the backend named cannot run here.
    """
    with use_backend(backend) if backend else contextlib.nullcontext():  # refused before anything is read
        device = as_device(device)
        dtype = as_dtype(dtype, device)
        checkpoint = open_checkpoint(model)
        checkpoint.check()
        from acefast.models.v15.model import Model

        with memory_told("loading", "take a device with more memory, or dtype='bfloat16'"):
            return Pipeline(Model(checkpoint, device, dtype), backend)


class Pipeline:
    """A loaded model that makes songs: one thread at a time composes, one decodes; the others wait.

    Attributes:
        scheduler: what ``submit`` puts songs into; another ``acefast.scheduler.Scheduler`` may take its place.
    """

    def __init__(self, model: Any, backend: str | None = None) -> None:
        self.model, self.backend = model, backend
        self.composing = Lane(model.device)
        self.scheduler = Scheduler()

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.model.traits.name

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

        One song is composed whole and then decoded window after window, its first second first (on a GPU's kernels tile
        after tile, see ``acefast.models.v15.vae_tiling``). A longer one, or one without an end (``duration=math.inf``),
        is made of segments that go on from one another. See ``acefast.stream.Stream``, which this returns, for chunks,
        level, options of its own, ``update`` and ``close``.

        Raises:
            RequestError: one sentence, here where the reason can be known before work starts, else from the loop.
        """
        from acefast.stream import Stream

        return Stream(self, prompt, lyrics, **options)

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
        lane = self.composing if lane is None else lane
        with current(self.model.device), lane.work(waiting), torch.inference_mode(), backend:
            yield

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
        timesteps = start_times(request, model)
        with stage("text", timings, progress):
            task = task or model.task(requests, recording)
            noise = start_noise(requests, task, model)
            cuts = [model.cuts(r, task.told(r)) for r in requests]
            for sentence in dict.fromkeys(itertools.chain(*cuts)) if stacklevel else ():
                warnings.warn(sentence, stacklevel=stacklevel)
            fading = request.strength is not None and request.strength < 1 and request.acts_as in COVER
            conditions, switched = model.conditions(requests, task, reference, timesteps, and_text2music=fading)
        with stage("diffusion", timings, progress, len(timesteps)) as report:
            latents = self._sample(requests, task, noise, timesteps, conditions, switched, report)
        return Composed(task, latents, cuts)

    def _sample(
        self,
        requests: list[Request],
        task: Task,
        noise: Tensor,
        timesteps: list[float],
        conditions: Conditions,
        switched: Conditions | None,
        report: Callable[[int, int], None],
    ) -> Tensor:
        """The diffusion loop: [B, T, D] clean latents, float32."""
        request, model = requests[0], self.model
        official = request.semantics == "official"
        upstream = request.precision == "upstream"
        latents = noise
        if request.cover_noise:
            latents, timesteps = sampling.noised_start(timesteps, noise, task.clean.to(noise), request.cover_noise)
        steps = len(timesteps)
        switch = steps if switched is None else int(steps * request.strength)

        def predict(x: Tensor, t: float, step: int, both: bool) -> Tensor | tuple[Tensor, Tensor]:
            own = switched if official and step >= switch else conditions
            return model.velocity(x, t, own, unconditional=both)

        guidance = Guidance(
            request.guidance_scale,
            request.guidance,
            request.guidance_interval,
            request.semantics,
            request.guidance_momentum,
            request.guidance_norm,
            request.guidance_eta,
            state_dtype=model.dtype if upstream else torch.float32,
        )
        velocity = guided(predict, guidance)
        blends = switched is not None and not official
        if blends:
            velocity = blended(velocity, lambda x, t: model.velocity(x, t, switched), request.strength)

        def correct(x: Tensor, denoised: Tensor, t: float, t_next: float) -> Tensor:
            return sampling.wavelet_correction(x, denoised, t, mode=request.dcw)

        plan, inject, held = repaint.plan_of(request, task), None, None
        if plan is not None:
            clean, made = task.clean.to(noise).expand_as(noise), task.made.to(noise.device)
            held = (made, clean, noise, plan.injected_steps(steps))

            def inject(x: Tensor, step: int, t_next: float) -> Tensor:
                return repaint.inject(x, clean, noise, made, t_next) if step < held[-1] else x

        def on_step(info: sampling.StepInfo) -> Any:
            report(info.step + 1, info.steps)
            if request.on_step is None:
                return None
            with torch.inference_mode(False):  # a hook may write into its tensor, or take gradients
                info.latents = info.latents.clone()
                answer = request.on_step(info)
            replaces = torch.is_tensor(answer) and answer.shape == info.latents.shape
            if not (answer is None or answer is False or replaces):
                needs = f"None, False or latents {list(info.latents.shape)}"
                raise RequestError(f"on_step must return {needs}, got {shown(answer)}")
            return answer

        seeds, advance = [r.seed for r in requests], None
        if request.dcw == "off" and not upstream and not blends:
            advance = model.advance(
                *(conditions, timesteps, len(noise), guidance, request.solver, seeds),
                **dict(held=held, later=switched, switch=switch),
            )
        latents = sampling.sample(
            velocity,
            latents,
            timesteps,
            solver=request.solver,
            seeds=seeds,
            correct=None if request.dcw == "off" else correct,
            after_step=inject if advance is None else None,
            on_step=on_step,
            state_dtype=model.dtype if upstream else torch.float32,
            advance=advance,
        ).float()
        if not latents.isfinite().all():
            narrow = "" if model.dtype == torch.float32 else f" in {str(model.dtype).removeprefix('torch.')}"
            ways = ["dtype='float32'"] if narrow else []
            ways += ["less guidance"] if request.guidance_scale > 1 else []
            ways += ["another on_step"] if request.on_step is not None else []
            raise RequestError(
                f"latents became NaN or infinite{narrow} within {steps} step{'s' * (steps != 1)}; "
                f"try {' or '.join([*ways, 'another seed'])}; if every song does, download the checkpoint again"
            )
        if plan is None:
            return latents
        return repaint.blend_boundary(latents, clean, made, plan.boundary_frames)
