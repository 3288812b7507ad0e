"""The house rules: one op, one name, its rooms; a light import; an install that brings one top-level package."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = sorted(p.stem for p in (ROOT / "acefast/ops").glob("*.py") if p.stem != "__init__")

CODE = (".cu", ".cuh", ".cpp", ".h")
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
CPU = sorted(p.stem.removesuffix("_cpu") for p in (ROOT / "csrc").glob("*_cpu.cpp"))
KERNELS = sorted(p for p in (ROOT / "kernels").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("op", OPS)
def test_op_has_a_proof_and_a_benchmark(op):
    assert (ROOT / f"tests/ops/test_{op}.py").exists()
    assert (ROOT / f"bench/ops/bench_{op}.py").exists()


@pytest.mark.parametrize("op", OPS)
def test_op_has_a_reference_and_dispatch_of_its_own_name(op):
    text = (ROOT / f"acefast/ops/{op}.py").read_text()
    assert f'OP = "{op}"' in text and "_reference(" in text and "choose_backend(" in text


def test_every_kernel_belongs_to_an_op():
    kernels = [p.stem for p in (ROOT / "kernels").glob("*.py") if p.stem != "__init__"]
    cuda = [p.stem for p in (ROOT / "csrc").glob("*.cu")]
    assert {*kernels, *cuda, *CPU} <= set(OPS)
    assert all((ROOT / f"acefast/cuda/{name}.py").exists() for name in cuda)
    assert all((ROOT / f"acefast/cpu/{name}.py").exists() for name in CPU)


@pytest.mark.parametrize("op", OPS)
def test_op_says_what_it_takes_gives_and_refuses_and_where_it_is_from(op):
    text = (ROOT / f"acefast/ops/{op}.py").read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    public = [f for f in functions if "backend" in [a.arg for a in f.args.kwonlyargs]]
    assert public and "Source:" in text
    for function in public:
        told = ast.get_docstring(function)
        assert "Args:" in told and "backend:" in told
        assert ("Returns:" in told and "Raises:" in told) or "Returns, raises:" in told


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_cuda_kernels_say_what_they_compute_and_what_bounds_them(path):
    text = path.read_text()
    head = text[: text.index("#include")]
    assert all(re.search(rf"^// {word} +\S", head, re.M) for word in ("Math", "Tiling", "Bytes", "Bound"))
    assert "atomic" not in text and 'extern "C" __global__ __launch_bounds__' in text


@pytest.mark.parametrize("op", CPU)
def test_cpu_kernels_say_so_too_belong_to_a_level_and_are_proved(op):
    text = (ROOT / f"csrc/{op}_cpu.cpp").read_text()
    head, code = text[: text.index("#include")], text[text.index("#include") :]
    assert all(re.search(rf"^// {word} +\S", head, re.M) for word in ("Math", "Tiling", "Bytes", "Bound"))
    assert re.match(r"((#|//).*\n|\n)*namespace LEVEL {", code)
    assert not re.search(
        r"std::(vector|string|map|function|unique_ptr|array)", code
    )  # inline functions without a level
    assert '"cpu"' in (ROOT / f"acefast/ops/{op}.py").read_text()
    assert (ROOT / f"tests/ops/test_{op}_cpu.py").exists()


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_kernels_tune_nothing_at_run_time_and_add_in_one_order(path):
    """So that the same input gives the same bits: no choice by time, no sum in the order in which programs arrive."""
    assert not re.search(r"\bautotune\b|\bheuristics\b|\btl\.atomic_|\bdo_bench\b", path.read_text())


def test_main_loops_have_no_masks():
    """Of a kernel's loops over matrix products the first is the main one; ragged ends are loops of their own."""
    looped = []
    for path in KERNELS:
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            called = [(loop, _called(loop)) for loop in ast.walk(function) if isinstance(loop, ast.For)]
            loops = [(loop, calls) for loop, calls in called if {"dot", "attend"} & {name for name, _ in calls}]
            if loops:
                _, calls = min(loops, key=lambda found: found[0].lineno)
                looped.append(path.stem)
                assert not [name for name, words in calls if "mask" in words], path
    convolutions = ["audio_conv1d", "conv1d", "conv_transpose1d", "residual_unit"]
    linear = ["linear_attention"] * 2  # of chunks and of rows
    others = ["cross_attention", *linear, "linear_swiglu", "self_attention", "vit_linear_attention"]
    assert looped == sorted([*convolutions, *others])


def _called(node: ast.AST) -> list[tuple[str, set[str]]]:
    """Names of the functions called within, each with its keywords."""
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    return [(getattr(c.func, "attr", getattr(c.func, "id", "")), {k.arg for k in c.keywords}) for c in calls]


def test_only_the_command_imports_the_simulator():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "acefast").rglob("*.py")
        if re.search(r"^\s*(from|import) acefast(\.| import )sim\b", path.read_text(), re.M)
    }
    assert {user for user in users if not user.startswith("acefast/sim/")} == {"acefast/kernels_command.py"}


def test_import_brings_in_no_heavy_package():
    code = (
        "import sys, torch; before = set(sys.modules); import acefast; "
        "import json; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    new = json.loads(out)
    roots = {name.split(".")[0] for name in new}
    heavy = {"transformers", "triton", "matplotlib", "diffusers", "soundfile", "soxr", "huggingface_hub", "rich"}
    assert "acefast" in roots and not roots & (heavy | {"safetensors", "tokenizers", "pynvml", "cupy"})
    assert not roots & {"num2words", "py3langid", "pypinyin", "hangul_romanize", "cutlet", "fugashi", "unidic_lite"}
    assert len([name for name in new if not name.startswith("acefast")]) < 60  # torch and numpy are there already


def test_the_package_offers_its_names_and_imports_torch_with_the_first():
    code = (
        "import sys, acefast, acefast.cli; assert 'torch' not in sys.modules; "
        "assert {*acefast.__all__} <= {*dir(acefast)} and not hasattr(acefast, 'nothing'); "
        "from acefast import *; assert issubclass(RequestError, ValueError) and callable(acefast.generate); "
        "assert all(name in globals() for name in acefast.__all__) and acefast.load is load"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wheel_installs_one_top_level_package(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        check=True,
        capture_output=True,
        env={**os.environ, "ACEFAST_CUDA": "0", "ACEFAST_CPU": "0"},  # tests/cuda and tests/cpu build them
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"acefast"}
    assert "acefast/kernels/__init__.py" in names and "acefast/kernels/budgets.json" not in names
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.*") if p.suffix in CODE}
    assert {f"acefast/{source}" for source in sources} <= set(names)
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "acefast").rglob("*.py")}
    assert modules <= set(names)


def test_readme_lists_every_option_as_it_is_declared():
    from acefast.request import options_table

    assert options_table() in (ROOT / "README.md").read_text()
