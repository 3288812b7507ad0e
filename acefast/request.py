"""What a caller asks for: every option of Python, command line and server, declared once, checked before any work.

``Request`` checks what can be known without a checkpoint when it is made. ``for_checkpoint`` refuses what one
checkpoint cannot do and fills in its defaults; ``check_window`` checks the times that need the source's length.
``expand`` makes a batch. Every refusal is a ``RequestError`` of one sentence.
"""

from __future__ import annotations

import dataclasses
import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acefast.options import (
    COVER,
    GUIDED,
    REPAINT,
    SOURCE_TASKS,
    STEMS,
    TASKS,
    Option,
    check_names,
    option,
    storable,
    table,
)
from acefast.rules import check_together
from acefast.values import RequestError
from acefast.windows import Window, place_window

__all__ = ["CheckpointTraits", "Request", "RequestError", "Window", "expand", "options", "options_table"]

VERSIONS = ("turbo", "turbo-shift1", "turbo-shift3", "turbo-continuous", *GUIDED)


@dataclass(frozen=True)
class CheckpointTraits:
    """What a request must know of a checkpoint.

    ``version`` is "turbo", "turbo-shift1", "turbo-shift3", "turbo-continuous", "sft" or "base", and "v1" in the family
    "v1"; ``name`` only serves messages.
    """

    name: str
    is_turbo: bool
    version: str
    xl: bool = False
    family: str = "1.5"

    def __post_init__(self) -> None:
        if self.family == self.version == "v1" and not self.is_turbo:
            return
        if self.version not in VERSIONS or self.is_turbo == (self.version in GUIDED):
            raise ValueError(f"version must be one of {', '.join(VERSIONS)} and agree with is_turbo, got {self}")

    def defaults(self, semantics: str) -> tuple[int, float, float]:
        """Steps, sigma shift and guidance scale for who gives none."""
        if self.is_turbo:
            return 8, 1.0 if (self.version, semantics) == ("turbo-shift1", "official") else 3.0, 1.0
        return (8, 3.0, 7.0) if semantics == "diffusers" else (50, 1.0, 7.0)


