"""The values options take, read: each reader checks one kind of value and returns it in the form the package uses.

Readers are found by kind in ``READERS``; ``NEEDS`` says in words what a kind takes. A reader's last argument is the
``acefast.options.Option`` it reads for: its ``low``, ``high``, ``choices`` and ``needs`` are what a reader looks at.
"""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

END = "<|endoftext|>"  # closes every prompt: a user's own would end it early
CODES = 64_000  # entries of the audio codebook
TRACKS = (
    "woodwinds", "brass", "fx", "synth", "strings", "percussion",
    "keyboard", "guitar", "bass", "drums", "backing_vocals", "vocals",
)  # fmt: skip
LANGUAGES = {
    "ar": "Arabic", "az": "Azerbaijani", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "ht": "Haitian Creole", "hu": "Hungarian",
    "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ko": "Korean", "la": "Latin",
    "lt": "Lithuanian", "ms": "Malay", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "pa": "Punjabi",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sa": "Sanskrit", "sk": "Slovak",
    "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tl": "Tagalog",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "yue": "Cantonese", "zh": "Chinese",
    "unknown": "unknown",
}  # fmt: skip
_OTHER_NAMES = {"mandarin": "zh", "farsi": "fa", "filipino": "tl", "haitian": "ht", "bangla": "bn", "castilian": "es"}
_LANGUAGE_CODES = {name.casefold(): code for code, name in LANGUAGES.items()} | _OTHER_NAMES
_METERS = {"2": "2", "3": "3", "4": "4", "6": "6", "2/4": "2", "3/4": "3", "4/4": "4", "6/8": "6", "6/4": "6"}
_KEY = re.compile(r"([A-G]) ?(#|♯|sharp|b|♭|flat)? ?(major|maj|minor|min|m)?", re.IGNORECASE)
_ACCIDENTALS = {"#": "#", "♯": "#", "sharp": "#", "b": "b", "♭": "b", "flat": "b", "": ""}
_CODE_TEXT = re.compile(r"<\|audio_code_([0-9]+)\|>")


class RequestError(ValueError):
    """A request that cannot work, in one sentence: what it needs, what it got, the way out."""


def refusal(name: str, needs: str, got: Any, way_out: str = "") -> RequestError:
    """The error every reader raises: option, what it needs, what it got, the way out."""
    return RequestError(f"{name} must be {needs}, got {shown(got)}" + (f"; {way_out}" if way_out else ""))


def shown(value: Any, limit: int = 60) -> str:
    """A short, printable, one-line form of any value."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"an array {list(value.shape)}"
    try:
        text = " ".join(ascii(value).split() if not isinstance(value, str) else [repr(value)])
    except Exception:  # a foreign object's own repr may fail, and the message must still come
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 13]}...{text[-10:]}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like ``word``, or None."""
    return next(iter(difflib.get_close_matches(word.casefold()[:80], list(known), n=1, cutoff=0.6)), None)


def number(name: str, text: str, needs: str) -> float:
    """The number a text spells, an int where it spells one."""
    try:
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,40}", text) else float(text)
    except ValueError:
        raise refusal(name, needs, text) from None


def _items(text: str) -> list[str]:
    return re.split(r"[,;\s]+", text.strip(" ,;\t\n"))


