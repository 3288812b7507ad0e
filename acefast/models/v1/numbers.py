# ruff: noqa: RUF001 (letters that look like others)
"""Numbers in lyrics as words of their language, as ACE-Step v1's front end writes them; num2words knows the words.

Chinese has rules of its own: acefast.models.v1.chinese.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable

from acefast.models.v1.packages import needed

# What makes a number an ordinal, in the order tried: "2os" is "2o" and an s.
_ORDINALS = {
    "en": "st|nd|rd|th", "es": "º|ª|er|o|a|os|as", "fr": "º|ª|er|re|e|ème", "de": r"st|nd|rd|th|º|ª|\.(?=\s|$)",
    "pt": "º|ª|o|a|os|as", "it": "º|°|ª|o|a|i|e", "pl": "º|ª|st|nd|rd|th", "ar": "ون|ين|ث|ر|ى",
    "ru": "-й|-я|-е|-ое|-ье|-го", "nl": "de|ste|e", "tr": r"\.|inci|nci|uncu|üncü",
    "hu": r"\.|adik|edik|odik|ödik|ödike|ik", "ko": "번째|번|차|째",
}  # fmt: skip
_CENTS = {"es": " con ", "fr": " et ", "de": " und ", "pt": " e ", "it": " e "}  # before the cents; else a comma
_CURRENCIES = (("GBP", r"£"), ("USD", r"\$"), ("EUR", r"€"))


def spell(text: str, code: str) -> str:
    """``text``, in lower case, with its numbers as words: amounts of money, decimals, ordinals, whole numbers.

    A currency that num2words has not in this language is left to the later steps; any other number it cannot say
    leaves the whole text as it is.

    Args:
        code: one of the 17 but zh, ja and hi.
    Raises:
        RequestError: there are digits and num2words is not installed.
    Source: expand_numbers_multilingual in acestep/models/lyrics_utils/lyric_tokenizer.py of ace-step/ACE-Step.
    """
    # The dot outside English and Russian is any character, as upstream has it: a space or a letter joins two groups.
    grouped, mark = (r"(,\d{3})*(\.\d+)?", ",") if code in ("en", "ru") else (r"(.\d{3})*(,\d+)?", ".")
    joined = re.sub(rf"\b\d{{1,3}}{grouped}\b", lambda match: match.group().replace(mark, ""), text)
    if not re.search("[0-9]", joined):
        return joined
    if code == "cs":  # keeps its digits: upstream asks num2words for "cz", which it does not know
        return text
    num2words = needed("num2words", "lines with numbers").num2words
    try:
        return _spelled(joined, code, functools.partial(num2words, lang=code))
    except Exception:  # num2words raises what its languages raise: no words for an ordinal, too large a number
        return text


def _spelled(text: str, code: str, say: Callable[..., str]) -> str:
    def money(currency: str, match: re.Match[str]) -> str:
        amount = float(re.sub(r"[^\d.]", "", match.group().replace(",", ".")))
        words = say(amount, to="currency", currency=currency)
        return words.rpartition(_CENTS.get(code, ", "))[0] or words if amount.is_integer() else words

    with contextlib.suppress(Exception):  # the first that fails ends it; those before it stay
        for currency, sign in _CURRENCIES:
            amount = rf"{sign}[0-9.,]*[0-9]|(?<![0-9.,])[0-9.,]*[0-9]{sign}"
            text = re.sub(amount, functools.partial(money, currency), text)
    if code != "tr":
        text = re.sub(r"(?<![0-9])[0-9]+[.,][0-9]+", lambda match: say(float(match.group().replace(",", "."))), text)
    text = re.sub(f"(?<![0-9])([0-9]+)(?:{_ORDINALS[code]})", lambda match: say(int(match[1]), ordinal=True), text)
    return re.sub("[0-9]+", lambda match: say(int(match.group())), text)
