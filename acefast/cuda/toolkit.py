"""nvcc and the sources of csrc/: finding both, compiling, and keeping what was compiled.

Needs the standard library only, since setup.py uses it too.

    nvcc = find_nvcc()  # None where there is none
    ptx, cubin = compiled("qk_norm_rope", "qk_norm_rope_h4_bf16", 80)  # kept on disk
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

ARCHS = (80, 86, 89, 90, 100, 120)  # that an installation is built for, unless $ACEFAST_CUDA_ARCHS chooses
FLAGS = ("-std=c++17", "-O3")
HERE = Path(__file__).resolve().parent


class CompileError(RuntimeError):
    """A source that cannot be compiled here, or not for this GPU."""


def folder() -> Path:
    """Where the sources lie: beside this package where it is installed, beside acefast/ in a source tree."""
    places = (HERE.parent / "csrc", HERE.parents[1] / "csrc")
    return next((p for p in places if (p / "common").is_dir()), places[0])


def sources() -> tuple[str, ...]:
    """Names of the sources, each that of its op."""
    return tuple(sorted(path.stem for path in folder().glob("*.cu")))


def entries(source: str) -> tuple[str, ...]:
    """The entry points of a source: each an ``ENTRY(name, ...)`` line at its end."""
    return tuple(re.findall(r"^ENTRY\((\w+)", (folder() / f"{source}.cu").read_text("utf-8"), re.MULTILINE))


def text_of(source: str, entry: str | None = None) -> str:
    """A source as one text, its own includes put in their places, once each; with ``entry``, without the other ones.

    Raises:
        CompileError: the source has no such entry point.
    """
    seen: set[Path] = set()
    if entry and entry not in entries(source):
        raise CompileError(f"{source}: it has no entry point {entry!r}; it has {', '.join(entries(source))}")

    def put_in(path: Path) -> str:
        if path in seen:
            return ""
        seen.add(path)
        name = path.relative_to(folder()).as_posix()
        lines = [f'#line 1 "{name}"']
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 2):
            other = re.match(r"ENTRY\((\w+)", line)
            if found := re.match(r'\s*#include "([^"]+)"', line):
                near = (path.parent / found[1], folder() / found[1])
                lines += [put_in(next(p.resolve() for p in near if p.is_file())), f'#line {number} "{name}"']
            elif line.strip() == "#pragma once" or (entry and other and other[1] != entry):
                lines.append("")
            else:
                lines.append(line)
        return "\n".join(lines)

    return put_in((folder() / f"{source}.cu").resolve()) + "\n"


def fingerprint(source: str, entry: str | None = None) -> str:
    """Changes with any character of a source or of what it includes; other entry points do not matter to ``entry``."""
    return hashlib.sha256(text_of(source, entry).encode()).hexdigest()[:16]


def archs_asked(nvcc: Path) -> tuple[int, ...]:
    """The GPUs to build for: ``$ACEFAST_CUDA_ARCHS``, such as "80;90", or those of ARCHS that this nvcc knows.

    Raises:
        CompileError: the variable is no list of GPUs that nvcc knows.
    """
    told = subprocess.run([str(nvcc), "--list-gpu-arch"], capture_output=True, text=True).stdout
    known = {int(number) for number in re.findall(r"compute_(\d+)$", told, re.MULTILINE)}
    text = os.environ.get("ACEFAST_CUDA_ARCHS", "")
    words = re.findall(r"[^;,\s]+", text)
    if not words:
        return tuple(sm for sm in ARCHS if sm in known)
    if not all(word.isdigit() and int(word) in known and int(word) >= min(ARCHS) for word in words):
        some = ", ".join(str(sm) for sm in sorted(known) if sm >= min(ARCHS))
        raise CompileError(f"ACEFAST_CUDA_ARCHS must be GPUs that {nvcc} knows, such as '80;90', got {text!r}: {some}")
    return tuple(sorted({int(word) for word in words}))


def find_nvcc() -> Path | None:
    """nvcc in ``$CUDA_HOME``, on the PATH, or from the PyPI wheels of this Python (nvidia-cuda-nvcc); None: nowhere."""
    home, on_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    packages = dict.fromkeys([sysconfig.get_paths()["purelib"], *sys.path])
    wheels = [path for p in packages if p for path in sorted(Path(p, "nvidia").glob("cu*/bin/nvcc"), reverse=True)]
    places = [Path(home, "bin/nvcc") if home else None, Path(on_path) if on_path else None, *wheels]
    return next((path for path in places if path is not None and os.access(path, os.X_OK)), None)


@functools.cache
def nvcc_version(nvcc: Path) -> str:
    """Its release, such as "13.0"."""
    told = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", told)
    if found is None:
        raise CompileError(f"{nvcc} does not tell its version")
    return found[1]


def run_nvcc(nvcc: Path, *words: str | Path) -> None:
    """Run nvcc; CompileError with what it says."""
    done = subprocess.run([str(nvcc), *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"nvcc {' '.join(map(str, words))}:\n{(done.stderr or done.stdout).strip()}")


def fatbin(nvcc: Path, source: str, archs: tuple[int, ...], to: Path) -> None:
    """Compile a source for several GPUs into one file: machine code for each, and PTX of the last for later ones."""
    codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    run_nvcc(nvcc, *FLAGS, *codes, "-Xfatbin=-compress-all", "-fatbin", folder() / f"{source}.cu", "-o", to)


@functools.cache
def compiled(source: str, entry: str, sm: int) -> tuple[str, bytes]:
    """PTX with line numbers and machine code of one entry point for one GPU, by nvcc.

    Raises:
        CompileError: there is no nvcc, or it refuses.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise CompileError(f"{source}: no nvcc in $CUDA_HOME, on the PATH or from PyPI's nvidia-cuda-nvcc")
    compiler = f"nvcc{nvcc_version(nvcc)}"

    def ptx(to: Path) -> None:
        (to.parent / f"{source}.cu").write_text(text_of(source, entry))
        run_nvcc(nvcc, *FLAGS, f"-arch=sm_{sm}", "-lineinfo", "-ptx", to.parent / f"{source}.cu", "-o", to)

    text = kept(source, entry, sm, compiler, "ptx", ptx).decode()

    def cubin(to: Path) -> None:
        to.with_suffix(".ptx").write_text(text)
        run_nvcc(nvcc, f"-arch=sm_{sm}", "-lineinfo", "-cubin", to.with_suffix(".ptx"), "-o", to)

    return text, kept(source, entry, sm, compiler, "cubin", cubin)


def kept(source: str, entry: str, sm: int, compiler: str, ending: str, make: Callable[[Path], None]) -> bytes:
    """The bytes that ``make`` writes for an entry point, a GPU and a compiler; made once.

    They lie in ``$ACEFAST_CACHE``, else in acefast/ where this user's caches are; where that cannot be written,
    nothing is kept.
    """
    flags = hashlib.sha256(repr(FLAGS).encode()).hexdigest()[:4]
    name = f"{entry}-sm{sm}-{compiler}-{fingerprint(source, entry)}-{flags}"
    path = cache_folder() / f"{name}.{ending}"
    try:
        return path.read_bytes()
    except OSError:
        pass
    with tempfile.TemporaryDirectory() as made:
        make(Path(made, f"{entry}.{ending}"))
        data = Path(made, f"{entry}.{ending}").read_bytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)  # another process may be making the same
    except OSError:
        pass
    return data


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if place := os.environ.get("ACEFAST_CACHE"):
        return Path(place, "cuda")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "acefast", "cuda")
