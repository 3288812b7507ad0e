"""Prompts: their exact characters, held against the specification and diffusers, and how they are cut to tokens."""

# ruff: noqa: RUF001 - letters of other scripts are what is tested
from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acefast.options import TASKS
from acefast.prompts import LYRIC_TOKENS, TEXT_TOKENS, Tokens, instruction, lyric_prompt, text_prompt, tokenize
from acefast.request import Request, RequestError
from acefast.values import END, LANGUAGES, TRACKS

# One line in each language the lyrics may be in; the scripts, joiners, directions and marks are the point.
LINES = dict(
    line.split(" ", 1)
    for line in """\
ar أغنية تحت المطر
az Gecə mahnısı
bg Песен в нощта
bn বৃষ্টির গান
ca Cançó d'estiu
cs Píseň večerní
da Sang på ø
de Lied für dich
el Τραγούδι της νύχτας
en Song of rain
es Canción del mañana
fa ترانهٔ می‌خوانم
fi Yölaulu äiti
fr Chanson d’été
he שִׁיר הַלַּיְלָה
hi रात का गीत
hr Pjesma šuti
ht Chante pou mwen
hu Őszi dal
id Lagu malam
is Söngur næturinnar
it Perché canto
ja 夜の歌が聞こえる
ko 밤의 노래
la Carmen noctis
lt Nakties daina ž
ms Lagu hujan
ne रातको गीत
nl Lied één
no Sang å
pa ਰਾਤ ਦਾ ਗੀਤ
pl Pieśń źdźbła
pt Canção da manhã
ro Cântec și țară
ru Песня ночи
sa रात्रेः गीतम्
sk Pieseň ľúbosti
sr Песма ноћи
sv Sång på ö
sw Wimbo wa usiku
ta இரவுப் பாடல்
te రాత్రి పాట
th เพลงกลางคืน
tl Awit ng gabi
tr Gecenin şarkısı ığ
uk Пісня ночі ї
ur رات کا گیت
vi Bài hát đêm nghĩa
yue 夜晚嘅歌
zh 夜晚的歌""".splitlines()
)

INSTRUCTIONS = [
    (("text2music",), "Fill the audio semantic mask based on the given conditions:"),
    (("text2music", (), True), "Generate audio semantic tokens based on the given conditions:"),
    (("cover",), "Generate audio semantic tokens based on the given conditions:"),
    (("cover-nofsq",), "Generate audio semantic tokens based on the given conditions:"),
    (("repaint",), "Repaint the mask area based on the given conditions:"),
    (("extend",), "Repaint the mask area based on the given conditions:"),
    (("extract",), "Extract the track from the audio:"),
    (("extract", "vocals"), "Extract the VOCALS track from the audio:"),
    (("lego",), "Generate the track based on the audio context:"),
    (("lego", "backing_vocals | fx"), "Generate the BACKING_VOCALS | FX track based on the audio context:"),
    (("complete",), "Complete the input track:"),
    (("complete", ("drums", "bass")), "Complete the input track with DRUMS | BASS:"),
]


@pytest.mark.parametrize("arguments, expected", INSTRUCTIONS, ids=str)
def test_each_task_has_its_instruction(arguments, expected):
    assert instruction(*arguments) == expected


def test_the_text_prompt_is_the_specified_string():
    request = Request("dusty boom bap", bpm=90, key="c# min", time_signature="4/4")
    assert text_prompt(request, 59.99) == (
        "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n"
        "# Caption\ndusty boom bap\n\n"
        "# Metas\n- bpm: 90\n- timesignature: 4\n- keyscale: C# minor\n- duration: 59 seconds\n<|endoftext|>\n"
    )
    bare = "# Metas\n- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n- duration: 30 seconds\n<|endoftext|>\n"
    assert text_prompt(Request("rock"), None).endswith(bare)


