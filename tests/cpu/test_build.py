"""How setup.py builds acefast._cpu: with which compiler, for which instructions, and what happens without one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acefast.cpu import toolkit
from tests.cpu.isas import NAMES, extension

ROOT = Path(__file__).parents[2]
OPS = sorted(path.stem for path in (ROOT / "csrc").glob("*_cpu.cpp"))
CANNOT = "cannot compile C++17 with the headers of Python"
LOAD = """
import torch
import importlib.util, sys
spec = importlib.util.spec_from_file_location("acefast._cpu", sys.argv[1])
cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpu)
x, w, y = (torch.full((33, 64), value, dtype=torch.bfloat16) for value in (1, 2, 0))
cpu.linear(x.data_ptr(), 33, 64, 64, w.data_ptr(), 64, 33, 0, False, 0, 0, y.data_ptr(), 64, 2)
print(cpu.supported(), (y[:, :33] == 128).all().item(), y[:, 33:].any().item())
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the extension is built on Linux")


def setup(*words: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """setup.py in a Python that imports pybind11; PATH and CXX are those given."""
    changed = ("CXX", "ACEFAST_CPU", "ACEFAST_CUDA", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in changed}
    env |= {"ACEFAST_CUDA": "0", **environment}
    command = [sys.executable, "setup.py", "-q", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return setup("build_ext", "--build-temp", folder / "temp", "--build-lib", folder / "lib", **environment)


def loaded(folder: Path) -> str:
    (made,) = (folder / "lib/acefast").glob("_cpu.*.so")
    done = subprocess.run([sys.executable, "-c", LOAD, made], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """What the first compiler on the PATH makes."""
    pytest.importorskip("pybind11")
    if reason := toolkit.why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("built")
    done = build(folder, ACEFAST_CPU="1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_op_is_compiled_for_every_level_and_the_extension_runs(built):
    made = {path.stem for path in (built / "temp").rglob("*.o")}
    known = toolkit.isas()
    assert {f"{op}.{level}" for op in OPS for level in toolkit.LEVELS if level in known} <= made
    assert loaded(built).split()[1:] == ["True", "False"]


@pytest.mark.slow
def test_no_function_of_a_level_can_be_taken_for_one_of_another(built):
    """A linker keeps one of the inline functions that have one name. Whose name has no level must not be among them:
    it could be the one for AVX-512, called where there is none."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not on the PATH")
    objects = [path for path in (built / "temp").rglob("*.o") if path.stem.split(".")[-1] in NAMES]
    assert len(objects) >= len(OPS)
    for path in objects:
        assert unsafe(path) == []


def unsafe(path: Path) -> list[str]:
    """Weak functions of an object file whose names are not in the namespace of its level."""
    listed = subprocess.run(["nm", "--demangle", "--defined-only", path], capture_output=True, text=True, check=True)
    level = toolkit.namespace(path.stem.split(".")[-1])
    weak = re.findall(r"^\w+ [WVu] (.+)$", listed.stdout, re.M)
    return [name for name in weak if not re.search(rf"\b{level}::", name) and not name.startswith("DW.ref.")]


def test_a_function_without_a_level_is_seen(tmp_path):
    extension()
    source = tmp_path / "twice_cpu.cpp"
    body = "__attribute__((noinline)) inline float twice(float x) { return x + x; }"
    call = "namespace LEVEL { float four(float x) { return twice(twice(x)); } }"
    for place, found in (("%s", ["twice(float)"]), ("namespace LEVEL { %s }", [])):
        source.write_text('#include "cpu/vector.h"\n' + place % body + "\n" + call + "\n")
        made = tmp_path / "twice_cpu.portable.o"
        subprocess.run([*toolkit.words(source, "portable", ROOT / "csrc"), "-c", "-o", made], check=True)
        assert unsafe(made) == found


@pytest.mark.slow
def test_a_compiler_without_amx_builds_what_it_knows(tmp_path):
    """$CXX, which may be several words, compiles all of it and links it too."""
    extension()
    log, wrapper = tmp_path / "log", tmp_path / "old compiler"
    wrapper.write_text(f"""#!/bin/sh
echo "$@" >> "{log}"
for word in "$@"; do case $word in -mamx*) echo unknown option $word >&2; exit 1;; esac; done
shift; exec {shutil.which(toolkit.compiler()[0])} "$@" -O0
""")
    wrapper.chmod(0o755)
    done = build(tmp_path, CXX=f"'{wrapper}' --first", ACEFAST_CPU="1", CC="/bin/false")
    assert done.returncode == 0, done.stderr
    most = min("bf16", extension().supported(), key=NAMES.index)
    assert loaded(tmp_path) == f"{most} True False\n"
    lines = log.read_text().splitlines()
    assert all(line.startswith("--first ") for line in lines) and any("-shared" in line for line in lines)
    assert not list((tmp_path / "temp").rglob("engine_amx*.o"))


def test_without_a_compiler_all_else_is_installed_and_one_line_says_so(tmp_path):
    """What setup.py says and lists, with nothing on the PATH."""
    done = setup("--name", PATH="", ACEFAST_CPU="")
    said = "acefast: without C++ kernels for the CPU: there is no C++ compiler in $CXX or on the PATH\n"
    assert done.returncode == 0 and done.stderr.count("C++ kernels for the CPU") == 1 and said in done.stderr
    done = build(tmp_path, PATH="")
    assert done.returncode == 0 and not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"PATH": "", "ACEFAST_CPU": "1"}, "there is no C++ compiler in $CXX or on the PATH"),
        ({"CXX": "/bin/false", "ACEFAST_CPU": "1"}, f"/bin/false {CANNOT}"),
        ({"CXX": "no-such-compiler -x", "ACEFAST_CPU": "1"}, f"no-such-compiler -x {CANNOT}"),
    ],
)
def test_one_that_is_asked_for_and_cannot_be_built_ends_the_install(environment, said):
    done = setup("--name", **environment)
    way_out = "ACEFAST_CPU=0 installs acefast without it"
    assert done.returncode and done.stderr == f"acefast._cpu cannot be built: {said}; {way_out}\n"


def test_an_answer_that_is_none_ends_the_install():
    done = setup("--name", ACEFAST_CPU="yes")
    assert done.returncode and done.stderr == "ACEFAST_CPU must be 0 or 1, got 'yes'\n"


def test_it_can_be_left_out(tmp_path):
    done = build(tmp_path, ACEFAST_CPU="0")
    assert done.returncode == 0 and not list(tmp_path.rglob("*.so"))
    assert "acefast: without C++ kernels for the CPU: ACEFAST_CPU=0\n" in done.stderr
