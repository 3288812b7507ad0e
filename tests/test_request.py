"""Requests: which options go together, what a checkpoint adds, where windows lie, batches, and storing them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acefast.expand import expand
from acefast.options import TASKS
from acefast.request import CheckpointTraits, Request, RequestError, Window

TURBO = CheckpointTraits("ace-step-1.5-turbo", True, "turbo")
SFT = CheckpointTraits("ace-step-1.5-sft", False, "sft")
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


TOGETHER = [
    (("prompt", "lyrics", "instrumental"), {"prompt": " "}),
    (("instrumental", "lyrics"), {"instrumental": True, "lyrics": "la la"}),
    (("start", "text2music", "repaint"), {"start": 3}),
    (("source", "text2music", "cover"), {"source": SONG}),
    (("strength", "text2music"), {"strength": 0.5}),
    (("track", "lego and extract"), {"track": "drums"}),
    (("tracks", "complete"), {"task": "lego", "source": SONG, "tracks": ["drums"]}),
    (("source", "cover", "codes"), {"task": "cover"}),
    *[(("source", task), {"task": task}) for task in TASKS[2:]],
    (("codes", "source"), {"task": "cover", "source": SONG, "codes": [1]}),
    (("codes", "repaint"), {"task": "repaint", "source": SONG, "codes": [1]}),
    (("cover_noise", "source"), {"cover_noise": 0.5, "codes": [1] * 50}),
    (("duration", "source"), {"task": "cover", "source": SONG, "duration": 30}),
    (("duration", "repaint"), {"task": "repaint", "source": SONG, "duration": 30}),
    (("duration", "10 seconds"), {"codes": [1] * 50, "duration": 8}),
    (("strength", "aggressive"), {"task": "repaint", "source": SONG, "strength": 0.5, "repaint_mode": "aggressive"}),
    (("strength", "diffusers"), {"task": "repaint", "source": SONG, "strength": 0.5, "semantics": "diffusers"}),
    (("start", "before end"), {"task": "repaint", "source": SONG, "start": 5, "end": 5}),
    (("start", "extend"), {"task": "repaint", "source": SONG, "start": -5}),
    (("end", "leave it out"), {"task": "repaint", "source": SONG, "end": 0}),
    (("end", "duration"), {"task": "extend", "source": SONG, "end": 50, "duration": 60}),
    (("extend", "start", "end", "duration"), {"task": "extend", "source": SONG}),
    (("extend",), {"task": "extend", "source": SONG, "start": 5}),
    (("fade_in", "fade_out"), {"duration": 10, "fade_in": 6, "fade_out": 5}),
    (("steps", "timesteps"), {"steps": 8, "timesteps": [1, 0.5]}),
    (("sigma_shift", "timesteps"), {"sigma_shift": 3, "timesteps": [1, 0.5]}),
    (("guidance_eta", "apg"), {"guidance": "cfg", "guidance_eta": 0.5}),
    *[
        ((name, "guidance_scale=1"), {"guidance_scale": 1, name: value})
        for name, value in {"guidance": "cfg", "guidance_interval": (0, 0.5), "guidance_eta": 0.5}.items()
    ],
    (("posterior", "audio"), {"posterior": "sample"}),
    (("posterior", "audio"), {"posterior": "sample", "codes": [1] * 50}),
    (("precision", "diffusers", "official"), {"precision": "upstream", "semantics": "diffusers"}),
    (("variation_seed", "variation"), {"variation_seed": 5}),
    (("dcw", "sde"), {"dcw": "low", "solver": "sde"}),
]


@pytest.mark.parametrize("words, values", TOGETHER, ids=str)
def test_options_that_contradict_or_would_be_ignored_are_refused(words, values):
    refused(*words, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "", "lyrics": "la"},
        {"prompt": "", "instrumental": True},
        {"prompt": "", "codes": [1]},
        {"prompt": "", "task": "extract", "source": SONG, "track": "vocals"},
        {"task": "cover", "codes": [1] * 50, "strength": 0.2, "duration": 20},
        {"codes": [1] * 50, "strength": 0.2},
        {"task": "lego", "source": SONG, "track": "Backing Vocals, drums", "start": 3},
        {"reference": (np.zeros((2, 48000)), 44100)},
        {"reference": SimpleNamespace(audio=np.zeros((2, 9)), sample_rate=48000)},
    ],
    ids=str,
)
def test_what_makes_sense_together_passes(values):
    Request(**{"prompt": "rock", **values})


def test_tracks_are_normalised_and_named_once():
    assert Request(task="lego", source=SONG, track="Backing Vocals, drums").track == "backing_vocals | drums"
    assert Request(task="complete", source=SONG, tracks="bass|Bass| fx").tracks == ("bass", "fx")


DEFAULTS = [  # checkpoint, semantics -> steps, sigma_shift, guidance_scale
    (TURBO, "official", (8, 3.0, 1.0)),
    (CheckpointTraits("a", True, "turbo-shift1"), "official", (8, 1.0, 1.0)),
    (CheckpointTraits("a", True, "turbo-shift1"), "diffusers", (8, 3.0, 1.0)),
    (CheckpointTraits("a", True, "turbo-shift3"), "official", (8, 3.0, 1.0)),
    (CheckpointTraits("a", True, "turbo-continuous"), "official", (8, 3.0, 1.0)),
    (CheckpointTraits("a", True, "turbo", xl=True), "diffusers", (8, 3.0, 1.0)),
    (SFT, "official", (50, 1.0, 7.0)),
    (BASE, "official", (50, 1.0, 7.0)),
    (BASE, "diffusers", (8, 3.0, 7.0)),
]


@pytest.mark.parametrize("traits, semantics, expected", DEFAULTS, ids=str)
def test_defaults_come_from_the_checkpoint(traits, semantics, expected):
    resolved = Request("rock", semantics=semantics).for_checkpoint(traits)
    assert (resolved.steps, resolved.sigma_shift, resolved.guidance_scale) == expected
    assert resolved.duration == 60 and resolved.language == ("en" if semantics == "diffusers" else "unknown")
    assert resolved.for_checkpoint(traits) == resolved == Request.from_dict(resolved.to_dict())


def test_given_values_beat_the_checkpoint_s():
    resolved = Request("rock", steps=30, sigma_shift=2, guidance_scale=4, language="fr", duration=9).for_checkpoint(
        BASE
    )
    assert (resolved.steps, resolved.sigma_shift, resolved.guidance_scale) == (30, 2.0, 4.0)
    assert (resolved.language, resolved.duration) == ("fr", 9.0)
    own = Request("rock", timesteps=[1, 0.5, 0.2]).for_checkpoint(BASE)
    assert own.steps == 3 and own.sigma_shift is None and own.for_checkpoint(BASE) == own


@pytest.mark.parametrize(
    "values, strength, duration",
    [
        ({"codes": [1] * 50}, 1.0, 10.0),
        ({"codes": [1]}, 1.0, 5.0),
        ({"codes": [1] * 50, "semantics": "diffusers"}, 1.0, None),
        ({"task": "cover", "source": SONG}, 1.0, None),
        ({"task": "repaint", "source": SONG}, 0.5, None),
        ({"task": "repaint", "source": SONG, "repaint_mode": "aggressive"}, None, None),
        ({"task": "extend", "source": SONG, "duration": 90}, 0.5, 90.0),
        ({"task": "extract", "source": SONG}, None, None),
    ],
    ids=str,
)
def test_strength_and_duration_follow_the_task(values, strength, duration):
    resolved = Request("rock", **values).for_checkpoint(BASE)
    assert (resolved.strength, resolved.duration) == (strength, duration)


@pytest.mark.parametrize(
    "name, value", [("guidance_scale", 7), ("guidance", "cfg"), ("guidance_interval", (0, 0.5)), ("guidance_eta", 1)]
)
def test_guidance_is_refused_on_turbo_and_taken_on_sft(name, value):
    request = Request("rock", **{name: value})
    with pytest.raises(RequestError) as caught:
        request.for_checkpoint(TURBO)
    checked_sentence(caught.value, name, TURBO.name, "distilled", "leave", "-sft or -base")
    request.for_checkpoint(SFT)
    Request("rock", guidance_scale=1).for_checkpoint(TURBO)


@pytest.mark.parametrize("task", ["lego", "extract", "complete"])
def test_stem_tasks_need_a_base_checkpoint(task):
    request = Request(task=task, source=SONG)
    for traits in (TURBO, SFT):
        with pytest.raises(RequestError) as caught:
            request.for_checkpoint(traits)
        checked_sentence(caught.value, task, traits.name, "ace-step-1.5-base")
    request.for_checkpoint(BASE)


def test_traits_must_agree_with_themselves():
    for is_turbo, version in ((True, "base"), (False, "turbo"), (True, "v9")):
        with pytest.raises(ValueError, match="version"):
            CheckpointTraits("a", is_turbo, version)


WINDOWS = [  # task, options, source seconds -> before, after, regions, length
    ("repaint", {}, 40, (0, 0, ((0, 40),), 40)),
    ("repaint", {"start": 10, "end": 20}, 40, (0, 0, ((10, 20),), 40)),
    ("repaint", {"start": 10, "end": 40.03}, 40, (0, 0, ((10, 40),), 40)),  # within a frame of the end
    ("lego", {"start": 10}, 40, (0, 0, ((10, 40),), 40)),
    ("cover", {}, 40, (0, 0, ((0, 40),), 40)),
    ("extend", {"end": 60}, 40, (0, 20, ((40, 60),), 60)),
    ("extend", {"duration": 60}, 40, (0, 20, ((40, 60),), 60)),
    ("extend", {"start": 35, "end": 60}, 40, (0, 20, ((35, 60),), 60)),  # with the last 5 s anew
    ("extend", {"start": -10}, 40, (10, 0, ((0, 10),), 50)),
    ("extend", {"start": -10, "end": 5}, 40, (10, 0, ((0, 15),), 50)),  # with the first 5 s anew
    ("extend", {"start": -10, "end": 60}, 40, (10, 20, ((0, 10), (50, 70)), 70)),
    ("extend", {"start": -10, "duration": 70}, 40, (10, 20, ((0, 10), (50, 70)), 70)),
    ("extend", {"end": 8}, 2, (0, 6, ((2, 8),), 8)),  # a source too short for other tasks
]


@pytest.mark.parametrize("task, values, seconds, expected", WINDOWS, ids=str)
def test_windows_lie_where_the_times_say(task, values, seconds, expected):
    assert Request("rock", task=task, source=SONG, **values).check_window(seconds) == Window(*expected)


@pytest.mark.parametrize(
    "task, values, seconds, words",
    [
        ("repaint", {"start": 40}, 40, ("start", "40.00 seconds", "extend")),
        ("repaint", {"end": 41}, 40, ("end", "40.00 seconds", "extend")),
        ("extend", {"end": 30}, 40, ("end", "40.00 seconds")),
        ("extend", {"duration": 40}, 40, ("duration", "40.00 seconds")),
        ("extend", {"start": -10, "duration": 45}, 40, ("duration", "50.00 seconds")),
        ("extend", {"start": 45, "end": 60}, 40, ("start", "inside the source")),
        ("extend", {"start": 0, "end": 60}, 40, ("start", "leave it out")),
        ("extend", {"start": -0.01, "end": 60}, 40, ("start", "-0.04 seconds or less", "-0.01", "leave it out")),
        ("extend", {"start": -0.01}, 40, ("start", "-0.04 seconds or less")),
        ("extend", {"start": -400}, 300, ("source", "700.00", "600")),
        ("cover", {}, 4, ("source", "5 to 600")),
        ("extend", {"end": 60}, 0.01, ("source", "longer")),
        ("cover", {}, 601, ("source", "5 to 600")),
    ],
    ids=str,
)
def test_windows_outside_the_song_are_refused(task, values, seconds, words):
    request = Request("rock", task=task, source=SONG, **values)
    with pytest.raises(RequestError) as caught:
        request.check_window(seconds)
    checked_sentence(caught.value, *words)


SECONDS = st.none() | st.floats(-30, 90) | st.integers(-30, 90)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TASKS[1:]), SECONDS, SECONDS, SECONDS, st.floats(0, 700))
def test_any_window_lies_within_the_song_or_is_refused(task, start, end, duration, seconds):
    given = {"start": start, "end": end, "duration": duration}
    try:
        window = Request("rock", task=task, source=SONG, **given).check_window(seconds)
    except RequestError as error:
        checked_sentence(error)
        return
    times = [time for region in window.regions for time in region]
    assert times == sorted(times) and len({*times}) == len(times) and times[0] >= 0 and times[-1] <= window.seconds
    assert window.seconds == pytest.approx(window.before + seconds + window.after) and 4.9 < window.seconds < 600.1
    if task == "extend":
        made = sum(b - a for a, b in window.regions)
        assert (
            made < window.seconds and made >= window.before + window.after - 1e-9 and window.before + window.after > 0
        )


def test_a_stored_request_comes_back_equal_through_json():
    request = Request(
        "rock",
        "[verse]\nla",
        task="cover",
        source=Path("a") / "b.wav",
        key="am",
        bpm=90,
        timesteps=[1, 0.5],
        seed=2**63,
    )
    stored = json.loads(json.dumps(request.to_dict()))
    assert stored["source"] == str(Path("a") / "b.wav") and stored["timesteps"] == [1, 0.5]
    assert Request.from_dict(stored) == request and stored == request.to_dict()


def test_arrays_are_described_and_compared_by_identity():
    audio, noise = np.zeros((2, 48000), np.float32), torch.zeros(1, 50, 64)
    request = Request("rock", task="cover", source=(audio, 44100), noise=noise, on_step=print)
    stored = json.loads(json.dumps(request.to_dict()))
    assert stored["source"] == {"array": [2, 48000], "rate": 44100} and stored["noise"] == {"array": [50, 64]}
    assert "on_step" not in stored
    assert request == request and request != Request("rock", task="cover", source=(audio.copy(), 44100))
    with pytest.raises(RequestError, match="noise must be a tensor"):
        Request.from_dict(stored)
    assert Request.from_dict({**stored, "source": "a.wav", "noise": noise}).noise.shape == (50, 64)


def test_a_batch_spreads_lists_and_shares_single_values():
    songs, several = expand(["a", "b"], "la", [1, None], bpm=90)
    assert several and [s.prompt for s in songs] == ["a", "b"] and [s.lyrics for s in songs] == ["la", "la"]
    assert songs[0].seed == 1 and 0 <= songs[1].seed < 2**32 and all(s.bpm == 90 for s in songs)
    (song,), several = expand("a", variation=0.5)
    assert not several and 0 <= song.seed < 2**32 and 0 <= song.variation_seed < 2**32
    assert expand(["a"])[1], "a list of one asks for a list"
    assert len({s.seed for s in expand(["a"] * 8)[0]}) > 1


def test_a_batch_of_noise_is_split_into_its_songs():
    noise = torch.arange(3 * 2 * 64).reshape(3, 2, 64).float()
    songs, several = expand("a", noise=noise)
    assert several and all(torch.equal(song.noise, row) for song, row in zip(songs, noise))
    assert expand("a", noise=noise[:1])[1] is False


@pytest.mark.parametrize(
    "values, words",
    [
        ({"prompt": []}, ("prompt", "empty list")),
        ({"prompt": ["a", "b"], "seed": [1, 2, 3]}, ("prompt", "2", "seed", "3", "equally long")),
        ({"prompt": ["a", "b"], "noise": torch.zeros(3, 2, 64)}, ("prompt", "noise")),
        ({"prompt": "a", "lyric": "la"}, ("'lyric'", "'lyrics'")),
        ({"prompt": ["a", 5]}, ("prompt", "text")),
    ],
    ids=str,
)
def test_a_batch_that_does_not_add_up_is_refused(values, words):
    with pytest.raises(RequestError) as caught:
        expand(**values)
    checked_sentence(caught.value, *words)