@dataclass(frozen=True, eq=False)
class Request:
    """One song, as asked for. ``options_table()`` lists every option with its range, unit, default and tasks.

    None stands for "the checkpoint's, the task's or the source's": see ``for_checkpoint``. Values are normalised:
    ``key="c# min"`` is kept as "C# minor", ``language="Spanish"`` as "es".

    Raises:
        RequestError: an option is out of range, or two of them contradict each other.
    """

    prompt: str = option("", "text", "what the music is like; may be empty where lyrics, a source or codes say enough")
    lyrics: str = option("", "text", "the words, with section tags such as [verse]; taken as written")
    instrumental: bool = option(False, "flag", "no singing: the lyrics become [Instrumental]")
    duration: float | None = option(
        None, "number", "length of the song; 60 if not given, or that of the codes; in extend the length at the end. "
        "Official semantics round it to 0.1 and make at least 5.12",
        unit="seconds", low=5, high=600, tasks=("text2music", "cover", "extend"),
    )  # fmt: skip
    task: str = option("text2music", "choice", "what to do", choices=TASKS)
    bpm: int | None = option(None, "integer", "tempo, a soft hint", unit="beats per minute", low=30, high=300)
    key: str | None = option(None, "key", "musical key, a soft hint, such as C# minor; Am and F# Major are understood")
    time_signature: str | None = option(None, "meter", "beats of a bar, a soft hint: 2, 3, 4 or 6; 6/8 is 6")
    language: str | None = option(
        None, "language", "language of the lyrics, a code or an English name; unknown if not given (diffusers: en)"
    )
    track: str | None = option(
        None, "track", "the stem to make or take out", tasks=("lego", "extract"), models=("base",)
    )
    tracks: tuple[str, ...] = option((), "tracks", "the stems to add", tasks=("complete",), models=("base",))
    instruction: str | None = option(None, "text", "replaces the task's own line at the head of the prompt")
    seed: int | None = option(None, "integer", "same seed, same song; drawn if not given", low=0, high=2**64 - 1)
    variation: float = option(0.0, "number", "how far to turn the noise to a second one", low=0, high=1)
    variation_seed: int | None = option(
        None, "integer", "seed of the second noise; drawn if not given", low=0, high=2**64 - 1
    )
    noise: Any = option(  # noqa: RUF009
        None, "noise", "the initial noise itself, [T, 64] at 25 frames a second", stored=False
    )
    noise_source: str = option(
        "philox", "choice", "generator of the noise; torch's own repeats upstream", choices=("philox", "torch")
    )
    steps: int | None = option(None, "integer", "steps of the sampler; turbo 8, sft and base 50", low=1, high=200)
    sigma_shift: float | None = option(
        None, "number", "above 1 dwells on high noise; turbo 3, turbo-shift1, sft and base 1 (diffusers: 3)",
        low=0.1, high=10,
    )  # fmt: skip
    timesteps: tuple[float, ...] | None = option(
        None, "timesteps", "the noise levels themselves, from 1 down, in place of steps and sigma_shift"
    )
    solver: str = option("euler", "choice", "heun costs two model calls a step", choices=("euler", "heun", "sde"))
    guidance_scale: float | None = option(
        None, "number", "how strongly to follow the prompt; 1 is off; sft and base 7", low=1, high=30, models=GUIDED
    )
    guidance: str = option(
        "apg", "choice", "how the two predictions are combined",
        choices=("apg", "cfg", "adg", "adg_w_norm", "adg_wo_clip"), models=GUIDED,
    )  # fmt: skip
    guidance_interval: tuple[float, float] = option(
        (0.0, 1.0), "interval", "noise levels guidance acts at; 1 is the first step", models=GUIDED
    )
    guidance_momentum: float = option(-0.75, "number", "of apg, per step", low=-1, high=1, models=GUIDED)
    guidance_norm: float = option(
        2.5, "number", "longest apg update of a channel; 0 sets no limit", low=0, high=1000, models=GUIDED
    )
    guidance_eta: float = option(0.0, "number", "share of apg's parallel part", low=0, high=1, models=GUIDED)
    source: Any = option(None, "audio", "the song to work on", stored=False, tasks=SOURCE_TASKS)  # noqa: RUF009
    reference: Any = option(None, "audio", "a recording whose timbre to take", stored=False)  # noqa: RUF009
    strength: float | None = option(
        None, "number", "cover and codes: share of the steps that see the source, 1 if not given; repaint and extend: "
        "how freely to rewrite, 0.5 if not given", low=0, high=1, tasks=(*COVER, *REPAINT),
    )  # fmt: skip
    cover_noise: float = option(0.0, "number", "start from the source, this much of it", low=0, high=1, tasks=COVER)
    start: float | None = option(
        None, "number", "where the new part begins; in extend, below 0 adds that much in front",
        unit="seconds", low=-600, high=600, tasks=("repaint", "lego", "extend"),
    )  # fmt: skip
    end: float | None = option(
        None, "number", "where the new part ends, the source's end if not given; in extend, past it adds behind",
        unit="seconds", low=0, high=600, tasks=("repaint", "lego", "extend"),
    )  # fmt: skip
    repaint_mode: str = option(
        "balanced", "choice", "how firmly the rest of the song is held; only balanced looks at strength",
        choices=("conservative", "balanced", "aggressive"), tasks=REPAINT,
    )  # fmt: skip
    codes: tuple[int, ...] | None = option(
        None, "codes", "audio codes to build on, five a second, 0 to 63999", tasks=("text2music", "cover")
    )
    semantics: str = option(
        "official", "choice", "whose habits win where runtimes differ", choices=("official", "diffusers")
    )
    pad_mode: str = option(
        "exact", "choice", "upstream lets attention see a batch's padding", choices=("exact", "upstream")
    )
    precision: str = option(
        "exact", "choice", "upstream repeats its roundings to bf16 between steps", choices=("exact", "upstream")
    )
    deterministic: bool = option(False, "flag", "run each song of a batch by itself: the same bits in any batch")
    chunk_mask: str = option(
        "explicit", "choice", "value that marks frames to make; ones and twos mark all of them, as upstream's auto did",
        choices=("explicit", "ones", "twos"),
    )  # fmt: skip
    posterior: str = option("mean", "choice", "what encoding audio takes", choices=("mean", "sample"))
    lyrics_overflow: str = option(
        "cut", "choice", "what to do with lyrics over 2047 tokens, or a prompt that with its hints is over 255",
        choices=("cut", "refuse"),
    )  # fmt: skip
    normalize: float | None = option(
        -1.0, "level", "peak of the finished song; None (off) leaves the level", unit="dBFS", low=-60, high=0
    )
    fade_in: float = option(0.0, "number", "linear fade at the start", unit="seconds", low=0, high=600)
    fade_out: float = option(0.0, "number", "linear fade at the end", unit="seconds", low=0, high=600)
    on_step: Callable[[Any], Any] | None = option(  # noqa: RUF009
        None, "callback", "called after each step with a StepInfo; may cancel or replace the latents", stored=False
    )
    dcw: str = option(
        "off", "choice", "wavelet correction after each step", choices=("off", "low", "high", "double", "pix")
    )

    def __post_init__(self) -> None:
        for name, about in options().items():
            object.__setattr__(self, name, about.read(name, getattr(self, name)))
        check_together(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Request):
            return NotImplemented
        for name, about in options().items():
            a, b = getattr(self, name), getattr(other, name)
            if a is not b and not ((about.stored or type(a) is type(b) is str) and a == b):
                return False  # arrays and functions are the same only where they are one object
        return True

    @property
    def acts_as(self) -> str:
        """The task as the model sees it: text2music on given codes is a cover."""
        return "cover" if self.task == "text2music" and self.codes else self.task

    @classmethod
    def from_options(cls, prompt: str = "", lyrics: str = "", **others: Any) -> Request:
        """A request from keywords; an unknown one is refused with the nearest known name."""
        check_names(others, options())
        return cls(prompt=prompt, lyrics=lyrics, **others)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """A request from what ``to_dict`` gave; where that only described an array, the array must be put back."""
        check_names(values, options())
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Every option as a JSON value: paths are kept, arrays described, ``on_step`` is left out."""
        return {name: storable(getattr(self, name)) for name in options() if name != "on_step"}

    def for_checkpoint(self, traits: CheckpointTraits) -> Request:
        """The request with the defaults of one checkpoint filled in.

        ``seed``, ``duration`` of a source task or of codes in diffusers' semantics, and ``strength`` where it has no
        effect stay None; with ``timesteps`` given ``steps`` is their number and ``sigma_shift`` stays None.

        Raises:
            RequestError: the checkpoint cannot do the task, or is distilled and guidance was asked of it.
        """
        if self.task in STEMS and traits.version != "base":
            raise RequestError(
                f"task={self.task!r} needs a base checkpoint and {traits.name} is none; "
                "take ace-step-1.5-base or ace-step-1.5-xl-base"
            )
        for name, about in self.given().items() if traits.is_turbo else ():
            if about.models == GUIDED and not (name == "guidance_scale" and self.guidance_scale == 1):
                raise RequestError(
                    f"{name} has no use with {traits.name}: turbo checkpoints are distilled to run without guidance; "
                    f"leave {name} out or take an -sft or -base checkpoint"
                )
        steps, shift, scale = traits.defaults(self.semantics)
        if self.timesteps is not None:
            steps, shift = len(self.timesteps), None
        found: dict[str, Any] = {"steps": steps, "sigma_shift": shift, "guidance_scale": scale}
        found["language"] = "en" if self.semantics == "diffusers" else "unknown"
        if self.acts_as in COVER:
            found["strength"] = 1.0
        elif self.task in REPAINT and self.repaint_mode == "balanced" and self.semantics == "official":
            found["strength"] = 0.5
        if self.source is None and not (self.codes and self.semantics == "diffusers"):
            found["duration"] = max(5.0, len(self.codes) / 5) if self.codes else 60.0
        return dataclasses.replace(self, **{name: v for name, v in found.items() if getattr(self, name) is None})

    def check_window(self, source_seconds: float) -> Window:
        """Where a source task writes, now that the source's length is known; see acefast.windows."""
        return place_window(self, source_seconds)

    def given(self) -> dict[str, Option]:
        """The options whose value is not their default."""
        return {
            name: about
            for name, about in options().items()
            if (getattr(self, name) != about.default if about.stored else getattr(self, name) is not None)
        }


