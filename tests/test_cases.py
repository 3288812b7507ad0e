"""The list of kernel configurations that are proved: this tree's, each with a name of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import acefast
import acefast.kernels
from acefast.cases import Case, all_cases


def case(kernel: str, config: str) -> Case:
    unused = dict.fromkeys(("launch", "reference", "real", "small", "flops", "bytes"))
    return Case(kernel, config, outputs=("out",), **unused)


@pytest.fixture
def rooms(monkeypatch):
    """Makes acefast.kernels hold the given cases, a room per list, and one room without any."""

    def make(*cases: list[Case]) -> None:
        found = {f"room{i}": SimpleNamespace(CASES=tuple(these)) for i, these in enumerate(cases)}
        found["helpers"] = SimpleNamespace()
        modules = [SimpleNamespace(name=name) for name in found]
        monkeypatch.setattr("acefast.cases.pkgutil.iter_modules", lambda path: modules)
        for name, room in found.items():
            monkeypatch.setitem(sys.modules, f"acefast.kernels.{name}", room)

    return make


def test_tests_see_the_kernels_that_belong_to_the_package_they_test():
    package = Path(acefast.__file__).parent
    own = package.parent / "kernels" if package.parent == Path(__file__).parents[1] else package / "kernels"
    assert Path(acefast.kernels.__file__) == own / "__init__.py"


def test_cases_of_all_rooms_come_by_name(rooms):
    rooms([case("b", "wide"), case("b", "narrow")], [case("a", "only")])
    assert [found.name for found in all_cases()] == ["a/only", "b/narrow", "b/wide"]


def test_two_cases_of_one_name_are_refused(rooms):
    rooms([case("a", "x")], [case("a", "x")])
    with pytest.raises(ValueError, match="two cases are called a/x"):
        all_cases()
