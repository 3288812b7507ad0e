"""``acefast stream``: sound as it is made, to a player on standard output, or to a file that is whole or absent."""

from __future__ import annotations

import os
import struct
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from acefast.audio import check_output, piece_writer, quantise
from acefast.files import write_together
from acefast.request import RequestError
from acefast.segments import LONGEST, check_plan
from acefast.stages import Progress
from acefast.stream import Stream
from acefast.waveform import SAMPLE_RATE

UNKNOWN = 0xFFFFFFFF  # the length in a WAV header whose end is not known, as ffmpeg writes it; the longest one too
BYTES = {"int16": 2, "int24": 3, "float32": 4}


def stream(
    prompt: str, request: dict[str, Any], output: str, subtype: str | None, model: str | None, progress: Progress,
    **place: Any,
) -> str:  # fmt: skip
    """Run the command; returns its closing line, empty where standard output is taken by the sound.

    Args:
        request: what ``acefast.stream.Stream`` takes.
        output: a file, or "-".
        place: device, dtype and backend of the model.
    Raises:
        RequestError: the request or the output cannot work.
    """
    live, path = output == "-", None
    if live:
        _check_listener(subtype)
    else:
        path = check_output(output, subtype)
        if request["duration"] == float("inf"):
            raise RequestError("a stream without an end fills no file; leave -o out and send it to a player")
        size = (request["duration"] or 0) * SAMPLE_RATE * 2 * BYTES.get(subtype, 2)
        if path.suffix.lower() == ".wav" and size > UNKNOWN:
            raise RequestError(f"a wav file ends at 4.29 GB and this would be of {size / 1e9:.2f}; take .flac")

    from acefast.pipeline import check, default_model, load

    model = model or default_model()
    progress("loading", 0, 1)
    own = ("duration", "segment", "context", "ahead", "gain")
    song = {name: value for name, value in request.items() if name not in own}
    if request["duration"] is not None:
        song["duration"] = min(request["duration"], LONGEST)
    check_plan(request["duration"], request.get("segment"), request.get("context"), song)
    check(prompt, model=model, **song)
    with load(model, **place).stream(prompt, progress=progress, **request) as chunks:
        if live:
            _play(chunks, subtype or "int16")
            return ""
        samples = over = 0

        def pieces() -> Iterator[np.ndarray]:
            nonlocal samples, over
            for chunk in chunks:
                samples += chunk.samples.shape[1]
                over += 0 if subtype == "float32" else int((np.abs(chunk.samples) > 1).sum())
                yield chunk.samples

        tags = {"title": " ".join(prompt.split())[:100], "comment": f"seed {chunks.seed}", "software": "acefast"}
        write_together({path: piece_writer(path, pieces(), chunks.sample_rate, 2, subtype=subtype, tags=tags)})
        if over:
            way_out = "leave the limiter on, lower --gain, or write .wav with --subtype float32"
            warnings.warn(f"{path.name}: {over} samples above full scale were clipped; {way_out}", stacklevel=2)
        return f"{path}: {samples / chunks.sample_rate:.2f} s, seed {chunks.seed}"


def _check_listener(subtype: str | None) -> None:
    if subtype == "int24":
        raise RequestError("subtype int24 is for files; on standard output take int16 or float32")
    if sys.stdout is None or sys.stdout.isatty():
        raise RequestError("standard output would get the sound and is no player; pipe it to one, or give -o FILE")


def _play(chunks: Stream, subtype: str) -> None:
    """A WAV of unknown length on standard output; a player that leaves ends the stream."""
    place = sys.stdout.fileno()
    try:
        _write(place, wav_header(chunks.sample_rate, subtype))
        for chunk in chunks:
            _write(place, np.ascontiguousarray(quantise(chunk.samples.T, subtype)).astype(_KINDS[subtype]).tobytes())
    except BrokenPipeError:
        return
    except OSError as error:
        raise RequestError(f"standard output cannot be written: {error.strerror}; send it elsewhere") from error


_KINDS = {"int16": "<i2", "float32": "<f4"}


def wav_header(rate: int, subtype: str) -> bytes:
    """The 44 bytes in front of stereo samples that go on until the file ends."""
    bytes_ = BYTES[subtype]
    form = struct.pack("<HHIIHH", 3 if subtype == "float32" else 1, 2, rate, rate * 2 * bytes_, 2 * bytes_, 8 * bytes_)
    riff = struct.pack("<4sI4s4sI", b"RIFF", UNKNOWN, b"WAVE", b"fmt ", len(form))
    return riff + form + struct.pack("<4sI", b"data", UNKNOWN)


def _write(place: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(place, view) :]