def test_a_checkpoint_of_stems_reads_the_prompt_as_a_stem_s_caption():
    def caption(**options):
        request = Request("dry snare", task="lego", track="drums", source="a.wav", **options)
        return text_prompt(request, 30, lego_sft=True).split("# Caption\n")[1].split("\n\n# Metas")[0]

    assert caption() == "Global: \nLocal: dry snare\nMask Control: true"
    for value in ("ones", "twos"):
        assert caption(chunk_mask=value) == "Global: \nLocal: dry snare\nMask Control: false"
    segment = "Generate a segment of the DRUMS track based on the audio context"
    assert caption(instruction=segment) == "Local: dry snare\nMask Control: true"


def test_the_lyric_prompt_is_the_specified_string():
    request = Request("rock", "[verse]\nla la", language="Spanish")
    assert lyric_prompt(request) == "# Languages\nes\n\n# Lyric\n[verse]\nla la<|endoftext|>"
    assert lyric_prompt(Request("rock")) == "# Languages\nunknown\n\n# Lyric\n<|endoftext|>"
    assert lyric_prompt(Request("rock", semantics="diffusers")) == "# Languages\nen\n\n# Lyric\n<|endoftext|>"
    assert lyric_prompt(Request("rock", instrumental=True)).endswith("# Lyric\n[Instrumental]<|endoftext|>")


def test_an_own_instruction_gets_its_colon_and_gives_way_to_the_task_asked_for():
    request = Request("rock", task="cover", codes=[1], instruction="Play it slow")
    assert text_prompt(request, 9).startswith("# Instruction\nPlay it slow:\n\n# Caption\nrock\n")
    fill = "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n"
    assert text_prompt(request, 9, task="text2music").startswith(fill)
    assert text_prompt(Request("rock", codes=[1]), 9).startswith("# Instruction\nGenerate audio semantic tokens")


@pytest.fixture(scope="module")
def oracle():
    """diffusers' pipeline class: its prompt builders need no weights."""
    return pytest.importorskip("diffusers").AceStepPipeline


def test_instructions_equal_those_of_diffusers(oracle):
    for task in set(TASKS) - {"cover-nofsq", "extend"}:
        for tracks in [(), *((t,) for t in TRACKS), ("drums", "bass", "vocals")]:
            expected = oracle._get_task_instruction(task, " | ".join(tracks) or None, list(tracks))
            assert instruction(task, tracks) == expected


METAS = [*itertools.product((None, 30, 121), (None, "C major", "F# minor"), (None, "3", "6"), (0.5, 59.999, 600))]


@pytest.mark.parametrize("bpm, key, meter, seconds", METAS)
def test_prompts_equal_those_of_diffusers(oracle, bpm, key, meter, seconds):
    for lyrics, language, own in (("", None, None), ("[verse]\nla\r\n", "ja", "Sing it"), ("x ", "unknown", "a:")):
        request = Request(
            "a\n\nb", lyrics, bpm=bpm, key=key, time_signature=meter, language=language, instruction=own,
            semantics="diffusers",
        )  # fmt: skip
        expected = oracle._format_prompt(
            oracle, "a\n\nb", lyrics, language or "en", seconds, own, bpm=bpm, keyscale=key, timesignature=meter
        )
        assert (text_prompt(request, seconds), lyric_prompt(request)) == expected


@pytest.mark.parametrize("language", LINES)
def test_a_line_in_each_language_comes_through_unchanged(language, tokenizer):
    line = LINES[language]
    request = Request(line, line, language=language)
    assert lyric_prompt(request) == f"# Languages\n{language}\n\n# Lyric\n{line}{END}"
    assert f"# Caption\n{line}\n\n# Metas\n" in text_prompt(request, 60)
    assert tokenizer.decode(tokenize(tokenizer, lyric_prompt(request), LYRIC_TOKENS).ids) == lyric_prompt(request) + END


def test_the_lines_cover_every_language():
    assert {*LINES} == {*LANGUAGES} - {"unknown"}


TEXT = st.one_of(st.text(max_size=80), st.text(st.characters(), max_size=20), st.sampled_from([*LINES.values(), END]))


