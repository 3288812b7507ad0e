"""What each model family makes of a request: which tasks and options it takes, and its defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from acefast.options import COVER, GUIDED_V15, REPAINT, STEMS, V1_TASKS, Option, listed
from acefast.values import LANGUAGES, RequestError, refusal

if TYPE_CHECKING:
    from acefast.request import Request

VERSIONS = ("turbo", "turbo-shift1", "turbo-shift3", "turbo-continuous", *GUIDED_V15, "v1")
V1_LONGEST = 240.0  # seconds that v1 was trained on
V1_LANGUAGES = ["ar", "cs", "de", "en", "es", "fr", "hi", "hu", "it", "ja", "ko", "nl", "pl", "pt", "ru", "tr", "zh"]
# What to do in place of an option that v1 does not take.
_V1_WAYS = {
    **dict.fromkeys(("bpm", "key", "time_signature", "instruction"), "write it into the prompt, which is all it reads"),
    **dict.fromkeys(("sigma_shift", "timesteps"), "its schedule is fixed, and oss_steps picks steps out of it"),
    "reference": "task='audio2audio' starts from a recording, given as source",
    "repaint_mode": "strength alone says how freely it rewrites",
}


@dataclass(frozen=True)
class CheckpointTraits:
    """What a request must know of a checkpoint.

    ``version`` is "turbo", "turbo-shift1", "turbo-shift3", "turbo-continuous", "sft" or "base" in the family "1.5",
    and "v1" in the family "v1"; ``family`` follows from it. ``name`` only serves messages.
    """

    name: str
    is_turbo: bool
    version: str
    xl: bool = False
    family: str = ""

    def __post_init__(self) -> None:
        turbo, family = self.version.startswith("turbo"), "v1" if self.version == "v1" else "1.5"
        if self.version not in VERSIONS or self.is_turbo != turbo or self.family not in ("", family):
            raise ValueError(f"version must be one of {', '.join(VERSIONS)} and agree with the rest, got {self}")
        object.__setattr__(self, "family", family)

    def defaults(self, semantics: str) -> tuple[int, float | None, float]:
        """Steps, sigma shift and guidance scale for who gives none."""
        if self.family == "v1":
            return 60, None, 15.0
        if self.is_turbo:
            return 8, 1.0 if (self.version, semantics) == ("turbo-shift1", "official") else 3.0, 1.0
        return (8, 3.0, 7.0) if semantics == "diffusers" else (50, 1.0, 7.0)

    def takes(self, about: Option) -> bool:
        """Whether the checkpoint takes an option."""
        return not about.models or bool({self.version, self.family} & {*about.models})


def suited(request: Request, traits: CheckpointTraits) -> Request:
    """The request with the defaults of one checkpoint; see ``Request.for_checkpoint``."""
    v1 = traits.family == "v1"
    (_check_v1 if v1 else _check_v15)(request, traits)
    steps, shift, scale = traits.defaults(request.semantics)
    if request.timesteps is not None:
        steps, shift = len(request.timesteps), None
    if request.oss_steps is not None:
        steps = len(request.oss_steps)
    found: dict[str, Any] = {"steps": steps, "sigma_shift": shift, "guidance_scale": scale}
    if not v1:
        found["language"] = "en" if request.semantics == "diffusers" else "unknown"
    if request.task != "edit" and (request.guidance_scale or scale) != 1:
        found["guidance_interval"] = 0.5 if v1 else (0.0, 1.0)
    if v1 and request.task in (*REPAINT, "audio2audio"):
        found["strength"] = 1.0 if request.task == "extend" else 0.5
    elif request.acts_as in COVER:
        found["strength"] = 1.0
    elif request.task in REPAINT and request.repaint_mode == "balanced" and request.semantics == "official":
        found["strength"] = 0.5
    if request.source is None and not (request.codes and request.semantics == "diffusers"):
        found["duration"] = max(5.0, len(request.codes) / 5) if request.codes else 60.0
    made = dataclasses.replace(request, **{name: v for name, v in found.items() if getattr(request, name) is None})
    if v1:
        _check_v1_steps(made)
    return made


def _check_v15(request: Request, traits: CheckpointTraits) -> None:
    task = f"task={request.task!r}"
    if request.task in ("edit", "audio2audio"):
        raise RequestError(f"{task} needs ACE-Step v1 and {traits.name} is none; take ace-step-v1-3.5b")
    if request.task in STEMS and traits.version != "base":
        raise RequestError(
            f"{task} needs a base checkpoint and {traits.name} is none; take ace-step-1.5-base or ace-step-1.5-xl-base"
        )
    for name, about in request.given().items():
        if traits.takes(about) or (name == "guidance_scale" and request.guidance_scale == 1):
            continue
        if about.models == ("v1",):
            raise RequestError(
                f"{name} has no use with {traits.name}: only ACE-Step v1 takes it; leave {name} out or take "
                "ace-step-v1-3.5b"
            )
        raise RequestError(
            f"{name} has no use with {traits.name}: turbo checkpoints are distilled to run without guidance; "
            f"leave {name} out or take an -sft or -base checkpoint"
        )
    if request.guidance_scale is not None and request.guidance_scale < 1:
        raise refusal("guidance_scale", f"1 to 30 with {traits.name}", request.guidance_scale)
    if request.guidance == "cfg_star":
        raise RequestError(
            f"guidance='cfg_star' is ACE-Step v1's and {traits.name} is none; take 'apg', 'cfg' or 'adg'"
        )
    if isinstance(request.guidance_interval, float):
        needs = f"two numbers in 0 to 1, the lower first, with {traits.name}"
        raise refusal("guidance_interval", needs, request.guidance_interval)
    if request.variation_seed is not None and not request.variation:
        raise RequestError(f"variation_seed has no use in {task} with {traits.name}; leave it out")


def _check_v1(request: Request, traits: CheckpointTraits) -> None:
    task, name15 = f"task={request.task!r}", "take an ACE-Step 1.5 checkpoint"
    if request.task not in V1_TASKS:
        known = listed(V1_TASKS)
        raise RequestError(f"{task} is nothing that {traits.name} does, which are {known}; {name15}")
    for name, about in request.given().items():
        if not traits.takes(about):
            way_out = _V1_WAYS.get(name, f"leave it out or {name15}")
            raise RequestError(f"{name} has no use with {traits.name}; {way_out}")
    if request.guidance.startswith("adg"):
        raise RequestError(
            f"guidance={request.guidance!r} has no use with {traits.name}; take 'apg', 'cfg' or 'cfg_star'"
        )
    if isinstance(request.guidance_interval, tuple):
        needs = f"one number 0 to 1 with {traits.name}, the share of the steps, in the middle, that it acts at"
        raise refusal("guidance_interval", needs, request.guidance_interval)
    if request.task == "text2music" and request.duration is not None and request.duration > V1_LONGEST:
        raise refusal("duration", f"5 to {V1_LONGEST:g} seconds with {traits.name}", request.duration)
    if request.language not in (None, "unknown", *V1_LANGUAGES):
        raise refusal(
            "language", f"one of {listed(V1_LANGUAGES)} with {traits.name}", LANGUAGES[request.language],
            "leave it out to have it found line by line",
        )  # fmt: skip
    if request.task in REPAINT:
        if request.solver != "euler":
            raise RequestError(f"solver={request.solver!r} has no use in {task} with {traits.name}; take 'euler'")
        if request.variation:
            raise RequestError(f"variation has no use in {task} with {traits.name}; strength says how far it turns")


def _check_v1_steps(request: Request) -> None:
    """Refuse what leaves v1 no step to take, for which upstream returns the noise or the source."""
    if request.task in REPAINT and int(request.steps * (1 - request.strength)) >= request.steps:
        needs = f"above 0 in task={request.task!r}, so that something is made anew"
        raise refusal("strength", needs, request.strength)
    if request.task == "audio2audio" and int((1 - request.strength) * request.steps) < 1:
        needs = f"so low that a step is left: (1 - strength) * {request.steps} steps, rounded down"
        raise refusal("strength", needs, request.strength, "take less strength or more steps")
    if request.task == "edit" and int(request.steps * request.edit_from) >= request.steps:
        raise refusal("edit_from", "below 1, so that a step is left", request.edit_from)
