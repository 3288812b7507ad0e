"""Every stage stays on the device of its inputs and reads nothing back: shown on meta tensors, which hold no values.

A value asked for on the host raises there, and so does arithmetic with a tensor made on another device. The two places
that read lengths back, once per song, are ``DiT.derive`` on the references and ``ConditionEncoder.forward``, of a batch
whose padding counts; they are left out.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from acefast import repaint, sampling
from acefast.backends import use_backend
from acefast.conditions import Conditions
from acefast.devices import current
from acefast.guidance import VARIANTS, Guidance, guided
from acefast.lanes import Lane
from acefast.models.v15 import vae
from acefast.models.v15.codes import AudioDetokenizer, AudioTokenizer
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.dit import DiT, LayerCondition
from acefast.ops.linear import linear
from acefast.ops.philox import philox_normal
from acefast.pipeline import Pipeline
from acefast.request import CheckpointTraits
from acefast.testing import TINY, TINY_BASE, TINY_VAE

GPU = torch.device("cuda:1")
META = torch.device("meta")
D = TINY.audio_acoustic_hidden_dim


def build(kind, config, dtype=torch.bfloat16):
    """``kind`` on meta tensors in ``dtype``, with what is always fp32 kept so."""
    with META:
        module = kind(config)
    table = kind.weight_table(config)
    for name, parameter in list(module.named_parameters()):
        wanted = parameter.to(table[name].dtype or dtype)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(wanted, requires_grad=False))
    return module


def randn(*shape, dtype=torch.float32):
    return torch.empty(shape, device=META, dtype=dtype)


def prepared(model: DiT, batch: int, frames: int) -> Conditions:
    """What ``DiT.prepare`` makes, without its look at the lengths."""
    states, null = (randn(*s, dtype=torch.bfloat16) for s in ((batch, 20, TINY.encoder_hidden_size), (1, 64)))
    context, latent_inputs = randn(batch, frames, 2 * D), 2 * D
    nulls, states = model.constants(null), model.condition(states)
    return Conditions(
        states,
        torch.empty(batch, device=META, dtype=torch.int64),
        context,
        {
            "context": linear(model._patches(context), model.patch.weight[:, :-latent_inputs], model.patch.bias),
            "layers": [
                LayerCondition(*layer.cross_attention.keys_values(states), null)
                for layer, null in zip(model.layers, nulls)
            ],
            "lengths": torch.empty(batch, device=META, dtype=torch.int64),
            "frames": None,
            "tokens": None,
            "upstream_time": False,
            "times": {},
        },
    )


@pytest.fixture(params=["references", "triton"])
def launches(request):
    """Of Triton's kernels, compiled for sm_80 as on a GPU and not run; None where all ops are their references."""
    if request.param == "references":
        yield None
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.driver import dry_run

    with dry_run(80) as found, use_backend("triton"):
        yield found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("solver", sampling.SOLVERS)
def test_the_diffusion_loop_stays_on_its_device(launches, variant, solver):
    model = build(DiT, TINY_BASE)
    conditions, noise = prepared(model, 2, 131), philox_normal([1, 2], (131, D), device=META)

    def predict(x, t, step, both):
        return model(x, t, conditions, unconditional=both)

    out = sampling.sample(
        guided(predict, Guidance(5.0, variant)),
        noise,
        [1.0, 0.5],
        solver=solver,
        seeds=[1, 2],
        correct=lambda x, denoised, t, t_next: sampling.wavelet_correction(x, denoised, t),
        after_step=lambda x, step, t: repaint.inject(x, noise, noise, torch.empty(131, device=META), t),
    )
    assert out.device == META and out.shape == noise.shape and out.dtype == torch.float32
    if launches is not None:  # a loop that no whole step takes: the step's number is known to the host
        names = [one.name for one in launches]
        assert names.count("_sampler_step_kernel") == (4 if solver == "heun" else 2)
        assert ("_velocity_kernel" in names) == (variant == "apg")


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_audio_and_latents_stay_on_their_device(dtype):
    decoder, encoder = (build(kind, TINY_VAE, dtype) for kind in (vae.Decoder, vae.Encoder))
    audio = vae.decode(decoder, randn(2, 300, D)).audio
    mean, std = vae.encode(encoder, audio)
    assert audio.device == mean.device == std.device == META and mean.shape == (2, 300, D)


def test_codes_and_timbre_stay_on_their_device(launches):
    codes = build(AudioTokenizer, TINY).tokenize(randn(1, 131, D), randn(5, D))
    hints = build(AudioDetokenizer, TINY)(codes)
    timbre = build(ConditionEncoder, TINY).timbre_encode(randn(1, 750, D))
    assert codes.device == hints.device == timbre.device == META and hints.shape == (1, 135, D)
    assert launches is None or {"_window_kernel", "_cross_kernel"} <= {one.name for one in launches}


def test_a_value_read_on_the_host_would_be_seen():
    with pytest.raises(RuntimeError, match="meta"):
        build(DiT, TINY_BASE).prepare(randn(1, 20, 64), None, randn(1, 131, 2 * D))


def test_work_on_a_gpu_makes_it_the_current_one(monkeypatch):
    entered = []

    @contextlib.contextmanager
    def device(found):
        entered.append(found)
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", device)
    with current(torch.device("cpu")), current(META):
        assert not entered
    traits, coding = CheckpointTraits("ace-step-1.5-turbo", True, "turbo"), Lane(torch.device("cpu"))
    pipe = Pipeline(SimpleNamespace(device=GPU, memory="fast", traits=traits, coding=coding))
    stream = SimpleNamespace(synchronize=lambda: entered.append("at rest"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    with pipe.at_work():
        assert entered == [GPU]
    assert entered == [GPU, "at rest", "left"]
