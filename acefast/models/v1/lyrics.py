"""Lyrics as the token ids of ACE-Step v1's lyric encoder, and where its vocabulary is.

A song is [START], then for every line [language], its cleaned text and a [SPACE]; a blank line is one more [SPACE].
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from acefast.locate import hub_cache, is_offline, model_folders
from acefast.models.v1 import language as languages
from acefast.models.v1.cleaning import clean
from acefast.values import RequestError, shown
from acefast.weights import CheckpointError, access_told

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "pl", "tr", "ru", "cs", "nl", "ar", "zh", "ja", "hu", "ko", "hi")
ENTRIES = 6693  # of the published vocabulary
SPACE = "[SPACE]"
_SECTIONS = "[start][intro][verse][chorus][bridge][outro][end][inst][solo][hook][pre-chorus][break]"
_TAGS = {code: "[zh-cn]" if code == "zh" else f"[{code}]" for code in LANGUAGES}
_BRACKETED = re.compile(r"\[.*?\]")  # at the start of a line: a part of the song, told in English
_SPECIAL = ("[STOP]", "[UNK]", SPACE, "[START]", *_TAGS.values(), *_BRACKETED.findall(_SECTIONS))
_LINE_TAG = re.compile(r"\[([a-z]{2})(-[a-z]+)?\]", re.IGNORECASE)

REPO = "ACE-Step/ACE-Step"  # a space of the hub: upstream's demo
_NAMES = ("lyric_vocab.json", "vocab.json", "lyrics_utils/vocab.json")


@dataclass(frozen=True)
class Line:
    """A line of lyrics: its text, its language ("" of a blank line), its ids, and why it has none where it failed."""

    text: str
    language: str
    ids: list[int]
    problem: str = ""


class LyricTokenizer:
    """ACE-Step v1's lyric tokenizer.

    Args:
        file: its vocabulary, a JSON file of the ``tokenizers`` library; see ``find_vocabulary``.
        entries: of the model's table, ``lyric_encoder_vocab_size``.
    Raises:
        CheckpointError: the file cannot be read, is no such vocabulary, or has more entries than the model.
    """

    def __init__(self, file: str | os.PathLike, entries: int = ENTRIES) -> None:
        from tokenizers import Tokenizer

        self.file = Path(file)
        with access_told():
            text = self.file.read_bytes().decode("utf-8", "replace")
        try:
            self._bpe = Tokenizer.from_str(text)
        except Exception:  # the library raises no class of its own
            raise self._refusal("it is no JSON of the tokenizers library") from None
        known = self._bpe.get_vocab()
        if missing := [token for token in _SPECIAL if token not in known]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise self._refusal(f"it has no {', '.join(missing[:3])}{more}")
        if max(known.values()) >= entries:
            raise self._refusal(f"it has {max(known.values()) + 1} entries and the model {entries}")
        self._stop, self._space, self._start = (known[token] for token in ("[STOP]", SPACE, "[START]"))

    def _refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file} is no lyric vocabulary of this model: {reason}; take upstream's vocab.json"
        )

    def ids(self, lyrics: str, language: str | None = None) -> list[int]:
        """The ids of a song.

        Args:
            lyrics: as of a request. A line that begins with a language in brackets, "[ja]", as in ComfyUI, is in that
                language, without the brackets.
            language: of all other lines, a request's code; one that the model has not is taken as English. None and
                "unknown" have every line's language detected. Lines that begin with any other bracket, "[verse]",
                are English whatever it is.
        Returns:
            [START], each line's ids; [0] for no lyrics, which the caller masks.
        Raises:
            RequestError: a line needs a package that is not installed.
        Warns:
            A line that cannot be encoded is left out, with its line end, as upstream does without a word.
        Source: tokenize_lyrics in acestep/pipeline_ace_step.py of ace-step/ACE-Step.
        """
        if not lyrics:
            return [self._stop]
        lines = self.lines(lyrics, language)
        for line in lines:
            if line.problem:
                warnings.warn(line.problem, stacklevel=2)
        return [self._start, *(number for line in lines for number in line.ids)]

    def lines(self, lyrics: str, language: str | None = None) -> list[Line]:
        """The lines of a song one by one, see ``ids``: what each was taken for, and what went wrong with it."""
        return [self._line(line.strip(), language) for line in lyrics.split("\n")]

    def _line(self, text: str, language: str | None) -> Line:
        if not text:
            return Line("", "", [self._space])
        rest = text
        if (tag := _LINE_TAG.match(text)) and tag[1].lower() in LANGUAGES:
            language, rest = tag[1].lower(), text[tag.end() :].strip()
        if _BRACKETED.match(rest):
            code = "en"
        else:
            code = language_of(languages.detect(rest) if language in (None, "unknown") else language)
        try:
            ids = self._bpe.encode(f"{_TAGS[code]}{clean(rest, code)}".replace(" ", SPACE)).ids
        except RequestError:  # a package that is not installed
            raise
        except Exception as error:  # of a cleaner's library
            problem = f"lyrics: the line {shown(text)} is left out, it cannot be encoded: {shown(error, 200)}"
            return Line(text, code, [], problem)
        return Line(text, code, [*ids, self._space])


def language_of(code: str) -> str:
    """The model's language for any code: "pt-BR" is pt, Cantonese is written as Chinese, what it has not is en."""
    code = code.lower().partition("-")[0]
    return "zh" if code == "yue" else code if code in LANGUAGES else "en"


@access_told()
def find_vocabulary(folders: Iterable[Path], offline: bool | None = None, entries: int = ENTRIES) -> Path:
    """The lyric vocabulary: beside the checkpoint, in ``$ACEFAST_MODELS``, in the hub's cache, or downloaded to there.

    Args:
        folders: where the checkpoint is, in the order of the search. Other files named vocab.json are passed over.
        offline: do not download; None asks ``$HF_HUB_OFFLINE``.
        entries: of the model's table.
    Raises:
        CheckpointError: it is nowhere and cannot be downloaded.
    """
    places = list(dict.fromkeys([*map(Path, folders), *model_folders()]))
    refused = []
    for file in (folder / name for folder in places for name in _NAMES):
        if file.is_file():
            try:
                return LyricTokenizer(file, entries).file
            except CheckpointError as error:
                refused.append(str(error))
    reason = "downloads are off"
    for download in (False,) if is_offline(offline) else (False, True):
        try:
            return LyricTokenizer(_from_hub(download), entries).file
        except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's errors
            reason = f"{REPO} on the hub gave none ({shown(error, 200)})" if download else reason
    looked = ", ".join(map(str, [*places, hub_cache()]))
    also = f" ({refused[0]})" if refused else ""
    raise CheckpointError(
        f"the lyric vocabulary of ACE-Step v1 is not on this machine (looked in {looked}){also} and {reason}; put "
        f"acestep/models/lyrics_utils/vocab.json of github.com/ace-step/ACE-Step beside the checkpoint as {_NAMES[0]}"
    )


def _from_hub(download: bool) -> Path:
    """The vocabulary in the hub's cache; OSError or an error of the hub's client where it is not."""
    from huggingface_hub import snapshot_download

    pattern = "*lyrics_utils/vocab.json"  # wherever the space keeps it
    folder = snapshot_download(
        REPO, repo_type="space", allow_patterns=pattern, cache_dir=hub_cache(), local_files_only=not download
    )
    for file in sorted(Path(folder).rglob(pattern)):
        return file
    raise FileNotFoundError(f"it has no {pattern}")
