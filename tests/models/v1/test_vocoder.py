"""Proof of acefast.models.v1.vocoder: upstream's ADaMoSHiFiGANV1 by golden numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from acefast.backends import use_backend
from acefast.models.v1 import local
from acefast.models.v1.config import VocoderConfig
from acefast.models.v1.local import Rows
from acefast.models.v1.vocoder import ConvNeXt, SpectralConv, Vocoder
from tests.cpu.isas import extension
from tests.models.v1.codec_fill import SHORT, VOCODER, fill, mel, normal, relative, vocoder_shapes, vocoder_tensors

GOLDEN = Path(__file__).parents[2] / "golden/v1/codec.safetensors"


def build(config, spectral=False, dtype=torch.float32):
    with torch.device("meta"):
        module = Vocoder(config, spectral)
    return fill(module, Vocoder.weight_table(config, spectral), vocoder_tensors(config), dtype)


@pytest.fixture(scope="module")
def short():
    return build(SHORT)


@pytest.mark.parametrize("spectral", (False, True))
def test_vocoder_matches_upstream(spectral):
    vocoder = build(VOCODER, spectral)
    assert spectral == any(isinstance(module, SpectralConv) for module in vocoder.modules())
    audio = vocoder(mel())
    assert audio.shape == (2, 6 * 512, 1) and audio.dtype == torch.float32
    assert relative(audio.squeeze(2), load_file(GOLDEN)["vocoder"]) <= 1e-5


def test_published_size_has_every_tensor():
    config, shapes = VocoderConfig(), vocoder_shapes(VocoderConfig())
    assert len(shapes) == 713 - 2  # the window and the filterbank are made anew
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 103_005_138
    for spectral in (False, True):
        with torch.device("meta"):
            vocoder = Vocoder(config, spectral)
        table = Vocoder.weight_table(config, spectral)
        assert table.keys() == vocoder.state_dict().keys()
        assert {name for source in table.values() for name in source.names} == set(shapes)
    assert local.halo(vocoder.steps(), 512) == 91


def test_only_the_stem_goes_on_where_the_song_ends(short):
    """Its first frame is as if others like it came before; every other layer sees zeros."""
    x = mel(4)
    want = torch.cat([x[:, :1]] * 3 + [x] + [x[:, -1:]] * 3, 1)
    stem = short.stem
    y = F.conv1d(want.transpose(1, 2), stem.weight.transpose(1, 2), stem.bias).transpose(1, 2)
    assert relative(short._stem(x), short.stem_norm(y)) <= 1e-6
    block = short.stages[0][0]
    y = F.conv1d(normal(5, 2, 16, 9), block.depth.t()[:, None], block.depth_bias, padding=3, groups=16)
    y = block.down(F.gelu(block.up(block.norm(y.transpose(1, 2))))) + normal(5, 2, 16, 9).transpose(1, 2)
    assert relative(block(normal(5, 2, 16, 9).transpose(1, 2).contiguous()), y) <= 1e-6


def test_a_block_on_the_cpus_kernels_rounds_less_than_the_librarys(rng):
    """In bf16, against its equations in fp64."""
    extension()
    block = ConvNeXt(64)
    for p in block.parameters():
        p.data = (torch.randn(p.shape, generator=rng) / p.shape[-1] ** 0.5).bfloat16()
    x, found = torch.randn(2, 33, 64, generator=rng).bfloat16(), {}
    before = x.clone()
    for backend in ("cpu", "reference"):
        with use_backend(backend):
            found[backend] = block(x)
    assert torch.equal(x, before)
    block, x = block.double(), x.double()
    taps = F.conv1d(x.mT, block.depth.t()[:, None], block.depth_bias, padding=3, groups=64).mT
    up = F.linear(block.norm(taps), block.up.weight, block.up.bias)
    want = x + F.linear(F.gelu(up), block.down.weight, block.down.bias)
    errors = {backend: relative(y.double(), want) for backend, y in found.items()}
    assert errors["cpu"] < min(4e-3, errors["reference"])


def test_the_halo_is_what_a_frame_hears(short):
    steps, M = short.steps(), 130
    halo = local.halo(steps, 512)
    x = mel(M, 1)
    first, end = local.needs(steps, 64 * 512, 65 * 512)
    assert (first, end) == (64 - halo, 65 + halo)
    near = local.run(steps, Rows(x, 0, M), 64 * 512, 65 * 512).x
    far = x.clone()
    far[:, :first], far[:, end:] = torch.nan, torch.nan
    assert torch.equal(local.run(steps, Rows(far, 0, M), 64 * 512, 65 * 512).x, near)
    whole = local.run(steps, Rows(far, 0, M), 0, M * 512).x  # not cropped on the way
    assert whole[:, 64 * 512 : 65 * 512].isfinite().all()


@pytest.mark.parametrize("size", (9, 33))
def test_tiles_are_the_whole_song(short, size):
    x, steps = mel(50), short.steps()
    whole = short(x)
    for lo, hi in local.pieces(0, 50, size):
        part = local.run(steps, Rows(x, 0, 50), lo * 512, hi * 512).x
        assert relative(part, whole[:, lo * 512 : hi * 512]) <= 1e-6


def test_tiles_are_the_whole_song_with_transformed_weights():
    vocoder, x = build(VOCODER, True), mel(24, 1)
    assert any(isinstance(module, SpectralConv) for module in vocoder.modules())
    whole, steps = vocoder(x), vocoder.steps()
    part = local.run(steps, Rows(x, 0, 24), 11 * 512, 13 * 512).x
    assert relative(part, whole[:, 11 * 512 : 13 * 512]) <= 1e-6


def test_inputs_are_not_modified(short):
    x = mel(8)
    before = x.clone()
    short(x)
    assert torch.equal(x, before)


def test_bf16_stays_near_fp32():
    exact = build(VOCODER)(mel(12))
    for spectral in (False, True):
        audio = build(VOCODER, spectral, torch.bfloat16)(mel(12).bfloat16())
        assert relative(audio, exact) <= 0.05  # a gain in each of the random stages
