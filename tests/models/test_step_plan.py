"""The whole step of 2B and XL at full size, on meta tensors: its launches are the plan's, and a CUDA graph can hold it.

Counted are Triton's launches, the library's matrix products and its attention to everything: calls, that is, since a
library may cut one into several kernels. The plan is spec/a100-kernels.md's: 12 launches a layer and 4 around them, one
more with guidance.
"""

from __future__ import annotations

import pytest
import torch

from acefast.backends import use_backend
from acefast.graphs import Graphs
from acefast.guidance import Guidance
from acefast.models.v15.config import Config
from acefast.models.v15.dit import DiT
from acefast.models.v15.step import Step
from acefast.sim.driver import dry_run
from acefast.sim.graph import check_step
from acefast.testing import FULL_XL

CONFIGS = {"2B": Config(), "XL": FULL_XL}
FLASH = "aten._flash_attention_forward_no_dropout_inplace.default"
GEMMS = ("aten.mm.out", "aten.addmm.out", "aten.addmm_.default")


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    with torch.device("meta"):
        return DiT(CONFIGS[request.param]).to(torch.bfloat16)


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def stepping(model, songs, frames, conditions, guidance, steps=2, **structure):
    """The step of such songs, with nothing loaded."""
    c = model.config
    states = meta(songs, conditions, c.encoder_hidden_size)
    context = meta(songs, frames, 2 * c.audio_acoustic_hidden_dim)
    given = model.prepare(states, meta(songs, dtype=torch.int64), context, null_condition=meta(1, states.shape[2]))
    return Step(model, Step.shape_of(model, songs, given, steps, guidance, **structure), Graphs(torch.device("meta")))


CASES = {
    "plain": (1.0, 1, {}),
    "guided": (7.0, 1, {}),
    "guided, two songs": (7.0, 2, {}),
    "sde of a repaint": (1.0, 1, dict(sde=True, repaint=True)),
    "guided sde of a repaint": (7.0, 1, dict(sde=True, repaint=True)),
}


@pytest.mark.parametrize("scale, songs, structure", CASES.values(), ids=CASES)
def test_a_step_is_the_plans_launches_and_can_be_captured(model, scale, songs, structure):
    """120 s with 300 conditions; two songs of unequal lengths take the same launches."""
    layers, guided = model.config.num_hidden_layers, scale > 1
    with torch.inference_mode(), dry_run(80) as launches, use_backend("triton"):
        step = stepping(model, songs, 3000, 300, Guidance(scale), **structure)
        launches.clear()
        report = check_step(lambda: step.launch(guided), static=(model, vars(step)), runs=2, warmup=0)
    assert report.launches.total() == 12 * layers + 4 + guided == {24: 292, 32: 388}[layers] + guided
    triton, attention = len(launches) // 2, report.launches[FLASH]
    assert attention == layers // 2 and sum(report.launches[gemm] for gemm in GEMMS) == 5 * layers + 2
    assert triton == report.launches.total() - attention - (5 * layers + 2)
    # All that is left is FlashAttention's log-sum-exp, which its interface returns: a graph's own pool holds it.
    report.require(allow=("allocation",))
    assert {f.op for f in report.findings} == {FLASH} and report.count("allocation") == attention
    assert report.undeclared == []


def test_what_is_derived_once_a_song_can_be_captured(model):
    """Keys and values of 300 conditions, and the context's half of the patch projection: temporaries are the pool's."""
    layers = model.config.num_hidden_layers
    with torch.inference_mode(), dry_run(80), use_backend("triton"):
        step = stepping(model, 2, 3000, 300, Guidance(7.0))
        report = check_step(step.derive, static=(model, vars(step)), runs=2, warmup=0)
    report.require(allow=("allocation",))
    assert report.undeclared == [] and report.launches.total() == 4 * layers + 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", (torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("scale", (1.0, 7.0), ids=["plain", "guided"])
def test_a_step_compiles_in_the_other_dtypes(model, dtype, scale):
    """In fp32 the library multiplies, and attends to everything by the reference."""
    with torch.inference_mode(), dry_run(80) as launches, use_backend("triton"):
        with torch.device("meta"):
            model = DiT(model.config).to(dtype)
        step = stepping(model, 1, 3000, 300, Guidance(scale))
        launches.clear()
        step.launch(scale > 1)
    assert len(launches) == model.config.num_hidden_layers * 13 // 2 + 2 + (scale > 1)


def test_a_step_that_reads_its_number_back_is_found(model):
    """The step's number has to stay in the clock: on the host it would be baked in, and waited for."""
    with torch.inference_mode(), dry_run(80), use_backend("triton"):
        step = stepping(model, 1, 3000, 300, Guidance(1.0))
        report = check_step(lambda: (step.launch(False), step.clock[0].item()), static=(model, vars(step)), runs=1)
    (found,) = report.of("sync")
    assert "test_step_plan.py" in found.where


def test_a_step_that_makes_memory_or_another_launch_is_found(model):
    """Without its static buffers the same forward is no step to capture."""
    with torch.inference_mode(), dry_run(80), use_backend("triton"):
        step = stepping(model, 1, 3000, 300, Guidance(1.0))
        step.evaluations[0] = step.evaluations[0]._replace(buffers=type(step.buffers)())
        report = check_step(lambda: step.launch(False), static=(model, vars(step)), warmup=0, runs=1)
    assert {f.op for f in report.of("allocation")} > {FLASH} and report.count("allocation") > 100
