# ruff: noqa: RUF001 (letters that look like others)
"""Cleaned lines of lyrics: upstream's own strings in 17 languages, its known oddities, and packages not there."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from acefast.models.v1 import cleaning
from acefast.models.v1.chinese import numeral
from acefast.models.v1.cleaning import clean
from acefast.models.v1.lyrics import LANGUAGES
from acefast.values import RequestError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/v1/cleaning.json").read_text(encoding="utf-8"))


def test_every_language_has_golden_lines():
    assert {*GOLDEN} == {*LANGUAGES} and min(map(len, GOLDEN.values())) >= 13


@pytest.mark.parametrize("code", GOLDEN)
def test_lines_are_cleaned_as_upstream_cleans_them(code):
    wrong = [(line, cleaned, ours) for line, cleaned in GOLDEN[code] if (ours := clean(line, code)) != cleaned]
    assert not wrong


@pytest.mark.parametrize(
    "code, line, cleaned",
    [
        ("cs", "V roce 1989, 1. den", "v roce 1989, 1. den"),  # Czech numbers stay: upstream asks for "cz", not "cs"
        ("de", "1a234.567", "einsazweihundertvierunddreißigtausendfünfhundertsiebenundsechzig"),  # any sign is a dot
        ("es", "4os", "cuartos"),  # the first suffix that fits ends it
        ("it", "40°", "quarantesimo"),  # an ordinal before it is a degree
        ("tr", "IŞIK", "işik"),  # a Turkish capital I loses its own lower case
        ("en", "mrs. jones", "misess jones"),  # spelled so in the tables of the front end
        ("zh", "30°，£5，$5", "san1shi2 du4 , ying1bang4 wu3,,wu3"),  # two symbols are no punctuation and are said
        ("zh", "1块11块", "yi1kuai4yi1yi1kuai4"),  # an amount takes the first digit of the next
        ("ko", "20€", "isib€"),  # a currency that num2words has not
        ("en", "9" * 400, "9" * 400),  # a number that num2words has not
    ],
)
def test_upstreams_oddities_are_kept(code, line, cleaned):
    assert clean(line, code) == cleaned


@pytest.mark.parametrize(
    "number, words",
    [
        ("0", "零"), ("10", "十"), ("12", "十二"), ("20", "二十"), ("105", "一百零五"), ("110", "一百一十"),
        ("200", "两百"), ("222", "两百二十二"), ("1050", "一千零五十"), ("2500", "两千五百"), ("20000", "两万"),
        ("100001", "十万零一"), ("120000000", "一亿两千万"), ("0.5", "零点五"), ("12.05", "十二点零五"), ("00", ""),
    ],
)  # fmt: skip
def test_chinese_numerals(number, words):
    assert numeral(number) == words


@pytest.fixture
def without(monkeypatch):
    """A function that takes packages away; what was made of them is forgotten before and after."""

    def forget():
        cleaning._romanized.cache_clear()
        cleaning._cutlet.cache_clear()

    forget()
    yield lambda *names: [monkeypatch.setitem(sys.modules, name, None) for name in names]
    monkeypatch.undo()
    forget()


PACKAGES = ("num2words", "pypinyin", "hangul_romanize", "hangul_romanize.rule", "cutlet", "unidic_lite", "fugashi")


@pytest.mark.parametrize(
    "code, line, package",
    [
        ("en", "2 hearts", "num2words"), ("zh", "我爱你", "pypinyin"), ("ko", "사랑해", "hangul_romanize"),
        ("ja", "愛", "unidic_lite"),
    ],
)  # fmt: skip
def test_a_line_names_the_package_that_it_lacks(without, code, line, package):
    without(*PACKAGES)
    with pytest.raises(RequestError, match=f"need {package}, which is not installed; run pip install acefast.v1.$"):
        clean(line, code)


def test_a_package_that_a_package_lacks_is_named(without):
    without("fugashi")
    for name in [name for name in sys.modules if name.startswith("cutlet")]:
        del sys.modules[name]
    with pytest.raises(RequestError, match="Japanese lines need fugashi, which"):
        clean("愛", "ja")


def test_a_line_needs_only_the_packages_for_what_is_in_it(without):
    without(*PACKAGES)
    assert clean("Mr. Blue & me", "en") == "mister blue and me"
    assert clean("रात भर 20", "hi") == "रात भर 20"
    assert clean("1989", "cs") == "1989"


@pytest.mark.parametrize("code, line", [("en", "9" * 4000), ("de", "9." * 2000), ("zh", "你" + "." * 20_000)])
def test_a_long_line_takes_no_cube_of_its_length(code, line):
    start = time.process_time()
    clean(line, code)
    assert time.process_time() - start < 2  # a twentieth of that here; minutes where it is the cube
