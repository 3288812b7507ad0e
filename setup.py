"""What is installed: acefast, ``kernels/`` as ``acefast.kernels``, ``acefast._cuda`` where nvcc is found, and
``acefast._cpu`` where a C++ compiler is.

``$ACEFAST_CUDA`` and ``$ACEFAST_CPU``: 1 fails where it cannot be built, 0 leaves it out; else it is built where it can
be, and where not that is said. ``$ACEFAST_CUDA_ARCHS`` chooses the GPUs, such as "80;90".
"""

import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent))
from acefast.cpu import toolkit as cpu
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
        known = cpu.isas()
        ext.extra_objects = cpu.objects(Path("csrc"), known, made)
        ext.sources = ["csrc/cpu/module.cpp", "csrc/cpu/machine.cpp"]
        ext.define_macros = [("BUILT", str(len(known) - 1))]


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


reasons = {"cuda": why_not("cuda", no_nvcc()), "cpu": why_not("cpu", cpu.why_not())}
if compiler := cpu.compiler():
    os.environ["CXX"] = shlex.join(compiler)  # setuptools takes the same

for name, kernels in (("cuda", "CUDA C++ kernels built ahead of time"), ("cpu", "C++ kernels for the CPU")):
    if reasons[name]:
        print(f"acefast: without {kernels}: {reasons[name]}", file=sys.stderr)
texts = [str(path) for path in Path("csrc").rglob("*.*")]
flags = {"extra_compile_args": [*cpu.COMMON, "-O2"], "extra_link_args": ["-s"]}
setup(
    packages=[*find_packages(include=["acefast", "acefast.*"]), "acefast.kernels", "acefast.csrc"],
    package_dir={"acefast.kernels": "kernels", "acefast.csrc": "csrc"},
    package_data={"acefast": ["demo/**/*"], "acefast.csrc": ["*.cu", "*.cpp", "common/*.cuh", "cpu/*"]},
    ext_modules=[
        Extension(f"acefast._{name}", [], depends=texts, **flags) for name, reason in reasons.items() if not reason
    ],
    cmdclass={"build_ext": Build},
)
