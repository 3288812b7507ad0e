"""The 2B model at its full size, random weights: it loads, makes 10 s and stays within its memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from acefast.models.v15.config import Config, VAEConfig
from acefast.testing import write_checkpoint

WEIGHTS = 3_151_000_000 + 1_217_000_000 + 1_192_000_000 + 338_000_000  # bytes: DiT, conditions, text; decoder in fp32
SCRIPT = """
import json, sys
import transformers.models.qwen3.modeling_qwen3
import acefast

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
pipe = acefast.load(sys.argv[1], dtype="bfloat16")
loaded = peak()
song = pipe.generate("boom bap, dusty drums", "[verse]\\nconcrete and rain", duration=10, bpm=90, seed=1)
print(json.dumps({
    "loaded": loaded - before, "made": peak() - before, "samples": song.audio.shape, "latents": song.latents.shape,
    "finite": bool(song.latents.isfinite().all()), "peak": float(abs(song.audio).max()), "steps": song.request.steps,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_full_size_turbo_makes_a_song_within_its_memory(tmp_path):
    if shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("needs 8 GB of disk for a random checkpoint")
    folder = write_checkpoint(
        tmp_path / "2b", config=Config(), vae_config=VAEConfig(), variant="turbo", dtype=torch.bfloat16
    )
    try:
        run = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, check=True)
    finally:
        shutil.rmtree(tmp_path / "2b")
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["loaded"] <= 1.15 * WEIGHTS
    assert told["made"] <= WEIGHTS + 1.5e9  # activations of a step and of one decoder tile
    assert told["samples"] == [2, 480_000] and told["latents"] == [250, 64] and told["steps"] == 8
    assert told["finite"] and abs(told["peak"] - 10 ** (-1 / 20)) < 1e-4
