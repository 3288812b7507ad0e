# ruff: noqa: RUF001 (letters and marks that look like others)
"""Which language a line of lyrics is in, by the rules of ACE-Step v1's front end over py3langid's classifier.

Spans are claimed by what is certain about them (a <xx> mark, a script, a number, quotation marks); the rest is cut at
punctuation. Latin spans and the rest are classified; a language scores the characters of its spans.

Held to upstream on the 356 lines of tests/golden/v1/language.json: all are taken for what upstream takes them for. That
is not always right: of the 265 in one language upstream knows 221, and takes "hello my love" for Portuguese. A
request's ``language`` settles it.

Source: LangSegment in acestep/language_segmentation and get_lang in acestep/pipeline_ace_step.py of ace-step/ACE-Step.
The classifier's labels are those of py3langid 0.3, which upstream pins; 0.4 has another model and other labels.
"""

from __future__ import annotations

import functools
import re
from collections import Counter

from acefast.models.v1.packages import needed
from acefast.values import RequestError

# What upstream takes for a letter of a Latin word: no capital with an accent, nor ł, š or ő, which are no part of one.
_LATIN = "a-zA-Zà-öù-ÿăđĩũơưỷỹ" + "".join(map(chr, range(0x1EA1, 0x1EF2, 2)))
_WORDS = r"(?:[【《（(“‘\"']*[%s]+\W*)+"  # with the marks before and behind them
_CLAIMS = (  # in this order
    ("mark", re.compile(r"<(?P<code>[a-zA-Z|-]*)>(?P<text>.*?)</*[a-zA-Z|-]*>")),
    ("ko", re.compile(_WORDS % "가-힣")),
    ("th", re.compile(_WORDS % "\u0e00-\u0e7f")),
    ("ru", re.compile(_WORDS % "А-Яа-яЁё")),
    ("number", re.compile(r"(?:(?<!\W)\W+)?\d+\W+\d*\W*\d*")),
    ("latin", re.compile(_WORDS % _LATIN)),
    ("quote", re.compile(r"([\"'])(?P<text>.*?)\1")),
    ("quote", re.compile(r"[【《（(“‘](?P<text>[^【《（(“‘’”)）》】]{3,})[’”)）》】]\W*")),
)
_CLAIMED = re.compile(r"⑥\d+⑥")  # stands for a claimed span: word characters to the patterns, and no digits alone
_HAN = re.compile("[\u4e00-\u9fff]")
_KANA = re.compile("[\u3040-\u30ff]")
_SURE, _SETTLED = 0.89, 0.9  # scores of short pieces with Han below which they are ja, above which they are done


def detect(line: str) -> str:
    """The language of a line: one of py3langid's 97 codes; "zh" where nothing in it tells.

    The highest score wins, of equals the first seen, but English yields to any other: "Baby 我想你 every night" is zh.

    Raises:
        RequestError: the line needs py3langid, which is not installed.
    """
    scores = _Spans(line).scores
    if english := scores.pop("en", 0):
        scores = scores or {"en": english}
    return max(scores, key=scores.__getitem__, default="zh")


@functools.cache
def _classifier():
    identifier = needed("py3langid.langid", "lines whose language is not given").LanguageIdentifier
    if not hasattr(identifier, "from_pickled_model"):
        raise RequestError(
            "lyrics: languages are detected by py3langid 0.3, and another is installed; "
            "run pip install acefast[v1], or give language"
        )
    return identifier.from_pickled_model("data/model.plzma", norm_probs=True)


@functools.lru_cache(1024)
def classify(text: str) -> tuple[str, float]:
    """py3langid's label of ``text`` and its probability, to three decimals."""
    label, score = _classifier().classify(text)
    return label, round(float(score), 3)


def _cleaned(text: str) -> str:
    """Words with one space between them, a letter that repeats once: "Hello, oh!!" is "Helo oh"."""
    return re.sub(r"(.)\1+", r"\1", re.sub(r"\W+", " ", text)).strip()


def _is_number(text: str) -> bool:
    return not re.sub(r"\d+", "", re.sub(r"[^\w\s]+", "", text).strip())


