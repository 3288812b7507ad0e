"""Proof of acefast.panels: what lies where, which layers' weights are brought there, and when."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import acefast
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_layers import SpectralUnit
from acefast.panels import from_panels, hold_panels, rows_of, some_rows, to_panels
from acefast.testing import write_checkpoint
from tests.cpu.convolutions import on_threads
from tests.cpu.isas import NAMES, at_isa, extension

WIDE = VAEConfig(encoder_hidden_size=32, decoder_channels=32, decoder_input_channels=8)


class Layer(nn.Module):
    in_panels = ("weight",)

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(torch.Size(shape).numel()).float().view(shape), requires_grad=False)


class Outer(nn.Module):
    in_panels = ("inner.weight",)

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 64, bias=False)


def test_two_k_of_32_rows_lie_together():
    weight = torch.randn(64, 10)
    panels = to_panels(weight)
    assert panels.shape == (2, 5, 32, 2) and panels.is_contiguous()
    for n, k in ((0, 0), (31, 9), (32, 4), (63, 7)):
        assert panels[n // 32, k // 2, n % 32, k % 2] == weight[n, k]
    assert torch.equal(from_panels(panels), weight) and from_panels(panels).is_contiguous()


def test_rows_are_taken_of_a_weight_as_of_its_panels():
    weight = torch.randn(96, 10)
    panels = to_panels(weight)
    assert rows_of(weight) == rows_of(panels) == 96
    assert torch.equal(from_panels(some_rows(panels, 32, 96)), some_rows(weight, 32, 96))
    assert torch.equal(some_rows(weight, 32, 96), weight[32:])
    assert torch.equal(some_rows(panels, 16, 90), weight[16:90])  # rows, where no panel begins or ends


def test_layers_that_say_so_are_brought_there_where_their_sizes_allow_it():
    whole = Layer(32, 32)
    whole.weight = nn.Parameter(whole.weight.to(torch.int8), requires_grad=False)
    others = Layer(48, 32), Layer(32, 48), Layer(32, 32, 3), whole, nn.Linear(32, 32)
    layers = nn.ModuleList([Layer(96, 64), Outer(), *others])
    layers[1].inner.weight.data.fill_(3)
    before = [layer.weight.clone() for layer in layers if layer is not layers[1]]
    hold_panels(layers)
    assert torch.equal(layers[0].weight, to_panels(before[0])) and not layers[0].weight.requires_grad
    assert layers[1].inner.weight.shape == (2, 16, 32, 2)
    for layer, weight in zip(layers[2:], before[1:]):
        assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("shape", [(32, 32), (96, 160)])
def test_the_kernel_lays_them_as_the_library_does(isa, shape, rng):
    weight = torch.randn(shape, generator=rng).bfloat16()
    with at_isa(isa):
        for count in (1, 3):
            with on_threads(count):
                assert torch.equal(to_panels(weight), to_panels(weight.float()).bfloat16())


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
def test_a_model_holds_panels_where_the_cpus_kernels_read_them(dtype, tmp_path, monkeypatch):
    extension()
    monkeypatch.setattr("acefast.models.v15.vae_range.cpu_multiplies", lambda dtype: True)
    folder = write_checkpoint(tmp_path, vae_config=WIDE, dtype=torch.bfloat16)
    model = acefast.load(folder, device="cpu", dtype=dtype).model
    layer, decoder = model.transformer.layers[0], model.decoder
    weights = layer.self_attention.qkv, layer.cross_attention.kv, layer.mlp.gate_up, layer.mlp.down
    assert {weight.dim() for weight in weights} == {4 if dtype == "bfloat16" else 2}
    units = [unit for unit in decoder.modules() if isinstance(unit, SpectralUnit)]
    assert len(units) == (15 if dtype == "bfloat16" else 0)
    assert all(unit.conv1.weight.dim() == 4 for unit in units)
