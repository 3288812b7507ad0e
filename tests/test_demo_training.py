"""Training the demo model: what is trained is what acefast runs, and every stage goes from nothing to a song."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples/demo_model"
sys.path.insert(0, str(FOLDER))  # its files import each other as plain modules

import train_dit  # noqa: E402
import train_vae  # noqa: E402
from data import rendered  # noqa: E402
from dataset import Dataset  # noqa: E402
from export import export  # noqa: E402
from nets import Bundle  # noqa: E402
from tokenizer import END, train_tokenizer  # noqa: E402
from transformers import Qwen3Config, Qwen3Model  # noqa: E402
from vae_nets import VAE  # noqa: E402

import acefast  # noqa: E402
from acefast.config_files import text_config_for  # noqa: E402
from acefast.models.v15 import names  # noqa: E402
from acefast.testing import TINY, TINY_VAE, TINY_XL  # noqa: E402

CLOSE = dict(rtol=1e-5, atol=1e-5)  # fp32, and sums in another order
VAE_SIZES = dataclasses.replace(TINY_VAE, encoder_hidden_size=4, channel_multiples=(1, 2, 2, 4, 4))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomise(nets: torch.nn.Module) -> None:
    """Away from what training begins with, so that no tensor is zero or one."""
    g = torch.Generator().manual_seed(0)
    for name, p in nets.named_parameters():
        small = name.endswith("weight_g") or name.startswith("decoder.proj_out")
        p.data += (0.02 if small else 0.1) * torch.randn(p.shape, generator=g)


@pytest.fixture(scope="module", params=(TINY, TINY_XL), ids=("2B", "XL"))
def both(request, tmp_path_factory):
    """(training networks, the same loaded by acefast), fp32."""
    torch.manual_seed(0)
    text_config = text_config_for(request.param)
    bundle, vae, text = Bundle(request.param), VAE(VAE_SIZES), Qwen3Model(Qwen3Config(**text_config))
    for nets in (bundle, vae):
        randomise(nets)
    folder = export(
        tmp_path_factory.mktemp("model"), request.param, VAE_SIZES, text_config, bundle=bundle, vae=vae,
        text_encoder=text, tokenizer=train_tokenizer(["a"], 300), silence=torch.randn(128, 8), dtype=torch.float32,
    )  # fmt: skip
    for nets in (bundle, vae, text):
        nets.eval().requires_grad_(False)
    return (bundle, vae, text), acefast.load(folder, dtype="float32").model


def test_state_dicts_have_the_official_names_and_shapes():
    c = TINY
    shapes = {n: tuple(t.shape) for n, t in Bundle(c).state_dict().items()}
    assert shapes == (
        names.transformer_tensors(c)
        | names.condition_encoder_tensors(c)
        | names.audio_tokenizer_tensors(c)
        | names.audio_detokenizer_tensors(c)
    )
    shapes = {n: tuple(t.shape) for n, t in VAE(VAE_SIZES).state_dict().items()}
    assert shapes == names.vae_encoder_tensors(VAE_SIZES) | names.vae_decoder_tensors(VAE_SIZES)


def test_trained_conditions_and_velocity_are_the_ones_acefast_computes(both):
    (bundle, _, text), model = both
    c, T = bundle.config, 77  # odd, and more tokens than the window
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]])
    lengths = torch.tensor([5, 3])
    valid = torch.arange(5) < lengths[:, None]
    states, words = text(input_ids=ids).last_hidden_state, text.embed_tokens(ids)
    timbre = torch.randn(1, 40, 8)
    conditions, kept = bundle.encoder(states, valid, words, valid, timbre)
    vector = model.condition_encoder.timbre_encode(timbre)
    packed, counts = model.condition_encoder(states, lengths, words, lengths, timbre_vector=vector)
    for row, mask, ours, n in zip(conditions, kept, packed, counts):
        torch.testing.assert_close(row[mask], ours[:n], **CLOSE)
    latents, context = torch.randn(2, T, 8), torch.randn(2, T, 16)
    for t in (1.0, 0.3):
        actual, _ = bundle.decoder(latents, torch.full((2,), t), context, conditions, kept)
        prepared = model.transformer.prepare(packed, counts, context)
        assert c.num_hidden_layers > 1 and actual.std() > 0.1
        torch.testing.assert_close(actual, model.transformer(latents, t, prepared), **CLOSE)


def test_trained_audio_coder_is_the_one_acefast_runs(both):
    (_, vae, _), model = both
    audio = 0.1 * torch.randn(1, 2, 1920 * 21)
    mean, std = vae.encode(audio)
    for actual, expected in zip((mean, std), model.encoder(audio)):
        torch.testing.assert_close(actual, expected, **CLOSE)
    actual, expected = vae.decode(mean), model.decoder(mean)
    peak = expected.abs().max()  # of random weights, beyond full scale
    torch.testing.assert_close(actual / peak, expected / peak, **CLOSE)


def test_trained_audio_codes_are_the_ones_acefast_computes(both):
    (bundle, _, _), model = both
    latents = torch.randn(1, 20, 8)
    summaries, _ = bundle.tokenizer(latents)
    codes = model.audio_tokenizer.tokenize(latents, torch.zeros(4, 8))
    torch.testing.assert_close(bundle.detokenizer.hints(summaries), model.audio_detokenizer(codes), **CLOSE)


def test_snake_and_spectra_have_their_true_gradients():
    from vae_nets import _Snake

    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5), (1, 3, 1), (1, 3, 1))
    x, a, r = (torch.randn(shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(_Snake.apply, (x, a, r))
    signal = torch.randn(2, 64, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: torch.view_as_real(train_vae.spectra(s, 16)), (signal,), atol=1e-4)


def test_rescaling_latents_leaves_the_audio_alone():
    torch.manual_seed(0)
    vae, audio = VAE(VAE_SIZES), 0.1 * torch.randn(1, 2, 1920 * 6)
    with torch.no_grad():
        mean, _ = vae.encode(audio)
        expected, scales = vae.decode(mean), torch.rand(8) + 0.5
        vae.rescale(scales)
        torch.testing.assert_close(vae.encode(audio)[0], mean / scales, **CLOSE)
        torch.testing.assert_close(vae.decode(mean / scales), expected, **CLOSE)


def test_tokeniser_keeps_every_text_and_learns_tempos_whole():
    tokenizer = train_tokenizer(["boom bap, 93 bpm, dusty drums"] * 9, 300)
    text = "boom bap, 93 bpm \u00e9\u4e2d\n"
    ids = tokenizer.encode(text + END).ids
    assert ids[-2:] == [tokenizer.token_to_id(END)] * 2
    assert tokenizer.decode(ids) == text
    assert "93" in tokenizer.encode(text).tokens
    assert {"9", "4"} <= set(tokenizer.encode("boom bap, 94 bpm").tokens)  # not among the texts


def test_a_tempo_missing_from_the_metadata_is_mostly_in_the_caption():
    label = dict(prompt="trap, 808, dark", lyrics="", bpm=141, key="A minor", time_signature="4", style="trap")
    rng = np.random.default_rng(0)
    texts = [train_dit.prompts(label, "text2music", 12, rng)[0] for _ in range(200)]
    missing = [text for text in texts if "- bpm: N/A" in text]
    assert 40 < len(missing) < 80 and all("- bpm: 141" in text for text in texts if text not in missing)
    told = [text for text in missing if "141 bpm" in text]
    assert 0.8 < len(told) / len(missing) < 1 and len(set(told)) > 2  # at more than one place


def test_the_ruler_tells_every_place_of_half_a_minute_and_goes_on_without_a_seam():
    hands = train_dit.ruler(750, 24)
    assert hands.shape == (750, 24) and hands.abs().max() <= 1
    near = torch.cdist(hands, hands) + 9 * torch.eye(750)
    assert near.min() > 0.1  # no two frames look alike
    step = (hands[1:] - hands[:-1]).norm(dim=1)
    torch.testing.assert_close((hands[0] - hands[-1]).norm(), step.mean(), rtol=1e-3, atol=0)
    bar = torch.arange(750) / 25 * 93 / 240  # the bars of a tempo between two hands are a mixture of hands
    angle = 2 * torch.pi * bar[:300, None]
    target = torch.cat((angle.cos(), angle.sin()), 1)
    found = torch.linalg.lstsq(hands[:300], target).solution
    assert (hands[:300] @ found - target).abs().max() < 0.05


def test_the_clock_reads_the_place_in_the_bar_that_the_labels_tell():
    clock = train_dit.Clock(2 * len(train_dit.CLOCK))
    torch.nn.init.eye_(clock.head.weight)
    torch.nn.init.zeros_(clock.head.bias)
    labels = [{"bpm": 90, "time_signature": "4"}, {"bpm": 90, "time_signature": "3"}]
    seconds = (50 + 2 * torch.arange(40)) / 25  # a song cut at frame 50
    bars = torch.stack((seconds * 90 / 240, seconds * 90 / 180))
    angle = 2 * torch.pi * bars[..., None] * torch.tensor(train_dit.CLOCK)
    hands = torch.cat((angle.cos(), angle.sin()), -1)
    assert clock.loss(hands, labels, 50) < 1e-8
    assert clock.loss(hands, labels, 0) > 0.1 and clock.loss(hands, labels[::-1], 50) > 0.1


def test_clips_on_disk_go_on_where_an_interrupted_run_stopped(tmp_path):
    whole, _ = rendered(tmp_path / "whole", Dataset(2, seconds=1))
    rendered(tmp_path / "part", Dataset(1, seconds=1))
    with (tmp_path / "part.raw").open("ab") as file:
        file.write(b"half a clip")
    resumed, labels = rendered(tmp_path / "part", Dataset(2, seconds=1))
    assert np.array_equal(whole, resumed)
    assert len(labels) == 2 and labels[1]["bpm"] > 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the trainings need torch 2.9, for its Muon")
def test_every_stage_trains_resumes_exports_and_makes_a_song(tmp_path):
    train_vae.train(tmp_path, VAE_SIZES, 1, batch=1, frames=8, clips=2, steps=1)
    before = torch.load(tmp_path / "vae.pt", weights_only=True)
    train_vae.train(tmp_path, VAE_SIZES, 1, batch=1, frames=8, clips=2, steps=3)
    after = torch.load(tmp_path / "vae.pt", weights_only=True)
    assert (before["step"], after["step"]) == (1, 3) and after["spent"] > before["spent"]
    unseen, _ = rendered(tmp_path / "clips/held-out", Dataset(2, split="held-out", seconds=5))
    assert 0 < train_vae.quality(VAE(VAE_SIZES), unseen)["spectral_convergence"] < 10

    run = train_dit.Run(tmp_path, dataclasses.replace(TINY, timbre_fix_frame=50), {})
    run.prepare(3, 2, workers=1)
    for steps in (1, 3):
        trained = train_dit.train(run, 1, batch=4, steps=steps)
    assert all(p.isfinite().all() for p in trained.parameters())
    refined = train_vae.train(tmp_path, VAE_SIZES, 1, batch=1, frames=8, clips=2, steps=1, refine=True)
    for side, same in (("encoder", True), ("decoder", False)):  # latents stay what they were learned as
        pairs = zip(getattr(refined, side).parameters(), getattr(run.vae, side).parameters())
        assert all(map(torch.equal, *zip(*pairs))) is same
    folder = run.export(tmp_path / "model", torch.float16)
    assert json.loads((folder / "acestep-v15-demo/config.json").read_text())["is_turbo"] is True
    song = acefast.load(folder, dtype="float32").generate("boom bap, dusty drums", bpm=90, duration=5.12, seed=1)
    assert song.audio.shape == (2, 48_000 * 512 // 100)
    assert np.isfinite(song.audio).all() and song.audio.std() > 0
    assert (song.request.steps, song.request.sigma_shift) == (8, 3.0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="the trainings need torch 2.9, for its Muon")
def test_one_command_makes_the_model_from_nothing(tmp_path):
    moment = [x for stage in ("vae", "dit", "refine") for x in (f"--{stage}-minutes", "0.001")]
    command = [sys.executable, FOLDER / "make.py", tmp_path / "run", tmp_path / "model"]
    subprocess.run([*command, "--clips", "2", "--threads", "1", *moment], check=True, capture_output=True)
    song = acefast.load(tmp_path / "model").generate("boom bap", bpm=90, duration=5.12, seed=1, steps=1)
    assert np.isfinite(song.audio).all() and song.audio.shape == (2, 48_000 * 512 // 100)


def test_beat_locked_tells_latents_that_follow_the_bar_from_those_that_swing():
    rng = np.random.default_rng(0)
    bpm = rng.integers(80, 100, 16)
    phase = 2 * np.pi * bpm[:, None] / 60 * (np.arange(300) + 0.5) / 25  # of a beat
    follows = np.cos(phase)[..., None] + 0.3 * rng.standard_normal((16, 300, 2))
    assert 0.7 < train_vae.beat_locked(follows, bpm) < 0.95  # the noise's share is a sixth
    swings = follows * rng.choice([-1, 1], (16, 300, 1))  # as loud, with a sign of its own
    assert abs(train_vae.beat_locked(swings, bpm)) < 0.05
