"""The codec of v1 with Triton's kernels, in the interpreter: every layer that has one, as near to fp32 as without."""

from __future__ import annotations

import dataclasses
from importlib import import_module

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import use_backend
from acefast.models.v1 import dcae_layers
from acefast.models.v1.config import VocoderConfig
from acefast.models.v1.dcae_layers import EfficientViT, ResBlock, RMSNorm
from acefast.models.v1.vocoder import ConvNeXt, Upsample
from acefast.sim.interpreter import interpreted
from tests.models.v1.codec_fill import normal, relative
from tests.songs import counted

KERNELS = ("conv1d", "conv_transpose1d", "depthwise2d", "depthwise_norm", "rms_residual", "vit_linear_attention")
CONFIG = dataclasses.replace(VocoderConfig(), resblock_kernel_sizes=(3, 13), resblock_dilations=(1, 5))
CASES = {
    "stacks": (
        lambda: Upsample(64, 2, CONFIG, False),
        lambda m, x: m(x),
        (2, 70, 64),
        {"conv1d", "conv_transpose1d"},
    ),
    "stacks too narrow for kernels": (
        lambda: Upsample(16, 2, CONFIG, False),
        lambda m, x: m(x),
        (2, 40, 16),
        set(),
    ),
    "ConvNeXt": (lambda: ConvNeXt(48), lambda m, x: m(x), (2, 45, 48), {"depthwise_norm"}),
    "residual block": (lambda: ResBlock(48), lambda m, x: m(x), (1, 6, 8, 48), {"rms_residual"}),
    "norm and ReLU": (lambda: RMSNorm(48), lambda m, x: m(x, relu=True), (1, 6, 8, 48), {"rms_residual"}),
    "attention and feed-forward": (
        lambda: EfficientViT(64, 16),
        lambda m, x: m(x),
        (1, 5, 4, 64),
        {"depthwise2d", "rms_residual", "vit_linear_attention"},
    ),
}


def filled(build, dtype):
    module = build()
    for i, (name, parameter) in enumerate(sorted(module.named_parameters())):
        x = normal(100 + i, *parameter.shape)
        norm = "norm.weight" in name
        x = 1 + 0.2 * x if norm else x / x[0].numel() ** 0.5 if x.dim() > 1 else 0.1 * x
        parameter.data = x.to(torch.bfloat16).to(dtype)  # the same numbers in both
    return module


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_a_layer_on_kernels_is_as_near_to_fp32_as_without(case, monkeypatch):
    build, run, shape, kernels = CASES[case]
    x = normal(1, *shape).bfloat16()
    exact = run(filled(build, torch.float32), x.float())
    with use_backend("reference"):
        plain = run(filled(build, torch.bfloat16), x.clone())
    monkeypatch.setattr(dcae_layers, "HEADS", 3)  # of the four: two goes
    calls = {name: counted(monkeypatch, import_module(f"acefast.kernels.{name}"), name) for name in KERNELS}
    with interpreted(), use_backend("triton"):
        got = run(filled(build, torch.bfloat16), x.clone())
    assert got.shape == exact.shape and got.is_contiguous()
    assert relative(got, exact) <= 1.1 * relative(plain, exact)
    assert {name for name, seen in calls.items() if seen} == kernels
