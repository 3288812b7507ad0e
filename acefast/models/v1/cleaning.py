# ruff: noqa: RUF001 (letters that look like others)
"""Lines of lyrics as ACE-Step v1's lyric vocabulary knows them: lower case, in words, in Latin letters where it can be.

Numbers, abbreviations and symbols become words; Chinese becomes pinyin, Korean and Japanese are romanised.

Source: acestep/models/lyrics_utils/lyric_tokenizer.py of ace-step/ACE-Step, whose tables are those of Coqui's XTTS.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from acefast.models.v1 import chinese, numbers
from acefast.models.v1.packages import needed

_ABBREVIATIONS = {  # before a dot
    "en": dict(
        mrs="misess", mr="mister", dr="doctor", st="saint", co="company", jr="junior", maj="major", gen="general",
        drs="doctors", rev="reverend", lt="lieutenant", hon="honorable", sgt="sergeant", capt="captain", esq="esquire",
        ltd="limited", col="colonel", ft="fort",
    ),
    "es": dict(
        sra="señora", sr="señor", dr="doctor", dra="doctora", st="santo", co="compañía", jr="junior", ltd="limitada"
    ),
    "fr": dict(mme="madame", mr="monsieur", dr="docteur", st="saint", co="compagnie", jr="junior", ltd="limitée"),
    "de": dict(fr="frau", dr="doktor", st="sankt", co="firma", jr="junior"),
    "pt": dict(
        sra="senhora", sr="senhor", dr="doutor", dra="doutora", st="santo", co="companhia", jr="júnior", ltd="limitada"
    ),
    "it": dict(sig="signore", dr="dottore", st="santo", co="compagnia", jr="junior", ltd="limitata"),
    "pl": dict(p="pani", m="pan", dr="doktor", sw="święty", jr="junior"),
    "cs": dict(dr="doktor", ing="inženýr", p="pan"),
    "nl": dict(dhr="de heer", mevr="mevrouw", dr="dokter", jhr="jonkheer"),
    "tr": dict(b="bay", byk="büyük", dr="doktor"),
    "hu": dict(dr="doktor", b="bácsi", nőv="nővér"),
}  # fmt: skip
_WHOLE_WORDS = {"ru": {"г-жа": "госпожа", "г-н": "господин", "д-р": "доктор"}}
_SIGNS = "&@%#$£°"
_SYMBOLS = {
    "en": "and/at/percent/hash/dollar/pound/degree",
    "es": "y/arroba/por ciento/numeral/dolar/libra/grados",
    "fr": "et/arobase/pour cent/dièse/dollar/livre/degrés",
    "de": "und/at/prozent/raute/dollar/pfund/grad",
    "pt": "e/arroba/por cento/cardinal/dólar/libra/graus",
    "it": "e/chiocciola/per cento/cancelletto/dollaro/sterlina/gradi",
    "pl": "i/małpa/procent/krzyżyk/dolar/funt/stopnie",
    "cs": "a/na/procento/křížek/dolar/libra/stupně",
    "ru": "и/собака/процентов/номер/доллар/фунт/градус",
    "nl": "en/bij/procent/hekje/dollar/pond/graden",
    "tr": "ve/at/yüzde/diyez/dolar/sterlin/derece",
    "hu": "és/kukac/százalék/kettőskereszt/dollár/font/fok",
    "ar": "و/على/في المئة/رقم/دولار/جنيه/درجة",
    "zh": "和/在/百分之/号/美元/英镑/度",  # only the last two are left of the punctuation
    "ko": "그리고/에/퍼센트/번호/달러/파운드/도",
}


def clean(line: str, code: str) -> str:
    """The line as it is cut into tokens.

    Args:
        code: the line's language, one of the 17: ``acefast.models.v1.lyrics.LANGUAGES``.
    Raises:
        RequestError: the line needs a package that is not installed.
    """
    if code == "ja":
        return _cutlet().romaji(line).lower()
    if code == "hi":
        return _one_space(line.lower())
    text = line.replace('"', "")
    if code == "tr":
        text = text.translate(str.maketrans("İÖÜ", "iöü"))  # in lower case İ would be two letters
    text = text.lower()
    text = chinese.normalize(text) if code == "zh" else numbers.spell(text, code)
    text = _one_space(_symbols(_abbreviations(text, code), code))
    return _pinyin(text) if code == "zh" else _romanized()(text) if code == "ko" else text


def _one_space(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _abbreviations(text: str, code: str) -> str:
    for word, whole in _ABBREVIATIONS.get(code, {}).items():
        text = re.sub(rf"\b{word}\.", whole, text)
    for word, whole in _WHOLE_WORDS.get(code, {}).items():
        text = re.sub(rf"\b{word}\b", whole, text)
    return text


def _symbols(text: str, code: str) -> str:
    for sign, word in zip(_SIGNS, _SYMBOLS[code].split("/")):
        text = text.replace(sign, f" {word} ").replace("  ", " ")
    return text.strip()


def _pinyin(text: str) -> str:
    """Syllables with their tone's digit behind, 5 for none, and nothing between: 你好 is ni3hao3."""
    if text.isascii():
        return text
    pypinyin = needed("pypinyin", "Chinese lines")
    syllables = pypinyin.pinyin(text, style=pypinyin.Style.TONE3, neutral_tone_with_five=True)
    return "".join(readings[0] for readings in syllables)


@functools.cache
def _romanized() -> Callable[[str], str]:
    rule = needed("hangul_romanize.rule", "Korean lines").academic
    return needed("hangul_romanize", "Korean lines").Transliter(rule).translit


@functools.cache
def _cutlet():
    needed("unidic_lite", "Japanese lines")  # the dictionary, which fugashi looks for by itself
    return needed("cutlet", "Japanese lines").Cutlet()
