# ruff: noqa: RUF001 (letters that look like others)
"""Lyrics as token ids: upstream's structure, languages given and found, lines that fail, where the vocabulary is."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import huggingface_hub
import pytest

from acefast.models.v1 import lyrics
from acefast.models.v1.lyrics import LANGUAGES, LyricTokenizer, find_vocabulary, language_of
from acefast.values import RequestError
from acefast.weights import CheckpointError

REAL = os.environ.get("ACEFAST_V1_VOCAB")


def write_vocabulary(path: Path, special=lyrics._SPECIAL) -> Path:
    """A made-up vocabulary: the special tokens, letters, two merges."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    letters = [*map(chr, range(97, 123)), "1", ",", "'", "love", "lo", "ve"]
    entries = {token: i for i, token in enumerate([*special, *letters])}
    bpe = Tokenizer(models.BPE(vocab=entries, merges=[("l", "o"), ("v", "e"), ("lo", "ve")], unk_token="[UNK]"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    path.parent.mkdir(parents=True, exist_ok=True)
    bpe.save(str(path))
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary") / "vocab.json")


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return LyricTokenizer(vocabulary)


@pytest.fixture
def spelled(tokenizer):
    """Ids as the pieces they stand for."""
    return lambda *args: [tokenizer._bpe.id_to_token(i) for i in tokenizer.ids(*args)]


def test_a_song_is_a_start_and_lines_with_their_language_and_an_end(spelled):
    assert spelled("love\n\n we \n", "en") == [
        "[START]", "[en]", "love", "[SPACE]", "[SPACE]", "[en]", "w", "e", "[SPACE]", "[SPACE]"
    ]  # fmt: skip
    assert spelled("lo ve", "de") == ["[START]", "[de]", "lo", "[SPACE]", "ve", "[SPACE]"]
    assert spelled("\r\nwe\r\n", "en") == ["[START]", "[SPACE]", "[en]", "w", "e", "[SPACE]", "[SPACE]"]


def test_no_lyrics_are_one_stop_token_and_blank_ones_are_not(spelled):
    assert spelled("") == ["[STOP]"]
    assert spelled(" ") == ["[START]", "[SPACE]"]


def test_lines_that_begin_with_a_bracket_are_english(spelled):
    for language in (None, "ru", "zh"):
        assert spelled("[Verse]", language) == ["[START]", "[en]", "[verse]", "[SPACE]"]
        assert spelled("[pre-chorus] love", language)[1:3] == ["[en]", "[pre-chorus]"]
    assert spelled("[gong]")[1:3] == ["[en]", "[UNK]"]


def test_languages_are_found_line_by_line(tokenizer, spelled):
    words = "사랑해\nПривет, мир\nYou know I keep the radio on\n\n[chorus]"
    for language in (None, "unknown"):
        assert [line.language for line in tokenizer.lines(words, language)] == ["ko", "ru", "en", "", "en"]
    assert spelled("사랑해")[1:3] == ["[ko]", "s"]  # salanghae
    assert spelled("你好")[1] == "[zh-cn]"


def test_a_given_language_is_that_of_every_line(tokenizer):
    lines = tokenizer.lines("You know I keep the radio on\nПривет\n[intro]", "pt")
    assert [line.language for line in lines] == ["pt", "pt", "en"]


@pytest.mark.parametrize(
    "given, taken", [("pt-BR", "pt"), ("zh-cn", "zh"), ("yue", "zh"), ("sv", "en"), ("gl", "en"), ("ZH", "zh")]
)
def test_languages_of_others_are_those_of_the_model(given, taken):
    assert language_of(given) == taken


def test_a_line_says_its_language_as_in_comfyui(tokenizer, spelled):
    lines = tokenizer.lines("[ja]愛\n[ZH-cn] 你好\n[de]\n[ja][verse]\n[sv] love", "fr")
    assert [line.language for line in lines] == ["ja", "zh", "de", "en", "en"]  # the last is a bracket like any other
    assert spelled("[ja]愛", "fr") == ["[START]", "[ja]", "a", "i", "[SPACE]"]
    assert spelled("[de]") == ["[START]", "[de]", "[SPACE]"]
    assert spelled("[ja][verse]")[1:] == ["[en]", "[verse]", "[SPACE]"]


def test_a_line_that_fails_is_left_out_as_upstream_does_and_said(tokenizer, spelled):
    """Upstream leaves it out with its line end and prints; cutlet has no reading for this character."""
    with pytest.warns(UserWarning, match=r"the line '愛\\u3097' is left out, it cannot be encoded: KeyError"):
        assert spelled("愛\n愛\u3097\n愛", "ja") == ["[START]", *["[ja]", "a", "i", "[SPACE]"] * 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not tokenizer.lines("愛", "ja")[0].problem


def test_a_package_that_is_missing_is_no_failing_line(tokenizer, monkeypatch):
    def lacking(*_):
        raise RequestError("lyrics: lines with numbers need num2words")

    monkeypatch.setattr(lyrics, "clean", lacking)
    with pytest.raises(RequestError, match="need num2words"):
        tokenizer.ids("2", "en")


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "it is no JSON of the tokenizers library"),
        (json.dumps({"<pad>": 0, "a": 1}), "it is no JSON of the tokenizers library"),  # as GPT-2's and T5's are
        (b"\xff\xfe", "it is no JSON of the tokenizers library"),
    ],
)
def test_other_files_are_refused(tmp_path, text, reason):
    file = tmp_path / "vocab.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=f"vocab.json is no lyric vocabulary of this model: {reason}; take upstr"):
        LyricTokenizer(file)


