# ruff: noqa: RUF001 (letters that look like others)
"""Languages of lines of lyrics: upstream's own labels, its known oddities, and the packages that are not there."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path

import pytest

from acefast.models.v1 import language
from acefast.models.v1.language import detect
from acefast.values import RequestError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/v1/language.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("group", GOLDEN)
def test_every_line_is_taken_for_what_upstream_takes_it_for(group):
    wrong = [(line, label, ours) for line, label in GOLDEN[group] if (ours := detect(line)) != label]
    assert not wrong


def test_upstream_knows_as_many_lines_as_the_docstring_says():
    pairs = [(group, label) for group, lines in GOLDEN.items() for _, label in lines if group != "mixed"]
    right = sum(group == label for group, label in pairs)
    told = " ".join(language.__doc__.split())
    assert f"of the {len(pairs)} in one language upstream knows {right}" in told
    assert f"the {sum(map(len, GOLDEN.values()))} lines" in told


@pytest.mark.parametrize(
    "line, taken_for",
    [
        ("Baby 我想你 every night", "zh"),  # English first, but it yields to any second language
        ("You know I keep the radio on", "en"),  # and is English where there is none
        ("再见", "ja"),  # short Chinese of which the classifier is not sure: Japanese comes first
        ("再见，我的爱人", "zh"),
        ("???", "zh"),  # nothing to classify
        ("<b>loud</b>", "zh"),  # nor anything that counts
        ("hello my love", "pt"),  # the classifier's own error
    ],
)
def test_upstreams_oddities_are_kept(line, taken_for):
    assert detect(line) == taken_for


def test_marks_and_our_own_sign_for_a_span_are_no_trouble():
    assert detect("<ja>佐々木</ja>") == "ja"
    assert detect("<b>loud</b> and louder now") == "en"
    assert detect("⑥⑥1⑥2⑥ in the middle of the night") == detect("⑤⑤1⑤2⑤ in the middle of the night")


@pytest.mark.parametrize("line", ["a" * 50_000, "!" * 50_000, "la la. " * 5_000])
def test_a_long_line_takes_no_square_of_its_length(line):
    start = time.perf_counter()
    detect(line)
    assert time.perf_counter() - start < 5  # a tenth of that here; 25 s and more where it is the square


@pytest.fixture
def unloaded(monkeypatch):
    """No classifier is loaded, nor label kept, before and after."""
    language._classifier.cache_clear()
    language.classify.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    language._classifier.cache_clear()
    language.classify.cache_clear()


def test_without_the_classifier_only_scripts_of_their_own_are_known(unloaded):
    unloaded.setitem(sys.modules, "py3langid.langid", None)
    assert detect("사랑해 너만을") == "ko" and detect("Привет, мир!") == "ru"
    with pytest.raises(RequestError, match=r"not given need py3langid, which is not installed; run pip install acefas"):
        detect("hello")


def test_another_version_of_the_classifier_is_refused(unloaded):
    unloaded.setitem(sys.modules, "py3langid.langid", types.SimpleNamespace(LanguageIdentifier=object))
    with pytest.raises(RequestError, match=r"py3langid 0\.3, and another is installed; run pip .*, or give language"):
        detect("hello")
