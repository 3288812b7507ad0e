"""What ACE-Step v1 makes of a request, and that each family refuses what only the other one takes."""

from __future__ import annotations

import inspect

import pytest
import torch

from acefast.families import V1_LANGUAGES
from acefast.options import ELSEWHERE, NOT_EDIT, OTHER_NAMES, TASKS, V1, V1_TASKS, V15
from acefast.request import CheckpointTraits, Request, RequestError, options
from tests.test_options import checked_sentence, refused

V1_CHECKPOINT = CheckpointTraits("ace-step-v1-3.5b", False, "v1")
SFT = CheckpointTraits("ace-step-1.5-sft", False, "sft")
TURBO = CheckpointTraits("ace-step-1.5-turbo", True, "turbo")
SONG = "song.wav"
EDIT = {"task": "edit", "source": SONG, "target_lyrics": "la"}

# Upstream's table of parameters: name -> our option, default, range. None: of the task or the checkpoint, see below.
UPSTREAM = {
    "audio_duration": ("duration", None, (5, 600)),
    "prompt": ("prompt", "", None),
    "lyrics": ("lyrics", "", None),
    "infer_step": ("steps", None, (1, 200)),
    "guidance_scale": ("guidance_scale", None, (0, 30)),
    "scheduler_type": ("solver", "euler", None),
    "cfg_type": ("guidance", "apg", None),
    "omega_scale": ("omega", 10.0, (-100, 100)),
    "manual_seeds": ("seed", None, (0, 2**64 - 1)),
    "retake_seeds": ("variation_seed", None, (0, 2**64 - 1)),
    "guidance_interval": ("guidance_interval", None, None),
    "guidance_interval_decay": ("guidance_decay", 0.0, (0, 1)),
    "min_guidance_scale": ("guidance_min", 3.0, (0, 200)),
    "use_erg_tag": ("erg_tag", True, None),
    "use_erg_lyric": ("erg_lyric", True, None),
    "use_erg_diffusion": ("erg_diffusion", True, None),
    "oss_steps": ("oss_steps", None, None),
    "guidance_scale_text": ("guidance_text", 0.0, (0, 10)),
    "guidance_scale_lyric": ("guidance_lyric", 0.0, (0, 10)),
    "audio2audio_enable": ("task", "text2music", None),
    "ref_audio_strength": ("strength", None, (0, 1)),
    "ref_audio_input": ("source", None, None),
    "task": ("task", "text2music", None),
    "retake_variance": ("variation", 0.0, (0, 1)),
    "repaint_start": ("start", None, (-600, 600)),
    "repaint_end": ("end", None, (0, 600)),
    "src_audio_path": ("source", None, None),
    "edit_target_prompt": ("target_prompt", None, None),
    "edit_target_lyrics": ("target_lyrics", None, None),
    "edit_n_min": ("edit_from", 0.0, (0, 1)),
    "edit_n_max": ("edit_until", 1.0, (0, 1)),
    "edit_n_avg": ("edit_average", 1, (1, 10)),
}


def for_v1(**values) -> Request:
    return Request.from_options(**{"prompt": "rock", **values}).for_checkpoint(V1_CHECKPOINT)


def refused_by(traits: CheckpointTraits, *words: str, **values) -> str:
    request = Request.from_options(**{"prompt": "rock", **values})
    with pytest.raises(RequestError) as caught:
        request.for_checkpoint(traits)
    return checked_sentence(caught.value, *words)


@pytest.mark.parametrize("name", UPSTREAM)
def test_every_parameter_of_upstream_is_an_option_with_its_default_and_range(name):
    ours, default, range_ = UPSTREAM[name]
    about = options()[ours]
    assert name == ours or OTHER_NAMES[name] == ours
    assert about.default == default and type(about.default) is type(default)
    assert range_ is None or (about.low, about.high) == range_
    assert not about.models or {"v1"} & {*about.models}
    if name != ours:
        refused(f"nearest known one is {ours!r}", **{name: 1})


@pytest.mark.parametrize("name", ["format", "save_path", "batch_size", "lora_name_or_path", "lora_weight"])
def test_what_upstream_takes_with_a_request_and_we_elsewhere_is_told(name):
    refused(name, ELSEWHERE[name], **{name: "x"})