def test_vocabularies_without_the_sections_or_with_too_many_entries_are_refused(tmp_path, vocabulary):
    """XTTS's own, from which this one was made, has the languages and no sections."""
    xtts = write_vocabulary(tmp_path / "xtts.json", lyrics._SPECIAL[:-12])
    with pytest.raises(CheckpointError, match=r"it has no \[start\], \[intro\], \[verse\] and 9 more;"):
        LyricTokenizer(xtts)
    entries = len(lyrics._SPECIAL) + 32
    LyricTokenizer(vocabulary, entries)
    with pytest.raises(CheckpointError, match=f"it has {entries} entries and the model {entries - 1};"):
        LyricTokenizer(vocabulary, entries - 1)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.json' cannot be read: No such file"):
        LyricTokenizer(tmp_path / "nothing.json")


@pytest.fixture
def hub(monkeypatch, offline):
    """What is asked of the hub; it has nothing, until ``hub.folder`` is set."""

    class Hub:
        asked: list[dict] = []  # noqa: RUF012 (one a test)
        folder = cached = None

        def download(self, repo, **options):
            self.asked = [*self.asked, {"repo": repo, **options}]
            if found := self.cached if options["local_files_only"] else self.folder:
                return str(found)
            raise OSError("no network\nat all")

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    return hub


@pytest.mark.parametrize("name", ["vocab.json", "lyric_vocab.json", "lyrics_utils/vocab.json"])
def test_the_vocabulary_is_found_beside_the_checkpoint(tmp_path, vocabulary, hub, name):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/vocab.json").write_text('{"<pad>": 0}')
    file = tmp_path / "root" / name
    file.parent.mkdir(parents=True)
    shutil.copy(vocabulary, file)
    assert find_vocabulary([tmp_path / "transformer", tmp_path / "gone", tmp_path / "root"]) == file
    assert not hub.asked


def test_the_vocabulary_is_found_in_acefast_models(tmp_path, vocabulary, hub, monkeypatch):
    shutil.copy(vocabulary, tmp_path / "lyric_vocab.json")
    monkeypatch.setenv("ACEFAST_MODELS", f"{tmp_path / 'none'}{os.pathsep}{tmp_path}")
    assert find_vocabulary([]) == tmp_path / "lyric_vocab.json"


