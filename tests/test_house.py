"""The house rules: one op, one name, its rooms; a light import; an install that brings one top-level package."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = sorted(p.stem for p in (ROOT / "acefast/ops").glob("*.py") if p.stem != "__init__")


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
    kernels += [p.stem for p in (ROOT / "csrc").glob("*.cu")]
    assert set(kernels) <= set(OPS)


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
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"acefast"}
    assert "acefast/kernels/__init__.py" in names and "acefast/kernels/budgets.json" not in names
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "acefast").rglob("*.py")}
    assert modules <= set(names)


def test_readme_lists_every_option_as_it_is_declared():
    from acefast.request import options_table

    assert options_table() in (ROOT / "README.md").read_text()
