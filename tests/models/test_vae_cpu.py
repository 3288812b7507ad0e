"""Proof of acefast.models.v15.vae in bf16 on the CPU's kernels."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import use_backend
from acefast.models.v15 import vae
from acefast.models.v15.config import VAEConfig
from acefast.ops import conv1d, conv_transpose1d, residual_unit, snake
from tests.cpu.convolutions import on_threads
from tests.cpu.isas import NAMES, at_isa
from tests.models.test_vae import relative
from tests.models.test_vae_tile import latents, made, sound

CONFIG = VAEConfig(encoder_hidden_size=32, decoder_channels=32, decoder_input_channels=32)
KINDS = {"decode": vae.Decoder, "encode": vae.Encoder}


def run(coder, T=20, **options):
    """Audio of latents, or the latents' mean of audio, tile by tile."""
    if isinstance(coder, vae.Decoder):
        return vae.decode(coder, latents(1, T, width=32), **options).audio
    return vae.encode(coder, sound(1, coder.hop * T), **options)[0]


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def coder(request):
    return made(request.param, CONFIG, torch.bfloat16)


@pytest.mark.parametrize("isa", NAMES)
def test_bf16_is_as_near_to_fp32_as_on_the_reference(coder, isa):
    exact = made(type(coder), CONFIG)
    exact.load_state_dict({name: t.float() for name, t in coder.state_dict().items()})
    with use_backend("reference"):
        want, reference = run(exact, 2), run(coder, 2)
    with at_isa(isa):
        got = run(coder, 2)
    assert relative(got, want) <= min(0.05, 1.1 * relative(reference, want))


def test_every_layer_but_that_of_two_inputs_runs_on_the_kernels(coder, monkeypatch):
    narrow = []

    def reference(x, weight, *arguments, **options):
        narrow.append(x.shape[2])
        return real(x, weight, *arguments, **options)

    real = conv1d.conv1d_reference
    monkeypatch.setattr(conv1d, "conv1d_reference", reference)
    for op in (conv_transpose1d, residual_unit, snake):
        monkeypatch.setattr(op, f"{op.OP}_reference", None)
    run(coder, 2)
    assert set(narrow) == (set() if isinstance(coder, vae.Decoder) else {2})


def test_snakes_end_the_layers_before_them(coder, monkeypatch):
    monkeypatch.setattr(snake, "snake", None)
    monkeypatch.setattr("acefast.models.v15.vae_layers.snake", None)
    run(coder, 2)


def test_a_decoded_row_does_not_depend_on_its_tile_or_span(monkeypatch):
    decoder = made(vae.Decoder, CONFIG, torch.bfloat16)
    whole = run(decoder, 40)
    assert torch.equal(run(decoder, 40, tile_frames=23), whole)
    monkeypatch.setattr(vae, "SPAN_ROWS", 241)
    assert torch.equal(run(decoder, 40), whole)


def test_threads_give_the_same_bits():
    decoder = made(vae.Decoder, CONFIG, torch.bfloat16)
    want = run(decoder)
    for count in (2, 3):
        with on_threads(count):
            assert torch.equal(run(decoder), want)