def test_v1_defaults_are_those_of_upstreams_api():
    plain = for_v1()
    assert (plain.steps, plain.guidance_scale, plain.guidance, plain.guidance_interval) == (60, 15.0, "apg", 0.5)
    assert (plain.omega, plain.solver, plain.duration) == (10.0, "euler", 60.0)
    assert plain.sigma_shift is None and plain.language is None
    assert plain.for_checkpoint(V1_CHECKPOINT) == plain == Request.from_dict(plain.to_dict())
    assert for_v1(task="repaint", source=SONG).strength == 0.5 == for_v1(task="audio2audio", source=SONG).strength
    assert for_v1(task="extend", source=SONG, duration=90).strength == 1.0
    own = for_v1(duration=240, steps=27, guidance_scale=7.5, guidance_interval=0.3, language="ja", guidance="cfg_star")
    assert (own.duration, own.steps, own.guidance_scale, own.guidance_interval) == (240.0, 27, 7.5, 0.3)
    assert own.language == "ja" and for_v1(language="unknown").language == "unknown"
    assert for_v1(oss_steps="16, 29,52,96").steps == 4 and for_v1(oss_steps=[1, 200]).oss_steps == (1, 200)


def test_guidance_is_off_at_zero_and_one_and_asks_for_no_interval():
    for scale in (0, 1):
        request = for_v1(guidance_scale=scale)
        assert request.guidance_scale == 1.0 and request.guidance_interval is None
    assert for_v1(guidance_scale=0.5).guidance_scale == 0.5
    assert for_v1(**EDIT).guidance_interval is None


def test_an_interval_of_all_levels_beside_no_guidance_says_nothing():
    """Records of turbo songs have it."""
    for traits in (TURBO, SFT, V1_CHECKPOINT):
        made = Request("rock", guidance_scale=1, guidance_interval=(0, 1)).for_checkpoint(traits)
        assert made.guidance_interval is None
    assert Request("rock", guidance_interval=(0, 1)).for_checkpoint(SFT).guidance_interval == (0.0, 1.0)
    refused_by(V1_CHECKPOINT, "guidance_interval", guidance_interval=(0, 1))


def test_a_repaint_of_next_to_no_strength_is_refused_as_one_of_none():
    for task in ({"task": "repaint"}, {"task": "extend", "duration": 90}):
        for strength in (0, 1e-17):
            refused_by(V1_CHECKPOINT, "strength", "above 0", source=SONG, strength=strength, **task)
        assert for_v1(source=SONG, strength=1e-9, **task).strength == 1e-9


def test_a_song_of_five_seconds_is_a_source_though_v1_rounds_it_down():
    shortest = int(5 * 44100 / 4096) * 4096 / 44100  # 4.92
    for task in ({"task": "repaint"}, {"task": "audio2audio"}, EDIT):
        assert for_v1(**task | {"source": SONG}).check_window(shortest).seconds == shortest
        with pytest.raises(RequestError, match="5 to 600 are possible"):
            for_v1(**task | {"source": SONG}).check_window(4.9)


def test_other_words_for_the_same():
    assert for_v1(solver="pingpong") == for_v1(solver="sde")
    assert for_v1(task="retake") == for_v1(variation=0.5)
    assert for_v1(task="retake", variation=0.2, variation_seed=3) == for_v1(variation=0.2, variation_seed=3)
    assert Request("rock", task="retake").for_checkpoint(TURBO).variation == 0.5


ONLY_V15 = {
    "bpm": 90, "key": "C minor", "time_signature": 4, "instruction": "Sing", "sigma_shift": 3.0, "timesteps": (1, 0.5),
    "reference": SONG, "codes": (1, 2), "semantics": "diffusers", "pad_mode": "upstream", "chunk_mask": "ones",
    "posterior": "sample", "dcw": "low", "cover_noise": 0.5, "repaint_mode": "aggressive", "track": "drums",
    "tracks": ("drums",),
}  # fmt: skip
WAYS = {
    "into the prompt": ("bpm", "key", "time_signature", "instruction"),
    "oss_steps": ("sigma_shift", "timesteps"),
    "task='audio2audio'": ("reference",),
    "strength alone": ("repaint_mode",),
}
TASK_OF = {"cover_noise": "cover", "repaint_mode": "repaint", "track": "lego", "tracks": "complete"}


