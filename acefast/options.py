"""How an option of a request is declared: one dataclass field that carries what validation, command line and docs need.

Its kind names the reader of acefast.values that checks a Python value; ``Option.parse`` starts from text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acefast.values import NEEDS, READERS, RequestError, nearest, number, refusal, shown

COVER = ("cover", "cover-nofsq")
REPAINT = ("repaint", "extend")  # extend is a repaint of silence added to the source
V15, V1 = ("1.5",), ("v1",)  # what every checkpoint of a family takes, and no other one
GUIDED = ("sft", "base", "v1")  # checkpoint versions that guidance acts on
GUIDED_V15 = ("sft", "base")
STEMS = ("lego", "extract", "complete")  # base checkpoints only
SOURCE_TASKS = (*COVER, *REPAINT, *STEMS, "edit", "audio2audio")
TASKS = ("text2music", *SOURCE_TASKS)
V1_TASKS = ("text2music", *REPAINT, "edit", "audio2audio")
NOT_EDIT = tuple(task for task in TASKS if task != "edit")
LOADING = ("model", "device", "dtype", "backend", "quantization")
# Upstream's names of what is no option of a request.
ELSEWHERE = {
    **dict.fromkeys(("lora_name_or_path", "lora_weight"), "a LoRA is chosen by lora of acefast.load"),
    **dict.fromkeys(
        ("format", "audio_format", "save_path"), "a song is saved with its save, whose path says the format"
    ),
    "batch_size": "a list of seeds makes as many songs",
}
# What other runtimes call our options, so that an unknown name can be answered with the right one.
OTHER_NAMES = {
    **dict.fromkeys(("caption", "tags", "text"), "prompt"),
    **dict.fromkeys(("audio_duration", "audio_length", "length", "seconds"), "duration"),
    **dict.fromkeys(("inference_steps", "num_inference_steps", "infer_step", "infer_steps"), "steps"),
    **dict.fromkeys(("guidance_variant", "cfg_type", "use_adg"), "guidance"),
    **dict.fromkeys(("cfg_interval_start", "cfg_interval_end"), "guidance_interval"),
    **dict.fromkeys(("infer_method", "sampler_mode", "scheduler_type", "sampler"), "solver"),
    **dict.fromkeys(("audio_cover_strength", "repaint_strength"), "strength"),
    **dict.fromkeys(("repainting_start", "repaint_start"), "start"),
    **dict.fromkeys(("repainting_end", "repaint_end"), "end"),
    **dict.fromkeys(("callback", "callback_on_step_end"), "on_step"),
    **dict.fromkeys(("seeds", "manual_seeds", "generator"), "seed"),
    **{"cfg": "guidance_scale", "shift": "sigma_shift", "keyscale": "key", "timesignature": "time_signature"},
    **{"vocal_language": "language", "task_type": "task", "src_audio": "source", "reference_audio": "reference"},
    **{"audio_codes": "codes", "cover_noise_strength": "cover_noise", "latents": "noise", "track_name": "track"},
    **{"complete_track_classes": "tracks", "retake_variance": "variation", "retake_seeds": "variation_seed"},
    **{"normalization_db": "normalize", "chunk_mask_mode": "chunk_mask", "cfg_scale": "guidance_scale"},
    **{"omega_scale": "omega", "guidance_interval_decay": "guidance_decay", "min_guidance_scale": "guidance_min"},
    **{"guidance_scale_text": "guidance_text", "guidance_scale_lyric": "guidance_lyric"},
    **{f"use_erg_{part}": f"erg_{part}" for part in ("tag", "lyric", "diffusion")},
    **{"audio2audio_enable": "task", "ref_audio_strength": "strength", "edit_n_avg": "edit_average"},
    **{"ref_audio_input": "source", "src_audio_path": "source", "edit_n_min": "edit_from", "edit_n_max": "edit_until"},
    **{"edit_target_prompt": "target_prompt", "edit_target_lyrics": "target_lyrics"},
}


@dataclass(frozen=True)
class Option:
    """What is known about one option beside its name and default.

    ``tasks`` names the tasks that take it, ``models`` the checkpoint versions or, "1.5" and "v1", families; empty means
    all. ``stored`` is False for values that live only while a song is made: they have no text form and a stored request
    describes them.
    """

    kind: str
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    stored: bool = True
    default: Any = None

    def read(self, name: str, value: Any) -> Any:
        """``value`` checked and in canonical form; a None default lets None through, meaning "not given".

        Raises:
            RequestError: the value is not what the option needs.
        """
        if value is None and (self.default is None or self.kind == "level"):
            return None
        return READERS[self.kind](name, value, self)

    def parse(self, name: str, text: str) -> Any:
        """``read`` for a value typed as text, such as ``"8"``, ``"0.2,0.9"`` or ``"off"``."""
        word = text.strip().casefold()
        if self.kind == "level" and word in ("off", "none"):
            return None
        if self.kind == "flag":
            if word not in ("true", "false"):
                raise refusal(name, "true or false", text)
            return word == "true"
        if self.kind in ("integer", "number", "level"):
            return self.read(name, number(name, word, self.needs))
        if self.kind == "interval":
            return self.read(name, word.replace(":", ","))
        if not self.stored and self.kind != "audio":
            raise RequestError(f"{name} cannot be given as text; pass it from Python")
        return self.read(name, text)

    @property
    def needs(self) -> str:
        """The values it takes, in words that follow "must be"."""
        if self.choices:
            return listed(self.choices).replace(" and ", " or ")
        if self.kind in ("integer", "number", "level"):
            range_ = f"{'a whole number ' if self.kind == 'integer' else ''}{_plain(self.low)} to {_plain(self.high)}"
            return f"{range_} {self.unit}".strip() + (" or None" if self.kind == "level" else "")
        return NEEDS[self.kind]


def option(default: Any, kind: str, help: str, **about: Any) -> Any:
    """A dataclass field that carries an ``Option``; ``about`` are the other fields of it."""
    return dataclasses.field(default=default, metadata={"option": Option(kind, help, default=default, **about)})


def _plain(bound: float | None) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def check_names(names: Iterable[Any], known: Mapping[str, Option]) -> None:
    """Refuse a name that is no option, with the nearest one that is."""
    for name in names:
        if name in LOADING:
            raise RequestError(f"{name} is chosen when a model is loaded, not by a request; pass it to acefast.load")
        if name in ELSEWHERE:
            raise RequestError(f"{name} is no option of a request; {ELSEWHERE[name]}")
        if name not in known:
            near = OTHER_NAMES.get(name) or nearest(str(name), [*known, *OTHER_NAMES])
            near = OTHER_NAMES.get(near, near)
            way_out = f"the nearest known one is {near!r}" if near else "'acefast generate --help' lists all"
            raise RequestError(f"unknown option {shown(name)}; {way_out}")


def storable(value: Any) -> Any:
    """A JSON value for an option's: arrays and songs are described, not kept."""
    if isinstance(value, tuple) and len(value) == 2 and not all(isinstance(part, (str, int, float)) for part in value):
        return {**storable(value[0]), "rate": value[1]}
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    return {"array": list(getattr(value, "audio", value).shape)}


def table(known: Mapping[str, Option]) -> str:
    """Options as a table in Markdown."""
    lines = ["| option | default | takes | tasks | checkpoints | meaning |", "|---|---|---|---|---|---|"]
    for name, about in known.items():
        default = "" if about.default is None else f"`{about.default!r}`"
        cells = (default, about.needs, tasks_of(about) or "all", listed(about.models) or "all", about.help)
        lines.append(" | ".join([f"| `{name}`", *(cell.replace("|", "\\|") for cell in cells)]) + " |")
    return "\n".join(lines) + "\n"


def tasks_of(about: Option) -> str:
    """The tasks that take an option, in words; "" for all."""
    return "all but edit" if about.tasks == NOT_EDIT else listed(about.tasks)


def of_guidance(name: str) -> bool:
    """Whether an option says how guidance acts, and so has no use without."""
    return name != "guidance_scale" and name.startswith(("guidance", "erg_"))


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
