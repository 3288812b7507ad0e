"""Proof of acefast.models.v15.vae in bf16 on the CPU's kernels, with the weights that these take."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import use_backend
from acefast.models.v15 import vae
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_layers import ResidualUnit, SpectralUnit, unit_kind
from acefast.ops import conv1d, conv_transpose1d, snake, spectral_conv1d
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
    return made(request.param, CONFIG, torch.bfloat16, spectral=True)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_transformed_filters_are_the_same_autoencoder(kind):
    config = VAEConfig(encoder_hidden_size=16, decoder_channels=16, decoder_input_channels=32)
    direct, spectral = made(kind, config), made(kind, config, spectral=True)
    units = [unit for unit in spectral.modules() if isinstance(unit, (ResidualUnit, SpectralUnit))]
    assert {type(unit) for unit in units} == {ResidualUnit, SpectralUnit}  # of 16 channels, and of more
    assert all(isinstance(unit, unit_kind(len(unit.conv2.bias), True)) for unit in units)
    assert relative(run(spectral, 3), run(direct, 3)) <= 1e-5


@pytest.mark.parametrize("isa", NAMES)
def test_bf16_is_as_near_to_fp32_as_on_the_reference(coder, isa):
    exact = made(type(coder), CONFIG, spectral=True)
    exact.load_state_dict({name: t.float() for name, t in coder.state_dict().items()})
    with use_backend("reference"):
        want, reference = run(exact, 10), run(coder, 10)  # of two frames' latents, the error is itself uncertain
    with at_isa(isa):
        got = run(coder, 10)
    assert relative(got, want) <= min(0.05, 1.1 * relative(reference, want))


def test_every_layer_but_that_of_two_inputs_runs_on_the_kernels(coder, monkeypatch):
    narrow = []

    def reference(x, weight, *arguments, **options):
        narrow.append(x.shape[2])
        return real(x, weight, *arguments, **options)

    real = conv1d.conv1d_reference
    monkeypatch.setattr(conv1d, "conv1d_reference", reference)
    for op in (conv_transpose1d, spectral_conv1d, snake):
        monkeypatch.setattr(op, f"{op.OP}_reference", None)
    run(coder, 2)
    assert set(narrow) == (set() if isinstance(coder, vae.Decoder) else {2})


def test_snakes_end_the_layers_before_them(coder, monkeypatch):
    monkeypatch.setattr(snake, "snake", None)
    monkeypatch.setattr("acefast.models.v15.vae_layers.snake", None)
    run(coder, 2)


def test_tiles_and_spans_change_roundings_only(coder, monkeypatch):
    exact = made(type(coder), CONFIG, spectral=True)
    exact.load_state_dict({name: t.float() for name, t in coder.state_dict().items()})
    want, whole = run(exact, 40), run(coder, 40)
    assert torch.equal(run(coder, 40), whole)
    tiled = run(coder, 40, tile_frames=23)
    monkeypatch.setattr(vae, "SPAN_ROWS", 241)
    for other in (tiled, run(coder, 40)):
        assert not torch.equal(other, whole)
        assert relative(other, want) == pytest.approx(relative(whole, want), rel=0.1)


def test_threads_give_the_same_bits():
    decoder = made(vae.Decoder, CONFIG, torch.bfloat16, spectral=True)
    want = run(decoder)
    for count in (2, 3):
        with on_threads(count):
            assert torch.equal(run(decoder), want)
