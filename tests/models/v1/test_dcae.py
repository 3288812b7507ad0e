"""Proof of acefast.models.v1.dcae: diffusers' AutoencoderDC is the oracle, with random weights at tiny widths."""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acefast.models.v1 import dcae, dcae_layers, local
from acefast.models.v1.config import DCAEConfig
from acefast.models.v1.dcae import MelDecoder, MelEncoder
from acefast.models.v1.local import Rows
from acefast.panels import hold_panels
from tests.cpu.isas import extension
from tests.models.v1.codec_fill import DCAE, dcae_tensors, diffusers_dcae, fill, normal, relative


@pytest.fixture(scope="module")
def tensors():
    return dcae_tensors(DCAE)


@pytest.fixture(scope="module")
def theirs(tensors):
    return diffusers_dcae(DCAE, tensors)


def build(kind, tensors, fast_filters, dtype=torch.float32):
    with torch.device("meta"):
        module = kind(DCAE, fast_filters)
    return fill(module, kind.weight_table(DCAE, fast_filters), tensors, dtype)


@pytest.fixture(scope="module", params=(False, True), ids=("direct", "fast"))
def fast_filters(request):
    return request.param


@pytest.fixture(scope="module")
def decoder(tensors, fast_filters):
    return build(MelDecoder, tensors, fast_filters)


@pytest.fixture(scope="module")
def encoder(tensors, fast_filters):
    return build(MelEncoder, tensors, fast_filters)


def first(x):
    """[B, T, F, C] to the [B, C, F, T] of the checkpoint, or back."""
    return x.permute(0, 3, 2, 1)


@pytest.mark.parametrize("B, T", [(1, 1), (2, 2), (1, 3), (2, 21)])  # to two frames theirs is the quadratic form
def test_decoder_and_encoder_match_diffusers(decoder, encoder, theirs, B, T):
    z, mel = normal(1, B, T, 16, 8), normal(2, B, 8 * T, 128, 2)
    got = decoder(z)
    assert got.shape == (B, 8 * T, 128, 2) and got.is_contiguous()
    assert relative(first(got), theirs.decoder(first(z))) <= 1e-5
    got = encoder(mel)
    assert got.shape == (B, T, 16, 8)
    assert relative(first(got), theirs.encoder(first(mel))) <= 1e-5


def test_every_block_matches_diffusers(decoder, encoder, theirs):
    for i, level in enumerate(decoder.levels):  # theirs holds the lowest rate last
        C = DCAE.block_out_channels[2 - i]
        for j, block in enumerate(level):
            x = normal(3, 2, 5, 6, C if j else 2 * C)
            assert relative(first(block(x)), theirs.decoder.up_blocks[2 - i][j](first(x))) <= 1e-5
    for i, level in enumerate(encoder.levels):
        for j, block in enumerate(level):
            x = normal(4, 2, 6, 8, DCAE.block_out_channels[i])
            assert relative(first(block(x)), theirs.encoder.down_blocks[i][j](first(x))) <= 1e-5
    for block, other in zip(decoder.blocks, theirs.decoder.up_blocks[3]):
        x = normal(5, 2, 7, 16, 64)
        assert relative(first(block.attn(x)), other.attn(first(x))) <= 1e-5
        assert relative(first(block(x.clone())), other(first(x))) <= 1e-5


def test_pieces_of_the_global_blocks_leave_no_seam(decoder, encoder, monkeypatch):
    z, x = normal(6, 2, 17, 16, 8), normal(7, 2, 17, 16, 64)
    whole = decoder.latent(z), encoder.latent(x.clone())
    monkeypatch.setattr(dcae_layers, "PIECE", 4)
    monkeypatch.setattr(dcae, "PIECE", 5)
    assert relative(decoder.latent(z), whole[0]) <= 1e-6
    assert relative(encoder.latent(x.clone()), whole[1]) <= 1e-6


def test_attention_is_what_hears_the_whole_song_and_nothing_behind_it(decoder, fast_filters):
    z = normal(8, 1, 40, 16, 8)
    other = z.clone()
    other[:, 0] += 1
    assert relative(decoder.latent(other)[:, -1], decoder.latent(z)[:, -1]) > 1e-5
    halo, steps = local.halo(decoder.steps(), 8), decoder.steps()
    x = decoder.latent(z)
    whole = local.run(steps, Rows(x, 0, 40), 0, 320).x
    change, gate = (-1, 1e-6) if fast_filters else (torch.nan, 0)  # those round a tile's pixels together
    x[:, 20 + halo :] *= change
    x[:, : 19 - halo] *= change
    got = local.run(steps, Rows(x, 0, 40), 0, 320).x
    assert relative(got[:, 19 * 8 : 20 * 8], whole[:, 19 * 8 : 20 * 8]) <= gate
    x[:, 19 - halo + 1] = torch.nan  # a frame nearer is heard
    assert not local.run(steps, Rows(x, 0, 40), 0, 320).x[:, 19 * 8 : 20 * 8].isfinite().all()