class _Spans:
    """A line's spans and their languages' ``scores``."""

    def __init__(self, line: str) -> None:
        self.scores: Counter[str] = Counter()
        self.kept: list[tuple[str, str, bool]] = []  # language, text, whether a mark said so
        self.open: tuple[tuple[str, str], str] | None = None  # a piece that is the first language or the second
        self.claims: list[tuple[str, re.Match[str]]] = []
        self.at_end = False
        line = line.replace("⑥", "⑤")  # it stands for a claim below
        for kind, pattern in _CLAIMS:
            if kind in ("number", "quote") and pattern.fullmatch(line) and len(pattern.findall(line)) == 1:
                continue  # nothing else on the line
            line = pattern.sub(lambda match, kind=kind: self._claim(kind, match), line)
        self._read(line, whole=True)

    def _claim(self, kind: str, match: re.Match[str]) -> str:
        self.claims.append((kind, match))
        return f"⑥{len(self.claims) - 1}⑥"

    def _read(self, text: str, whole: bool) -> None:
        parts = re.split(f"({_CLAIMED.pattern})", text)
        for i, part in enumerate(parts):
            self.at_end = whole and i == len(parts) - 1
            if _CLAIMED.fullmatch(part):
                self._claimed(*self.claims[int(part[1:-1])])
            else:
                self._unclaimed(part)

    def _claimed(self, kind: str, match: re.Match[str]) -> None:
        text = match.group()
        if kind == "mark":
            if match["code"] in _classifier().nb_classes:
                self._add(match["code"], match["text"], marked=True)
        elif kind == "number":
            self._add(self.kept[0][0] if self.kept else "zh", text)
        elif kind == "latin":
            for sentence in re.findall("[^。.?？!！]*[。.?？!！]+|[^。.?？!！]+", text):
                if sentence.strip():
                    self._add(classify(_cleaned(sentence))[0], sentence)
        elif kind != "quote":
            self._add(kind, text)
        elif _CLAIMED.search(text):
            self._read(text, whole=False)
        elif len(inside := _cleaned(match["text"])) <= 5:
            self._unclaimed(text)
        else:
            self._add(classify(inside)[0], text)

    def _unclaimed(self, text: str) -> None:
        """Classify what lies between punctuation; pieces of two letters or fewer go with the next."""
        pieces, piece = re.split(r"([^\w\s]+)", text), ""
        for i, part in enumerate(pieces):
            piece, last = piece + part, i == len(pieces) - 1
            if not last and not (re.search(r"\w", piece) and re.search(r"\w", pieces[i + 1])):
                continue
            cleaned = _cleaned(re.sub(r"\d+", "", piece))
            if not piece or (not last and len(cleaned) <= 2):
                continue
            language, score = classify(cleaned)
            if language != "zh" and all(map(_HAN.match, re.sub(r"\s", "", cleaned))):
                language, score = "zh", 1
            if len(cleaned) <= 5 and _HAN.search(cleaned):
                self._add(self._short(language, score, cleaned, piece, last), piece)
            else:
                self._add(language, piece)
            piece = ""

    def _short(self, language: str, score: float, cleaned: str, piece: str, last: bool) -> str | tuple[str, str]:
        """The language of a short piece with Han in it: "zh", "ja", or both where its neighbour is to tell."""
        if score < _SURE or _KANA.search(cleaned):
            language = "ja"
        if _KANA.search(cleaned) or (len(cleaned) > 2 and score > _SETTLED):
            return language
        if last and self.at_end:
            return "zh" if len(cleaned) <= 1 else language
        before = self.kept[-1][0] if self.kept else ""
        if piece.rstrip()[-1] in "。.":
            return before if before in ("zh", "ja") else language
        return ("zh", "ja") if language == "zh" or (len(cleaned) <= 2 and before == "zh") else ("ja", "zh")

    def _add(self, language: str | tuple[str, str], text: str, marked: bool = False) -> None:
        """Attribute ``text``; an open piece before it takes its language where it can, else its own first one."""
        if not text.strip():
            return
        if language == "en":  # what a number, English because the first span is, takes along to its neighbour's score
            text = text.strip("-") + " "
        if self.open:
            (either, held), self.open = self.open, None
            if language == either:
                language = either[0]
            self._keep(language if language in either else either[0], held, False)
        if isinstance(language, tuple):
            self.open = language, text
        else:
            self._keep(language, text, marked)

    def _keep(self, language: str, text: str, marked: bool) -> None:
        if self.kept and not marked and not self.kept[-1][2]:
            before, held, _ = self.kept[-1]
            if _is_number(text):
                language = before
            if language == before or _is_number(held):
                self.kept.pop()
                if language == before:
                    self._score(language, text)
                    self.kept.append((before, held + text, False))
                    return
                text = held + text  # the number has scored for its own language too
        self.kept.append((language, text, marked))
        self._score(language, text)

    def _score(self, language: str, text: str) -> None:
        self.scores[language] += len(text) * (2 if language == "zh" else 1)
