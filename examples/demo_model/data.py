"""Rendered clips on disk, so that an epoch costs no synthesis: one file of equal items, their labels beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from dataset import Dataset

FULL_SCALE = 32767
LABELS = ("prompt", "lyrics", "bpm", "key", "time_signature", "style")


class Render:
    """Index to a clip's audio, int16 [2, N], and its labels."""

    def __init__(self, clips: Dataset):
        self.clips = clips

    def __call__(self, index: int) -> tuple[np.ndarray, dict]:
        clip = self.clips[index]
        audio = (clip.audio * FULL_SCALE).round().astype(np.int16)
        return audio, {name: getattr(clip, name) for name in LABELS}


def rendered(stem: Path, clips: Dataset, *, workers: int = 1) -> tuple[np.ndarray, list[dict]]:
    """Every clip's audio, int16 [count, 2, N], and labels; rendered where ``stem`` has not got them yet."""
    return stored(stem, len(clips), Render(clips), workers=workers)


def stored(
    stem: Path, count: int, make: Callable[[int], tuple[np.ndarray, dict]], *, workers: int = 1
) -> tuple[np.ndarray, list[dict]]:
    """``make`` of 0 .. count - 1, made where ``stem`` has not got it yet; an interrupted run goes on where it stopped.

    Args:
        stem: path of the files, without their endings.
        make: gives arrays of one shape and type, and their labels; it is sent to ``workers`` processes.
    Returns:
        the arrays [count, ...], mapped from disk, and the labels of each.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    path, table = stem.with_suffix(".raw"), stem.with_suffix(".jsonl")
    first, _ = make(0)
    done = table.read_bytes().count(b"\n") if table.is_file() else 0
    if done < count:
        with path.open("r+b" if path.is_file() else "w+b") as items, table.open("a") as labels:
            items.seek(done * first.nbytes)
            for i, (item, label) in enumerate(_each(make, range(done, count), workers), done + 1):
                items.write(item)
                items.flush()
                labels.write(label + "\n")  # behind its item: a label on disk means that the item is whole
                labels.flush()
                if i % 100 == 0:
                    print(f"{stem.name}: {i} of {count}", flush=True)
    items = np.memmap(path, first.dtype, "r", shape=(count, *first.shape))
    with table.open() as lines:
        return items, [json.loads(line) for _, line in zip(range(count), lines)]


def _each(make: Callable, todo: range, workers: int) -> Iterator[tuple[bytes, str]]:
    if workers == 1:
        yield from (_item(make, i) for i in todo)
        return
    spawn = get_context("spawn")  # torch's threads survive no fork
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_item, repeat(make), todo, chunksize=8)


def _item(make: Callable, index: int) -> tuple[bytes, str]:
    item, label = make(index)
    return item.tobytes(), json.dumps(label)


def crop(sounds: np.ndarray, size: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Random stretches of random clips, float32 [batch, 2, size]."""
    out = np.empty((batch, 2, size), np.float32)
    for row in out:
        start = int(rng.integers(sounds.shape[2] - size + 1))
        row[:] = sounds[int(rng.integers(len(sounds))), :, start : start + size]
    return out / FULL_SCALE


def save_atomically(save: Callable[[Path], object], path: Path) -> None:
    """``save(path)`` such that a reader or a crash never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save(part)
    os.replace(part, path)
