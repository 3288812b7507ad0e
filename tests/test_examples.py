"""The examples run as they stand, each in a process of its own, on a tiny random checkpoint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import acefast

ROOT = Path(__file__).parents[1]
RUNS = {  # arguments, files made, what is printed
    "rap.py": (["--duration", "5", "--bpm", "95"], ["out.wav"], r"^out\.wav: 5\.12 s, seed 1, made in text [\d.]+ s, "),
    "cover.py": (["tune.wav", "--strength", "0.5"], ["out.wav"], r"^out\.wav: 5\.20 s; .* 26 codes: \[\d+, "),
    "repaint.py": (
        ["tune.wav", "--start", "2", "--end", "3.5", "--seeds", "4", "5"],
        ["out-4.wav", "out-5.wav"],
        r"^out-4\.wav: 5\.20 s, new from 2 to 3\.5 s$",
    ),
    "step_hook.py": (["--duration", "5"], ["out.wav"], r"^step 8/8  t 0\.300 -> 0\.000  \|.{6}\|$"),
    "step_hook.py --stop-after 3": (["--duration", "5"], [], r"^cancelled after step 3 of 8: nothing was saved$"),
    "stream.py": (
        ["--seconds", "16", "--segment", "10"],
        ["out.wav"],
        r"^   0\.00 s  0\.99 s  segment 0  boom bap.*\n(.*\n)*.*segment 1 ",
    ),
    "submit.py": (
        ["boom bap", "drill", "lo-fi", "--durations", "5", "2", "5.5"],
        ["out-1.wav", "out-3.wav"],
        r"^drill: duration must be .*\n(.*\n)*out-3\.wav: 5\.48 s, lo-fi$",
    ),
    "edit.py": (
        ["tune.wav", "--target-prompt", "jazz trio", "--edit-from", "0.2", "--edit-until", "0.4", "--steps", "4"],
        ["out.wav"],
        r"^out\.wav: 5\.2\d s, steps 0\.2 to 0\.4 of the way edited$",
    ),
    "lora.py": (
        ["--weights", "0.5", "-1", "--duration", "5"],
        ["out.wav", "out-0.5.wav", "out--1.wav", "random-lora.safetensors"],
        r"^out\.wav: LoRA None, set .*\nout-0\.5\.wav: LoRA {'name': 'random-lora', 'weight': 0\.5}, set in [\d.]+ s, ",
    ),
    "backend.py": (["--duration", "5"], ["out.wav"], r"^reference  [\d.]+ s of diffusion.*\n(cpu|triton|cuda) "),
}


@pytest.mark.parametrize("example", RUNS)
def test_example_runs(example, request, tune, tmp_path):
    model = request.getfixturevalue("tiny_v1" if example == "edit.py" else "tiny")
    arguments, made, printed = RUNS[example]
    soundfile.write(tmp_path / "tune.wav", tune.T, 48_000, "FLOAT")
    script, *more = example.split()
    ran = subprocess.run(
        [sys.executable, ROOT / "examples" / script, *arguments, *more, "--model", model, "--out", "out.wav"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert re.search(printed, ran.stdout, re.MULTILINE), ran.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["tune.wav", *made])
    for name in made:
        if not name.endswith(".wav"):
            continue
        audio, rate = soundfile.read(tmp_path / name)
        assert rate == 48_000 and audio.shape[1] == 2 and np.abs(audio).max() > 0.01


def test_every_example_is_run_and_uses_the_public_surface_only():
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert {script.name for script in scripts} == {name.split()[0] for name in RUNS}
    for script in scripts:
        text = script.read_text()
        assert not re.search(r"from acefast|import acefast\.|\._", text), script
        used = set(re.findall(r"acefast\.(\w+)", text))
        assert used <= {*acefast.__all__}, script
        assert re.search('"--model", default="ace-step-(1.5-turbo|v1-3.5b)"', text) and '"--out"' in text
