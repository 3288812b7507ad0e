"""``quantization="int8"``: large weights held once, in a byte; songs near the ones of bf16; refusals in a sentence."""

from __future__ import annotations

import re

import pytest
import torch

import acefast
from acefast import RequestError, cli
from acefast.devices import as_quantization
from acefast.memory import Networks
from acefast.models.v15 import products
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.dit import DiT
from acefast.panels import from_panels, rows_of
from acefast.residence import named
from acefast.testing import TINY_BASE, write_checkpoint
from acefast.weights import read
from tests.cpu.isas import NAMES, at_isa
from tests.songs import same

pytestmark = pytest.mark.usefixtures("offline")
CPU, SHORT = torch.device("cpu"), VAEConfig(2, (2, 2), (1, 2), 2, 8)  # frames of 4 samples: next to nothing to decode
SONG = dict(prompt="drill", lyrics="[verse]\nla la", seed=1, duration=5.2, steps=2)
LARGE = r"layers\.\d+\.(self_attention\.(qkv|o)|cross_attention\.(q|o)|mlp\.(gate_up|down))"
GATE = 1.5e-2  # relative L2 of a velocity against fp32; measured 1.09e-2, bf16's 0.80e-2


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A base model, which is guided."""
    return write_checkpoint(tmp_path_factory.mktemp("int8"), variant="base", vae_config=SHORT)


def loaded(folder, **options):
    return acefast.load(folder, device="cpu", **{"quantization": "int8", **options})


@pytest.fixture(scope="module")
def pipe(folder_of):
    return loaded(folder_of)


@pytest.fixture(scope="module")
def plain(folder_of):
    return loaded(folder_of, quantization=None)


@pytest.fixture(scope="module")
def wide(folder_of):
    return loaded(folder_of, quantization=None, dtype="float32")


def test_each_large_weight_is_held_once_in_a_byte_and_nothing_else_is(pipe, plain):
    small, large = named(pipe.model.transformer), named(plain.model.transformer)
    quantised = {name for name in large if re.fullmatch(LARGE, name)}
    assert len(quantised) == 6 * TINY_BASE.num_hidden_layers
    assert small.keys() == large.keys() | {f"{name}_scale" for name in quantised}
    for name, tensor in large.items():
        if name in quantised:
            scale, rows = small[f"{name}_scale"], from_panels(tensor)  # those of bf16 lie in panels
            assert (small[name].dtype, small[name].shape) == (torch.int8, rows.shape)
            assert (scale.dtype, scale.shape) == (torch.float32, rows.shape[:1])
        else:
            assert small[name].dtype == torch.bfloat16 and torch.equal(small[name], tensor)
    saved = sum(large[name].numel() - 4 * rows_of(large[name]) for name in quantised)
    assert sum(t.nbytes for t in small.values()) == sum(t.nbytes for t in large.values()) - saved


def test_the_memory_that_is_planned_is_what_weights_take(pipe):
    planned = Networks.of(pipe.model.checkpoint, "int8").weights(torch.bfloat16, CPU)
    assert planned["transformer"] == sum(t.nbytes for t in named(pipe.model.transformer).values())
    plain = Networks.of(pipe.model.checkpoint).weights(torch.bfloat16, CPU)
    assert planned["transformer"] < plain.pop("transformer") and plain.items() <= planned.items()
    assert f"weights {sum(planned.values()) / 1e9:.2f}" in pipe.lower(pipe.requests("drill")[0], 5.2, source=True)


def test_weights_are_the_checkpoints_own_to_half_a_scale(pipe):
    """Of the file's fp32, not of what bf16 makes of it."""
    table, index, _ = pipe.model.transformer.origin
    found = named(pipe.model.transformer)
    for name in (name for name in found if re.fullmatch(LARGE, name)):
        files = [read(table[name]._replace(names=(n,), combine=None), index, index[n].shape, CPU, torch.float32)
                 for n in table[name].names]  # fmt: skip
        want, scale = torch.cat(files).double(), found[f"{name}_scale"].double()[:, None]
        assert ((found[name] * scale - want).abs() <= scale * (0.5 + 1e-4)).all()


def test_every_large_product_is_one_of_integers(pipe, monkeypatch):
    counts = {"linear_int8": 0, "quantize_rows": 0}

    def counted(name, run):
        def call(*args, **options):
            counts[name] += 1
            return run(*args, **options)

        return call

    pipe.generate(**SONG)  # with what is computed once, of the null condition
    for name in counts:
        monkeypatch.setattr(products, name, counted(name, getattr(products, name)))
    pipe.generate(**SONG, guidance_scale=1)
    assert counts == dict.fromkeys(counts, 6 * TINY_BASE.num_hidden_layers * SONG["steps"])


