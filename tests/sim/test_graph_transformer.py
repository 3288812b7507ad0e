"""The graph checker on the transformer of ACE-Step 1.5 as it is today."""

from __future__ import annotations

import pytest
import torch

from acefast.conditions import Conditions
from acefast.models.v15.config import Config
from acefast.models.v15.dit import DiT, LayerCondition, Modulation
from acefast.ops.linear import linear
from acefast.sim.graph import check_step
from acefast.testing import TINY_BASE


def build(config, device="cpu"):
    with torch.device(device):
        model = DiT(config)
    g = torch.Generator().manual_seed(0)
    for p in model.parameters() if device == "cpu" else ():
        p.copy_(torch.randn(p.shape, generator=g) * 0.05)
    return model


@pytest.mark.parametrize(
    "lengths, unconditional, launches, allocations",
    # Budgets: what the reference ops need on a CPU today. The fused step is to bring the allocations to zero.
    [(None, False, 274, 153), (None, True, 279, 158), ([20, 13], False, 337, 204), ([20, 13], True, 342, 209)],
)
def test_prepared_velocity_step_allocates_and_nothing_worse(rng, lengths, unconditional, launches, allocations):
    c, model = TINY_BASE, build(TINY_BASE)
    B, T, C = 2, 131, c.audio_acoustic_hidden_dim
    context, latents = (torch.randn(B, T, n, generator=rng) for n in (2 * C, C))
    states, null = (torch.randn(*s, c.encoder_hidden_size, generator=rng) for s in ((B, 20), (1,)))
    frames = torch.tensor([131, 90]) if lengths else None
    lengths = torch.tensor(lengths) if lengths else None
    conditions = model.prepare(states, lengths, context, [1.0, 0.5], null_condition=null, frames=frames)
    report = check_step(
        lambda: model(latents, 0.5, conditions, unconditional=unconditional), static=(model, latents, vars(conditions))
    )
    report.require(allow=("allocation",))
    assert report.count("sync") == report.count("moving") == report.count("host") == 0
    assert report.launches.total() <= launches and report.count("allocation") <= allocations
    assert 0 < len(report.undeclared) <= 5  # the rotary table and the windows' masks, in caches of their ops


def test_unprepared_timestep_costs_an_upload_and_a_new_timestep_other_memory(rng):
    """Why a captured step must read its timestep from device memory."""
    c, model = TINY_BASE, build(TINY_BASE)
    context, latents = (torch.randn(1, 16, n, generator=rng) for n in (16, 8))
    conditions = model.prepare(torch.randn(1, 4, c.encoder_hidden_size, generator=rng), None, context, [1.0, 0.5])
    times = [1.0, 1.0, 0.5]
    report = check_step(
        lambda: model(latents, times[0], conditions),
        static=(model, latents, vars(conditions)),
        between=lambda _: times.pop(0),
    )
    assert report.of("moving")
    assert check_step(lambda: model(latents, 0.25, conditions), static=(model, latents), warmup=0).of("copy")


def test_full_size_step_on_meta_tensors():
    """2B at one minute, batch 2: nothing is computed and no weight takes memory."""
    c, model = Config(), build(Config(), "meta").to(torch.bfloat16)
    B, T, E, D = 2, 1500, 300, Config().audio_acoustic_hidden_dim
    with torch.device("meta"):
        latents, context = torch.empty(B, T, D), torch.empty(B, T, 2 * D)
        states = torch.empty(B, E, c.encoder_hidden_size, dtype=torch.bfloat16)
        lengths = torch.empty(B, dtype=torch.int64)
    # what prepare makes, without its look at the lengths
    embedded = model.condition(states)
    prepared = {
        "context": linear(model._patches(context), model.patch.weight[:, : -2 * D], model.patch.bias),
        "layers": [LayerCondition(*layer.cross_attention.keys_values(embedded), None) for layer in model.layers],
        "lengths": lengths,
        "frames": None,
        "tokens": None,
        "upstream_time": False,
        "times": {0.5: Modulation(*(t[0] for t in model.modulations([0.5])))},
    }
    conditions = Conditions(states, lengths, context, prepared)
    model(latents, 0.5, conditions)  # fills the tables
    report = check_step(lambda: model(latents, 0.5, conditions), static=(model, latents, vars(conditions)), warmup=0)
    report.require(allow=("allocation",))
    # Budgets of the reference ops, which take windowed attention block by block. The plan's fused step: 292 and 0.
    assert report.launches.total() <= 2551 and report.count("allocation") <= 1766
    assert report.allocated_bytes <= 12.6e9  # all temporaries of a step, were none reused
