"""Which instructions the CPU's kernels use, and what is said where they cannot run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from acefast import backends
from acefast.backends import BackendUnavailable, choose_backend, why_unavailable
from acefast.cli import main
from acefast.ops.linear import linear
from tests.cpu.isas import NAMES, called, extension, openmp_libraries

CPU = torch.device("cpu")
CALL = """
import torch
from acefast.ops.linear import linear
ones = torch.ones(3, 64, dtype=torch.bfloat16)
print(linear(ones, ones, backend="cpu")[0, 0].item())
"""
# Without torch, which takes seconds; its OpenMP alone.
NAMED = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
from acefast import _cpu
print(_cpu.isa(), _cpu.engine(), _cpu.engine8())
"""
ENGINES = {
    "portable": "fp32 int16",
    "avx2": "fp32 int16",
    "avx512": "fp32 int16",
    "bf16": "bf16 vnni",
    "amx": "amx amx",
}


@pytest.fixture
def afresh():
    """What was found out about the installation is forgotten, before and after."""
    backends._why_not_installed.cache_clear()
    yield
    backends._why_not_installed.cache_clear()


@pytest.mark.parametrize("name", ("", *NAMES))
def test_the_environment_lowers_the_instructions_to_what_it_names(name):
    most = extension().supported()
    used = min(name or most, most, key=NAMES.index)
    folder = Path(torch.__file__).resolve().parent
    (openmp,) = [path for path in openmp_libraries() if folder in Path(path).resolve().parents]
    done = called(NAMED, openmp, ACEFAST_ISA=name)
    assert done.stdout == f"{used} {ENGINES[used]}\n", done.stderr


def test_a_name_that_is_none_is_one_sentence():
    extension()
    done = called(CALL, ACEFAST_ISA="avx1024")
    sentence = "backend='cpu' cannot run: ACEFAST_ISA must be portable, avx2, avx512, bf16 or amx, got avx1024"
    assert done.stderr.splitlines()[-1] == f"acefast.backends.BackendUnavailable: {sentence}"
    told = called("from acefast.cli import main; main(['info'])", ACEFAST_ISA="avx1024").stdout
    assert f"cpu      {sentence}\n" in told
    with pytest.raises(ValueError, match="isa must be portable, avx2, avx512, bf16 or amx, got sse"):
        extension().limit_isa("sse")


def test_auto_takes_it_on_a_cpu_for_what_it_takes(monkeypatch):
    extension()
    monkeypatch.delenv("ACEFAST_BACKEND", raising=False)
    assert choose_backend("op", None, CPU, ("cuda", "triton", "cpu")) == "cpu"
    assert choose_backend("op", None, torch.device("meta"), ("cpu",)) == "reference"
    x = torch.randn(4, 64)
    with pytest.raises(
        BackendUnavailable, match="linear: backend='cpu' cannot run: it has no cpu kernel for this input"
    ):
        linear(x, x, backend="cpu")
    assert torch.equal(linear(x, x), linear(x, x, backend="reference"))


@pytest.mark.parametrize("how", ("missing", "broken"))
def test_without_it_auto_takes_the_reference_and_a_name_says_why(how, monkeypatch, afresh, capsys):
    def broken(name):
        raise ImportError("undefined symbol: GOMP_parallel")

    if how == "missing":
        monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
        why = "acefast was installed without its C++ kernels for the CPU"
    else:
        monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: True)
        monkeypatch.setattr(backends.importlib, "import_module", broken)
        why = "acefast._cpu cannot be loaded: undefined symbol: GOMP_parallel"
    assert why_unavailable("cpu") == why
    x = torch.randn(4, 64).bfloat16()
    assert torch.equal(linear(x, x), linear(x, x, backend="reference"))
    with pytest.raises(BackendUnavailable, match=re.escape(f"linear: backend='cpu' cannot run: {why}; try ")):
        linear(x, x, backend="cpu")


def test_info_tells_what_is_in_use(capsys, monkeypatch):
    cpu = extension()
    assert main(["info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["backends"]["cpu"] == "available"
    assert told["cpu"] == {
        "instructions": cpu.isa(),
        "supported": cpu.supported(),
        "engine": cpu.engine(),
        "engine8": cpu.engine8(),
    }
    assert main(["info"]) == 0
    line = f"cpu      instructions  {cpu.isa()} of at most {cpu.supported()}; products by {cpu.engine()}, of 8 bits by "
    assert line in capsys.readouterr().out
    monkeypatch.setattr("acefast.cpu.extension.why_unavailable", lambda name: "it is not here")
    assert main(["info"]) == 0
    assert "cpu      it is not here\n" in capsys.readouterr().out
