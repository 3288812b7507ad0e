"""The autoencoder's 16 bits on a GPU: fp16 where a probe's activations fit, else bf16; decided here without one."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch

import acefast
from acefast import backends
from acefast.backends import named_backend, use_backend
from acefast.models.v15 import vae, vae_range
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_layers import Conv, ConvTranspose, ResidualUnit, Snake
from acefast.models.v15.vae_range import LARGEST, largest_stored, load_coder, tries_fp16
from acefast.sim.interpreter import interpreted
from tests.checkpoints import edit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIG = VAEConfig(encoder_hidden_size=2, decoder_channels=2, decoder_input_channels=8)
KINDS = {"decoder": vae.Decoder, "encoder": vae.Encoder}


def coder(kind, dtype=torch.float16):
    """Random and well scaled: what goes through it keeps its size."""
    module, g = kind(CONFIG), torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, Snake):
            layer.alpha.fill_(1.0), layer.inv_beta.fill_(0.5)
        elif getattr(layer, "weight", None) is not None:
            rows = layer.weight
            # of a transposed convolution the inputs come first
            inputs = len(rows) if isinstance(layer, ConvTranspose) else rows[0].numel()
            rows.copy_(torch.randn(rows.shape, generator=g) * 0.7 / inputs**0.5)
            if layer.bias is not None:
                layer.bias.zero_()
    return module.to(dtype).eval()


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def module(request):
    made = coder(request.param)
    for snake in (layer for layer in made.modules() if isinstance(layer, Snake)):
        snake.float()
    return made


def layers(module, *kinds):
    return [layer for layer in module.modules() if isinstance(layer, kinds)]


def test_what_keeps_its_size_fits(module):
    largest = largest_stored(module)
    assert 1 < largest < 100
    assert largest == largest_stored(module)  # fixed, and nothing of the first run is left
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_each_layer_is_looked_at(module, monkeypatch):
    """One that stores a number of its own is found out, whatever later layers make of it."""
    monkeypatch.setattr(vae_range, "FRAMES", 2)
    stored = LARGEST * 1.25
    for layer in layers(module, Conv, ConvTranspose):
        if layer.bias is None:
            continue
        before = layer.bias.clone()
        layer.bias[-1] = stored
        assert largest_stored(module) > LARGEST
        layer.bias.copy_(before)
    for layer in layers(module, Snake):
        before = layer.inv_beta.clone()
        layer.inv_beta[-1] = 1e9  # 1e9 * sin² is beyond fp16, but where x is 0
        assert largest_stored(module) > LARGEST
        layer.inv_beta.copy_(before)
    assert largest_stored(module) < 100


LOUD = 2.1e4


def hush(snake):
    """What is -LOUD before it is about 0 after it."""
    snake.alpha.fill_(torch.pi / 2 / LOUD)
    snake.inv_beta.fill_(LOUD)


@pytest.mark.parametrize("layer", ("snake1", "conv1", "snake2"))
def test_a_layer_within_a_unit_is_looked_at_though_the_unit_hides_it(module, layer):
    unit = layers(module, ResidualUnit)[1]
    for name in ("weight", "bias"):
        getattr(unit.conv1, name).zero_()  # what snake1 makes ends here
        getattr(unit.conv2, name).zero_()  # and the rest here
    if layer == "snake1":
        unit.snake1.inv_beta.fill_(LOUD)
    elif layer == "conv1":
        unit.conv1.bias.fill_(-LOUD)
        hush(unit.snake2)
    else:
        unit.conv1.bias.fill_(1.0)
        unit.snake2.alpha.fill_(torch.pi / 2)
        unit.snake2.inv_beta.fill_(LOUD)
    assert 2.05e4 < largest_stored(module) < 2.15e4


@pytest.mark.parametrize("layer", ("unit", "conv"))
def test_a_layer_is_looked_at_though_the_next_ones_hide_it(module, layer):
    block, units = module.block[1], module.block[1].units
    if layer == "unit":
        units[-1].conv2.bias.fill_(-LOUD)
        hush(module.block[2].snake1 if isinstance(module, vae.Decoder) else block.snake1)
    else:  # the one before the units
        (block.conv_t1 if isinstance(module, vae.Decoder) else module.block[0].conv1).bias.fill_(-LOUD)
        units[0].conv2.bias.fill_(LOUD)
        hush(units[0].snake1)
    assert 2.05e4 < largest_stored(module) < 2.15e4


@pytest.mark.parametrize("wrong", (torch.nan, torch.inf, 6e4))
def test_what_is_not_finite_is_too_large(module, wrong):
    module.conv1.weight[0, 0, 0] = wrong
    assert largest_stored(module) > LARGEST
    if wrong != 6e4:
        assert largest_stored(module) == torch.inf


def test_probe_is_short_normal_latents_and_a_sound_at_full_scale(monkeypatch):
    seen = {}
    for kind in KINDS.values():
        real = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, real=real: seen.update({type(self): x}) or real(self, x))
        largest_stored(coder(kind, torch.float32))
    latents, sound = seen[vae.Decoder], seen[vae.Encoder]
    assert latents.shape == (1, 32, 8) and abs(latents.mean()) < 0.2 and abs(latents.std() - 1) < 0.1
    assert sound.shape == (1, 2, 32 * 1920) and sound.max() == 1 and sound.min() == -1 and not sound[:, :, -1920:].any()


def test_references_run_whatever_is_chosen(module):
    chosen = []
    module.register_forward_pre_hook(lambda *_: chosen.append(named_backend()))
    with interpreted(), use_backend("triton"):
        largest_stored(module)
    assert chosen == ["reference"]


# -- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_fp16_is_for_kernels_on_a_gpu_in_16_bits(dtype, monkeypatch):
    monkeypatch.setattr(vae_range, "current", lambda device: use_backend("auto"))
    choices = iter(("triton", "reference"))
    monkeypatch.setattr(backends, "choose_backend", lambda *given: next(choices) if given[3] else "reference")
    if dtype == torch.float32:
        assert not tries_fp16(dtype, GPU) and next(choices) == "triton"
        return
    assert tries_fp16(dtype, GPU) and not tries_fp16(dtype, GPU)
    assert not tries_fp16(dtype, CPU) and not tries_fp16(dtype, torch.device("mps"))


def test_a_backend_without_kernels_keeps_the_pipelines_dtype(monkeypatch):
    monkeypatch.setattr(vae_range, "current", lambda device: use_backend("reference"))
    with interpreted():
        assert not tries_fp16(torch.bfloat16, GPU)
        monkeypatch.setattr(vae_range, "current", lambda device: use_backend("auto"))
        assert tries_fp16(torch.bfloat16, GPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not tries_fp16(torch.bfloat16, GPU)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("largest", (19_999.0, LARGEST, torch.inf))
def test_rule_loads_again_where_the_probe_is_too_large(monkeypatch, caplog, dtype, largest):
    monkeypatch.setattr(vae_range, "tries_fp16", lambda *given: given == (dtype, CPU))
    monkeypatch.setattr(vae_range, "largest_stored", lambda module: largest)
    loaded = []

    def load(dtype):
        loaded.append(dtype)
        return coder(vae.Decoder, dtype)

    with caplog.at_level(logging.INFO, "acefast"):
        module = load_coder(load, dtype, CPU)
    fits = largest < LARGEST
    assert loaded == [torch.float16] + [torch.bfloat16] * (not fits)
    assert module.conv1.weight.dtype == loaded[-1]
    (line,) = caplog.messages
    assert line == (
        "Decoder is kept in float16: it stores up to 2e+04 in a probe, below 20000"
        if fits
        else f"Decoder is kept in bfloat16: in float16 it stores up to {largest:.4g} in a probe, not below 20000"
    )


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_elsewhere_it_is_loaded_once_and_not_probed(dtype, monkeypatch, caplog):
    monkeypatch.setattr(vae_range, "cpu_multiplies", lambda dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(vae_range, "largest_stored", None)
    loaded = []
    with caplog.at_level(logging.INFO, "acefast"):
        load_coder(loaded.append, dtype, CPU)
    assert loaded == [torch.bfloat16 if dtype == torch.bfloat16 else torch.float32] and not caplog.messages


# -- a checkpoint ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain, dtype", [(1, torch.float16), (3e5, torch.bfloat16)], ids=("fits", "shouts"))
def test_a_checkpoint_is_probed_as_it_is_loaded(tiny, tmp_path, monkeypatch, caplog, gain, dtype):
    folder = shutil.copytree(tiny, tmp_path / tiny.name)
    for file in folder.rglob("diffusion_pytorch_model*.safetensors"):
        edit(file, lambda values: [t.mul_(gain) for name, t in values.items() if name.endswith("coder.conv1.weight_g")])
    monkeypatch.setattr(vae_range, "tries_fp16", lambda dtype, device: dtype == torch.bfloat16)
    with caplog.at_level(logging.INFO, "acefast"):
        model = acefast.load(folder, device="cpu", dtype="bfloat16").model
        assert len(caplog.messages) == 1
        for module in (model.decoder, model.encoder):
            assert module.conv1.weight.dtype == dtype and module.snake1.alpha.dtype == torch.float32
    assert [line.split(":")[0] for line in caplog.messages] == [
        f"{name} is kept in {str(dtype).removeprefix('torch.')}" for name in ("Decoder", "Encoder")
    ]
    audio = model.decode(torch.zeros(1, 20, 8))
    assert audio.isfinite().all()


def test_the_backend_that_is_asked_for_holds_while_loading(tiny, monkeypatch):
    from acefast.models.v15 import model

    told = []
    real = model.load_coder
    monkeypatch.setattr(model, "load_coder", lambda *given: told.append(named_backend()) or real(*given))
    acefast.load(tiny, device="cpu", dtype="float32", backend="reference")
    assert told == ["reference"] and named_backend() == "auto"
