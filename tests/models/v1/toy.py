"""A toy of ACE-Step v1's model, and its loop on the cases that upstream's loops made golden numbers of."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from acefast.diffusion import diffusion
from acefast.models.v1.loop import Sampling
from acefast.options import OTHER_NAMES
from acefast.request import CheckpointTraits, Request
from acefast.tasks import Recording
from tests.golden.v1.make_sampling import FILE, FRAMES, SECONDS, SOURCE, TARGET, TEXT, source, toy

GATE = 1e-4
V1 = CheckpointTraits("ace-step-v1-3.5b", False, "v1")
RATE = 48_000
SPAN = FRAMES * 4096 / 44_100  # seconds of the toy source


class Toy(Sampling):
    """A model whose network is ``toy`` and whose encoder gives ``source``, of the frames that there are."""

    device, transformer, traits = torch.device("cpu"), None, V1

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.asked: list[tuple[float, bool]] = []

    def encode(self, audio: np.ndarray) -> Tensor:
        return source(-(-audio.shape[1] * 147 // (160 * 4096)))

    def velocity(self, x: Tensor, t: float, conditions: SimpleNamespace, unconditional: bool = False):
        self.asked.append((t, unconditional))
        names = ["cond", "null", "text"][: 1 if not unconditional else 3 if conditions.double else 2]
        made = [toy(x.to(self.dtype), t, conditions.c[name]).float() for name in names]
        return tuple(made) if unconditional else made[0]


def golden(name: str) -> Tensor:
    with safe_open(FILE, "pt") as file:
        return file.get_tensor(name).float()


def raised(name: str) -> str:
    with safe_open(FILE, "pt") as file:
        return json.loads(file.metadata()["raised"])[name]


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).norm() / want.norm()).item()


def requested(about: dict, **changes) -> list[Request]:
    """Our requests of a case, with upstream's noise."""
    options, seeds = dict(about["options"]), about["seeds"] or (0,)
    names = {"n_min": "edit_from", "n_max": "edit_until", "n_avg": "edit_average"} | OTHER_NAMES
    variance = options.pop("retake_variance", 0.5)
    start, end = options.pop("repaint_start", 0), options.pop("repaint_end", 0)
    asked = {names.get(name, name): value for name, value in options.items() if name != "audio2audio_enable"}
    if not about["seeds"]:
        asked |= {"task": "edit", "target_lyrics": "la"}
    elif about["source"] and (start < 0 or end > about["source"] * 4096 / 44_100 + 0.05):
        asked |= {"task": "extend", "strength": variance, "start": -1.0, "end": None}
    elif about["source"]:
        asked |= {"task": "repaint", "strength": variance}
    elif about["reference"]:
        asked["task"] = "audio2audio"
    elif about["other"]:
        asked["variation"] = variance
    if asked.get("task", "text2music") != "text2music":
        asked["source"] = "song.wav"
    if asked.get("oss_steps") is None:
        asked["steps"] = about["steps"]
    made = []
    for i, seed in enumerate(seeds):
        second = {"variation_seed": about["other"][i]} if about["other"] else {}
        request = Request("rock", **{"seed": seed, "noise_source": "torch", **asked, **second, **changes})
        made.append(request.for_checkpoint(V1))
        if request.task == "text2music":
            object.__setattr__(made[-1], "duration", SECONDS)  # a caller gives 5 seconds at least
    return made


def recorded(about: dict) -> Recording | None:
    """The source of a case, silence of its length, with the regions that upstream's times mean."""
    if not (about["source"] or about["reference"] or not about["seeds"]):
        return None
    own = (about["source"] or FRAMES) * 4096 / 44_100
    start, end = about["options"].get("repaint_start", 0), about["options"].get("repaint_end", own)
    before, after = max(0.0, -start), end - own if end > own + 0.05 else 0.0
    regions = [(0.0, before)] * (before > 0) + [(before + own, before + own + after)] * (after > 0)
    before_n, after_n = round(before * RATE), round(after * RATE)
    waveform = np.zeros((2, before_n + int(own * RATE) + after_n), np.float32)
    return Recording(waveform, tuple(regions) or ((start, end),), before_n, after_n)


def run(about: dict, model: Toy | None = None, **changes) -> Tensor:
    """The latents [B, T, 128] that our loop makes of a case."""
    requests, model = requested(about, **changes), model or Toy(about["dtype"])
    request = requests[0]
    task = model.task(requests, recorded(about))
    double = request.guidance_text > 1
    conditions, other = SimpleNamespace(c=TEXT, double=double), None
    if request.task == "edit":
        conditions, other = (SimpleNamespace(c=TEXT | {"cond": c}, double=False) for c in (TARGET, SOURCE))
    noise, timesteps = model.noise(requests, task), model.timesteps(request)
    told = []
    latents = diffusion(model, requests, task, noise, timesteps, conditions, other)(lambda *step: told.append(step))
    assert told[-1] == (len(timesteps), len(timesteps))
    whole, latents = task.whole(latents)
    assert latents.shape[1] == whole.frames
    return latents
