"""What is installed: acefast, ``kernels/`` as ``acefast.kernels``, ``acefast._cuda`` where nvcc is found, and
``acefast._cpu`` where a C++ compiler is.

``$ACEFAST_CUDA`` and ``$ACEFAST_CPU``: 1 fails where it cannot be built, 0 leaves it out; else it is built where it can
be, and where not that is said. ``$ACEFAST_CUDA_ARCHS`` chooses the GPUs, such as "80;90".
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))
from acefast.cuda import toolkit

IMAGES = """// Written by setup.py: the compiled kernels, and what they were compiled from.
struct Image {{ const char *name, *fingerprint, *begin, *end; }};
extern "C" {{
{declared}
}}
{data}
extern const Image images[] = {{
{table}
}};
extern const int image_count = {count}, cuda_version = {version}, arch_count = {arch_count}, archs[] = {{{archs}}};
"""
COMMON = ["-std=c++17", "-g0", "-fvisibility=hidden"]
OPTIMISED = ["-O3", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
# Each level of instructions has those before it; what is listed beside it is compiled for it alone.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
ISAS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", *AVX512],
    "bf16": ["-mavx2", "-mfma", *AVX512, "-mavx512bf16", "-mavx512vnni"],
    "amx": ["-mavx2", "-mfma", *AVX512, "-mavx512bf16", "-mavx512vnni", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
}
EVERY_LEVEL = ("portable", "avx2", "avx512")  # for which the ops are compiled, and these engines
ENGINES = ("fp32", "int8")
OWN_ENGINES = {"bf16": "bf16", "vnni": "bf16", "amx": "amx"}  # of instructions that one level alone has


def why_not(name: str, found: str) -> str:
    """Why acefast._cuda or _cpu is not built; empty where it is. ``found``: why it cannot be."""
    variable = f"ACEFAST_{name.upper()}"
    asked = os.environ.get(variable, "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"{variable} must be 0 or 1, got {asked!r}")
    if asked == "0":
        return f"{variable}=0"
    try:
        import pybind11  # noqa: F401
    except ImportError:
        found = "pybind11 is not installed"
    if found and asked == "1":
        raise SystemExit(f"acefast._{name} cannot be built: {found}; {variable}=0 installs acefast without it")
    return found


def no_nvcc() -> str:
    return "" if toolkit.find_nvcc() else "there is no nvcc in $CUDA_HOME, on the PATH or from nvidia-cuda-nvcc"


def compiler() -> list[str]:
    """The C++ compiler, $CXX or the first that is there; empty where there is none."""
    asked = shlex.split(os.environ.get("CXX", ""))
    return asked or [found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))][:1]


def no_compiler() -> str:
    if sys.platform != "linux":
        return f"it is built on Linux, not on {sys.platform}"
    if not compiler():
        return "there is no C++ compiler in $CXX or on the PATH"
    return "" if compiles([*COMMON, *OPTIMISED]) else f"{compiler()[0]} cannot compile C++17 with OpenMP"


def compiles(flags: list[str]) -> bool:
    """Whether the compiler knows these flags."""
    words = [*compiler(), *flags, "-x", "c++", "-", "-S", "-o", os.devnull]
    try:
        return subprocess.run(words, input="#include <omp.h>\n", text=True, capture_output=True).returncode == 0
    except OSError:
        return False


def isas() -> list[str]:
    """Those that the compiler knows, up to the first that it does not."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    known = ["portable"]
    for name in [*ISAS][1:] if x86 else ():
        if not compiles([*COMMON, *OPTIMISED, *ISAS[name]]):
            break
        known.append(name)
    return known


