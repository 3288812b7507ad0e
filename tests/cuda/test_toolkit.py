"""Sources, compilers and what is kept of compiled kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from acefast.cuda import toolkit
from acefast.cuda.toolkit import CompileError
from acefast.sim.resources import _tool, read_cubin

SMS = (80, 86, 89, 90, 100, 120)
needs_nvcc = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ACEFAST_CACHE", str(tmp_path / "cache"))
    toolkit.compiled.cache_clear()
    yield
    toolkit.compiled.cache_clear()


@pytest.fixture
def sources(monkeypatch, tmp_path) -> Path:
    """A folder of sources: double.cu, which includes common/two.cuh twice, by way of common/again.cuh too."""
    folder = tmp_path / "csrc"
    (folder / "common").mkdir(parents=True)
    (folder / "common/two.cuh").write_text("#pragma once\nconstexpr int TWO = 2;\n")
    (folder / "common/again.cuh").write_text('#pragma once\n#include "two.cuh"\n')
    (folder / "double.cu").write_text(
        '#include "common/two.cuh"\n#include "common/again.cuh"\n'
        '#define ENTRY(name, T) extern "C" __global__ void name(T* x) { x[threadIdx.x] *= TWO; }\n'
        "ENTRY(twice, int)\nENTRY(twice_float, float)\n"
    )
    monkeypatch.setattr(toolkit, "folder", lambda: folder)
    return folder


def fake_nvcc(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_nvcc_is_that_of_cuda_home_then_of_the_path_then_of_the_wheels(monkeypatch, tmp_path):
    packages = tmp_path / "site-packages"
    older, wheel = (fake_nvcc(packages / f"nvidia/cu{n}/bin/nvcc") for n in (12, 13))
    on_path, home = fake_nvcc(tmp_path / "bin/nvcc"), fake_nvcc(tmp_path / "cuda/bin/nvcc")
    monkeypatch.setattr(sys, "path", [str(packages)])
    monkeypatch.setattr(toolkit.sysconfig, "get_paths", lambda: {"purelib": str(tmp_path / "nothing")})
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert toolkit.find_nvcc() == home
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    assert toolkit.find_nvcc() == on_path
    on_path.chmod(0o644)
    monkeypatch.delenv("CUDA_HOME")
    assert toolkit.find_nvcc() == wheel  # the newest
    wheel.unlink()
    older.unlink()
    assert toolkit.find_nvcc() is None
    monkeypatch.setattr(toolkit.sysconfig, "get_paths", lambda: {"purelib": str(packages)})
    monkeypatch.setattr(sys, "path", [])  # as in pip's isolated build, which hides what is installed
    wheel.parent.rmdir()
    assert toolkit.find_nvcc() is None and fake_nvcc(wheel) == toolkit.find_nvcc()


@needs_nvcc
def test_the_environment_chooses_the_gpus_among_those_nvcc_knows(monkeypatch):
    nvcc = toolkit.find_nvcc()
    monkeypatch.delenv("ACEFAST_CUDA_ARCHS", raising=False)
    assert toolkit.archs_asked(nvcc) == SMS
    for text in ("90;80", " 80, 90 ", "80 90 80"):
        monkeypatch.setenv("ACEFAST_CUDA_ARCHS", text)
        assert toolkit.archs_asked(nvcc) == (80, 90)
    for text in ("sm_80", "75", "80;999"):
        monkeypatch.setenv("ACEFAST_CUDA_ARCHS", text)
        with pytest.raises(CompileError, match=r"ACEFAST_CUDA_ARCHS must be GPUs .*such as '80;90', got .*: 80, 86"):
            toolkit.archs_asked(nvcc)


def test_a_source_is_one_text_whose_lines_keep_their_names_and_whose_fingerprint_is_of_all_of_it(sources):
    text = toolkit.text_of("double")
    assert text.count("TWO = 2") == 1 and "#include" not in text and "#pragma" not in text
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if "#define ENTRY" in line)
    assert lines[at - 1] == '#line 3 "double.cu"'
    assert '#line 1 "common/two.cuh"' in lines
    assert toolkit.entries("double") == ("twice", "twice_float")
    one = toolkit.text_of("double", "twice")
    assert "ENTRY(twice, int)" in one and "twice_float" not in one and one.count("\n") == text.count("\n")
    with pytest.raises(CompileError, match="double: it has no entry point 'thrice'; it has twice, twice_float"):
        toolkit.text_of("double", "thrice")
    before = toolkit.fingerprint("double")
    assert before == toolkit.fingerprint("double") != toolkit.fingerprint("double", "twice")
    (sources / "common/two.cuh").write_text("#pragma once\nconstexpr int TWO = 1 + 1;\n")
    assert before != toolkit.fingerprint("double")


@needs_nvcc
def test_what_is_compiled_is_kept_until_a_source_changes(sources, monkeypatch, tmp_path):
    ptx, cubin = toolkit.compiled("double", "twice", 80)
    assert ".target sm_80" in ptx and "double.cu" in ptx and read_cubin(cubin).sm == 80
    toolkit.compiled.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(toolkit, "run_nvcc", lambda *_: pytest.fail("compiled again"))
        assert toolkit.compiled("double", "twice", 80) == (ptx, cubin)
    kept = sorted((tmp_path / "cache/cuda").iterdir())
    assert [path.suffix for path in kept] == [".cubin", ".ptx"] and kept[0].name.startswith("twice-sm80-nvcc1")
    toolkit.compiled.cache_clear()
    (sources / "common/two.cuh").write_text("#pragma once\nconstexpr int TWO = 3;\n")
    assert toolkit.compiled("double", "twice", 80) != (ptx, cubin)
    assert len(list((tmp_path / "cache/cuda").iterdir())) == 4


def test_where_nothing_can_be_kept_it_is_made_each_time(sources, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file")
    made = [toolkit.kept("double", "twice", 80, "x", "cubin", lambda to: to.write_bytes(b"code")) for _ in range(2)]
    assert made == [b"code"] * 2 and (tmp_path / "cache").read_text() == "a file"
    monkeypatch.delenv("ACEFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert toolkit.cache_folder() == tmp_path / "xdg/acefast/cuda"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert toolkit.cache_folder() == tmp_path / ".cache/acefast/cuda"


@needs_nvcc
def test_a_mistake_in_a_source_is_told_with_its_line(sources, monkeypatch):
    (sources / "double.cu").write_text("\nint x = y;\nENTRY(twice)\n")
    with pytest.raises(CompileError, match=r'double\.cu\(2\): error: identifier "y" is undefined'):
        toolkit.compiled("double", "twice", 80)
    monkeypatch.setattr(toolkit, "find_nvcc", lambda: None)
    with pytest.raises(CompileError, match=r"double: no nvcc in \$CUDA_HOME, on the PATH or from PyPI"):
        toolkit.compiled("double", "twice", 90)


def test_sources_include_nothing_of_the_toolkit():
    """NVRTC has no folder to look in."""
    for path in (*toolkit.folder().glob("*.cu"), *toolkit.folder().glob("common/*.cuh")):
        assert not [line for line in path.read_text().splitlines() if line.lstrip().startswith("#include <")], path


@pytest.mark.slow
@pytest.mark.parametrize("sm", SMS)
@pytest.mark.parametrize("source", toolkit.sources())
def test_nvrtc_compiles_the_same_sources_for_every_gpu_without_spills(source, sm, tmp_path):
    pytest.importorskip("cupy")
    from acefast.cuda.loader import compiled_by_nvrtc

    entries = toolkit.entries(source)
    every = sm == 80  # all entry points at once; elsewhere the last, as nvcc makes all for the wheel
    path = tmp_path / "kernels.cubin"
    path.write_bytes(cubin := compiled_by_nvrtc(source, "" if every else entries[-1], sm))
    command = [_tool("cuobjdump")[0], "--dump-resource-usage", path]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Function (\w+):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", told)
    assert sorted(found) == sorted((entry, "0", "0") for entry in (entries if every else entries[-1:]))
    assert cubin[49] == sm  # of the ELF header's flags


def test_nvrtc_tells_of_a_mistake_with_its_line(sources):
    pytest.importorskip("cupy")
    from acefast.cuda.loader import compiled_by_nvrtc

    (sources / "double.cu").write_text('#include "common/two.cuh"\nint x = y;\nENTRY(twice)\n')
    with pytest.raises(CompileError, match=r'double\.cu\(2\): error: identifier "y" is undefined'):
        compiled_by_nvrtc("double", "twice", 80)
    assert not os.path.exists(toolkit.cache_folder())
