"""The published rap LoRA's 211 modules on v1's own networks: each is merged, and guidance acts on what was merged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from acefast.lora import set_lora
from acefast.lora_files import FILE, open_lora
from acefast.models.v1.conditions import ConditionEncoder
from acefast.models.v1.dit import NULL_SCALE, DiT
from acefast.residence import Part, Residence
from acefast.weights import load, read_header
from tests.loras import with_terms, write
from tests.models.v1 import cases
from tests.models.v1.fill import TINY, normal, official_tensors, ours

# The training's targets are what ends in one of these.
SUFFIXES = ("speaker_embedder", "linear_q", "linear_k", "linear_v", "to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def targets():
    found = (name.removesuffix(".weight") for name in official_tensors() if name.endswith(".weight"))
    return [module for module in found if module.endswith(tuple(f".{suffix}" for suffix in SUFFIXES))]


@pytest.fixture(scope="module")
def adapters(targets):
    """A and B of each target under the names of the hub's files, which have no part before them; rank 4."""
    tensors, official = {}, official_tensors()
    for i, module in enumerate(targets):
        out, inp = official[f"{module}.weight"].shape
        name = module.removeprefix("dit.")
        tensors[f"{name}.lora_A.weight"] = normal(2 * i, 4, inp) / inp**0.5
        tensors[f"{name}.lora_B.weight"] = normal(2 * i + 1, out, 4) / 2
    return tensors


@pytest.fixture
def model(tmp_path):
    official = official_tensors()
    save_file(
        {name.removeprefix("dit."): t.contiguous() for name, t in official.items()}, tmp_path / "model.safetensors"
    )
    index = {f"dit.{name}": one for name, one in read_header(tmp_path / "model.safetensors")[0].items()}

    def loaded(kind):
        with torch.device("meta"):
            module = kind(TINY)
        load(module, kind.weight_table(TINY), SimpleNamespace(index=index), "cpu", torch.float32)
        return module

    class Model:
        condition_encoder = Part("text", lambda _: loaded(ConditionEncoder))
        transformer = Part("diffusion", lambda _: loaded(DiT))
        checkpoint = SimpleNamespace(name="v1", index=index, offline=True, is_unused=lambda name: False)
        residence = Residence(torch.device("cpu"), "fast", lambda: None)

        def forget(self):
            pass

    return Model()


@pytest.fixture
def merged(adapters):
    tensors = official_tensors()
    with_terms(tensors, {f"dit.{name}": t for name, t in adapters.items()}, 0.75)
    return tensors


def test_every_module_of_the_rap_lora_is_merged(model, targets, adapters, merged, tmp_path):
    assert len(targets) == 1 + 2 * 4 * TINY.num_layers + 3 * TINY.lyric_layers  # 211 of 24 blocks
    networks = model.condition_encoder, model.transformer
    write(tmp_path / FILE, adapters)
    set_lora(model, open_lora(tmp_path, 0.75, model.checkpoint))
    for kind, network in zip((ConditionEncoder, DiT), networks):
        want = ours(kind, TINY, merged)
        assert all(map(torch.equal, network.state_dict().values(), want.state_dict().values()))
    set_lora(model, None)
    for kind, network in zip((ConditionEncoder, DiT), networks):
        want = ours(kind, TINY, official_tensors())
        assert all(map(torch.equal, network.state_dict().values(), want.state_dict().values()))


def test_erg_weakens_the_whole_projection_its_lora_too(model, adapters, tmp_path):
    """Upstream scales what to_q gives, adapter and all, in the null branch of blocks 15 to 19."""
    own = {n: t for n, t in adapters.items() if n.startswith("transformer_blocks.17.cross_attn.to_q.")}
    set_lora(model, open_lora(write(tmp_path / FILE, own), 1.0, model.checkpoint))
    states, latents = cases.states(2, 12), cases.latents(1, 17)

    def null(network, weak):
        prepared = network.prepare(list(states[:1]), 17, null=list(states[1:]), weak_null=weak)
        return network.velocity(latents, cases.TIME, prepared, unconditional=True)[1]

    tensors = official_tensors()
    with_terms(tensors, {f"dit.{name}": t for name, t in own.items()}, 1.0)
    for block in range(15, 20):
        for kind in ("weight", "bias"):
            tensors[f"dit.transformer_blocks.{block}.cross_attn.to_q.{kind}"] *= NULL_SCALE
    want = null(ours(DiT, TINY, tensors), weak=False)
    torch.testing.assert_close(null(model.transformer, weak=True), want, rtol=1e-4, atol=1e-4)
    assert (null(model.transformer, weak=False) - want).norm() > 0.003 * want.norm()
