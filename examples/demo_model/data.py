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
from clip import Clip
from dataset import Dataset

FULL_SCALE = 32767
LABELS = ("prompt", "lyrics", "bpm", "key", "time_signature", "style")


def pcm(clip: Clip) -> np.ndarray:
    """The clip's audio, int16 [2, N]."""
    return (clip.audio * FULL_SCALE).round().astype(np.int16)


def stored(
    stem: Path, clips: Dataset, make: Callable[[Clip], np.ndarray] = pcm, *, workers: int = 1
) -> tuple[np.ndarray, list[dict]]:
    """``make`` of every clip, made where ``stem`` has not got it yet; an interrupted run goes on where it stopped.

    Args:
        stem: path of the files, without their endings.
        make: gives arrays of one shape and type; it is sent to ``workers`` processes.
    Returns:
        the arrays [count, ...], mapped from disk, and the labels of each clip.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    path, table = stem.with_suffix(".raw"), stem.with_suffix(".jsonl")
    first = make(clips[0])
    done = table.read_bytes().count(b"\n") if table.is_file() else 0
    if done < len(clips):
        with path.open("r+b" if path.is_file() else "w+b") as items, table.open("a") as labels:
            items.seek(done * first.nbytes)
            for i, (item, label) in enumerate(_each(clips, make, range(done, len(clips)), workers), done + 1):
                items.write(item)
                items.flush()
                labels.write(label + "\n")  # behind its item: a label on disk means that the item is whole
                labels.flush()
                if i % 100 == 0:
                    print(f"{stem.name}: {i} of {len(clips)}", flush=True)
    items = np.memmap(path, first.dtype, "r", shape=(len(clips), *first.shape))
    with table.open() as lines:
        return items, [json.loads(line) for _, line in zip(range(len(clips)), lines)]


def _each(clips: Dataset, make: Callable[[Clip], np.ndarray], todo: range, workers: int) -> Iterator[tuple[bytes, str]]:
    if workers == 1:
        yield from (_item(clips, make, i) for i in todo)
        return
    spawn = get_context("spawn")  # torch's threads survive no fork
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(_item, repeat(clips), repeat(make), todo, chunksize=8)


def _item(clips: Dataset, make: Callable[[Clip], np.ndarray], index: int) -> tuple[bytes, str]:
    clip = clips[index]
    return make(clip).tobytes(), json.dumps({k: getattr(clip, k) for k in LABELS})


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
