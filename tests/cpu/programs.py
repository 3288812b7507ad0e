"""C++ programs around csrc/cpu, built with its own flags for one level of instructions, and run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from acefast.cpu import toolkit
from tests.cpu.isas import NAMES, extension

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
CHECKS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def needs(isa: str) -> None:
    """Skips where instructions are not those of this CPU and the compiler."""
    if not toolkit.compiler():
        pytest.skip("there is no C++ compiler")
    if NAMES.index(isa) > NAMES.index(extension().supported()):
        pytest.skip(f"this CPU, or the compiler, has no {isa}")


def build(program: Path, source: Path, isa: str, *options: str) -> Path:
    """A program whose source, in this folder, includes some of csrc/."""
    subprocess.run([*toolkit.words(HERE / source, isa, CSRC), *options, "-o", program], check=True)
    return program


def run(program: Path) -> str:
    """What is wrong; empty where nothing is."""
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode in (0, 1) or "Sanitizer" in done.stderr or "runtime error" in done.stderr, done.stderr
    return done.stdout.strip() + "".join(done.stderr.splitlines()[:3]) if done.returncode else ""