@pytest.mark.parametrize("name", ONLY_V15)
def test_what_only_1_5_takes_v1_refuses_with_the_way_out(name):
    values = {name: ONLY_V15[name]}
    if name in TASK_OF or name == "posterior":
        values |= {"task": TASK_OF.get(name, "repaint"), "source": SONG}
    what = name if values.get("task", "repaint") == "repaint" else values["task"]
    way_out = next((words for words, names in WAYS.items() if name in names), "1.5 checkpoint")
    refused_by(V1_CHECKPOINT, what, V1_CHECKPOINT.name, way_out, **values)


ONLY_V1 = {
    "omega": 3.0, "oss_steps": (1, 5), "guidance_decay": 0.5, "guidance_text": 5.0, "guidance_lyric": 1.5,
    "erg_tag": False, "erg_lyric": False, "erg_diffusion": False, "guidance_min": 4.0,
    "target_prompt": "jazz", "target_lyrics": "la", "edit_from": 0.5, "edit_until": 0.5, "edit_average": 2,
    "noise_level": "schedule",
}  # fmt: skip
BESIDE = {
    "guidance_text": {"guidance_lyric": 2},
    "guidance_lyric": {"guidance_text": 2},
    "guidance_min": {"guidance_decay": 1},
}


@pytest.mark.parametrize("traits", [SFT, TURBO], ids=lambda t: t.version)
@pytest.mark.parametrize("name", ONLY_V1)
def test_what_only_v1_takes_1_5_refuses_with_the_way_out(name, traits):
    values = {name: ONLY_V1[name], **BESIDE.get(name, {})}
    if options()[name].tasks == ("edit",):
        values = EDIT | values
    if name == "noise_level":
        values |= {"task": "audio2audio", "source": SONG}
    refused_by(traits, values.get("task", next(iter(values))).split("_")[0], traits.name, "ace-step-v1-3.5b", **values)
    for_v1(**values)


def test_every_option_is_of_both_families_or_tried_above():
    named = {name for name, about in options().items() if about.models in (V15, V1)}
    assert named | {"track", "tracks"} == {*ONLY_V15} | {*ONLY_V1}


@pytest.mark.parametrize("task", [task for task in TASKS if task not in V1_TASKS])
def test_tasks_of_1_5_are_refused_for_v1(task):
    refused_by(V1_CHECKPOINT, task, "repaint", "ACE-Step 1.5", task=task, source=SONG)


@pytest.mark.parametrize(
    "words, values",
    [
        (("duration", "240", "240.5"), {"duration": 240.5}),
        (("guidance_interval", "one number", "share of the steps"), {"guidance_interval": (0.2, 0.8)}),
        (("guidance='adg'", "cfg_star"), {"guidance": "adg"}),
        (("language", "Swedish", "leave it out"), {"language": "sv"}),
        (("solver='heun'", "repaint", "euler"), {"task": "repaint", "source": SONG, "solver": "heun"}),
        (("solver='sde'", "extend"), {"task": "extend", "source": SONG, "duration": 90, "solver": "sde"}),
        (("variation", "repaint", "strength"), {"task": "repaint", "source": SONG, "variation": 0.5}),
        # upstream returns the initial noise here
        (("strength", "above 0", "repaint"), {"task": "repaint", "source": SONG, "strength": 0}),
        # and here the source, through its codec and back
        (("strength", "60 steps", "got 1.0"), {"task": "audio2audio", "source": SONG, "strength": 1}),
        (("strength", "5 steps"), {"task": "audio2audio", "source": SONG, "strength": 0.9, "steps": 5}),
        (("edit_from", "below 1"), EDIT | {"edit_from": 1.0}),
    ],
    ids=str,
)
def test_what_v1_cannot_do_is_refused(words, values):
    refused_by(V1_CHECKPOINT, *words, **values)


