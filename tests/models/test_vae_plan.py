"""A tile of the published autoencoder, on meta tensors: its launches are the plan's, and a CUDA graph can hold them.

The plan is spec/a100-kernels.md's: 28 launches a tile, of the decoder as of the encoder.
"""

from __future__ import annotations

import pytest
import torch

from acefast.backends import use_backend
from acefast.models.v15 import vae
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_tile import DecoderTile, EncoderTile
from acefast.ops.audio_conv1d import peak_slots
from acefast.sim.driver import dry_run
from acefast.sim.graph import check_step
from acefast.sim.resources import read_kernel

FRAMES, HOP, GUARD = 512, 1920, 32
ARENA = 3 * (32 + FRAMES * HOP + 32) * 128 * 2  # x, activated, free: the level next to the audio, 128 channels
PLAN = {  # nine units of up to 256 channels are one launch each, six wider ones two; strided convolutions are conv1d's
    "decoder": {"_conv1d": 1 + 12, "_conv_transpose1d": 5, "_residual_unit": 9, "_audio_conv1d": 1},
    "encoder": {"_conv1d": 2 + 5 + 12, "_residual_unit": 9},
}
CODERS = {"decoder": vae.Decoder, "encoder": vae.Encoder}


def coder_of(name):
    with torch.device("meta"):
        coder = CODERS[name](VAEConfig())
    for name, parameter in coder.named_parameters():
        if "snake" not in name:
            parameter.data = parameter.data.half()
    return coder


def prepared(coder):
    """A tile's launch, the tensors that a graph may count on, and the tile."""
    if isinstance(coder, vae.Encoder):
        tile = EncoderTile(coder, 1, FRAMES)
        return tile.launch, (coder, tile.static), tile
    tile = DecoderTile(coder, 1, FRAMES)
    audio = torch.empty(1, 2, 6000 * HOP, device="meta")  # 240 s
    peaks = torch.zeros(1, peak_slots(FRAMES * HOP), device="meta")
    return lambda: tile.launch(audio, peaks), (coder, tile.static, audio, peaks), tile


@pytest.mark.parametrize("name", CODERS)
def test_a_tile_is_the_plans_launches_and_can_be_captured(name):
    with torch.inference_mode(), dry_run(80) as launches, use_backend("triton"):
        launch, static, tile = prepared(coder_of(name))
        assert tile.memory.nbytes == ARENA  # 755 MB
        launches.clear()
        report = check_step(launch, static=static, runs=2, warmup=0).require()
    assert report.launches == PLAN[name] and report.undeclared == []
    assert report.launches.total() == len(launches) // 2 == 28  # nothing but Triton's


def test_a_launch_too_many_memory_of_its_own_and_a_read_back_are_found():
    with torch.inference_mode(), dry_run(80), use_backend("triton"):
        launch, static, tile = prepared(coder_of("decoder"))
        for fault, kind in (
            (lambda: tile.latents.clone(), "allocation"),
            (lambda: tile.place.tolist(), "sync"),
        ):
            tile.launches.insert(3, fault)
            report = check_step(launch, static=static, runs=2, warmup=0)
            assert kind in {finding.kind for finding in report.findings}
            del tile.launches[3]
        check_step(launch, static=static, runs=2, warmup=0).require()


@pytest.mark.parametrize("sm", [80, *(pytest.param(sm, marks=pytest.mark.slow) for sm in (86, 89, 90, 100, 120))])
@pytest.mark.parametrize("name", CODERS)
def test_no_launch_of_a_tile_in_fp16_spills(name, sm):
    """Most cases of the kernels are bf16; a song's are all fp16, where the probe at load leaves it so."""
    with torch.inference_mode(), dry_run(sm) as launches, use_backend("triton"):
        launch, _, _ = prepared(coder_of(name))
        launch()
    kernels = {one.kernel.hash: one.kernel for one in launches}
    found = [read_kernel(kernel) for kernel in kernels.values()]
    assert len(launches) == 28 and len(found) > 15 and not [r for r in found if r.spill_bytes or r.local]
