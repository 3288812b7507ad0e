"""Song: what a request came to, and how it is saved and drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from json import dumps
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from acefast.audio import audio_writer, check_output
from acefast.files import check_writable, write_together
from acefast.request import RequestError, options
from acefast.stages import memory_told
from acefast.tags import MAX_COMMENT_BYTES
from acefast.values import shown
from acefast.waveform import check_finite

ROOM = "make a shorter song, or let other programs go first"


@dataclass(eq=False, repr=False)
class Song:
    """A finished song.

    Attributes:
        audio: float32 numpy [2, N], full scale +-1.
        latents: float32 CPU tensor [T, 64], what the audio was decoded from, 25 frames per second; v1: [T, 128], 10.77.
        sample_rate: Hz.
        seed: the one it was drawn with.
        codes: 5 Hz audio codes, where the request had or made some.
        timings: seconds per stage.
        request: the Request (or any mapping of its fields) as it was run, with this song's own prompt and seed.
        model: the checkpoint's name.
        warnings: what of prompt and lyrics was too long and was cut, a sentence each.
        lora: name and weight of the LoRA that it was composed with, as ``Pipeline.lora`` tells them.
    """

    audio: np.ndarray
    latents: Tensor | None = None
    sample_rate: int = 48_000
    seed: int | None = None
    codes: list[int] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    request: Any = None
    model: str | None = None
    warnings: list[str] = field(default_factory=list)
    lora: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        audio, rate = self.audio, self.sample_rate
        if not isinstance(audio, np.ndarray) or audio.ndim != 2 or audio.dtype.kind != "f":
            raise RequestError(f"audio of a Song must be a float array [channels, samples], got {shown(audio)}")
        if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
            raise RequestError(f"sample_rate of a Song must be a whole number of Hz above 0, got {shown(rate)}")

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.audio.shape[1] / self.sample_rate

    @property
    def options(self) -> dict[str, Any]:
        """The request's fields as a dict."""
        if self.request is None:
            return {}
        return dict(self.request if isinstance(self.request, Mapping) else self.request.to_dict())

    def __repr__(self) -> str:
        prompt = shorten(self.options.get("prompt") or "", 40)
        return f"Song({self.duration:.2f} s, {self.sample_rate} Hz, seed={self.seed}, model={self.model!r}, {prompt!r})"

    def metadata(self) -> dict[str, Any]:
        """What is told of the song in its file's comment and in the JSON beside it: all that makes it again."""
        told = self.options
        none_means = {name for name, about in options().items() if about.default is not None}  # such as normalize=None
        return {
            "prompt": told.pop("prompt", None),
            "model": self.model,
            **({"lora": self.lora} if self.lora else {}),
            "seed": self.seed,
            "duration": round(self.duration, 6),
            "options": {n: v for n, v in told.items() if n != "seed" and (v is not None or n in none_means)},
            **({"warnings": self.warnings} if self.warnings else {}),
        }

    @memory_told("saving", ROOM)
    def save(
        self,
        path: str | os.PathLike,
        subtype: str | None = None,
        json: bool = False,
        plot: str | os.PathLike | None = None,
    ) -> Path:
        """Write the audio to ``path`` (wav, flac, mp3, ogg or opus, by extension); the file is whole or absent.

        Prompt (cut to 100 characters) and model go into the tags title and artist, all of ``metadata()`` as JSON into
        the comment; above 60 kB its longest texts are cut and listed under "cut", so that it always parses.

        Args:
            subtype: "int16" (default), "int24", or for wav "float32".
            json: also write, under the same name ending in .json, ``metadata()`` uncut, sample rate, timings, codes.
            plot: also draw the song there, as ``plot`` does.
        Returns:
            the path written.
        Raises:
            RequestError: one of the files cannot be written, or the audio is not finite; none is left behind.
        Source of the tags' limits: acefast/tags.py.
        """
        from importlib import metadata

        path = check_output(path, subtype)
        try:
            version = f"acefast {metadata.version('acefast')}"
        except metadata.PackageNotFoundError:  # run from a source tree
            version = "acefast"
        told = self.metadata()
        tags = {
            "title": shorten(told["prompt"] or "", 100),
            "artist": self.model or "",
            "software": version,
            "comment": _fit(told, MAX_COMMENT_BYTES),
        }
        writers = {path: audio_writer(path, self.audio, self.sample_rate, subtype=subtype, tags=tags)}
        if json:
            told |= {"sample_rate": self.sample_rate, "timings": self.timings, "codes": self.codes, "software": version}
            text = dumps(told, indent=1, ensure_ascii=False, default=str) + "\n"
            check_writable(beside := path.with_suffix(".json"))
            writers[beside] = lambda temporary: temporary.write_text(text, "utf-8", "replace")
        if plot is not None:
            picture = check_picture(plot)
            writers[picture] = self._draw
        write_together(writers)
        return path

    @memory_told("plot", ROOM)
    def plot(self, path: str | os.PathLike) -> Path:
        """Draw waveform and mel spectrogram into a PNG of 1400 x 700 pixels.

        Needs matplotlib (``pip install acefast[plot]``), whose global state is left alone. Returns the path written;
        raises RequestError where it cannot be, or without matplotlib. See acefast/picture.py for what is drawn.
        """
        path = check_picture(path)
        write_together({path: self._draw})
        return path

    def _draw(self, file: Path) -> None:
        from acefast.picture import draw

        if self.audio.shape[1] == 0:
            raise RequestError("plot: the song holds no samples; there is nothing to draw")
        check_finite("plot", self.audio)
        options = self.options
        facts = [
            f"{options['bpm']} bpm" if options.get("bpm") else "",
            str(options.get("key") or ""),
            f"seed {self.seed}" if self.seed is not None else "",
            self.model or "",
            f"{self.duration:.1f} s",
        ]
        title, subtitle = " ".join((options.get("prompt") or "").split()), "  ·  ".join(fact for fact in facts if fact)
        with open(file, "wb") as opened:
            draw(opened, self.audio, self.sample_rate, title=title, subtitle=subtitle)


def check_picture(path: str | os.PathLike) -> Path:
    """The path of a picture with ``~`` expanded; RequestError unless it can be drawn there."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() != ".png":
        raise RequestError(f"plot: draws a PNG, got {str(path)!r}; end the name in .png")
    if find_spec("matplotlib") is None:
        raise RequestError("plot: needs matplotlib, which is not installed; run pip install acefast[plot]")
    check_writable(path)
    return path


def shorten(text: str, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters, an ellipsis where it was cut."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _fit(told: dict[str, Any], limit: int) -> str:
    """``told`` as JSON of at most ``limit`` bytes: while it is longer, its longest value is halved or dropped."""

    def text(value: Any) -> str:
        return dumps(value, ensure_ascii=False, default=str)

    def size(value: Any) -> int:
        return len(text(value).encode("utf-8", "replace"))

    options, cut = dict(told["options"]), []
    told = {**told, "options": options}
    while size(told) > limit:
        values = [(group, name) for group in (told, options) for name in group if name not in ("options", "cut")]
        group, name = max(values, key=lambda v: size(v[0][v[1]]))
        value = group[name]
        group[name] = value[: len(value) // 2] if isinstance(value, str) else None
        cut += [] if name in cut else [name]
        told["cut"] = cut
    return text(told)