@pytest.mark.parametrize(
    "words, values",
    [
        (("guidance_scale", "1 to 30", "0.5"), {"guidance_scale": 0.5}),
        (("guidance_interval", "two numbers", "0.5"), {"guidance_interval": 0.5}),
        (("cfg_star", "v1", "apg"), {"guidance": "cfg_star"}),
        (("variation_seed", "repaint"), {"task": "repaint", "source": SONG, "variation_seed": 3}),
    ],
    ids=str,
)
def test_what_1_5_cannot_do_is_refused(words, values):
    refused_by(SFT, *words, **values)


@pytest.mark.parametrize(
    "words, values",
    [
        (("target_prompt", "target_lyrics"), {"task": "edit", "source": SONG}),
        (("source", "edit"), {"task": "edit", "target_lyrics": "la"}),
        (("source", "audio2audio"), {"task": "audio2audio"}),
        (("edit_from", "edit_until", "0.4"), EDIT | {"edit_from": 0.5, "edit_until": 0.4}),
        (("solver='sde'", "edit", "Euler"), EDIT | {"solver": "pingpong"}),
        *[((name, "edit"), EDIT | {name: value}) for name, value in
          {"guidance": "cfg", "guidance_interval": 0.3, "omega": 0, "noise": torch.zeros(9, 128), "variation": 0.5,
           "guidance_decay": 1, "guidance_text": 2, "erg_tag": False, "oss_steps": (1, 2)}.items()],
        (("omega", "repaint"), {"task": "repaint", "source": SONG, "omega": 0}),
        (("omega", "sde"), {"solver": "sde", "omega": 0}),
        (("oss_steps", "heun"), {"oss_steps": (1, 5), "solver": "heun"}),
        (("steps is 9", "2 entries"), {"oss_steps": (1, 5), "steps": 9}),
        (("oss_steps", "rising"), {"oss_steps": (5, 1)}),
        (("oss_steps[1]", "1 to 200"), {"oss_steps": (1, 201)}),
        (("oss_steps", "audio2audio"), {"oss_steps": (1, 5), "task": "audio2audio", "source": SONG}),
        (("guidance_min", "guidance_decay"), {"guidance_min": 2}),
        (("guidance_text", "guidance_lyric", "both"), {"guidance_text": 5}),
        (("guidance_lyric", "guidance_text", "both"), {"guidance_text": 1, "guidance_lyric": 5}),
        *[((name, "guidance_text"), {"guidance_text": 5, "guidance_lyric": 1.5, name: value}) for name, value in
          {"guidance": "cfg", "guidance_decay": 1, "guidance_eta": 0.5}.items()],
        *[((name, "guidance_scale=1"), {"guidance_scale": 0, name: value}) for name, value in
          {"erg_lyric": False, "guidance_decay": 1, "guidance_interval": 0.3}.items()],
    ],
    ids=str,
)  # fmt: skip
def test_what_goes_against_each_other_is_refused(words, values):
    refused(*words, **values)


def test_a_refusal_names_tasks_only_where_they_are_few():
    refused("variation has no use in task='edit'; leave it out", **EDIT, variation=0.5)
    refused("edit_from has no use in task='text2music', only in edit; leave it out", edit_from=0.5)


def test_edit_takes_what_its_guidance_reads_and_no_more():
    for_v1(**EDIT, guidance_scale=7, guidance_momentum=0, guidance_norm=1, guidance_eta=0.5, variation_seed=3)
    for name in ("guidance", "erg_lyric", "variation", "noise"):
        assert options()[name].tasks == NOT_EDIT


def test_traits_know_their_family():
    assert (V1_CHECKPOINT.family, SFT.family, TURBO.family) == ("v1", "1.5", "1.5")
    assert CheckpointTraits("a", False, "v1", family="v1") == CheckpointTraits("a", False, "v1")
    for wrong in ({"is_turbo": True, "version": "v1"}, {"is_turbo": False, "version": "sft", "family": "v1"}):
        with pytest.raises(ValueError, match="version"):
            CheckpointTraits("a", **wrong)
    assert len(V1_LANGUAGES) == 17 and inspect.signature(CheckpointTraits).parameters["family"].default == ""
