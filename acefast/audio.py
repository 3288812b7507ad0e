"""Waveforms in and out: reading and resampling, and writing files that are whole or absent.

Audio is float32 numpy, [2, N], full scale +-1, at 48 kHz unless a rate is given. What is done to a waveform in between
is in acefast/waveform.py and offered here too.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from acefast.files import check_writable, write_together
from acefast.request import RequestError
from acefast.tags import TAGS, clean, read_riff_info, write_id3, write_riff_info
from acefast.values import dense
from acefast.waveform import (
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    check_finite,
    fade,
    is_silent,
    normalise,
    peak,
    reference_segments,
    splice,
)

__all__ = [
    "FORMATS",
    "SAMPLES_PER_FRAME",
    "SAMPLE_RATE",
    "audio_writer",
    "check_output",
    "fade",
    "is_silent",
    "load_audio",
    "normalise",
    "piece_writer",
    "quantise",
    "read_tags",
    "reference_segments",
    "splice",
    "write_audio",
]

CHUNK = 1 << 16  # samples per read or write: Ctrl-C is heard between two of them


class Format(NamedTuple):
    """How libsndfile writes one file extension."""

    container: str
    subtypes: dict[str | None, str]  # ours -> libsndfile's; the first is the default; None: a lossy codec
    compression: float | None = None  # of a lossy codec: 0 is its best quality


FORMATS = {
    ".wav": Format("WAV", {"int16": "PCM_16", "int24": "PCM_24", "float32": "FLOAT"}),
    ".flac": Format("FLAC", {"int16": "PCM_16", "int24": "PCM_24"}),
    ".mp3": Format("MP3", {None: "MPEG_LAYER_III"}, 0.0),  # variable rate, LAME's V0
    ".ogg": Format("OGG", {None: "VORBIS"}, 0.2),  # quality 8, about 280 kbit/s on dense music
    ".opus": Format("OGG", {None: "OPUS"}, 0.5),  # about 260 kbit/s
}


def load_audio(source: Any, name: str = "source", *, minimum_samples: int = SAMPLES_PER_FRAME) -> np.ndarray:
    """Read ``source`` as 48 kHz stereo.

    Mono is duplicated, of more than two channels the first two are kept, other rates go through soxr's VHQ resampler,
    and the result is clamped to +-1, all as upstream does for both references and sources.

    Args:
        source: the path of a file that libsndfile reads (wav, flac, ogg, opus, mp3, aiff, ...); a Song; an array or
            tensor [N], [C, N] or [N, C] (the smaller axis is channels) at 48 kHz, or the pair (array, sample rate).
            Floats are within +-1, integers of 8 to 32 bits are scaled from their full range.
        name: what messages call it.
        minimum_samples: the shortest length accepted, in samples at 48 kHz; the default is one latent frame.
    Returns:
        float32 [2, N], finite. Silence is returned as it is; ``is_silent`` tells.
    Raises:
        RequestError: missing, a folder, unreadable, empty, not audio, too short, not finite, or of an unusable type.
    Source: normalize_audio_to_stereo_48k in ace-step/ACE-Step-1.5.
    """
    import soxr

    if isinstance(source, (str, os.PathLike)):
        audio, rate = _read_file(source, name)
    elif hasattr(source, "audio") and hasattr(source, "sample_rate"):
        audio, rate = _from_array(source.audio, name), source.sample_rate
    elif isinstance(source, (tuple, list)) and len(source) == 2:
        audio, rate = _from_array(source[0], name), source[1]
    else:
        audio, rate = _from_array(source, name), SAMPLE_RATE
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 1_000 <= rate <= 1_000_000:
        raise RequestError(f"{name}: the sample rate must be 1000 to 1000000 Hz, got {rate!r}")
    check_finite(name, audio)
    if peak(audio) > 16:  # 24 dB over full scale is no recording
        raise RequestError(f"{name}: float samples must be within +-1, got a peak of {peak(audio):.6g}; rescale")
    if rate != SAMPLE_RATE:
        audio = soxr.resample(np.ascontiguousarray(audio.T), rate, SAMPLE_RATE, quality="VHQ").T
    n = audio.shape[1]
    if n < minimum_samples:
        raise RequestError(
            f"{name}: must be at least {minimum_samples / SAMPLE_RATE:.3g} s long, got {n} "
            f"sample{'s' * (n != 1)} at 48 kHz ({n / SAMPLE_RATE:.3g} s); give a longer recording"
        )
    return np.array(np.broadcast_to(audio.clip(-1, 1), (2, n)), dtype=np.float32, order="C")


def check_output(path: str | os.PathLike, subtype: str | None = None) -> Path:
    """Raise RequestError unless an audio file can be written at ``path``; costs nothing, so it is done before the song.

    Checks the extension, ``subtype`` (None: the format's default), that libsndfile has the codec, and the folder, by
    making and removing an empty file in it. Returns the path with ``~`` expanded.
    """
    import soundfile

    path = Path(os.path.expanduser(path))
    known = ", ".join(FORMATS)
    extension = path.suffix.lower()
    if extension not in FORMATS:
        raise RequestError(f"output: {str(path)!r} has an extension that is not known; end it in one of {known}")
    form = FORMATS[extension]
    if subtype is not None and subtype not in form.subtypes:
        names = [s for s in form.subtypes if s]
        need = f"needs {' or '.join(names)}" if names else "is lossy and has no sample format; leave subtype out"
        raise RequestError(f"output: {extension} {need}, got subtype={subtype!r}; .wav takes int16, int24 and float32")
    codecs = soundfile.available_subtypes(form.container) if form.container in soundfile.available_formats() else {}
    if not set(form.subtypes.values()) <= set(codecs):
        version = soundfile.__libsndfile_version__
        raise RequestError(f"output: libsndfile {version} here cannot write {extension}; end it in .flac or .wav")
    check_writable(path)
    return path


def write_audio(
    path: str | os.PathLike,
    audio: np.ndarray,
    sample_rate: int = SAMPLE_RATE,
    *,
    subtype: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Write ``audio`` to a temporary name beside ``path`` and move it there: the file is whole or absent.

    Integers are rounded to nearest with full scale 2**15 or 2**23 and no dither: the error of half a step is far below
    what the model itself adds, and reading such a file and writing it again changes no bit.

    Args:
        path: its extension chooses wav, flac, mp3, ogg (Vorbis) or opus.
        audio: [2, N] or [1, N], finite. Peaks above 1 are exact in float32 wav, elsewhere clipped with a warning.
        subtype: "int16" (default), "int24", or for wav "float32"; None for the lossy ones.
        tags: names as in ``acefast.tags.TAGS``; empty ones are left out, long ones cut (``acefast.tags.clean``).
            libsndfile appends its own name to ``software`` in flac, ogg and opus.
    Raises:
        RequestError: as ``check_output``; NaN or infinity in ``audio``; the disk is full or failed meanwhile.
    """
    path = check_output(path, subtype)
    write_together({path: audio_writer(path, audio, sample_rate, subtype=subtype, tags=tags)})
    return path


def audio_writer(
    path: Path,
    audio: np.ndarray,
    sample_rate: int = SAMPLE_RATE,
    *,
    subtype: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Callable[[Path], None]:
    """What ``write_together`` needs to write ``audio`` as ``write_audio`` does; it has been checked by then.

    Args:
        path: as ``check_output`` returned it; tells the format.
    """
    subtype = subtype or next(iter(FORMATS[path.suffix.lower()].subtypes))
    audio = np.asarray(audio)
    if audio.ndim != 2 or audio.shape[0] not in (1, 2) or audio.shape[1] == 0:
        raise RequestError(f"output: audio must be [2, N] samples, got {list(audio.shape)}")
    check_finite("output", audio)
    if subtype != "float32" and peak(audio) > 1:
        over = int((np.abs(audio) > 1).sum())
        warnings.warn(
            f"{path.name}: {over} samples above full scale (peak {peak(audio):.4g}) were clipped; normalise the "
            "song, or write .wav with subtype='float32'",
            stacklevel=3,
        )
    pieces = (audio[:, start : start + CHUNK] for start in range(0, audio.shape[1], CHUNK))
    return piece_writer(path, pieces, sample_rate, audio.shape[0], subtype=subtype, tags=tags)


def piece_writer(
    path: Path,
    pieces: Iterable[np.ndarray],
    sample_rate: int,
    channels: int,
    *,
    subtype: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Callable[[Path], None]:
    """The same of audio that comes piece by piece, [channels, n] finite floats each; samples above 1 are clipped."""
    import soundfile

    form = FORMATS[path.suffix.lower()]
    subtype = subtype or next(iter(form.subtypes))
    if unknown := set(tags or {}) - set(TAGS):
        raise RequestError(f"output: unknown tags {', '.join(sorted(unknown))}; known are {', '.join(TAGS)}")
    tags = {name: clean(name, value) for name, value in (tags or {}).items() if value}
    kind = form.subtypes[subtype]

    def write(temporary: Path) -> None:
        options = dict(format=form.container, subtype=kind, compression_level=form.compression)
        with soundfile.SoundFile(temporary, "w", int(sample_rate), channels, **options) as file:
            if form.container in ("FLAC", "OGG"):
                for name, value in tags.items():
                    setattr(file, name, value)
            samples = 0
            for piece in pieces:
                file.write(quantise(piece.T, subtype))
                samples += piece.shape[1]
            if kind == "OPUS":  # libsndfile ends it with a click unless the last 20 ms packet is about half full
                file.write(np.zeros(((480 - samples) % 960, channels), np.float32))
        if tags and form.container == "WAV":
            write_riff_info(temporary, tags)
        elif tags and form.container == "MP3":
            write_id3(temporary, tags)

    return write


def read_tags(path: str | os.PathLike) -> dict[str, str]:
    """The tags of an audio file, as ``write_audio`` was given them; {} where it has none.

    Raises RequestError where ``load_audio`` would.
    """
    with _open(path, "tags") as file:
        tags = read_riff_info(Path(path).expanduser()) if file.format in ("WAV", "WAVEX") else file.copy_metadata()
    tags = {name: value for name, value in tags.items() if name in TAGS and value}
    if "software" in tags:
        tags["software"] = re.sub(r" \(libsndfile-[^)]*\)$", "", tags["software"])
    return tags


def quantise(samples: np.ndarray, subtype: str | None) -> np.ndarray:
    """[n, C] floats as libsndfile takes them for ``subtype``; an int24 is the upper bits of an int32."""
    if subtype == "int16":
        return np.rint(samples * np.float32(2**15)).clip(-(2**15), 2**15 - 1).astype(np.int16)
    if subtype == "int24":
        return np.rint(samples * np.float32(2**23)).clip(-(2**23), 2**23 - 1).astype(np.int32) << 8
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    return samples if subtype == "float32" else samples.clip(-1, 1)


def _open(path: str | os.PathLike, name: str):
    """An open soundfile.SoundFile, or RequestError with the reason."""
    import soundfile

    path = os.path.expanduser(path)
    try:
        if os.path.isdir(path):
            raise RequestError(f"{name}: {path!r} is a folder; name an audio file in it")
        with open(path, "rb") as file:
            head = file.read(CHUNK)
    except FileNotFoundError as error:
        raise RequestError(f"{name}: there is no file {path!r}; check the path") from error
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{name}: cannot open {path!r}: {reason}; check the path and its permissions") from error
    if not head:
        raise RequestError(f"{name}: {path!r} is empty (0 bytes); give an audio file")
    # By its name libsndfile takes any .mp3 file for one, and its decoder prints where it is none: go by what it holds.
    by_content = os.fsdecode(path).lower().endswith(".mp3") and not head.lstrip(b"\0").startswith(b"\xff")
    try:
        return soundfile.SoundFile(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)) if by_content else path)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: .raw files name no format
        raise RequestError(
            f"{name}: {path!r} is not audio that libsndfile reads; give wav, flac, ogg, opus, mp3 or aiff, "
            "or convert it with ffmpeg"
        ) from error


def _read_file(path: str | os.PathLike, name: str) -> tuple[np.ndarray, int]:
    """[C, N] with C at most 2, float32, and the file's rate."""
    blocks = []
    with _open(path, name) as file:
        try:
            # in blocks, as the length in the header of a cut or streamed file cannot be trusted
            while len(block := file.read(CHUNK, dtype="float32", always_2d=True)):
                blocks.append(block[:, :2].copy())
        except RuntimeError as error:
            raise RequestError(f"{name}: {os.fspath(path)!r} is damaged ({error}); give an intact file") from error
        rate = file.samplerate
    if not blocks:
        raise RequestError(f"{name}: {os.fspath(path)!r} holds no samples; give a longer recording")
    return np.concatenate(blocks).T, rate


def _from_array(array: Any, name: str) -> np.ndarray:
    """[C, N] with C at most 2, float32."""
    if isinstance(array, (torch.Tensor, np.ndarray)):
        dense(f"{name}:", array)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if not isinstance(array, np.ndarray):
        raise RequestError(
            f"{name}: needs a path, a Song, an array of samples or the pair (array, sample rate), "
            f"got {type(array).__name__}"
        )
    if array.ndim not in (1, 2) or array.size == 0:
        raise RequestError(f"{name}: samples must be [N], [channels, N] or [N, channels], got {list(array.shape)}")
    array = np.atleast_2d(array)
    array = array.T if array.shape[0] > array.shape[1] else array
    if array.shape[0] > 32:
        raise RequestError(f"{name}: {list(array.shape)} is no audio of up to 32 channels; give [channels, N]")
    array = array[:2]
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 4:
        half = 2 ** (8 * array.dtype.itemsize - 1)
        return ((array.astype(np.float64) - (half if array.dtype.kind == "u" else 0)) / half).astype(np.float32)
    raise RequestError(f"{name}: samples of type {array.dtype} have no agreed full scale; convert to float within +-1")
