"""A tile of the published autoencoder, on meta tensors: its launches are the plan's, and a CUDA graph can hold them.

The plan is spec/a100-kernels.md's: 28 launches a tile, of the decoder as of the encoder.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from triton.runtime.jit import JITFunction

from acefast.backends import use_backend
from acefast.graphs import Graphs
from acefast.models.v15 import vae
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_static import FINISH_FRAMES
from acefast.models.v15.vae_tile import FinishTile
from acefast.sim.driver import dry_run
from acefast.sim.graph import check_step
from acefast.sim.resources import assemble, read_kernel

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
    """A tile, and the tensors that a graph may count on."""
    tile = coder.tile(1, FRAMES)
    return tile, (coder, tile.static)


@pytest.mark.parametrize("name", CODERS)
def test_a_tile_is_the_plans_launches_and_can_be_captured(name):
    with torch.inference_mode(), dry_run(80) as launches, use_backend("triton"):
        tile, static = prepared(coder_of(name))
        assert tile.memory.nbytes == ARENA  # 755 MB
        launches.clear()
        report = check_step(tile.launch, static=static, runs=2, warmup=0).require()
    assert report.launches == PLAN[name] and report.undeclared == []
    assert report.launches.total() == len(launches) // 2 == 28  # nothing but Triton's


def test_a_launch_too_many_memory_of_its_own_and_a_read_back_are_found():
    with torch.inference_mode(), dry_run(80), use_backend("triton"):
        tile, static = prepared(coder_of("decoder"))
        for fault, kind in (
            (lambda: tile.latents.clone(), "allocation"),
            (lambda: tile.place.tolist(), "sync"),
        ):
            tile.launches.insert(3, fault)
            report = check_step(tile.launch, static=static, runs=2, warmup=0)
            assert kind in {finding.kind for finding in report.findings}
            del tile.launches[3]
        check_step(tile.launch, static=static, runs=2, warmup=0).require()


def test_the_finish_is_two_launches_and_can_be_captured():
    with torch.inference_mode(), dry_run(80) as launches, use_backend("triton"):
        tile = FinishTile(Graphs(torch.device("meta")), 2, 2, FINISH_FRAMES * HOP)
        assert tile.audio.nbytes == 4 * 2 * 2 * 983_040  # 16 MB
        report = check_step(tile.launch, static=tile.static, runs=2, warmup=0).require()
    assert report.launches == {"_peaks_kernel": 1, "_convert_kernel": 1} and report.undeclared == []
    assert len(launches) == 4


WIDTHS = {"CIN", "COUT", "Cin", "Cout", "PADDING"}  # how long a kernel's loops are, not what is in them


@pytest.fixture
def one_of_a_kind(monkeypatch):
    """Of launches that differ in widths, in how far taps are apart or in the stride alone, the first is compiled."""
    run, seen = JITFunction.run, set()

    def once(kernel, *args, **options):
        kind = {name: value > 1 if name in ("STRIDE", "DILATION") else value for name, value in options.items()}
        given = tuple(each is None for each in args)
        key = kernel.__name__, given, *(repr((n, kind[n])) for n in sorted(kind.keys() - {"grid", *WIDTHS}))
        if key not in seen:
            seen.add(key)
            run(kernel, *args, **options)

    monkeypatch.setattr(JITFunction, "run", once)


def compiled(name, sm):
    with torch.inference_mode(), dry_run(sm) as launches, use_backend("triton"):
        prepared(coder_of(name))[0].launch()
    return launches, list({one.kernel.hash: one for one in launches}.values())


@pytest.mark.parametrize("name", CODERS)
def test_no_launch_of_a_tile_in_fp16_spills(name):
    """Most cases of the kernels are bf16; a song's are all fp16, where the probe at load leaves it so."""
    launches, kinds = compiled(name, 80)
    found = [read_kernel(one.kernel) for one in kinds]
    assert len(launches) == 28 and len(found) > 15 and not [r for r in found if r.spill_bytes or r.local]


@pytest.mark.slow
@pytest.mark.parametrize("sm", (86, 120))
def test_nor_does_one_of_a_kind_on_other_gpus(sm, one_of_a_kind):
    """The two whose blocks have least shared memory; kernels/test_all_kernels has all GPUs, its cases mostly in bf16.

    What is compiled for sm_86 is assembled for sm_89 too, whose launches are the same: kernels/test_all_kernels.
    """
    kinds = [one for name in CODERS for one in compiled(name, sm)[1]]
    found = [read_kernel(one.kernel) for one in kinds]
    assert len(found) > 15 and not [r for r in found if r.spill_bytes or r.local]
    if sm == 86:
        found = [assemble(one.ptx, 89, one.kernel.metadata.name) for one in kinds]
        assert not [a for a in found if a.stack_bytes or a.spill_store_bytes or a.spill_load_bytes]
