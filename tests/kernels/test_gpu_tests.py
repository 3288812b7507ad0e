"""The tests that need a GPU, on toy kernels in the interpreter: they pass what is sound and find what is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.models.v15.step import Step
from acefast.models.v15.text import Encoding
from acefast.models.v15.vae_tile import DecoderTile
from acefast.sim.interpreter import interpreted
from tests.gpu import test_kernels_gpu as gpu
from tests.gpu import test_prep_gpu as gpu_texts
from tests.gpu import test_step_gpu as gpu_steps
from tests.gpu import test_vae_gpu as gpu_vae
from tests.sim.toy_cases import IN_PLACE, SCALE, with_fault

FEW = replace(SCALE, real=lambda device: SCALE.small(torch.Generator().manual_seed(1)))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_steps, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_texts, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_vae, "DEVICE", "cpu")
    with interpreted(checks=False):
        yield


@pytest.mark.parametrize("case", [FEW, IN_PLACE], ids=lambda case: case.name)
def test_sound_kernels_pass(case):
    gpu.test_outputs_are_the_reference_in_fp32(case)
    gpu.test_two_runs_give_the_same_bits(case)


def test_a_wrong_result_is_found():
    with pytest.raises(AssertionError):
        gpu.test_outputs_are_the_reference_in_fp32(with_fault(FEW, wrong=1.01))


def test_results_that_differ_from_run_to_run_are_found():
    runs = iter((1.0, 1.0 + 2**-7))
    moody = replace(FEW, launch=lambda **given: SCALE.launch(**given, wrong=next(runs)))
    with pytest.raises(AssertionError):
        gpu.test_two_runs_give_the_same_bits(moody)


@pytest.mark.usefixtures("few_programs")
def test_a_sound_song_passes_and_a_wrong_one_is_found(monkeypatch):
    given = (*gpu_steps.SONGS[1], gpu_steps.GUIDANCE[1])
    gpu_steps.test_songs_are_as_near_to_fp32_as_the_references_and_the_same_bits_again(*given)
    launch = Step.launch
    monkeypatch.setattr(Step, "launch", lambda self, both: launch(self, False))  # unguided
    with pytest.raises(AssertionError):
        gpu_steps.test_songs_are_as_near_to_fp32_as_the_references_and_the_same_bits_again(*given)


@pytest.mark.usefixtures("few_programs")
def test_sound_texts_pass_and_wrong_ones_are_found(tiny_base, monkeypatch):
    gpu_texts.test_captured_texts_are_the_launched_ones_whatever_their_length(tiny_base, "prompt", torch.float32)
    gpu_texts.test_padding_changes_no_text(tiny_base, "lyrics", torch.bfloat16)
    gpu_texts.test_what_was_encoded_before_has_the_same_bytes_and_nothing_is_waited_for(tiny_base)
    load = Encoding.load
    monkeypatch.setattr(Encoding, "load", lambda text, ids, padding: load(text, (*ids[:-1], padding), padding))
    with pytest.raises(AssertionError):
        gpu_texts.test_padding_changes_no_text(tiny_base, "prompt", torch.float32)


@pytest.mark.slow
def test_sound_audio_passes_and_wrong_audio_is_found(monkeypatch):
    given = (gpu_vae.SMALL, gpu_vae.vae.Decoder, torch.float16)
    gpu_vae.test_songs_are_as_near_to_fp32_as_the_references_and_the_same_bits_in_any_tile(*given)
    load = DecoderTile.load
    monkeypatch.setattr(DecoderTile, "load", lambda tile, latents, place: load(tile, 1.01 * latents, place))
    with pytest.raises(AssertionError):
        gpu_vae.test_songs_are_as_near_to_fp32_as_the_references_and_the_same_bits_in_any_tile(*given)


def test_what_a_replay_changed_is_put_back_and_new_integers_are_zero():
    given = gpu.arguments(IN_PLACE)
    static = gpu.copy_of(given)
    gpu.run(IN_PLACE, static)
    assert not torch.equal(static["total"], given["total"]) and static["count"].item() == 2
    gpu.restore(static, given)
    assert torch.equal(static["total"], given["total"]) and static["count"].item() == 1
    with gpu.kernel_times.EmptyIsZero():
        assert not torch.empty(1000, dtype=torch.int32).any() and not torch.ones(3).new_empty(1000).any()
