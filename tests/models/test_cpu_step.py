"""The transformers of 1.5 on the CPU's kernels: nothing but those touches the tokens, and no layout is copied."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acefast.backends import use_backend
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.dit import DiT
from acefast.testing import TINY_BASE
from tests.cpu.isas import extension
from tests.models.fill import official_tensors, ours, relative

CONFIG = dataclasses.replace(  # sizes that the kernels take, each another
    TINY_BASE,
    hidden_size=256,
    intermediate_size=352,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=128,
    encoder_hidden_size=192,
    encoder_intermediate_size=160,
    encoder_num_attention_heads=2,
    encoder_num_key_value_heads=1,
    audio_acoustic_hidden_dim=16,
    text_hidden_dim=64,
)
FRAMES, CONDITIONS = 74, 21

extension()


class Written(TorchDispatchMode):
    """Bytes that torch's operators write: all but views and empty memory. Not in inference mode, which hides some."""

    def __init__(self):
        super().__init__()
        self.bytes, self.names = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if isinstance(out, torch.Tensor) and not func.is_view and not name.startswith(("empty", "new_empty")):
            self.bytes += out.nbytes
            self.names.append(name)
        return out


@pytest.fixture(scope="module")
def tensors():
    return official_tensors(CONFIG)


@pytest.fixture(scope="module")
def dit(tensors):
    return ours(DiT, CONFIG, tensors, torch.bfloat16)


def song(dit, songs):
    g, C, W = torch.Generator().manual_seed(0), CONFIG.audio_acoustic_hidden_dim, CONFIG.encoder_hidden_size
    shapes = ((songs, CONDITIONS, W), (songs, FRAMES, 2 * C), (songs, FRAMES, C), (1, 1, W))
    states, context, latents, null = (torch.randn(s, generator=g) for s in shapes)
    return latents, dit.prepare(states.bfloat16(), None, context.bfloat16(), [0.7], null_condition=null.bfloat16())


@pytest.mark.parametrize("unconditional", (False, True), ids=("plain", "guided"))
@pytest.mark.parametrize("songs", (1, 2))
@torch.no_grad()
def test_a_step_writes_what_kernels_do_not_when_latents_come_and_velocity_goes(dit, songs, unconditional):
    with use_backend("cpu"):
        latents, conditions = song(dit, songs)
        run = functools.partial(dit, latents, 0.7, conditions, unconditional=unconditional)
        run()  # what is kept from step to step
        with Written() as written:
            run()
    made_bf16, made_fp32 = latents.numel() * 2, (latents.numel() << unconditional) * 4
    assert written.bytes == made_bf16 + made_fp32, written.names


@torch.no_grad()
def test_an_encoder_writes_nothing_but_by_kernels(tensors):
    encoder = ours(ConditionEncoder, CONFIG, tensors, torch.bfloat16)
    lyrics = torch.randn(1, CONDITIONS, CONFIG.text_hidden_dim).bfloat16()
    with use_backend("cpu"):
        encoder.lyric_encode(lyrics)  # what is kept from call to call
        with Written() as written:
            encoder.lyric_encode(lyrics)
    assert not written.bytes, written.names


@pytest.mark.parametrize("unconditional", (False, True), ids=("plain", "guided"))
@torch.no_grad()
def test_a_step_is_as_near_to_fp32_as_the_references(dit, tensors, unconditional):
    exact = ours(DiT, CONFIG, {n: t.bfloat16().float() for n, t in tensors.items()})
    found = {}
    for name, model in (("fp32", exact), ("reference", dit), ("cpu", dit)):
        with use_backend("reference" if name == "fp32" else name):
            latents, conditions = song(model, 2)
            out = model(latents, 0.7, conditions, unconditional=unconditional)
            found[name] = torch.stack(out) if unconditional else out
    assert relative(found["cpu"], found["fp32"]) <= 1.1 * relative(found["reference"], found["fp32"])