class Build(build_ext):
    """Compiles csrc/*.cu with nvcc, then csrc/launcher.cpp around the results; and csrc/*_cpu.cpp at every level."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        made = Path(self.build_temp).resolve() / ext.name
        made.mkdir(parents=True, exist_ok=True)
        ext.include_dirs = [pybind11.get_include()]
        (self._cuda if ext.name == "acefast._cuda" else self._cpu)(ext, made)
        super().build_extension(ext)

    def _cuda(self, ext: Extension, made: Path) -> None:
        nvcc = toolkit.find_nvcc()
        archs = toolkit.archs_asked(nvcc)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for an nvcc
            list(pool.map(lambda name: toolkit.fatbin(nvcc, name, archs, made / f"{name}.fatbin"), toolkit.sources()))
        images = made / "images.cpp"
        images.write_text(_images(made, archs, toolkit.nvcc_version(nvcc)))
        ext.sources = ["csrc/launcher.cpp", str(images)]

    def _cpu(self, ext: Extension, made: Path) -> None:
        known = isas()
        levels = [name for name in EVERY_LEVEL if name in known]
        shared = [*sorted(Path("csrc").glob("*_cpu.cpp")), *(Path(f"csrc/cpu/engine_{name}.cpp") for name in ENGINES)]
        wanted = [(source, level) for source in shared for level in levels]
        wanted += [(Path(f"csrc/cpu/engine_{name}.cpp"), isa) for name, isa in OWN_ENGINES.items() if isa in known]

        def build(one: tuple[Path, str]) -> str:
            source, isa = one
            target = made / f"{source.stem}.{isa}.o"
            words = [
                *compiler(),
                *COMMON,
                *OPTIMISED,
                *ISAS[isa],
                f"-DLEVEL={isa}",
                "-Icsrc",
                "-c",
                source,
                "-o",
                target,
            ]
            subprocess.run([str(word) for word in words], check=True)
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects = list(pool.map(build, wanted))
        ext.sources = ["csrc/cpu/module.cpp", "csrc/cpu/machine.cpp"]
        ext.define_macros = [("BUILT", str(len(known) - 1))]
        ext.extra_link_args = [*ext.extra_link_args, "-fopenmp"]


def _images(made: Path, archs: tuple[int, ...], release: str) -> str:
    names, (major, minor) = toolkit.sources(), release.split(".")
    hidden = '__attribute__((visibility("hidden")))'
    data = 'asm(".pushsection .rodata\\n.balign 16\\n{0}_begin: .incbin \\"{1}\\"\\n{0}_end:\\n.popsection");'
    return IMAGES.format(
        declared="\n".join(f"extern {hidden} const char {n}_begin[], {n}_end[];" for n in names),
        data="\n".join(data.format(n, made / f"{n}.fatbin") for n in names),
        table="\n".join(f'    {{"{n}", "{toolkit.fingerprint(n)}", {n}_begin, {n}_end}},' for n in names),
        count=len(names),
        version=1000 * int(major) + 10 * int(minor),
        arch_count=len(archs),
        archs=", ".join(map(str, archs)),
    )


reasons = {"cuda": why_not("cuda", no_nvcc()), "cpu": why_not("cpu", no_compiler())}
for name, kernels in (("cuda", "CUDA C++ kernels built ahead of time"), ("cpu", "C++ kernels for the CPU")):
    if reasons[name]:
        print(f"acefast: without {kernels}: {reasons[name]}", file=sys.stderr)
texts = [str(path) for path in Path("csrc").rglob("*.*")]
flags = {"extra_compile_args": [*COMMON, "-O2"], "extra_link_args": ["-s"]}
setup(
    packages=[*find_packages(include=["acefast", "acefast.*"]), "acefast.kernels", "acefast.csrc"],
    package_dir={"acefast.kernels": "kernels", "acefast.csrc": "csrc"},
    package_data={"acefast": ["demo/**/*"], "acefast.csrc": ["*.cu", "*.cpp", "common/*.cuh", "cpu/*"]},
    ext_modules=[
        Extension(f"acefast._{name}", [], depends=texts, **flags) for name, reason in reasons.items() if not reason
    ],
    cmdclass={"build_ext": Build},
)