@functools.cache
def options() -> dict[str, Option]:
    """Every option by name, in the order it is declared."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(Request)}


def options_table() -> str:
    """Every option as a table in Markdown."""
    return table(options())


def expand(prompt: Any, lyrics: Any = "", seed: Any = None, **others: Any) -> tuple[list[Request], bool]:
    """The requests of a batch, and whether the caller asked for several.

    ``prompt``, ``lyrics`` and ``seed`` may each be one value or a list, ``noise`` one [T, 64] or a batch [B, T, 64];
    single values serve all songs, other options always do. ``prompt`` may also be a Request or a list of them, alone.
    Seeds not given are drawn, 32 bits each.

    Raises:
        RequestError: a list is empty, lists differ in length, or one of the requests cannot work.
    """
    given = list(prompt) if _is_list(prompt) else [prompt]
    if any(isinstance(one, Request) for one in given):
        if not all(isinstance(one, Request) for one in given) or others or lyrics != "" or seed is not None:
            raise RequestError("a Request holds its prompt and all options; give requests alone, one or a list of them")
        return [_drawn(one) for one in given], _is_list(prompt)
    check_names(others, options())
    shared: dict[str, Any] = {"prompt": prompt, "lyrics": lyrics, "seed": seed, **others}
    lists = {name: list(v) for name in ("prompt", "lyrics", "seed") if _is_list(v := shared[name])}
    noise = shared.get("noise")
    if getattr(noise, "ndim", 0) == 3 and noise.shape[0] != 1:
        lists["noise"] = list(noise)
    sizes = {name: len(values) for name, values in lists.items()}
    for name, size in sizes.items():
        if not size:
            raise RequestError(f"{name} is an empty list; give at least one entry")
        if size != next(iter(sizes.values())):
            first = next(iter(sizes))
            raise RequestError(
                f"{first} has {sizes[first]} entries and {name} {size}; make them equally long or give one"
            )
    songs = []
    for i in range(max(sizes.values(), default=1)):
        songs.append(_drawn(Request(**shared | {name: values[i] for name, values in lists.items()})))
    return songs, bool(lists)


def _drawn(request: Request) -> Request:
    """The request with the seeds that it leaves open."""
    names = ["seed"] if request.seed is None else []
    names += ["variation_seed"] if request.variation and request.variation_seed is None else []
    return dataclasses.replace(request, **{name: secrets.randbits(32) for name in names}) if names else request


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