@settings(max_examples=400, deadline=None)
@given(prompt=TEXT, lyrics=TEXT, own=st.none() | TEXT, key=TEXT, seconds=st.floats(5, 600), official=st.booleans())
def test_any_text_keeps_the_frame_or_is_refused(oracle, prompt, lyrics, own, key, seconds, official):
    try:
        Request("rock", key=key)
    except RequestError as error:
        assert str(error).isprintable()
    try:
        request = Request(prompt, lyrics, instruction=own, semantics="official" if official else "diffusers")
    except RequestError as error:
        assert str(error).isprintable() and ("prompt" in str(error) or "lyrics" in str(error) or "instr" in str(error))
        unusable = any(END in t or "\0" in t or not _encodes(t) for t in (prompt, lyrics, own or ""))
        assert unusable or not (prompt.strip() or lyrics.strip())
        return
    text, words = text_prompt(request, seconds), lyric_prompt(request)
    assert (text.count(END), words.count(END)) == (1, 1) and text.endswith(f" seconds\n{END}\n") and words.endswith(END)
    language = "unknown" if official else "en"
    assert (text, words) == oracle._format_prompt(oracle, prompt, lyrics, language, seconds, own)
    assert Request.from_dict(request.to_dict()) == request


def _encodes(text: str) -> bool:
    return text == text.encode(errors="replace").decode()


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokeniser of Qwen's make with no merges: one token a byte, and the end token put behind."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([END])
    end = raw.token_to_id(END)
    raw.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=END, padding_side="left")


def test_prompts_end_in_two_end_tokens(tokenizer):
    request = Request("rock", "la")
    end, newline = tokenizer.eos_token_id, tokenizer("\n").input_ids[0]
    assert tokenize(tokenizer, text_prompt(request, 60), 1000).ids[-3:] == [end, newline, end]
    assert tokenize(tokenizer, lyric_prompt(request), 1000).ids[-2:] == [end, end]


@pytest.mark.parametrize("length", (0, 200, 211, 212, 213, 214, 400))  # the frame takes 42 bytes and the end token one
def test_cutting_keeps_the_end_token_and_equals_the_tokenizer_s_own(tokenizer, length):
    prompt = lyric_prompt(Request("rock", "é" * (length // 2) + "x" * (length % 2)))
    found = tokenize(tokenizer, prompt, TEXT_TOKENS)
    assert found.ids == tokenizer(prompt, truncation=True, max_length=TEXT_TOKENS).input_ids
    assert len(found.ids) <= TEXT_TOKENS and found.ids[-1] == tokenizer.eos_token_id
    over = len(prompt.encode()) - len(END) - (TEXT_TOKENS - 1)
    assert found.cut == max(0, over)
    assert len(found.lost.encode()) - found.cut in (0, 1), "the lost text starts with the letter the cut went through"
    assert prompt.removesuffix(END).endswith(found.lost)


def test_a_cut_that_takes_only_the_closing_token_loses_nothing(tokenizer):
    frame = len(lyric_prompt(Request("rock")).removesuffix(END))
    prompt = lyric_prompt(Request("rock", "x" * (TEXT_TOKENS - 1 - frame)))
    found = tokenize(tokenizer, prompt, TEXT_TOKENS, overflow="refuse")
    assert found == Tokens(found.ids, 0, "") and len(found.ids) == TEXT_TOKENS


def test_too_long_lyrics_are_refused_on_request_with_both_counts(tokenizer):
    prompt = lyric_prompt(Request("rock", "la " * 1000))
    with pytest.raises(RequestError) as caught:
        tokenize(tokenizer, prompt, LYRIC_TOKENS, overflow="refuse")
    text = str(caught.value)
    assert text.isprintable() and text.startswith("lyrics must fit 2047 tokens")
    assert str(len(tokenizer(prompt).input_ids) - 1) in text and "shorten" in text and "lyrics_overflow='cut'" in text
