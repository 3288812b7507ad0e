"""Loading fuses and casts exactly, and its peak memory stays near the weights' own size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from acefast.checkpoint import load, open_checkpoint
from acefast.models.v15.checkpoint import load_text_encoder
from acefast.weights import Source, stack
from tests.checkpoints import refusal, tensors

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")
ROOT = Path(__file__).parents[1]


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(64, 128, bias=False)
        self.norm = nn.RMSNorm(64)
        self.register_buffer("table", torch.empty(6, 64))
        self.register_buffer("alpha", torch.empty(1, 64, 1))


LAYER = "decoder.layers.1"
TOY = {
    "qkv.weight": Source(tuple(f"{LAYER}.self_attn.{p}_proj.weight" for p in "qkv"), stack),
    "norm.weight": Source((f"{LAYER}.self_attn_norm.weight",), None, torch.float32),
    "table": Source((f"{LAYER}.scale_shift_table",), lambda table: table[0]),
    "alpha": Source(("decoder.block.0.snake1.alpha",)),  # [64] in single files
}


@pytest.mark.parametrize("layout", ("diffusers", "comfyui"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_load_fuses_casts_and_assigns(written, layout, dtype):
    checkpoint = open_checkpoint(written(layout))
    with torch.device("meta"):
        toy = Toy()
    load(toy, TOY, checkpoint, "cpu", dtype)
    values = tensors(checkpoint)
    q, k, v = (values[f"{LAYER}.self_attn.{p}_proj.weight"] for p in "qkv")
    assert torch.equal(toy.qkv.weight, torch.cat([q, k, v]).to(dtype)) and not toy.qkv.weight.requires_grad
    assert torch.equal(toy.norm.weight, values[f"{LAYER}.self_attn_norm.weight"])  # fp32 whatever the model's dtype
    assert torch.equal(toy.table, values[f"{LAYER}.scale_shift_table"][0].to(dtype))
    assert torch.equal(toy.alpha, values["decoder.block.0.snake1.alpha"].to(dtype))


def test_large_tensors_are_cast_in_rows_without_a_seam(written, monkeypatch):
    monkeypatch.setattr("acefast.weights.CHUNK_BYTES", 1000)
    checkpoint = open_checkpoint(written("official"))
    module = load_text_encoder(checkpoint, "cpu", torch.bfloat16)
    assert torch.equal(module.embed_tokens.weight, tensors(checkpoint)["embed_tokens.weight"].bfloat16())


def test_load_names_every_missing_tensor_and_a_wrong_shape(written):
    checkpoint = open_checkpoint(written("official"))
    del checkpoint.index[f"{LAYER}.self_attn.k_proj.weight"], checkpoint.index[f"{LAYER}.scale_shift_table"]
    with torch.device("meta"):
        toy = Toy()
    text = refusal(load, toy, TOY, checkpoint)
    assert f"{LAYER}.self_attn.k_proj.weight" in text and f"{LAYER}.scale_shift_table" in text
    checkpoint = open_checkpoint(written("official"))
    wrong = TOY | {"qkv.weight": Source((f"{LAYER}.self_attn.q_proj.weight",))}
    assert "qkv.weight must be [128, 64], got [64, 64]" in refusal(load, toy, wrong, checkpoint)
    with pytest.raises(ValueError, match=r"differ in norm\.weight"):
        load(toy, {k: v for k, v in TOY.items() if k != "norm.weight"}, checkpoint)


PEAK = r"""
import re, sys, torch
from pathlib import Path
from torch import nn
from safetensors import safe_open
from acefast.weights import Source, load, read_header, stack
torch.set_num_threads(1)
def high_water():  # of this program alone; getrusage would start from the parent's
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.up = nn.Linear(1024, 3072, bias=False), nn.Linear(1024, 8192, bias=False)
class Index:
    index, _ = read_header(Path(sys.argv[1]))
with torch.device("meta"):
    module = nn.ModuleList(Layer() for _ in range(int(sys.argv[2])))
table = {}
for i in range(len(module)):
    table[f"{i}.qkv.weight"] = Source((f"{i}.q", f"{i}.k", f"{i}.v"), stack)
    table[f"{i}.up.weight"] = Source((f"{i}.up",))
dtype = getattr(torch, sys.argv[3])
torch.ones(64, 64).to(torch.bfloat16).float().sum()
before = high_water()
load(module, table, Index, "cpu", dtype)
sum(p.view(torch.uint8).flatten()[::4096].sum() for p in module.parameters())  # a mapped tensor counts once touched
print((high_water() - before) / sum(p.numel() * p.itemsize for p in module.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of the peak")
@pytest.mark.parametrize(
    "stored, layers, kept", [("bf16", 14, "bfloat16"), ("fp32", 7, "bfloat16"), ("bf16", 14, "float32")]
)
def test_peak_memory_of_loading_stays_within_1_15_of_the_weights(tmp_path, stored, layers, kept):
    from acefast.random_weights import RandomTensors, write_safetensors

    random = RandomTensors(0)
    shapes = {
        f"{i}.{n}": (rows, 1024) for i in range(layers) for n, rows in (*((p, 1024) for p in "qkv"), ("up", 8192))
    }
    items = [(n, s, lambda n=n, s=s: random.pieces(n, s)) for n, s in shapes.items()]
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[stored]
    write_safetensors(tmp_path / "big.safetensors", items, dtype)  # 320 MB
    command = [sys.executable, "-c", PEAK, str(tmp_path / "big.safetensors"), str(layers), kept]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert 0.9 < float(out) <= 1.15, out
