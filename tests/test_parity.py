"""End to end against diffusers: the same random weights, strings and noise give the same latents and the same audio.

Diffusers draws what its audio encoder takes from a generator of its own; here it takes the mean, as acefast does.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import acefast
from acefast.testing import write_checkpoint

VARIANTS = ("turbo", "base", "xl-turbo")
SECONDS = 5.48  # 137 frames: odd, so the last token is half padding; diffusers' rule, ceil(25 * seconds)
GATE = 1e-4


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    from diffusers import AceStepPipeline
    from diffusers.models.autoencoders import autoencoder_oobleck

    distribution = autoencoder_oobleck.OobleckDiagonalGaussianDistribution
    patch = pytest.MonkeyPatch()
    patch.setattr(distribution, "sample", lambda self, generator=None: self.mean)
    found = {}

    def get(variant: str):
        if variant not in found:
            folder = write_checkpoint(tmp_path_factory.mktemp(variant), layout="diffusers", variant=variant, seed=3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = AceStepPipeline.from_pretrained(folder, torch_dtype=torch.float32)
            theirs.set_progress_bar_config(disable=True)
            found[variant] = acefast.load(folder, dtype="float32"), theirs
        return found[variant]

    yield get
    patch.undo()


def noise(frames: int, batch: int = 1, channels: int = 8) -> torch.Tensor:
    return torch.randn(batch, frames, channels, generator=torch.Generator().manual_seed(5))


def audio(seconds: float, seed: int = 0) -> np.ndarray:
    rng, t = np.random.default_rng(seed), np.arange(int(seconds * 48_000)) / 48_000
    tone = np.sin(2 * np.pi * rng.uniform(100, 400, (2, 1)) * t) * (1 + np.sin(2 * np.pi * 2 * t)) / 4
    return (tone + 0.02 * rng.standard_normal(tone.shape)).astype(np.float32)


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def latents(theirs, **options) -> torch.Tensor:
    options = {"num_inference_steps": 3, "shift": 3.0, "output_type": "latent", "guidance_scale": 1.0} | options
    return theirs(**options).audios


@pytest.mark.parametrize("variant", VARIANTS)
def test_text2music_gives_the_same_latents_and_audio(pipes, variant):
    ours, theirs = pipes(variant)
    scale = 7.0 if variant == "base" else 1.0
    start = noise(137)
    common = {"prompt": "boom bap, dusty drums", "lyrics": "[verse]\nhello world", "bpm": 90}
    theirs_options = {"keyscale": "C# minor", "timesignature": "4", "audio_duration": SECONDS, "guidance_scale": scale}
    wave = latents(theirs, **common, **theirs_options, latents=start, output_type="pt")
    clean = latents(theirs, **common, **theirs_options, latents=start)
    guidance = {"guidance_scale": scale} if scale > 1 else {}
    song = ours.generate(
        **common,
        key="c# min",
        time_signature="4/4",
        duration=SECONDS,
        noise=start[0],
        steps=3,
        sigma_shift=3.0,
        semantics="diffusers",
        **guidance,
    )
    assert error(song.latents, clean[0]) <= GATE
    assert error(torch.from_numpy(song.audio), wave[0]) <= GATE


def test_guidance_interval_acts_where_diffusers_acts(pipes):
    ours, theirs = pipes("base")
    start, interval = noise(125), (0.2, 0.6)
    clean = latents(
        theirs,
        prompt="trap",
        lyrics="",
        audio_duration=5.0,
        latents=start,
        guidance_scale=5.0,
        num_inference_steps=5,
        cfg_interval_start=interval[0],
        cfg_interval_end=interval[1],
    )
    options = {"duration": 5.0, "noise": start[0], "steps": 5, "sigma_shift": 3.0, "guidance_scale": 5.0}
    song = ours.generate("trap", guidance_interval=interval, semantics="diffusers", **options)
    assert error(song.latents, clean[0]) <= GATE
    everywhere = ours.generate("trap", semantics="diffusers", **options)
    assert error(everywhere.latents, clean[0]) > 1e-2


def test_batch_in_upstream_pad_mode_attends_to_padding_as_diffusers_does(pipes):
    ours, theirs = pipes("turbo")
    prompts, lyrics = ["drill", "lo-fi, slow, warm, a long list of words"], ["a", "b c d e f " * 12]
    start = noise(125, 2)
    clean = latents(theirs, prompt=prompts, lyrics=lyrics, audio_duration=5.0, latents=start)
    options = {"duration": 5.0, "noise": start, "steps": 3, "semantics": "diffusers"}
    songs = ours.generate(prompts, lyrics, pad_mode="upstream", **options)
    for song, want in zip(songs, clean):
        assert error(song.latents, want) <= GATE
    exact = ours.generate(prompts, lyrics, **options)
    assert error(exact[0].latents, clean[0]) > 1e-3  # the shorter prompt: diffusers lets it see padding


def test_cover_follows_the_source_through_its_codes(pipes):
    ours, theirs = pipes("turbo")
    source, start = audio(5.5), noise(137)
    common = {"prompt": "jersey club", "lyrics": "go"}
    clean = latents(
        theirs, **common, audio_duration=None, task_type="cover", src_audio=torch.from_numpy(source), latents=start
    )
    options = {"task": "cover", "source": source, "noise": start[0], "steps": 3, "semantics": "diffusers"}
    song = ours.generate(**common, **options)
    assert error(song.latents, clean[0]) <= GATE
    assert len(song.codes) == 28  # 137 frames, 5 to a code, the last filled up with silence
    blended = latents(
        theirs,
        **common,
        audio_duration=None,
        task_type="cover",
        src_audio=torch.from_numpy(source),
        latents=start,
        audio_cover_strength=0.4,
    )
    song = ours.generate(**common, **options, strength=0.4)
    assert error(song.latents, blended[0]) <= GATE


def test_codes_stand_in_for_a_source(pipes):
    ours, theirs = pipes("turbo")
    codes = list(range(0, 62_000, 2000))[:27]
    text, start = "".join(f"<|audio_code_{c}|>" for c in codes), noise(135)
    clean = latents(theirs, prompt="trap", lyrics="", audio_codes=text, latents=start, audio_duration=None)
    for given in (codes, text):
        song = ours.generate("trap", codes=given, noise=start[0], steps=3, semantics="diffusers")
        assert error(song.latents, clean[0]) <= GATE
        assert song.codes == codes
    longer = latents(theirs, prompt="trap", lyrics="", audio_codes=text, latents=start, audio_duration=30.0)
    song = ours.generate("trap", codes=codes, duration=30, noise=start[0], steps=3, semantics="diffusers")
    assert error(song.latents, longer[0]) <= GATE < error(longer[0], clean[0])  # the duration is a word of the prompt


@pytest.mark.parametrize(("first", "last"), [(1.3, 3.7), (1.16, 2.28)])  # 1.16 * 25 is below 29 as a float
def test_repaint_keeps_the_context_outside_of_the_window(pipes, first, last):
    ours, theirs = pipes("turbo")
    source, start = audio(6), noise(150)
    clean = latents(
        theirs,
        prompt="drill",
        lyrics="",
        audio_duration=None,
        task_type="repaint",
        src_audio=torch.from_numpy(source),
        latents=start,
        repainting_start=first,
        repainting_end=last,
    )
    song = ours.generate(
        "drill", task="repaint", source=source, start=first, end=last, noise=start[0], steps=3, semantics="diffusers"
    )
    assert error(song.latents, clean[0]) <= GATE


@pytest.mark.parametrize(
    ("task", "ours_options", "theirs_options"),
    [
        (
            "lego",
            {"track": "drums", "start": 1.0, "end": 4.0},
            {"track_name": "drums", "repainting_start": 1.0, "repainting_end": 4.0},
        ),
        ("extract", {"track": "vocals"}, {"track_name": "vocals"}),
        ("complete", {"tracks": ["bass", "drums"]}, {"complete_track_classes": ["bass", "drums"]}),
    ],
)
def test_stem_tasks_of_base_show_the_same_context(pipes, task, ours_options, theirs_options):
    ours, theirs = pipes("base")
    source, start = audio(5.2), noise(130)
    clean = latents(
        theirs,
        prompt="boom bap",
        lyrics="",
        audio_duration=None,
        task_type=task,
        src_audio=torch.from_numpy(source),
        latents=start,
        guidance_scale=4.0,
        **theirs_options,
    )
    song = ours.generate(
        "boom bap",
        task=task,
        source=source,
        noise=start[0],
        steps=3,
        guidance_scale=4.0,
        semantics="diffusers",
        **ours_options,
    )
    assert error(song.latents, clean[0]) <= GATE


def test_reference_audio_gives_the_same_timbre(pipes):
    ours, theirs = pipes("turbo")
    reference, start = audio(7, seed=1), noise(125)
    options = {"prompt": "west coast", "lyrics": "yes"}
    clean = latents(theirs, **options, reference_audio=torch.from_numpy(reference), latents=start, audio_duration=5.0)
    ours_options = {"duration": 5.0, "noise": start[0], "steps": 3, "semantics": "diffusers"}
    song = ours.generate(**options, **ours_options, reference=reference)
    assert error(song.latents, clean[0]) <= GATE
    without = ours.generate(**options, **ours_options)
    assert error(without.latents, clean[0]) > 1e-3


def test_torch_noise_is_the_noise_diffusers_draws(pipes):
    ours, theirs = pipes("turbo")
    clean = latents(theirs, prompt="trap", lyrics="", audio_duration=5.0, generator=torch.Generator().manual_seed(42))
    song = ours.generate("trap", duration=5.0, seed=42, noise_source="torch", steps=3, semantics="diffusers")
    assert error(song.latents, clean[0]) <= GATE


def test_tokens_are_those_of_diffusers(pipes):
    from acefast.prompts import LYRIC_TOKENS, TEXT_TOKENS, lyric_prompt, text_prompt, tokenize
    from acefast.request import Request

    ours, theirs = pipes("turbo")
    for words in ("hello", "čau, 你好, привет", "word " * 3000):
        request = Request("boom bap " * 200, words, bpm=90, semantics="diffusers")
        text, lyric = theirs._format_prompt(request.prompt, request.lyrics, bpm=90, audio_duration=30.0)
        for prompt, limit, want in (
            (text_prompt(request, 30.0), TEXT_TOKENS, text),
            (lyric_prompt(request), LYRIC_TOKENS, lyric),
        ):
            want = theirs.tokenizer([want], padding="longest", truncation=True, max_length=limit).input_ids[0]
            assert tokenize(ours.model.tokenizer, prompt, limit).ids == want


def test_xl_differs_from_diffusers_by_its_timbre_token(pipes):
    """Official XL prepends a learned token to the timbre frames; diffusers leaves it out."""
    ours, _ = pipes("xl-turbo")
    options = {"duration": 5.48, "noise": noise(137)[0], "steps": 3}
    official = ours.generate("boom bap", **options, language="en")
    diffusers = ours.generate("boom bap", **options, language="en", semantics="diffusers")
    assert error(official.latents, diffusers.latents) > 10 * GATE  # 8e-3 with these weights


def test_a_song_of_few_codes_is_as_long_as_they_are(pipes):
    ours, theirs = pipes("turbo")
    codes, start = [7, 77, 777], noise(15)
    text = "".join(f"<|audio_code_{c}|>" for c in codes)
    clean = latents(theirs, prompt="trap", lyrics="", audio_codes=text, latents=start, audio_duration=None)
    song = ours.generate("trap", codes=codes, noise=start[0], steps=3, semantics="diffusers")
    assert error(song.latents, clean[0]) <= GATE
    assert ours.generate("trap", codes=codes, steps=1).latents.shape[0] == 128  # official: filled up with silence
