"""What is installed: acefast, ``kernels/`` as ``acefast.kernels``, and ``acefast._cuda`` where nvcc is found.

``$ACEFAST_CUDA``: 1 fails where it cannot be built, 0 leaves it out; else it is built where it can be, and where not
that is said. ``$ACEFAST_CUDA_ARCHS`` chooses the GPUs, such as "80;90".
"""

import os
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


def why_not() -> str:
    """Why acefast._cuda is not built; empty where it is."""
    asked = os.environ.get("ACEFAST_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"ACEFAST_CUDA must be 0 or 1, got {asked!r}")
    if asked == "0":
        return "ACEFAST_CUDA=0"
    try:
        import pybind11  # noqa: F401
    except ImportError:
        reason = "pybind11 is not installed"
    else:
        reason = "" if toolkit.find_nvcc() else "there is no nvcc in $CUDA_HOME, on the PATH or from nvidia-cuda-nvcc"
    if reason and asked == "1":
        raise SystemExit(f"acefast._cuda cannot be built: {reason}; ACEFAST_CUDA=0 installs acefast without it")
    return reason


class BuildCuda(build_ext):
    """Compiles csrc/*.cu with nvcc, then csrc/launcher.cpp around the results."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        nvcc, made = toolkit.find_nvcc(), Path(self.build_temp).resolve()
        made.mkdir(parents=True, exist_ok=True)
        archs = toolkit.archs_asked(nvcc)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for an nvcc
            list(pool.map(lambda name: toolkit.fatbin(nvcc, name, archs, made / f"{name}.fatbin"), toolkit.sources()))
        images = made / "images.cpp"
        images.write_text(_images(made, archs, toolkit.nvcc_version(nvcc)))
        ext.sources = ["csrc/launcher.cpp", str(images)]
        ext.include_dirs = [pybind11.get_include()]
        super().build_extension(ext)


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


reason = why_not()
if reason:
    print(f"acefast: without CUDA C++ kernels built ahead of time: {reason}", file=sys.stderr)
flags = {"extra_compile_args": ["-std=c++17", "-O2", "-g0", "-fvisibility=hidden"], "extra_link_args": ["-s"]}
setup(
    packages=[*find_packages(include=["acefast", "acefast.*"]), "acefast.kernels", "acefast.csrc"],
    package_dir={"acefast.kernels": "kernels", "acefast.csrc": "csrc"},
    package_data={"acefast": ["demo/**/*"], "acefast.csrc": ["*.cu", "*.cpp", "common/*.cuh"]},
    ext_modules=[] if reason else [Extension("acefast._cuda", [], **flags)],
    cmdclass={"build_ext": BuildCuda},
)
