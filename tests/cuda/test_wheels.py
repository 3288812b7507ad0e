"""What ``pip install`` makes with nvcc, without, with that of PyPI, editable; the launcher, on a driver for tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import acefast
from acefast.cuda import toolkit
from acefast.sim.resources import _tool

ROOT = Path(__file__).parents[2]
LIMIT = 30e6  # bytes of a wheel for all GPUs
REGISTERS = {"apg": 128, "sampler_step": 128}  # two blocks of 256 threads on a multiprocessor
TOOLS = ("pip", "setuptools", "_distutils_hack", "pybind11")
SHOW = "from acefast import _cuda as c; print(c.archs, c.cuda_version, len(c.image('qk_norm_rope')) > 1000)"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="nvcc is used on Linux")]


@pytest.fixture
def tree(tmp_path) -> Path:
    """The sources without the demo's weights and all kernels but one, which only cost time."""
    tree = tmp_path / "tree"
    for name in ("acefast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, tree / name, ignore=lambda at, found: [n for n in found if left_out(at, n)])
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


def left_out(folder: str, name: str) -> bool:
    path = Path(folder, name)
    unused = path.suffix == ".so" or (path.suffix == ".cu" and path.stem != "qk_norm_rope")
    return unused or name in ("demo", "__pycache__") or path == ROOT / "acefast/kernels"


@pytest.fixture
def python(tmp_path):
    """Makes a Python that has nothing but what builds, and packages of this one that are named."""

    def make(*packages: str) -> Path:
        venv.create(tmp_path / "python", symlinks=True)
        (site,) = (tmp_path / "python").glob("lib/python*/site-packages")
        for name in (*TOOLS, *packages):
            found = importlib.util.find_spec(name)
            if found is None:
                pytest.skip(f"{name} is not installed")
            place = Path(next(iter(found.submodule_search_locations)))
            for path in (place, *place.parent.glob(f"{name}-*.dist-info")):
                (site / path.name).symlink_to(path)
        return tmp_path / "python/bin/python"

    return make


def environment(**more: str) -> dict[str, str]:
    """A build's environment, which has no nvcc and leaves acefast._cpu to tests/cpu/test_build.py."""
    path = [p for p in os.environ["PATH"].split(os.pathsep) if not os.access(Path(p, "nvcc"), os.X_OK)]
    changed = ("CUDA_HOME", "PYTHONPATH", "ACEFAST_CUDA", "ACEFAST_CUDA_ARCHS")
    left = {name: value for name, value in os.environ.items() if name not in changed}
    return {**left, "PATH": os.pathsep.join(path), "ACEFAST_CPU": "0", **more}


def with_nvcc(**more: str) -> dict[str, str]:
    if (nvcc := toolkit.find_nvcc()) is None:
        pytest.skip("no nvcc here")
    return environment(CUDA_HOME=str(nvcc.parents[1]), **more)


def pip(python: str | Path, *words: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess:
    command = [python, "-m", "pip", *words, "--no-deps", "--no-build-isolation"]
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)


def wheel(python: str | Path, tree: Path, to: Path, env: dict[str, str]) -> tuple[Path, str]:
    """A wheel of the tree, and what its build said."""
    done = pip(python, "wheel", "-v", "-w", to, tree, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(to.glob("*.whl")), done.stdout + done.stderr


def installed_by_pip() -> Path | None:
    """Where the acefast under test lies, if ``pip install`` built it for all GPUs and nothing has changed since."""
    folder = Path(acefast.__file__).parents[1]
    if folder == ROOT or (built := importlib.util.find_spec("acefast._cuda")) is None:
        return None
    made, pairs = Path(built.origin).stat().st_mtime, [("acefast", "acefast"), ("kernels", "acefast/kernels")]
    ours = [
        (path, folder / inside / path.relative_to(ROOT / name))
        for name, inside in (*pairs, ("csrc", "acefast/csrc"))
        for path in (ROOT / name).rglob("*")
        if path.suffix in (".py", ".cu", ".cuh", ".cpp") and path.is_file()
    ]
    same = all(there.is_file() and path.read_bytes() == there.read_bytes() for path, there in ours)
    older = all((ROOT / name).stat().st_mtime < made for name in ("setup.py", "pyproject.toml"))
    archs = importlib.import_module("acefast._cuda").archs
    return folder if same and older and tuple(archs) == toolkit.ARCHS else None


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel for all GPUs installs it, in a folder: pip's own, where that was made of these sources."""
    if there := installed_by_pip():
        packed = shutil.make_archive(str(tmp_path_factory.mktemp("wheel") / "acefast"), "zip", there, "acefast")
        assert Path(packed).stat().st_size <= LIMIT
        (tags,) = there.glob("acefast-*.dist-info/WHEEL")
        assert re.search(r"^Tag: cp\d+-cp\d+-linux_\w+$", tags.read_text(), re.MULTILINE)
        return there
    pytest.importorskip("pybind11")
    made, _ = wheel(sys.executable, ROOT, tmp_path_factory.mktemp("wheel"), with_nvcc())
    assert made.stat().st_size <= LIMIT
    assert re.search(r"-cp\d+-cp\d+-linux_\w+\.whl$", made.name)
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(made).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """A folder with the libcuda.so.1 that tests/cuda/libcuda.cpp is."""
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("libcuda.cpp")
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", folder / "libcuda.so.1"], check=True)
    return folder


def run(folder: Path, code: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(**more), capture_output=True, text=True
    )
    return done.stdout + done.stderr


def test_with_nvcc_a_wheel_for_all_gpus_is_small_and_holds_the_sources_too(installed):
    assert run(installed, SHOW) == "(80, 86, 89, 90, 100, 120) 13000 True\n"
    told = run(installed, "from acefast.cuda import toolkit as t; print(t.folder(), t.sources())")
    assert told.startswith(f"{installed}/acefast/csrc (") and "'qk_norm_rope'" in told
    told = run(installed, "from acefast.cuda import toolkit as t; from acefast import _cuda as c\n"
               "print(c.sources == {n: t.fingerprint(n) for n in t.sources()})")  # fmt: skip
    assert told == "True\n"


@pytest.mark.parametrize("source", toolkit.sources())
def test_no_entry_point_spills_on_any_gpu_and_its_blocks_fit(installed, source, tmp_path):
    command = f"from acefast import _cuda as c; open('{tmp_path}/image', 'wb').write(c.image('{source}'))"
    assert run(installed, command) == ""
    words = [_tool("cuobjdump")[0], "--dump-resource-usage", tmp_path / "image"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", told)
    assert sorted(entry for entry, *_ in found) == sorted(6 * toolkit.entries(source))
    assert [entry for entry, _, *local in found if local != ["0", "0"]] == []
    assert max(int(registers) for _, registers, *_ in found) <= REGISTERS.get(source, 255)


def test_without_nvcc_everything_else_is_installed_and_it_says_so(python, tree, tmp_path):
    bare = python()
    made, told = wheel(bare, tree, tmp_path / "wheels", environment())
    assert made.name.endswith("-py3-none-any.whl")
    assert "acefast: without CUDA C++ kernels built ahead of time: there is no nvcc in $CUDA_HOME" in told
    names = zipfile.ZipFile(made).namelist()
    assert "acefast/csrc/qk_norm_rope.cu" in names and not [name for name in names if name.endswith(".so")]
    done = pip(bare, "wheel", "-w", tmp_path / "none", tree, env=environment(ACEFAST_CUDA="1"))
    assert done.returncode and "acefast._cuda cannot be built: there is no nvcc" in done.stdout + done.stderr


def test_it_can_be_left_out_where_there_is_an_nvcc(python, tree, tmp_path):
    made, told = wheel(python(), tree, tmp_path / "wheels", with_nvcc(ACEFAST_CUDA="0"))
    assert made.name.endswith("-py3-none-any.whl") and "built ahead of time: ACEFAST_CUDA=0" in told


def test_with_the_nvcc_of_pypi_for_one_gpu(python, tree, tmp_path):
    here = python("nvidia")
    if not list(here.parents[1].glob("lib/python*/site-packages/nvidia/cu*/bin/nvcc")):
        pytest.skip("nvidia-cuda-nvcc is not installed")
    settings = {"ACEFAST_CUDA": "1", "ACEFAST_CUDA_ARCHS": "80"}
    made, _ = wheel(here, tree, tmp_path / "wheels", environment(**settings))
    zipfile.ZipFile(made).extractall(tmp_path / "installed")
    assert run(tmp_path / "installed", SHOW) == "(80,) 13000 True\n"


def test_an_editable_install_uses_the_sources_where_they_are(python, tree):
    here = python()
    done = pip(here, "install", "-e", tree, env=with_nvcc(ACEFAST_CUDA="1", ACEFAST_CUDA_ARCHS="80"))
    assert done.returncode == 0, done.stdout + done.stderr
    code = SHOW + "; from acefast.cuda import toolkit as t; print(t.folder())"
    told = subprocess.run([here, "-c", code], capture_output=True, text=True, env=environment(), cwd="/")
    assert told.stdout == f"(80,) 13000 True\n{tree}/csrc\n", told.stderr


CALLS = """
import threading
from acefast import _cuda as c
module = c.load(1, c.image("qk_norm_rope"))
function = c.function(module, "entry", 1024)
def launch(): c.launch(1, function, (3, 2, 1), 128, 1024, 5, "pilf", [2**63 + 16, -7, -2**40, 0.5])
launch()
thread = threading.Thread(target=launch); thread.start(); thread.join()
def said(call, *given):
    try: call(*given)
    except Exception as error: print(type(error).__name__, error)
said(c.load, 1, b"bad")
said(c.launch, 1, function, (666, 1, 1), 128, 0, 5, "pilf", [0, 0, 0, 0.0])
said(c.launch, 1, function, (1, 1, 1), 128, 0, 5, "pilf", [0, 2**31, 0, 0.0])
said(c.launch, 1, function, (1, 1, 1), 128, 0, 5, "pil", [0, 0, 0, 0.0])
said(c.launch, 1, function, (1, 1, 1), 128, 0, 5, "q", [0])
print(c.driver_version())
"""


def test_the_launcher_calls_the_driver_as_it_was_asked_to(installed, driver, tmp_path):
    log = tmp_path / "log"
    told = run(installed, CALLS, LD_LIBRARY_PATH=str(driver), LIBCUDA_LOG=str(log), LIBCUDA_VERSION="13010")
    launch = "launch 9 in 101: 3 2 1, 128 1 1, 1024, stream 5, 8000000000000010 -7 -1099511627776 0.5"
    assert log.read_text().splitlines() == [
        *("init", "context 101", "load 50ed in 101", "function entry", "attribute 8 1024"),
        *(launch, "context 101", launch),  # a thread of its own gets the context too
    ]
    errors = told.splitlines()
    assert errors[0] == "RuntimeError CUDA_ERROR_INVALID_IMAGE, something is wrong (cuModuleLoadData)"
    assert errors[1] == "RuntimeError CUDA_ERROR_LAUNCH_FAILED, something is wrong (cuLaunchKernel)"
    assert "RuntimeError" in errors[2] and "cast" in errors[2]  # no int32
    assert errors[3:] == ["ValueError arguments and types", "ValueError a type is one of p, i, l, f", "13010"]


def test_without_a_driver_it_imports_and_a_call_says_what_is_missing(installed):
    told = run(installed, "from acefast import _cuda as c; print(c.driver_version()); c.load(0, b'')")
    assert told.startswith("0\n") and "RuntimeError: there is no CUDA driver: libcuda.so.1 is not found" in told


CUPY = """
from types import SimpleNamespace
import cupy.cuda, torch
from acefast.cuda import loader
cupy.cuda.runtime = SimpleNamespace(setDevice=lambda device: None)  # needs more of a driver
torch.cuda.current_device, torch.cuda.get_device_capability = lambda: 1, lambda device: (8, 0)
torch.cuda.current_stream = lambda device: SimpleNamespace(cuda_stream=5)
loader.why_not_ahead = lambda sm: "not asked for"
loader.compiled_by_nvrtc = lambda source, entry, sm: b"code"  # NVRTC looks for more of a driver
for grid in ((3, 2, 1), (666, 1, 1)):
    loader.launch("qk_norm_rope", "entry", grid, 128, 1024, (None, -7, -(2**40), 0.5), "pilf")
"""


def test_cupys_binding_calls_the_driver_as_it_was_asked_to(driver, tmp_path):
    pytest.importorskip("cupy")
    log = tmp_path / "log"
    settings = {"LIBCUDA_LOG": str(log), "LIBCUDA_VERSION": "13000", "LD_LIBRARY_PATH": str(driver)}
    told = run(Path(acefast.__file__).parents[1], CUPY, **settings)
    assert [line for line in log.read_text().splitlines() if line != "init"] == [
        *("load 636f in 0", "function entry", "attribute 8 1024"),
        "launch 9 in 0: 3 2 1, 128 1 1, 1024, stream 5, 0 -7 -1099511627776 0.5",
    ]
    assert re.search(
        r"RuntimeError: qk_norm_rope: entry failed on cuda:1 with \(None, -7, .*CUDA_ERROR_LAUNCH_FAILED", told
    )
