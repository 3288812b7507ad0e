"""Rendered clips on disk, so that an epoch costs no synthesis: 16-bit audio in one file, what is known in another."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from dataset import Dataset
from synth import SR

FULL_SCALE = 32767


def render_clips(
    folder: Path, count: int, *, seconds: float, split: str = "train", seed: int = 0, workers: int = 1
) -> tuple[np.ndarray, list[dict]]:
    """The first ``count`` clips of a data set, rendered where ``folder`` has not got them yet.

    An interrupted run goes on where it stopped.

    Returns:
        audio, int16 [count, 2, seconds * 48000], mapped from disk; the labels of each clip (prompt, lyrics, bpm, key,
        time_signature, style).
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{split}-{seed}-{seconds:g}s"
    path, table = folder / f"{stem}.i16", folder / f"{stem}.jsonl"
    shape = (2, round(seconds * SR))
    done = table.read_bytes().count(b"\n") if table.is_file() else 0
    if done < count:
        clips = Dataset(count, seed=seed, split=split, seconds=seconds)
        with path.open("r+b" if path.is_file() else "w+b") as audio, table.open("a") as labels:
            audio.seek(done * shape[0] * shape[1] * 2)
            with ProcessPoolExecutor(workers) as pool:
                for i, (sound, label) in enumerate(pool.map(_item, *zip(*((clips, i) for i in range(done, count))))):
                    audio.write(sound)
                    audio.flush()
                    labels.write(label + "\n")  # after its sound: a label on disk means that the clip is whole
                    labels.flush()
                    if (i + 1) % 100 == 0:
                        print(f"rendered {done + i + 1} of {count} clips", flush=True)
    sounds = np.memmap(path, np.int16, "r", shape=(count, *shape))
    with table.open() as lines:
        return sounds, [json.loads(line) for _, line in zip(range(count), lines)]


def _item(clips: Dataset, index: int) -> tuple[bytes, str]:
    clip = clips[index]
    label = {k: getattr(clip, k) for k in ("prompt", "lyrics", "language", "bpm", "key", "time_signature", "style")}
    return (clip.audio * FULL_SCALE).round().astype("<i2").tobytes(), json.dumps(label)


def crop(sounds: np.ndarray, size: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Random stretches of random clips, float32 [batch, 2, size]."""
    out = np.empty((batch, 2, size), np.float32)
    for row in out:
        start = int(rng.integers(sounds.shape[2] - size + 1))
        row[:] = sounds[int(rng.integers(len(sounds))), :, start : start + size]
    return out / FULL_SCALE


def save_atomically(save, path: Path) -> None:
    """``save(path)`` such that a reader or a crash never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save(part)
    os.replace(part, path)
