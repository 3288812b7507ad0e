"""CUDA kernels on a GPU, by both paths: parity, determinism, graphs, threads, streams and errors."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

import acefast
from acefast.backends import why_unavailable
from acefast.cases import all_cases
from acefast.cuda import loader, toolkit
from acefast.ops.qk_norm_rope import qk_norm_rope, qk_norm_rope_reference
from tests.gpu import test_kernels_gpu as any_family

ROOT = Path(__file__).parents[2]
ENTRY, TYPES = "qk_norm_rope_h4_bf16", "ppppppiillllllf"
AHEAD, LATER = PATHS = ("ahead of time", "at first use")
CASES = [pytest.param(case, id=case.name) for case in all_cases("cuda")]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """acefast._cuda: the one that is installed, or made here for this GPU alone."""
    if importlib.util.find_spec("acefast._cuda"):
        from acefast import _cuda

        return _cuda
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    if toolkit.find_nvcc() is None:
        pytest.skip("no nvcc here")
    made, sm = tmp_path_factory.mktemp("built"), loader.sm_of(torch.cuda.current_device())
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", made, "--build-temp", made / "temp"]
    settings = {**os.environ, "ACEFAST_CUDA": "1", "ACEFAST_CUDA_ARCHS": str(sm)}
    subprocess.run(command, cwd=ROOT, env=settings, check=True)
    (place,) = made.glob("acefast/_cuda*.so")
    spec = importlib.util.spec_from_file_location("acefast._cuda", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=PATHS)
def path(request, monkeypatch, tmp_path):
    """The path that kernels are loaded by."""
    if request.param == AHEAD:
        module = request.getfixturevalue("built")
        monkeypatch.setitem(sys.modules, "acefast._cuda", module)
        monkeypatch.setattr(acefast, "_cuda", module, raising=False)
    else:
        pytest.importorskip("cupy")
        monkeypatch.setattr(loader, "why_not_ahead", lambda sm: "not asked for")
    forget()
    yield request.param
    forget()


def forget() -> None:
    for cached in (loader._function, loader._module, loader._ahead):
        cached.cache_clear()
    loader._allowed.clear()


def given(dtype=torch.bfloat16):
    """8 heads of queries and 8 of keys, not rotated."""
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(2, 5000, 24 * 128, device="cuda", generator=generator).to(dtype)
    weights = torch.rand(2, 128, device="cuda", generator=generator).to(dtype) + 0.5
    return qkv, *weights, None, None, 8, 8


def off(keys, qkv, *rest) -> float:
    meant = qk_norm_rope_reference(qkv.float(), *rest)[1].double()
    return ((keys.double() - meant).norm() / meant.norm()).item()


def test_the_path_is_told(path):
    here = loader.paths(loader.current_sm())
    assert here[path].startswith("in force")
    driver, _ = loader._function("qk_norm_rope", ENTRY, 0, torch.cuda.current_device())
    assert ("CuPy" in type(driver).__name__) == (path == LATER)


@pytest.mark.parametrize("case", CASES)
def test_case_is_the_reference_and_the_same_bits_again_and_from_a_graph(path, case, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    any_family.test_outputs_are_the_reference_in_fp32(case)
    any_family.test_two_runs_give_the_same_bits(case)
    any_family.test_a_replayed_graph_gives_the_same_bits(case)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 4e-4), (torch.bfloat16, 3e-3)])
def test_an_op_runs_on_it_plain_and_compiled(path, dtype, most, monkeypatch):
    monkeypatch.setattr("acefast.backends._why_not_installed", lambda name: "")
    assert why_unavailable("cuda") == ""
    qkv, *rest = given(dtype)
    keys = qk_norm_rope(qkv, *rest, backend="cuda")[1]
    assert off(keys, qkv, *rest) <= most
    compiled = torch.compile(
        lambda qkv: qk_norm_rope(qkv, *rest, backend="cuda")[1] + 0, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(qkv), keys)


def test_a_thread_and_a_stream_of_their_own(path):
    qkv, *rest = given()
    got = []
    forget()  # loaded and launched by the thread, which has not yet touched a GPU

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            got.append(qk_norm_rope(qkv, *rest, backend="cuda")[1])
            torch.cuda.current_stream().synchronize()

    torch.cuda.synchronize()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert off(got[0], qkv, *rest) <= 3e-3 and got[0].shape == (2, 5000, 8, 128)


def test_errors_tell_the_kernel_and_the_gpu_and_leave_it_usable(path):
    qkv, *rest = given()
    strides = 5000 * 3072, 3072
    values = (qkv, *rest[:2], None, None, qkv, 100, 8, *strides, *strides, 0, 0, 1e-6)
    index = torch.cuda.current_device()
    with pytest.raises(
        RuntimeError, match=rf"qk_norm_rope: {ENTRY} failed on cuda:{index} with .* 2048 threads.*: CUDA_ERR"
    ):
        loader.launch("qk_norm_rope", ENTRY, (1, 1, 1), 2048, 0, values, TYPES)
    with pytest.raises(
        RuntimeError, match=r"qk_norm_rope: qk_norm_bf64 failed on .*(CUDA_ERROR_NOT_FOUND|no entry point)"
    ):
        loader.launch("qk_norm_rope", "qk_norm_bf64", (1, 1, 1), 128, 0, values, TYPES)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        loader.launch("qk_norm_rope", ENTRY, (1, 1, 1), 128, 10**6, values, TYPES)
    torch.cuda.synchronize()
    assert off(qk_norm_rope(qkv, *rest, backend="cuda")[1], qkv, *rest) <= 3e-3


def test_the_command_tells_and_builds():
    command = [sys.executable, "-m", "acefast.cli"]
    told = subprocess.run([*command, "info"], capture_output=True, text=True, cwd=ROOT).stdout
    assert re.search(r"^cuda +ahead of time +(in force|\w+)", told, re.M)
    pytest.importorskip("cupy")
    made = subprocess.run([*command, "build", "--sm", "90"], capture_output=True, text=True, cwd=ROOT)
    assert made.returncode == 0, made.stderr
    assert re.match(r"sm_90: (compiled when|\w+, \d+ kB in)", made.stdout)