def test_the_vocabulary_is_found_in_the_hubs_cache_or_downloaded(tmp_path, vocabulary, hub):
    file = tmp_path / "acestep/models/lyrics_utils/vocab.json"
    file.parent.mkdir(parents=True)
    shutil.copy(vocabulary, file)
    hub.cached = tmp_path
    assert find_vocabulary([], offline=True) == file
    hub.cached, hub.folder = None, tmp_path
    assert find_vocabulary([], offline=False) == file
    assert [ask["local_files_only"] for ask in hub.asked] == [True, True, False]
    assert {(ask["repo"], ask["repo_type"]) for ask in hub.asked} == {("ACE-Step/ACE-Step", "space")}
    assert all(ask["allow_patterns"] == "*lyrics_utils/vocab.json" for ask in hub.asked)


def test_no_vocabulary_is_one_sentence_with_the_way_out(tmp_path, hub):
    (tmp_path / "vocab.json").write_text('{"<pad>": 0}')
    with pytest.raises(CheckpointError) as off:
        find_vocabulary([tmp_path])
    assert "and downloads are off; put" in str(off.value) and str(tmp_path) in str(off.value)
    assert "(" + str(tmp_path / "vocab.json") + " is no lyric vocabulary" in str(off.value)
    assert str(off.value).endswith("beside the checkpoint as lyric_vocab.json") and "\n" not in str(off.value)
    with pytest.raises(CheckpointError, match=r"ACE-Step/ACE-Step on the hub gave none \(OSError.*no network.*\); put"):
        find_vocabulary([], offline=False)
    hub.folder = tmp_path
    with pytest.raises(CheckpointError, match=r"gave none \(FileNotFoundError"):
        find_vocabulary([], offline=False)


@pytest.fixture(scope="module")
def published():
    """The published vocabulary, of which upstream's own ids are known."""
    if not REAL:
        pytest.skip("the published vocabulary is not here; set ACEFAST_V1_VOCAB to it")
    return LyricTokenizer(REAL)


def test_published_special_tokens_have_their_ids(published):
    ids = {token: published._bpe.token_to_id(token) for token in lyrics._SPECIAL}
    assert [ids[t] for t in ("[STOP]", "[UNK]", "[SPACE]", "[START]")] == [0, 1, 2, 261]
    assert [ids[lyrics._TAGS[code]] for code in LANGUAGES] == [
        259, 260, 262, 284, 285, 286, 294, 295, 267, 293, 297, 5022, 5023, 5412, 5753, 6152, 6680
    ]  # fmt: skip
    assert [ids[token] for token in lyrics._SPECIAL[-12:]] == list(range(6681, 6693))
    assert published.ids("") == [0] and published.ids("\n") == [261, 2, 2]


@pytest.mark.parametrize(
    "line, language, ids",
    [
        ("[verse]", None, [259, 6683]),
        ("[inst]", None, [259, 6688]),
        ("[pre-chorus]", None, [259, 6691]),
        ("[Verse]hello", None, [259, 6683, 62, 84, 28]),
        ("[instrumental]", None, [259, 1, 718, 1951, 763, 56, 1]),
        ("neon lights they flicker bright", "en",
         [259, 111, 47, 2, 75, 20, 583, 32, 2, 141, 2, 468, 91, 2820, 2, 243, 343, 583]),
        ("city hums in dead of night", "en",
         [259, 779, 210, 2, 1874, 32, 2, 41, 2, 126, 68, 2, 58, 2, 832, 20, 583]),
        ("你好，世界", None, [5023, 27, 4554, 21, 4576, 7, 4557, 4804]),
        ("Привет", None, [267, 3454, 3544]),
        ("corazón", "es", [284, 950, 1349, 1137]),
        ("annyeonghaseyo", "ko", [6152, 43, 2351, 5805, 82, 55, 1958, 28]),
        ("君の名", "ja", [5412, 2062, 22, 2, 95, 2, 467]),
    ],
)  # fmt: skip
def test_published_lines_have_upstreams_ids(published, line, language, ids):
    assert published.ids(line, language) == [261, *ids, 2]
