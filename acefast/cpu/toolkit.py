"""The C++ compiler, and how it makes csrc/'s kernels for the CPU: once for each level of instructions that it knows.

Needs the standard library only, since setup.py uses it.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

COMMON = ("-std=c++17", "-g0", "-fvisibility=hidden")
# What kernels are compiled with. Nothing may change the order of a sum: no -ffast-math, no -fassociative-math.
OPTIMISED = ("-O3", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
BF16 = (*AVX512, "-mavx512bf16", "-mavx512vnni")
ISAS = {  # each has what those before it have; the order is that of Isa in csrc/cpu/machine.h
    "portable": (),
    "avx2": AVX2,
    "avx512": AVX512,
    "bf16": BF16,
    "amx": (*BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}
LEVELS = ("portable", "avx2", "avx512", "bf16")  # for which ops are compiled, and these engines where it has no own
ENGINES = ("fp32", "int8")
OWN_ENGINES = {"bf16": "bf16", "vnni": "bf16", "amx": "amx"}  # of instructions that one level alone has


def compiler() -> list[str]:
    """$CXX, or the first C++ compiler on the PATH; empty where there is none."""
    asked = shlex.split(os.environ.get("CXX", ""))
    return asked or [name for name in ("g++", "clang++", "c++") if shutil.which(name)][:1]


def why_not() -> str:
    """Why acefast._cpu cannot be built here, in a few words; empty when it can."""
    if sys.platform != "linux":
        return f"it is built on Linux, not on {sys.platform}"
    if not compiler():
        return "there is no C++ compiler in $CXX or on the PATH"
    found = _compiles(())
    return "" if found else f"{shlex.join(compiler())} cannot compile C++17 with the headers of Python"


def isas() -> list[str]:
    """Names of ISAS that the compiler knows, up to the first that it does not."""
    known = ["portable"]
    for name in list(ISAS)[1:] if platform.machine() in ("x86_64", "AMD64") else ():
        if not _compiles(ISAS[name]):
            break
        known.append(name)
    return known


def words(source: Path, isa: str, csrc: Path) -> list[str]:
    """The command that compiles a kernel for one level of instructions, without its output."""
    return [*compiler(), *COMMON, *OPTIMISED, *ISAS[isa], f"-DLEVEL={namespace(isa)}", f"-I{csrc}", str(source)]


def namespace(isa: str) -> str:
    """That of a level's functions."""
    return "avx512_bf16" if isa == "bf16" else isa  # bf16 is a type


def objects(csrc: Path, known: list[str], folder: Path) -> list[str]:
    """Compiles kernels and engines for the ISAS that are known; returns the object files, ``<source>.<isa>.o``."""
    engine = (csrc / "cpu/engine_{}.cpp").as_posix().format
    wanted = [(source, level) for source in sorted(csrc.glob("*_cpu.cpp")) for level in LEVELS if level in known]
    general = [level for level in LEVELS if level in known and level not in OWN_ENGINES.values()]
    wanted += [(Path(engine(name)), level) for name in ENGINES for level in general]
    wanted += [(Path(engine(name)), isa) for name, isa in OWN_ENGINES.items() if isa in known]

    def build(one: tuple[Path, str]) -> str:
        source, isa = one
        made = str(folder / f"{source.stem}.{isa}.o")
        subprocess.run([*words(source, isa, csrc), "-c", "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a compiler
        return list(pool.map(build, wanted))


def _compiles(flags: tuple[str, ...]) -> bool:
    """Whether the compiler takes these flags and finds what the extension includes: Python's headers may be missing."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "headers.cpp")
        source.write_text("#include <Python.h>\n")
        include = f"-I{sysconfig.get_path('include')}"
        command = [*compiler(), *COMMON, *OPTIMISED, *flags, include, "-c", source, "-o", Path(folder, "headers.o")]
        try:
            return subprocess.run(list(map(str, command)), capture_output=True).returncode == 0
        except OSError:
            return False
