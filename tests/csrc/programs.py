"""Kernels of csrc/ on fibers of a CPU: builds tests/csrc/<op>.cpp around csrc/<op>.cu with g++, and runs it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from acefast.cuda.toolkit import text_of

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
LATE, EAGER = "01"  # copies
FAIR, GREEDY, BACKWARDS = "012"  # warps
CHECKS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on the PATH")


def build(folder: Path, op: str, *options: str, text: str | None = None) -> Path:
    """The program of an op, of its own source or of ``text`` in its place."""
    source, program = CSRC / f"{op}.cu", folder / op
    if text is not None:
        source = folder / f"{op}.cu"
        source.write_text(text)
    words = ["g++", "-std=c++17", "-O1", *options, f'-DSOURCE="{source}"', "-I", HERE, "-I", CSRC]
    subprocess.run([*words, HERE / f"{op}.cpp", "-o", program], check=True)
    return program


def run(program: Path, *words: object) -> str:
    """What is wrong; empty where nothing is."""
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    assert done.returncode in (0, 1) or "Sanitizer" in done.stderr
    return done.stdout.strip() + "".join(done.stderr.splitlines()[1:2]) if done.returncode else ""


def faulty(folder: Path, op: str, old: str, new: str, *options: str, entry: str = "") -> Path:
    """The program of an op whose source, or what it includes, has ``new`` in place of its only ``old``.

    Unoptimised: it runs once, and takes longer to build.
    """
    text = text_of(op, entry)
    assert text.count(old) == 1
    return build(folder, op, "-O0", *options, text=text.replace(old, new))