def velocities(pipe):
    """Of the model alone: both rows of a guided step, 2 songs of 131 frames."""
    model, generator = pipe.model.transformer, torch.Generator().manual_seed(3)
    C, W = TINY_BASE.audio_acoustic_hidden_dim, TINY_BASE.encoder_hidden_size
    shapes = (2, 131, C), (2, 131, 2 * C), (2, 20, W), (1, 1, W)
    latents, context, states, null = (torch.randn(shape, generator=generator) for shape in shapes)
    with pipe.at_work():
        conditions = model.prepare(states, None, context, null_condition=null)
        return torch.cat(model(latents, 0.7, conditions, unconditional=True))


@pytest.mark.parametrize("isa", NAMES)
def test_a_velocity_is_near_the_one_of_fp32(isa, pipe, plain, wide, record_property):
    with at_isa(isa):
        want = velocities(wide)
        errors = {
            kind: float((velocities(p) - want).norm() / want.norm()) for kind, p in (("int8", pipe), ("bf16", plain))
        }
    record_property("relative L2 against fp32", str(errors))
    assert errors["bf16"] < errors["int8"] <= GATE


def test_a_seed_is_a_song(pipe, folder_of):
    song = pipe.generate(**SONG)
    assert same(song, pipe.generate(**SONG)) and same(song, loaded(folder_of).generate(**SONG))


def test_low_memory_reads_the_same_weights_again(pipe, folder_of):
    low = loaded(folder_of, memory="low")
    assert same(low.generate(**SONG), pipe.generate(**SONG)) and same(low.generate(**SONG), pipe.generate(**SONG))


def test_weights_that_no_kernel_takes_are_the_references(folder_of):
    """Of fp32 activations."""
    assert torch.isfinite(torch.from_numpy(loaded(folder_of, dtype="float32").generate(**SONG).audio)).all()


def test_generate_and_the_command_line_take_it(folder_of, folder, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        DiT, "prepare", lambda self, *a, run=DiT.prepare, **o: (seen.append(self), run(self, *a, **o))[1]
    )
    acefast.generate(**SONG, model=folder_of, device="cpu", quantization="int8")
    options = ["--steps", "1", "--duration", "5.2", "--device", "cpu", "--quiet", "-o", "song.wav"]
    assert cli.main(["generate", "drill", "--model", str(folder_of), "--quantization", "int8", *options]) == 0
    assert len(seen) == 2 and all(model.layers[0].mlp.down.dtype == torch.int8 for model in seen)
    assert cli.main(["generate", "drill", "--model", str(folder_of), "--quantization", "int4", *options]) == 2
    assert capsys.readouterr().err == "acefast: quantization must be int8 or None, got 'int4'\n"


def test_what_cannot_be_is_refused_with_a_sentence(folder_of, tiny_v1, pipe):
    for value in ("fp8", "INT8", 8, True):
        with pytest.raises(RequestError, match=re.escape(f"quantization must be int8 or None, got {value!r}")):
            loaded(folder_of, quantization=value)
    with pytest.raises(RequestError, match=r"quantization='int8' is for ACE-Step 1\.5 alone; leave it out for v1"):
        loaded(tiny_v1)
    with pytest.raises(
        RequestError, match="quantization='int8' runs on the CPU alone, not on cuda; leave it out there"
    ):
        as_quantization("int8", torch.device("cuda"), "1.5")
    merged = "a LoRA cannot be merged into 8-bit weights; load the model without quantization"
    with pytest.raises(RequestError, match=merged):
        loaded(folder_of, lora="rap.safetensors")
    with pytest.raises(RequestError, match=merged):
        pipe.set_lora("rap.safetensors")
    pipe.set_lora(None)
    with pytest.raises(RequestError) as refused:
        pipe.generate("a", quantization="int8")
    assert "quantization is chosen when a model is loaded" in str(refused.value)


def test_the_demo_model_stays_near_itself(monkeypatch, capsys):
    """By the benchmark that README's table is of: errors of every layer, a song's, and one of time that is not read."""
    from bench import bench_int8

    monkeypatch.setattr(bench_int8, "PROMPTS", bench_int8.PROMPTS[:1])
    monkeypatch.setattr(bench_int8, "Config", lambda: TINY_BASE)
    bench_int8.main(["--seconds", "8", "--seeds", "1"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = {
        name: [float(number) for number in numbers] for name, *numbers in rows if numbers[0] not in ("bf16", "fp32")
    }
    errors = [of for name, of in found.items() if name == "velocity" or name.startswith("layer")]
    assert len(errors) == 7 and all(bf16 <= int8 <= 2.5e-2 for bf16, int8 in errors)
    assert found["SNR against fp32, dB"][2] >= 25
    wide, _, small = found["tempo, bpm"]
    assert abs(small / wide - 1) <= 0.03
