"""Options one by one: what each takes, in which form it is kept, and that every refusal is one helpful sentence."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acefast.options import OTHER_NAMES, STEMS, TASKS, table
from acefast.request import CheckpointTraits, Request, RequestError, options, options_table
from acefast.values import LANGUAGES

TURBO = CheckpointTraits("ace-step-1.5-turbo", True, "turbo")
BASE = CheckpointTraits("ace-step-1.5-base", False, "base")
SONG = "song.wav"


def refused(*words: str, **values) -> str:
    """Assert that the request is refused in one printable sentence that has all ``words``; the sentence."""
    with pytest.raises(RequestError) as caught:
        Request.from_options(**{"prompt": "rock", **values})
    return checked_sentence(caught.value, *words)


def checked_sentence(error: RequestError, *words: str) -> str:
    text = str(error)
    assert text.encode() and text.isprintable(), "one line that any terminal can show"
    assert 15 < len(text) < 400 and text[-1] not in " .:;,", text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return text


KEPT = [
    *[
        ("key", spelled, "C# minor")
        for spelled in ("c# min", "C# minor", "C♯m", "c-sharp minor", "C sharp MINOR", " c#m ")
    ],
    *[("key", "Am", "A minor"), ("key", "F# Major", "F# major"), ("key", "Bb", "Bb major"), ("key", "b", "B major")],
    *[("key", "E♭ maj", "Eb major"), ("key", "bm", "B minor"), ("key", "CM", "C major"), ("key", "E#min", "E# minor")],
    *[("time_signature", spelled, "4") for spelled in ("4", "4/4", " 4 / 4 ", 4, np.int64(4))],
    *[("time_signature", "3/4", "3"), ("time_signature", "6/8", "6"), ("time_signature", 2, "2")],
    *[
        ("language", "English", "en"),
        ("language", "ZH", "zh"),
        ("language", "pt-BR", "pt"),
        ("language", "zh_CN", "zh"),
    ],
    *[("language", "haitian  creole", "ht"), ("language", "mandarin", "zh"), ("language", "unknown", "unknown")],
    *[
        ("bpm", 120.0, 120),
        ("bpm", np.int64(30), 30),
        ("bpm", 300, 300),
        ("duration", 5, 5.0),
        ("duration", 600, 600.0),
    ],
    *[("seed", 2**64 - 1, 2**64 - 1), ("seed", 0, 0), ("steps", 1, 1), ("steps", 200, 200), ("normalize", None, None)],
    *[("timesteps", [1, 0.5, 0], (1.0, 0.5)), ("timesteps", "0.97,0.76, 0.085,0", (0.97, 0.76, 0.085))],
    *[("timesteps", torch.tensor([1.0, 0.5]), (1.0, 0.5)), ("guidance_interval", [0, 0.5], (0.0, 0.5))],
    *[("guidance_interval", 0.5, 0.5), ("oss_steps", "16, 29", (16, 29)), ("oss_steps", torch.tensor([1, 9]), (1, 9))],
    *[("codes", [0, 63999], (0, 63999)), ("codes", "<|audio_code_7|><|audio_code_8|>", (7, 8))],
    *[("codes", "<|audio_code_64000|><|audio_code_999999999|>", (63999, 63999))],  # cut, as upstreams do
    *[("codes", "1, 2 3", (1, 2, 3)), ("codes", np.array([4, 5]), (4, 5)), ("codes", torch.tensor([6]), (6,))],
]


@pytest.mark.parametrize("name, value, kept", KEPT, ids=str)
def test_values_are_kept_in_canonical_form(name, value, kept):
    found = getattr(Request("rock", **{name: value}), name)
    assert found == kept and type(found) is type(kept)


NUMBERS = [name for name, about in options().items() if about.kind in ("number", "integer", "level")]
BAD = [
    *[
        (name, value)
        for name in NUMBERS
        for value in (math.nan, math.inf, -math.inf, -1000, 2.0**70, 10**400, "3", True)
    ],
    *[
        ("bpm", 29),
        ("bpm", 301),
        ("bpm", 90.5),
        ("bpm", [90]),
        ("duration", 4.99),
        ("duration", 600.1),
        ("duration", -1),
    ],
    *[("steps", 0), ("steps", 201), ("steps", 8.5), ("seed", -1), ("seed", 1.5), ("guidance_scale", -0.5)],
    *[("key", "H minor"), ("key", "C## minor"), ("key", ""), ("key", "loud"), ("key", 3), ("time_signature", "5/4")],
    *[
        ("time_signature", 4.0),
        ("time_signature", ""),
        ("time_signature", True),
        ("language", "Klingon"),
        ("language", 1),
    ],
    *[("language", ""), ("task", "remix"), ("task", None), ("solver", "Euler"), ("instrumental", "yes"), ("dcw", "on")],
    *[("codes", [64000]), ("codes", [-1]), ("codes", [1.5]), ("codes", []), ("codes", ""), ("codes", [0] * 3001)],
    *[("codes", "64000"), ("codes", "1, 64000")],
    *[("codes", "<|audio_code_1|> and more"), ("codes", "one"), ("codes", "<|audio_code_9999999999|>"), ("codes", 5)],
    *[
        ("timesteps", []),
        ("timesteps", [0.5, 1.0]),
        ("timesteps", [1.0, 1.0]),
        ("timesteps", [1.5]),
        ("timesteps", [0]),
    ],
    *[("timesteps", [math.nan]), ("timesteps", "1, x"), ("timesteps", [0.5, 0, 0.1]), ("timesteps", 0.5)],
    *[("guidance_interval", (0.6, 0.5)), ("guidance_interval", (0, 1.1)), ("guidance_interval", 1.5)],
    *[("noise", torch.zeros(64)), ("noise", [[0.0]]), ("noise", torch.full((2, 64), math.nan)), ("on_step", 5)],
    *[("noise", np.array([["a"] * 64])), ("noise", np.array([[None] * 64])), ("noise", np.zeros((2, 64), complex))],
    *[("noise", torch.zeros(2, 64, dtype=torch.complex64)), ("reference", torch.zeros(2, 9, dtype=torch.complex64))],
    *[("noise", torch.zeros(2, 64, device="meta")), ("reference", torch.zeros(2, 9, device="meta"))],
    *[("noise", torch.zeros(2, 64).to_sparse()), ("reference", torch.zeros(2, 9).to_sparse())],
    *[("reference", np.array([["a"] * 9])), ("reference", np.array([[None] * 9])), ("reference", np.zeros(9, complex))],
    *[("reference", (torch.zeros(2, 9).to_sparse(), 48000)), ("reference", (np.array([None] * 9), 48000))],
    *[
        ("reference", 5),
        ("reference", ""),
        ("reference", "a\0b"),
        ("reference", np.zeros(0)),
        ("reference", np.zeros(())),
    ],
    *[("reference", (np.zeros(9), -1)), ("reference", (np.zeros(9), "48000")), ("reference", ((1, 2), 48000))],
    *[("prompt", None), ("prompt", 5), ("prompt", b"rock"), ("lyrics", None), ("lyrics", ["la"]), ("instruction", 5)],
]


@pytest.mark.parametrize("name, value", BAD, ids=lambda x: str(x)[:30])
def test_bad_values_are_refused_by_name(name, value):
    refused(name, **{name: value})


def test_a_refusal_says_what_it_needs_what_it_got_and_the_way_out():
    assert refused(duration=3.0) == "duration must be 5 to 600 seconds, got 3.0"
    assert refused(language="Spansh").endswith("got 'Spansh'; the nearest is 'es' (Spanish)")
    assert refused(solver="heum") == "solver must be euler, heun, sde or pingpong, got 'heum'; the nearest is 'heun'"
    assert refused(codes=[1, 64000]) == "codes[1] must be a whole number 0 to 63999, got 64000"
    refused("such as C# minor", key="H")
    refused("drums", task="lego", source=SONG, track="druns")


@pytest.mark.parametrize("name", ["prompt", "lyrics", "instruction"])
@pytest.mark.parametrize(
    "text, why", [("a\ud800b", "surrogate"), ("a\0b", "NUL"), ("a<|endoftext|>b", "<|endoftext|>")]
)
def test_text_that_cannot_be_encoded_or_would_end_the_prompt_is_refused(name, text, why):
    refused(name, why, "character 1", **{name: text})


@pytest.mark.parametrize(
    "typed, meant",
    [("durration", "duration"), ("guidance_scal", "guidance_scale"), ("keyscal", "key"), *OTHER_NAMES.items()],
)
def test_an_unknown_option_is_answered_with_the_nearest_known_one(typed, meant):
    assert meant in options()
    refused(repr(typed), f"nearest known one is {meant!r}", **{typed: 1})


def test_an_unknown_option_like_nothing_points_to_the_help():
    refused("xqzw", "--help", xqzw=1)
    refused("device", "acefast.load", device="cpu")
    with pytest.raises(RequestError, match="nearest known one is 'lyrics'"):
        Request.from_dict({"prompt": "rock", "lyric": ""})


@pytest.mark.parametrize(
    "name, text, value",
    [
        *[("steps", "8", 8), ("duration", " 12.5 ", 12.5), ("normalize", "off", None), ("normalize", "-3", -3.0)],
        *[("guidance_interval", "0.2:0.9", (0.2, 0.9)), ("timesteps", "1,0.5,0", (1.0, 0.5)), ("key", "am", "A minor")],
        *[("guidance_interval", "0.3", 0.3), ("oss_steps", "1,5", (1, 5)), ("erg_tag", "false", False)],
        *[("instrumental", "true", True), ("seed", str(2**64 - 1), 2**64 - 1), ("source", "a b.wav", "a b.wav")],
        *[("codes", "<|audio_code_5|>", (5,)), ("tracks", "drums,bass", ("drums", "bass")), ("prompt", " a\n", " a\n")],
    ],
)  # fmt: skip
def test_text_of_the_command_line_is_read_as_the_value_it_spells(name, text, value):
    found = options()[name].parse(name, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("name", [name for name, about in options().items() if about.kind != "text"])
@pytest.mark.parametrize("text", ["", "nan", "\0", "1e999", "1,2,x", "9" * 5000, "\ud800"])
def test_unreadable_text_is_refused_in_one_sentence(name, text):
    try:
        options()[name].parse(name, text)
    except RequestError as error:
        checked_sentence(error, name)
    else:
        assert text in ("", "9" * 5000, "nan", "1e999", "1,2,x", "\ud800") and options()[name].kind in (
            "audio",
            "track",
            "tracks",
        )


def test_every_option_is_declared_with_help_and_range_and_is_in_the_table():
    lines = options_table().splitlines()
    assert len(lines) == len(options()) + 2
    for (name, about), line in zip(options().items(), lines[2:]):
        assert line.startswith(f"| `{name}` |") and about.help in line
        assert line.replace("\\|", "").count("|") == 7 and about.needs
        assert about.kind not in ("number", "integer", "level") or about.low < about.high
        assert about.kind != "choice" or about.default in about.choices
        assert {*about.tasks} <= {*TASKS}


def test_what_a_task_needs_of_the_checkpoint_its_own_options_need_too():
    for about in options().values():
        if about.tasks and {*about.tasks} <= {*STEMS}:
            assert about.models == ("base",) and "| base |" in table({"x": about})


def test_there_are_fifty_languages_and_unknown():
    assert len(LANGUAGES) == 51 and "unknown" in LANGUAGES
    for code, name in LANGUAGES.items():
        assert Request("a", language=name).language == code == Request("a", language=code.upper()).language


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5),
    st.lists(st.one_of(st.integers(-2, 70000), st.floats(), st.text(max_size=5)), max_size=5),
    st.tuples(st.floats(0, 1), st.floats(0, 1)), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([choice for about in options().values() for choice in about.choices]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*options()]), ANYTHING, max_size=5))
def test_any_values_give_a_request_or_one_sentence(values):
    try:
        request = Request.from_options(**{"prompt": "rock", **values})
        stored = request.to_dict()
        assert Request.from_dict(json.loads(json.dumps(stored))).to_dict() == stored
        request.for_checkpoint(BASE).check_window(30.0) if request.source else request.for_checkpoint(TURBO)
    except RequestError as error:
        checked_sentence(error)