@pytest.mark.parametrize("size", (1, 3, 16))
def test_tiles_are_the_whole_song(decoder, encoder, size):
    x, mel = decoder.latent(normal(9, 2, 16, 16, 8)), normal(10, 2, 128, 128, 2)
    for steps, rows, rate in ((decoder.steps(), x, 8), (encoder.steps(), mel, 1)):
        total = rows.shape[1] * 8 if rate == 8 else rows.shape[1] // 8
        whole = local.run(steps, Rows(rows, 0, rows.shape[1]), 0, total).x
        for lo, hi in local.pieces(0, total, size * rate):
            part = local.run(steps, Rows(rows, 0, rows.shape[1]), lo, hi).x
            assert part.shape[1] == hi - lo and relative(part, whole[:, lo:hi]) <= 1e-6


def test_a_piece_takes_its_own_rows_only(decoder):
    x, steps = decoder.latent(normal(11, 1, 30, 16, 8)), decoder.steps()
    whole = local.run(steps, Rows(x, 0, 30), 80, 120).x
    lo, hi = local.needs(steps, 80, 120)
    assert 0 < lo < 10 and 15 < hi < 30
    assert torch.equal(local.run(steps, Rows(x[:, lo:hi], lo, 30), 80, 120).x, whole)


def test_inputs_are_not_modified(decoder, encoder):
    z, mel = normal(12, 1, 3, 16, 8), normal(13, 1, 24, 128, 2)
    before = z.clone(), mel.clone()
    x = decoder.latent(z)
    kept = x.clone()
    local.run(decoder.steps(), Rows(x, 0, 3), 0, 24)
    encoder(mel)
    assert torch.equal(z, before[0]) and torch.equal(mel, before[1]) and torch.equal(x, kept)


def test_songs_of_a_batch_do_not_meet(decoder, encoder):
    z, mel = normal(14, 3, 5, 16, 8), normal(15, 3, 40, 128, 2)
    assert relative(decoder(z)[1:2], decoder(z[1:2])) <= 1e-6
    z[[0, 2]], mel[[0, 2]] = torch.nan, torch.nan
    assert decoder(z)[1].isfinite().all() and encoder(mel)[1].isfinite().all()


def test_bf16_stays_near_fp32(tensors, fast_filters, decoder, encoder):
    z, mel = normal(16, 1, 6, 16, 8), normal(17, 1, 48, 128, 2)
    for kind, x, exact in ((MelDecoder, z, decoder), (MelEncoder, mel, encoder)):
        got = build(kind, tensors, fast_filters, torch.bfloat16)(x.bfloat16())
        assert relative(got.float(), exact(x)) <= 0.03


def test_weight_tables_take_every_tensor_of_the_published_size(fast_filters):
    config = DCAEConfig()
    with torch.device("meta"):
        shapes = {f"dcae.{k}": v.shape for k, v in diffusers_dcae(config).state_dict().items()}
        modules = {kind: kind(config, fast_filters) for kind in (MelEncoder, MelDecoder)}
    taken = []
    for kind, module in modules.items():
        table = kind.weight_table(config, fast_filters)
        assert table.keys() == module.state_dict().keys()
        taken += [name for source in table.values() for name in source.names]
    assert sorted(taken) == sorted(shapes) and len(taken) == 192
    for side, count in (("encoder", 77_668_232), ("decoder", 79_144_194)):
        assert sum(v.numel() for k, v in shapes.items() if k.startswith(f"dcae.{side}")) == count


def test_pieces_of_a_song_are_one_product_of_rows():
    """Of a slice in time torch's ``linear`` makes a product a frame, each with a copy of the weight."""

    class Products(TorchDispatchMode):
        shapes: ClassVar[list] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bmm.default:
                self.shapes.append(tuple(args[1].shape))
            return func(*args, **(kwargs or {}))

    block = dcae_layers.EfficientViT(16, 8)
    for i, parameter in enumerate(block.parameters()):
        parameter.data = 0.1 * normal(i, *parameter.shape)
    with torch.no_grad(), Products():
        block(normal(99, 1, dcae_layers.PIECE + 9, 4, 16))
    assert Products.shapes and all(batch < 16 for batch, *_ in Products.shapes)


def test_a_block_on_the_cpus_kernels_is_the_block():
    extension()
    block = dcae_layers.EfficientViT(64, 32)
    for i, parameter in enumerate(block.parameters()):
        parameter.data = normal(i, *parameter.shape) / parameter.shape[-1] ** 0.5
    twin, x = copy.deepcopy(block).bfloat16(), normal(98, 2, dcae_layers.PIECE + 9, 4, 64)
    assert dcae_layers.on_kernels(x.bfloat16()) and not dcae_layers.on_kernels(x)
    got = twin(x.bfloat16())
    assert relative(got.float(), block(x.clone())) <= 0.01
    hold_panels(twin)
    assert {getattr(twin.attn, n).dim() for n in ("qkv", "out")} == {getattr(twin.ff, n).dim() for n in ("up", "down")}
    assert twin.ff.up.dim() == 4 and torch.equal(twin(x.bfloat16()), got)
