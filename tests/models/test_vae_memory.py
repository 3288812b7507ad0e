"""The memory of decoding and encoding is that of a tile, whatever the song's length: peak of a process, measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT, LONG = 260, 1300  # frames; both are more than a tile
MEASURE = """
import re, sys
import numpy as np, torch
import acefast

folder, what, short, long = *sys.argv[1:3], *map(int, sys.argv[3:])
torch.set_num_threads(1)
model = acefast.load(folder, device="cpu", dtype="float32").model
audio = np.full((2, long * 1920), 0.1, np.float32)
latents = torch.full((1, long, model.config.audio_acoustic_hidden_dim), 0.1)


def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024


def work(frames):
    with torch.inference_mode():
        return model.decode(latents[:, :frames]) if what == "decode" else model.encode(audio[:, : frames * 1920])[0]


work(short)
before = peak()
kept = work(long)
print(peak() - before - kept.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc, which is Linux's")
@pytest.mark.parametrize("what", ["decode", "encode"])
def test_memory_does_not_grow_with_the_song(tiny, what):
    """From a short to a long song the peak rises by the result alone; with the song as one tile by 30 MB and more."""
    command = [sys.executable, "-c", MEASURE, tiny, what, str(SHORT), str(LONG)]
    # what is large is given back at once: what the allocator keeps would blur the peak
    quiet = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    made = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=True)
    assert int(made.stdout) < 10e6
