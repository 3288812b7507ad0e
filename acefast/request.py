"""What a caller asks for: every option of Python, command line and server, declared once, checked before any work.

``Request`` checks what can be known without a checkpoint when it is made. ``for_checkpoint`` refuses what one
checkpoint cannot do and fills in its defaults; ``check_window`` checks the times that need the source's length.
``acefast.expand`` makes a batch. Every refusal is a ``RequestError`` of one sentence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from acefast.families import CheckpointTraits, suited
from acefast.options import (
    COVER,
    GUIDED,
    NOT_EDIT,
    REPAINT,
    SOURCE_TASKS,
    TASKS,
    V1,
    V15,
    Option,
    check_names,
    option,
    storable,
    table,
)
from acefast.rules import check_together
from acefast.values import RequestError
from acefast.windows import Window, place_window

__all__ = ["CheckpointTraits", "Request", "RequestError", "Window", "options", "options_table"]


@dataclass(frozen=True, eq=False)
class Request:
    """One song, as asked for. ``options_table()`` lists every option with its range, unit, default and tasks.

    None stands for "the checkpoint's, the task's or the source's": see ``for_checkpoint``. Values are normalised:
    ``key="c# min"`` is kept as "C# minor", ``language="Spanish"`` as "es", ``solver="pingpong"`` as "sde",
    ``guidance_scale=0`` as 1, and ``task="retake"`` as text2music with a ``variation``, 0.5 if none is given.

    Raises:
        RequestError: an option is out of range, or two of them contradict each other.
    """

    prompt: str = option("", "text", "what the music is like; may be empty where lyrics, a source or codes say enough")
    lyrics: str = option("", "text", "the words, with section tags such as [verse]; taken as written")
    instrumental: bool = option(False, "flag", "no singing: the lyrics become [Instrumental], in v1 [inst]")
    duration: float | None = option(
        None, "number", "length of the song; 60 if not given, or that of the codes; in extend the length at the end. "
        "Official semantics round it to 0.1 and make at least 5.12; v1 rounds down to frames of 0.093 and makes at "
        "most 240 at once",
        unit="seconds", low=5, high=600, tasks=("text2music", "cover", "extend"),
    )  # fmt: skip
    task: str = option(
        "text2music", "choice", "what to do; retake is text2music with a variation", choices=(*TASKS, "retake")
    )
    bpm: int | None = option(
        None, "integer", "tempo, a soft hint", unit="beats per minute", low=30, high=300, models=V15
    )
    key: str | None = option(
        None, "key", "musical key, a soft hint, such as C# minor; Am and F# Major are understood", models=V15
    )
    time_signature: str | None = option(
        None, "meter", "beats of a bar, a soft hint: 2, 3, 4 or 6; 6/8 is 6", models=V15
    )
    language: str | None = option(
        None, "language", "language of the lyrics, a code or an English name; unknown if not given (diffusers: en); "
        "v1 knows 17 and finds it line by line if not given",
    )  # fmt: skip
    track: str | None = option(
        None, "track", "the stem to make or take out", tasks=("lego", "extract"), models=("base",)
    )
    tracks: tuple[str, ...] = option((), "tracks", "the stems to add", tasks=("complete",), models=("base",))
    instruction: str | None = option(None, "text", "replaces the task's own line at the head of the prompt", models=V15)
    target_prompt: str | None = option(
        None, "text", "what the edited song is like; prompt, which is of the source, if not given",
        tasks=("edit",), models=V1,
    )  # fmt: skip
    target_lyrics: str | None = option(
        None, "text", "the words of the edited song; lyrics, which are the source's, if not given",
        tasks=("edit",), models=V1,
    )  # fmt: skip
    seed: int | None = option(None, "integer", "same seed, same song; drawn if not given", low=0, high=2**64 - 1)
    variation: float = option(0.0, "number", "how far to turn the noise to a second one", low=0, high=1, tasks=NOT_EDIT)
    variation_seed: int | None = option(
        None, "integer", "seed of the second noise, drawn if not given; in v1's repaint, extend and edit seed + 1",
        low=0, high=2**64 - 1,
    )  # fmt: skip
    noise: Any = option(  # noqa: RUF009
        None, "noise", "the initial noise itself, [T, 64] at 25 frames a second; v1: [T, 128] at 10.77",
        stored=False, tasks=NOT_EDIT,
    )  # fmt: skip
    noise_source: str = option(
        "philox", "choice", "generator of the noise; torch's own repeats upstream", choices=("philox", "torch")
    )
    steps: int | None = option(
        None, "integer", "steps of the sampler; turbo 8, sft and base 50, v1 60", low=1, high=200
    )
    sigma_shift: float | None = option(
        None, "number", "above 1 dwells on high noise; turbo 3, turbo-shift1, sft and base 1 (diffusers: 3)",
        low=0.1, high=10, models=V15,
    )  # fmt: skip
    timesteps: tuple[float, ...] | None = option(
        None, "timesteps", "the noise levels themselves, from 1 down, in place of steps and sigma_shift", models=V15
    )
    oss_steps: tuple[int, ...] | None = option(
        None, "integers", "the steps to take, counted from 1, of a schedule of as many as the last of them",
        tasks=("text2music", *REPAINT), models=V1,
    )  # fmt: skip
    solver: str = option(
        "euler", "choice", "heun costs two model calls a step; pingpong is v1's name of sde",
        choices=("euler", "heun", "sde", "pingpong"),
    )  # fmt: skip
    omega: float = option(
        10.0, "number", "granularity: each step is stretched about its mean, by 0.9 to 1.1; 0 leaves it",
        low=-100, high=100, tasks=("text2music", "audio2audio"), models=V1,
    )  # fmt: skip
    guidance_scale: float | None = option(
        None, "number", "how strongly to follow the prompt; 0 or 1 is off; sft and base 7, v1 15",
        low=0, high=30, models=GUIDED,
    )  # fmt: skip
    guidance: str = option(
        "apg", "choice", "how the two predictions are combined; adg is 1.5's, cfg_star v1's",
        choices=("apg", "cfg", "adg", "adg_w_norm", "adg_wo_clip", "cfg_star"), tasks=NOT_EDIT, models=GUIDED,
    )  # fmt: skip
    guidance_interval: tuple[float, float] | float | None = option(
        None, "interval", "1.5: noise levels guidance acts at, 0 to 1 if not given; 1 is the first step. "
        "v1: share of the steps, in the middle, that it acts at, 0.5 if not given", tasks=NOT_EDIT, models=GUIDED,
    )  # fmt: skip
    guidance_decay: float = option(
        0.0, "number", "how far the scale falls to guidance_min over these steps",
        low=0, high=1, tasks=NOT_EDIT, models=V1,
    )  # fmt: skip
    guidance_min: float = option(
        3.0, "number", "scale of the last guided step with guidance_decay=1", low=0, high=200,
        tasks=NOT_EDIT, models=V1,
    )  # fmt: skip
    guidance_text: float = option(
        0.0, "number", "of the prompt alone, beside guidance_lyric: both above 1 stand for guidance; try 5 and 1.5",
        low=0, high=10, tasks=NOT_EDIT, models=V1,
    )  # fmt: skip
    guidance_lyric: float = option(
        0.0, "number", "of the lyrics, beside guidance_text", low=0, high=10, tasks=NOT_EDIT, models=V1
    )
    erg_tag: bool = option(
        True, "flag", "the unconditional side has a weakened prompt, not none; acts where erg_lyric does",
        tasks=NOT_EDIT, models=V1,
    )  # fmt: skip
    erg_lyric: bool = option(
        True, "flag", "the unconditional side has weakened lyrics, not none", tasks=NOT_EDIT, models=V1
    )
    erg_diffusion: bool = option(
        True, "flag", "the unconditional side's cross-attention is weakened", tasks=NOT_EDIT, models=V1
    )
    guidance_momentum: float = option(-0.75, "number", "of apg, per step", low=-1, high=1, models=GUIDED)
    guidance_norm: float = option(
        2.5, "number", "longest apg update of a channel; 0 sets no limit", low=0, high=1000, models=GUIDED
    )
    guidance_eta: float = option(0.0, "number", "share of apg's parallel part", low=0, high=1, models=GUIDED)
    source: Any = option(None, "audio", "the song to work on", stored=False, tasks=SOURCE_TASKS)  # noqa: RUF009
    reference: Any = option(  # noqa: RUF009
        None, "audio", "a recording whose timbre to take", stored=False, models=V15
    )
    strength: float | None = option(
        None, "number", "cover and codes: share of the steps that see the source, 1 if not given; repaint and extend: "
        "how freely to rewrite, 0.5 if not given (v1's extend: 1); audio2audio: how much of the source stays, 0.5 if "
        "not given", low=0, high=1, tasks=(*COVER, *REPAINT, "audio2audio"),
    )  # fmt: skip
    noise_level: str = option(
        "upstream", "choice", "of audio2audio's start: upstream's is below its first step's, schedule is that one's",
        choices=("upstream", "schedule"), tasks=("audio2audio",), models=V1,
    )  # fmt: skip
    edit_from: float = option(
        0.0, "number", "share of the steps to leave out at first; 0.6 (until 1) changes "
        "words only, 0.2 (until 0.4) remixes",
        low=0, high=1, tasks=("edit",), models=V1,
    )  # fmt: skip
    edit_until: float = option(
        1.0, "number", "share of the steps after which the source is let go", low=0, high=1, tasks=("edit",), models=V1
    )
    edit_average: int = option(
        1, "integer", "noises that a step of an edit averages over", low=1, high=10, tasks=("edit",), models=V1
    )
    cover_noise: float = option(
        0.0, "number", "start from the source, this much of it", low=0, high=1, tasks=COVER, models=V15
    )
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
        choices=("conservative", "balanced", "aggressive"), tasks=REPAINT, models=V15,
    )  # fmt: skip
    codes: tuple[int, ...] | None = option(
        None, "codes", "audio codes to build on, five a second, 0 to 63999", tasks=("text2music", "cover"), models=V15
    )
    semantics: str = option(
        "official", "choice", "whose habits win where runtimes differ", choices=("official", "diffusers"), models=V15
    )
    pad_mode: str = option(
        "exact", "choice", "upstream lets attention see a batch's padding", choices=("exact", "upstream"), models=V15
    )
    precision: str = option(
        "exact", "choice",
        "upstream repeats its roundings to bf16 between steps; v1: omega's mean is the whole batch's",
        choices=("exact", "upstream"),
    )  # fmt: skip
    deterministic: bool = option(False, "flag", "run each song of a batch by itself: the same bits in any batch")
    chunk_mask: str = option(
        "explicit", "choice", "value that marks frames to make; ones and twos mark all of them, as upstream's auto did",
        choices=("explicit", "ones", "twos"), models=V15,
    )  # fmt: skip
    posterior: str = option("mean", "choice", "what encoding audio takes", choices=("mean", "sample"), models=V15)
    lyrics_overflow: str = option(
        "cut", "choice", "what to do with lyrics over 2047 tokens (v1: any number), "
        "or a prompt that with its hints is over 255",
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
        "off",
        "choice",
        "wavelet correction after each step",
        choices=("off", "low", "high", "double", "pix"),
        models=V15,
    )

    def __post_init__(self) -> None:
        for name, about in options().items():
            object.__setattr__(self, name, about.read(name, getattr(self, name)))
        for name, value in self._other_words().items():
            object.__setattr__(self, name, value)
        check_together(self)

    def _other_words(self) -> dict[str, Any]:
        """The options that were given in other words for the same."""
        same: dict[str, Any] = {"solver": "sde"} if self.solver == "pingpong" else {}
        same |= {"guidance_scale": 1.0} if self.guidance_scale == 0 else {}
        if self.guidance_scale in (0, 1) and self.guidance_interval == (0.0, 1.0):
            same["guidance_interval"] = None  # says nothing beside no guidance, and records of turbo songs have it
        return same | ({"task": "text2music", "variation": self.variation or 0.5} if self.task == "retake" else {})

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

        ``seed``, ``duration`` of a source task or of codes in diffusers' semantics, ``strength`` where it has no
        effect and ``guidance_interval`` without guidance stay None; with ``timesteps`` or ``oss_steps`` given ``steps``
        is their number, and ``sigma_shift`` stays None beside ``timesteps`` and with v1.

        Raises:
            RequestError: the checkpoint cannot do the task, or does not take an option that was given.
        """
        return suited(self, traits)

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
