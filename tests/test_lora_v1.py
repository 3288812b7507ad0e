"""v1's names in LoRA files: bare, whatever their layers are fused to; what no song needs, what cannot be merged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from acefast.lora import set_lora
from acefast.lora_files import FILE, METADATA, open_lora
from acefast.ops.philox import philox_normal
from acefast.residence import Part, Residence
from acefast.weights import Source, load, read_header, stack
from tests.checkpoints import refusal
from tests.loras import write

pytestmark = pytest.mark.usefixtures("offline")
GOLDEN = Path(__file__).parent / "golden/v1"
HIDDEN, LYRIC = 16, 8
BLOCK, ENCODER = "transformer_blocks.0", "lyric_encoder.encoders.0.self_attn"
V1 = {  # as the hub's files name them
    **{f"{BLOCK}.attn.to_{n}.weight": (HIDDEN, HIDDEN) for n in ("q", "k", "v", "out.0")},
    **{f"{BLOCK}.cross_attn.{n}.weight": (HIDDEN, HIDDEN) for n in ("to_k", "add_q_proj")},
    **{f"{ENCODER}.linear_{n}.weight": (LYRIC, LYRIC) for n in "qkv"},
    f"{BLOCK}.ff.inverted_conv.conv.weight": (4 * HIDDEN, HIDDEN, 1),
    "lyric_proj.weight": (HIDDEN, LYRIC),
    "speaker_embedder.weight": (HIDDEN, 4),
}


class Transformer(nn.Module):
    """Some of v1's layers, fused as ours might be."""

    TABLE: ClassVar = {
        "qkv": Source(tuple(f"dit.{BLOCK}.attn.to_{n}.weight" for n in "qkv"), stack),
        "o": Source((f"dit.{BLOCK}.attn.to_out.0.weight",)),
        "lyrics": Source(
            (*(f"dit.{ENCODER}.linear_{n}.weight" for n in "qkv"), "dit.lyric_proj.weight"),
            lambda q, k, v, proj: torch.cat((proj @ q, k.repeat(2, 1), v.repeat(2, 1)), 1),
        ),
        "speaker": Source(("dit.speaker_embedder.weight",)),
    }

    def __init__(self):
        super().__init__()
        shapes = ((3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 3 * LYRIC), (HIDDEN, 4))
        for name, shape in zip(self.TABLE, shapes):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))


def loaded(checkpoint):
    module = Transformer()
    load(module, Transformer.TABLE, checkpoint, "cpu", torch.bfloat16)
    return module


def v1_checkpoint(file, change=lambda values: None):
    values = {name: philox_normal([i], shape)[0].bfloat16() for i, (name, shape) in enumerate(V1.items())}
    change(values)
    save_file(values, file)
    index = {f"dit.{name}": stored for name, stored in read_header(file)[0].items()}
    return SimpleNamespace(name="v1", index=index, offline=True, is_unused=lambda name: "cross_attn.add_q" in name)


@pytest.fixture
def v1(tmp_path):
    """A model of v1's, as far as a LoRA sees it."""

    class Model:
        transformer = Part("diffusion", lambda model: loaded(model.checkpoint))

        def __init__(self):
            self.checkpoint = v1_checkpoint(tmp_path / "diffusion_pytorch_model.safetensors")
            self.residence = Residence(torch.device("cpu"), "fast", lambda: None)

        def forget(self):
            pass

    return Model()


TARGETS = {
    f"{BLOCK}.attn.to_q": 4,
    f"{BLOCK}.attn.to_v": 2,
    f"{BLOCK}.attn.to_out.0": 4,
    f"{ENCODER}.linear_q": 3,
    f"{ENCODER}.linear_k": 4,
    "lyric_proj": 4,
    "speaker_embedder": 2,
}


def of_v1(modules, dtype=torch.float16):
    found = {}
    for i, (module, rank) in enumerate(modules.items()):
        out, inp = V1[f"{module}.weight"][:2]
        found[f"{module}.lora_A.weight"] = philox_normal([i], (rank, inp), stream=1)[0].to(dtype)
        found[f"{module}.lora_B.weight"] = philox_normal([i], (out, rank), stream=2)[0].to(dtype)
    return found


def test_bare_names_of_v1_find_their_layers_however_those_are_fused(v1, tmp_path):
    """The speaker's too: its input is the zero vector, so that nothing is heard of it."""
    tensors = of_v1(TARGETS)

    def change(values):
        for name in values:
            values[name] = values[name].float()
        for module in TARGETS:
            down, up = (tensors[f"{module}.lora_{half}.weight"].float() for half in "AB")
            values[f"{module}.weight"] += 0.8 * 2.0 * (up @ down)

    config = {"r": 4, "lora_alpha": 4, "use_rslora": True}
    config["rank_pattern"] = {name: rank for name, rank in TARGETS.items() if rank != 4}
    config["alpha_pattern"] = {name: 2 * math.sqrt(rank) for name, rank in config["rank_pattern"].items()}
    file = write(tmp_path / FILE, tensors, {METADATA: json.dumps(config)})
    lora = open_lora(tmp_path, 0.8, v1.checkpoint)
    assert lora.name == tmp_path.name and lora.file == file
    before = [tensor.clone() for tensor in v1.transformer.parameters()]
    set_lora(v1, lora)
    want = loaded(v1_checkpoint(tmp_path / "merged.safetensors", change))
    assert all(map(torch.equal, v1.transformer.parameters(), want.parameters()))
    set_lora(v1, None)
    assert all(map(torch.equal, v1.transformer.parameters(), before))


def test_modules_that_no_song_needs_are_ignored_and_told_of_once(v1, tmp_path):
    unused = f"{BLOCK}.cross_attn.add_q_proj"
    file = write(tmp_path / "x.safetensors", of_v1({f"{BLOCK}.attn.to_q": 4, unused: 4}))
    with pytest.warns(UserWarning, match=f"^x: ignored are 1 module\\(s\\) that no song needs: {unused}$") as told:
        lora = open_lora(file, 1.0, v1.checkpoint)
    assert len(told) == 1 and list(lora.adapters) == [f"dit.{BLOCK}.attn.to_q.weight"]


def test_convolutions_of_v1_are_refused(v1, tmp_path):
    file = write(tmp_path / "x.safetensors", of_v1({f"{BLOCK}.ff.inverted_conv.conv": 4}))
    assert f"are no linear layers, of which alone any are merged: {BLOCK}.ff" in refusal(
        open_lora, file, 1, v1.checkpoint
    )


def test_a_lora_that_was_set_aside_acts_again_unlike_upstream(v1, tmp_path):
    """Upstream keeps the last one's name when "none" is chosen, and skips it silently when it is chosen next."""
    for i, name in enumerate(("rap", "choir")):
        write(tmp_path / name / FILE, of_v1({f"{BLOCK}.attn.to_{'qv'[i]}": 4}))
    upstream = json.loads((GOLDEN / "lora.json").read_text())
    differ = []
    for step in upstream:
        name, weight = step["chosen"]
        set_lora(v1, None if name == "none" else open_lora(tmp_path / name, weight, v1.checkpoint))
        ours = v1.residence.lora and [v1.residence.lora.name, v1.residence.lora.weight]
        assert ours == (None if name == "none" else [name, weight])
        if ours != step["acts"]:
            assert step["acts"] is None
            differ.append(step["chosen"])
    assert differ == [["rap", 1.0], ["choir", 0.5]]