def _text(name: str, value: Any, option: Any) -> str:
    if not isinstance(value, str):
        raise refusal(name, "text", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{name} has half a surrogate pair at character {error.start}; decode it again") from None
    for what, letters in (("a NUL", "\0"), (END, END)):
        if (at := value.find(letters)) >= 0:
            raise RequestError(f"{name} has {what} at character {at}, which would end the prompt early; take it out")
    return value


def _flag(name: str, value: Any, option: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise refusal(name, option.needs, value)
    return bool(value)


def real(name: str, value: Any, low: float, high: float, needs: str) -> float:
    """``value`` as a float within [low, high]; no text, no bool, nothing that is not finite."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise refusal(name, needs, value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not low <= number <= high:  # NaN is in no range
        raise refusal(name, needs, value)
    return number


def whole(name: str, value: Any, low: int, high: int, needs: str) -> int:
    """``value`` as an int within [low, high]; 120.0 is taken as 120."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        exact = int(value)  # a float would round a 64-bit seed
    else:
        exact = int(real(name, value, low, high, needs))
    if exact != value or not low <= exact <= high:
        raise refusal(name, needs, value)
    return exact


def _number(name: str, value: Any, option: Any) -> float:
    return real(name, value, option.low, option.high, option.needs)


def _integer(name: str, value: Any, option: Any) -> int:
    return whole(name, value, option.low, option.high, option.needs)


def _choice(name: str, value: Any, option: Any) -> str:
    if isinstance(value, str) and value in option.choices:
        return value
    near = nearest(value, option.choices) if isinstance(value, str) else None
    raise refusal(name, option.needs, value, f"the nearest is {near!r}" if near else "")


def _key(name: str, value: Any, option: Any) -> str:
    match = _KEY.fullmatch(re.sub(r"[\s_-]+", " ", value.strip())) if isinstance(value, str) else None
    if match is None:
        raise refusal(name, option.needs, value)
    letter, accidental, mode = (part or "" for part in match.groups())
    minor = mode == "m" or mode.casefold() in ("min", "minor")  # a lone capital M, as in CM, is major
    return f"{letter.upper()}{_ACCIDENTALS[accidental.casefold()]} {'minor' if minor else 'major'}"


def _meter(name: str, value: Any, option: Any) -> str:
    text = str(value) if isinstance(value, (str, numbers.Integral)) else ""
    if (meter := _METERS.get(re.sub(r"\s", "", text[:20]))) is None:
        raise refusal(name, option.needs, value)
    return meter


def _language(name: str, value: Any, option: Any) -> str:
    if isinstance(value, str):
        word = " ".join(value.casefold().split())
        for candidate in (word, re.split(r"[-_]", word)[0]):  # "pt-BR" is "pt"
            if candidate in LANGUAGES:
                return candidate
            if candidate in _LANGUAGE_CODES:
                return _LANGUAGE_CODES[candidate]
        if near := nearest(word, [*_LANGUAGE_CODES, *LANGUAGES]):
            code = near if near in LANGUAGES else _LANGUAGE_CODES[near]
            raise refusal(name, option.needs, value, f"the nearest is {code!r} ({LANGUAGES[code]})")
    raise refusal(name, option.needs, value)


def _tracks(name: str, value: Any, option: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [part for part in re.split(r"[,|]", value) if part.strip()]
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise refusal(name, option.needs, value)
    tracks = tuple(re.sub(r"[\s-]+", "_", part.strip().casefold()) for part in value)
    for track in tracks:
        if track not in TRACKS:
            near = nearest(track, TRACKS)
            raise refusal(name, option.needs, track, f"the nearest is {near!r}" if near else "")
    return tuple(dict.fromkeys(tracks))


def _track(name: str, value: Any, option: Any) -> str | None:
    return " | ".join(_tracks(name, value, option)) or None


def _numbers(name: str, value: Any, option: Any) -> list[float]:
    if isinstance(value, str):
        value = [number(name, part, option.needs) for part in _items(value)]
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise refusal(name, option.needs, value)
    return [real(f"{name}[{i}]", item, 0, 1, "0 to 1") for i, item in enumerate(value)]


def _timesteps(name: str, value: Any, option: Any) -> tuple[float, ...]:
    steps = _numbers(name, value, option)
    while steps and steps[-1] == 0:  # the end point, not a model call
        steps.pop()
    if not 1 <= len(steps) <= 200 or any(a <= b for a, b in itertools.pairwise(steps)) or steps[-1] == 0:
        raise refusal(name, option.needs, value)
    return tuple(steps)


def _interval(name: str, value: Any, option: Any) -> tuple[float, ...] | float:
    if isinstance(value, numbers.Real):
        return real(name, value, 0, 1, option.needs)
    pair = _numbers(name, value, option)
    if len(pair) == 1 and isinstance(value, str):
        return pair[0]
    if len(pair) != 2 or pair[0] > pair[1]:
        raise refusal(name, option.needs, value)
    return tuple(pair)


def _integers(name: str, value: Any, option: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        value = [number(name, part, option.needs) for part in _items(value)]
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not value:
        raise refusal(name, option.needs, value)
    steps = [whole(f"{name}[{i}]", item, 1, 200, "a whole number 1 to 200") for i, item in enumerate(value)]
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise refusal(name, option.needs, value)
    return tuple(steps)


def _codes(name: str, value: Any, option: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        found = _CODE_TEXT.findall(value)
        rest = _CODE_TEXT.sub("", value) if found else ""
        items = found or _items(value)
        if rest.strip(" ,\t\n") or not all(re.fullmatch("[0-9]{1,9}", item) for item in items):
            raise refusal(name, option.needs, value)
        value = [min(int(item), CODES - 1) if found else int(item) for item in items]  # tokens are cut as upstream
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise refusal(name, option.needs, value)
    if not 1 <= len(value) <= 3000:
        raise RequestError(f"{name} must be 1 to 3000 codes (0.2 to 600 seconds), got {len(value)}")
    needs = f"a whole number 0 to {CODES - 1}"
    return tuple(whole(f"{name}[{i}]", item, 0, CODES - 1, needs) for i, item in enumerate(value))


def dense(name: str, value: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """``value``; RequestError unless it is real numbers that are all there."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        kind = "meta" if value.is_meta else "sparse" if value.layout != torch.strided else kind
        good = kind not in ("meta", "sparse") and not value.is_complex() and not value.is_quantized
    else:
        kind, good = str(value.dtype), value.dtype.kind in "biuf"
    if not good:
        raise RequestError(f"{name} must be a dense array of real numbers, got one of {kind}; convert it to float32")
    return value


def _audio(name: str, value: Any, option: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        if isinstance(path, str) and path.strip() and "\0" not in path:
            return path
    elif isinstance(value, (tuple, list)) and len(value) == 2:
        samples, rate = value
        rate = whole(f"{name}'s rate", rate, 1000, 1_000_000, "1000 to 1000000 Hz")
        if not isinstance(samples, (tuple, list, str, os.PathLike)):
            return _audio(name, samples, option), rate
    elif isinstance(value, (np.ndarray, Tensor)):
        if value.ndim in (1, 2) and 0 not in value.shape:
            return dense(name, value)
    elif hasattr(value, "audio") and hasattr(value, "sample_rate"):
        return value
    raise refusal(name, option.needs, value)


def _noise(name: str, value: Any, option: Any) -> Any:
    if isinstance(value, (np.ndarray, Tensor)):
        if value.ndim == 3 and value.shape[0] == 1:
            value = value[0]
        if value.ndim == 2 and 0 not in value.shape:
            dense(name, value)
            if not np.isfinite(np.asarray(value.detach().cpu().float() if isinstance(value, Tensor) else value)).all():
                raise RequestError(f"{name} has NaN or infinite values; leave {name} out to have it drawn")
            return value
    raise refusal(name, option.needs, value)


def _callback(name: str, value: Any, option: Any) -> Callable:
    if not callable(value):
        raise refusal(name, option.needs, value)
    return value


READERS: dict[str, Callable[[str, Any, Any], Any]] = dict(
    text=_text, flag=_flag, number=_number, level=_number, integer=_integer, choice=_choice, key=_key, meter=_meter,
    language=_language, track=_track, tracks=_tracks, timesteps=_timesteps, interval=_interval, integers=_integers,
    codes=_codes, audio=_audio, noise=_noise, callback=_callback,
)  # fmt: skip
NEEDS = {
    "text": "text",
    "flag": "True or False",
    "key": "a note and major or minor, such as C# minor",
    "meter": "2, 3, 4 or 6, or written 2/4, 3/4, 4/4 or 6/8",
    "language": "one of 51 codes such as en, yue or unknown, or an English name such as Spanish",
    "track": f"one or more of {', '.join(TRACKS)}",
    "tracks": f"any of {', '.join(TRACKS)}",
    "timesteps": "1 to 200 falling numbers in 0 to 1, the noisiest first",
    "interval": "two numbers in 0 to 1, the lower first, or one",
    "integers": "rising whole numbers 1 to 200",
    "codes": f"whole numbers 0 to {CODES - 1}, five a second, or text such as <|audio_code_12|>",
    "audio": "a path, an array [samples] or [2, samples], (array, rate) or a Song",
    "noise": "a tensor of finite numbers [T, D]; D is 64, in v1 128",
    "callback": "a function",
}
