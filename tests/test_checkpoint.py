"""Checkpoints: found in the promised order, read in every layout under one set of names, refused with one sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from acefast import checkpoint as ck
from acefast import locate
from acefast.checkpoint import CheckpointError, find, load, open_checkpoint
from acefast.testing import TINY, TINY_VAE, TINY_XL, write_checkpoint
from acefast.weights import SHOWN, Source, open_file, read_tensor, stack

ROOT = Path(__file__).parents[1]
LAYOUTS = {"official": "official", "diffusers": "diffusers", "comfyui": "comfyui", "aio": "all-in-one"}


@pytest.fixture(autouse=True)
def no_network_and_no_models(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.delenv("ACEFAST_MODELS", raising=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Tiny checkpoints, written once; tests that change files copy them first."""
    found = {}

    def write(layout, variant="turbo"):
        if (layout, variant) not in found:
            folder = tmp_path_factory.mktemp(f"{layout}-{variant}")
            found[layout, variant] = write_checkpoint(folder, layout=layout, variant=variant)
        return found[layout, variant]

    return write


@pytest.fixture
def copy(written, tmp_path):
    def make(layout="official", variant="turbo"):
        path = written(layout, variant)
        root = path if path.is_dir() else path.parent if layout == "aio" else path.parent.parent
        shutil.copytree(root, tmp_path / "copy")
        return tmp_path / "copy" / path.relative_to(root)

    return make


def tensors(checkpoint: ck.Checkpoint) -> dict[str, torch.Tensor]:
    found = {}
    for name, stored in checkpoint.index.items():
        with open_file(stored.file) as file:
            found[name] = read_tensor(file, stored).clone()
    return found


def edit(file: Path, change) -> None:
    values = load_file(file)
    change(values)
    save_file(values, file)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and not text.endswith("."), text
    return text


# Layouts


@pytest.mark.parametrize("variant", ("turbo", "base", "xl-turbo", "xl-sft"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens_whole_with_the_sizes_it_was_written_with(written, layout, variant):
    checkpoint = open_checkpoint(written(layout, variant))
    checkpoint.check()
    version = variant.removeprefix("xl-")
    xl = TINY_XL if variant.startswith("xl-") else TINY
    wanted = dataclasses.replace(xl, is_turbo=version == "turbo", model_version=version)
    assert (checkpoint.layout, checkpoint.config, checkpoint.vae_config) == (LAYOUTS[layout], wanted, TINY_VAE)
    assert checkpoint.traits.version == version and checkpoint.traits.is_turbo == (version == "turbo")
    assert checkpoint.traits.xl == variant.startswith("xl-")
    if layout != "diffusers":  # whose folder does not carry the model's name
        assert checkpoint.name == f"ace-step-1.5-{variant}"


@pytest.mark.parametrize("variant", ("turbo", "xl-turbo"))
def test_layouts_hold_the_same_tensors_under_official_names(written, variant):
    reference = tensors(open_checkpoint(written("official", variant)))
    for layout in ("diffusers", "comfyui", "aio"):
        other = tensors(open_checkpoint(written(layout, variant)))
        other.pop("silence_latent", None)
        assert other.keys() == reference.keys()
        for name, value in reference.items():
            assert torch.equal(value, other[name]), (layout, name)


def test_silence_latent_is_the_same_in_both_folder_layouts_and_none_in_single_files(written):
    official = open_checkpoint(written("official")).silence_latent()
    assert official.shape == (15_000, 8) and official.dtype == torch.float32
    assert torch.equal(official, open_checkpoint(written("diffusers")).silence_latent())
    assert open_checkpoint(written("comfyui")).silence_latent() is None
    longer = open_checkpoint(written("official")).silence_latent(15_010)
    assert torch.equal(longer[15_000:], official[:10])


def test_shards_equal_one_file(written, tmp_path):
    path = write_checkpoint(tmp_path, shard_bytes=500_000)
    assert len(list(path.glob("acestep-v15-turbo/model-*.safetensors"))) > 3
    whole, sharded = tensors(open_checkpoint(written("official"))), tensors(open_checkpoint(path))
    assert all(torch.equal(value, sharded[name]) for name, value in whole.items())


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_half_precision_files_open(tmp_path, dtype):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, dtype=dtype))
    checkpoint.check()
    assert {part.dtype for part in checkpoint.parts} == {dtype}


def test_the_folder_of_the_transformer_and_its_file_open_like_the_root(written):
    root = written("official")
    for path in (root / "acestep-v15-turbo", root / "acestep-v15-turbo/model.safetensors"):
        assert open_checkpoint(path).index == open_checkpoint(root).index


def test_sizes_come_from_shapes_where_a_single_file_says_nothing(copy):
    path = copy("comfyui", "xl-turbo")
    edit(path, lambda values: None)  # drops the header's metadata, as in files of others
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    assert checkpoint.config == dataclasses.replace(TINY_XL, sliding_window=128)  # the published models' value


def test_a_folded_vae_folds_to_the_same_weights(copy):
    path = copy("comfyui")
    before = tensors(open_checkpoint(path))

    def fold(values):
        for name in [n for n in values if n.endswith(".weight_v")]:
            v, g = values.pop(name), values.pop(name[:-1] + "g")
            values[name[:-2]] = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1)

    edit(path.parent.parent / "vae/ace_1.5_vae.safetensors", fold)
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    after = tensors(checkpoint)
    g, v = "decoder.block.2.conv_t1.weight_g", "decoder.block.2.conv_t1.weight_v"
    folded = before[g] * before[v] / before[v].flatten(1).norm(dim=1).view(-1, 1, 1)
    torch.testing.assert_close(after[v], folded)
    torch.testing.assert_close(after[g], before[g])


def test_computed_buffers_are_ignored_and_a_planner_is_listed(copy):
    path = copy("aio")

    def add(values):
        values["model.diffusion_model.tokenizer.quantizer.layers.0._levels"] = torch.tensor([8, 8, 8, 5, 5, 5])
        values["model.diffusion_model.decoder.rotary_emb.inv_freq"] = torch.ones(8)
        values["text_encoders.qwen3_06b.logit_scale"] = torch.tensor(4.6)
        values["text_encoders.qwen3_2b.transformer.model.embed_tokens.weight"] = torch.ones(10, 64)

    edit(path, add)
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    assert [part.name for part in checkpoint.parts][-2:] == ["text_encoder", "planner (not used)"]


def test_text_encoder_equals_transformers_own_loading(written):
    from transformers import AutoTokenizer, Qwen3Model

    path = written("official") / "Qwen3-Embedding-0.6B"
    checkpoint = open_checkpoint(written("official"))
    ids = torch.tensor([checkpoint.tokenizer()("the singing").input_ids])
    assert ids[0].tolist() == AutoTokenizer.from_pretrained(path)("the singing").input_ids
    ours = ck.load_text_encoder(checkpoint, "cpu", torch.float32)
    theirs = Qwen3Model.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).last_hidden_state, theirs(input_ids=ids).last_hidden_state)
    assert not any(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokenizer_pads_right_and_keeps_the_end_when_it_truncates(written, layout):
    tokenizer = open_checkpoint(written(layout)).tokenizer()
    end = tokenizer.pad_token_id
    batch = tokenizer(["a long line of text", "b"], padding=True, truncation=True, max_length=6)
    assert [row[-1] for row in batch.input_ids] == [end, end] and len(batch.input_ids[0]) == 6
    assert batch.attention_mask[1] == [1, 1, 0, 0, 0, 0]
    assert tokenizer("x<|endoftext|>y").input_ids.count(end) == 2  # recognised inside the text as one token


def test_tokenizer_of_the_plain_text_model_gets_its_end(copy):
    path = copy()
    file = path / "Qwen3-Embedding-0.6B/tokenizer.json"
    values = json.loads(file.read_text()) | {"post_processor": None}
    file.write_text(json.dumps(values))
    tokenizer = open_checkpoint(path).tokenizer()
    assert tokenizer("a").input_ids[-1] == tokenizer.pad_token_id


# Loading


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(64, 128, bias=False)
        self.norm = nn.RMSNorm(64)
        self.register_buffer("table", torch.empty(6, 64))


LAYER = "decoder.layers.1"
TOY = {
    "qkv.weight": Source(tuple(f"{LAYER}.self_attn.{p}_proj.weight" for p in "qkv"), stack),
    "norm.weight": Source((f"{LAYER}.self_attn_norm.weight",), None, torch.float32),
    "table": Source((f"{LAYER}.scale_shift_table",), lambda table: table[0]),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_load_fuses_casts_and_assigns(written, dtype):
    checkpoint = open_checkpoint(written("diffusers"))
    with torch.device("meta"):
        toy = Toy()
    load(toy, TOY, checkpoint, "cpu", dtype)
    values = tensors(checkpoint)
    q, k, v = (values[f"{LAYER}.self_attn.{p}_proj.weight"] for p in "qkv")
    assert torch.equal(toy.qkv.weight, torch.cat([q, k, v]).to(dtype)) and not toy.qkv.weight.requires_grad
    assert torch.equal(toy.norm.weight, values[f"{LAYER}.self_attn_norm.weight"])  # fp32 whatever the model's dtype
    assert torch.equal(toy.table, values[f"{LAYER}.scale_shift_table"][0].to(dtype))


def test_large_tensors_are_cast_in_rows_without_a_seam(written, monkeypatch):
    monkeypatch.setattr("acefast.weights.CHUNK_BYTES", 1000)
    checkpoint = open_checkpoint(written("official"))
    module = ck.load_text_encoder(checkpoint, "cpu", torch.bfloat16)
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
    print(out)
    assert 0.9 < float(out) <= 1.15, out


# Where models are found


def test_an_explicit_path_wins_then_the_model_folders_then_the_hubs_cache(written, tmp_path, monkeypatch):
    hub = Path(os.environ["HF_HUB_CACHE"]) / "models--ACE-Step--Ace-Step1.5"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text("abc")
    shutil.copytree(written("official"), hub / "snapshots/abc")
    assert find("turbo") == hub / "snapshots/abc/acestep-v15-turbo"
    assert open_checkpoint("ace-step-1.5-turbo").name == "ace-step-1.5-turbo"

    shutil.copytree(written("official"), tmp_path / "models")
    monkeypatch.setenv("ACEFAST_MODELS", os.pathsep.join([str(tmp_path / "absent"), str(tmp_path / "models")]))
    assert find("turbo") == tmp_path / "models/acestep-v15-turbo"
    assert find(written("official")) == written("official")
    assert [m.name for m in ck.list_models() if not m.problem] == ["ace-step-1.5-turbo"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_model_folders_hold_any_layout(written, copy, monkeypatch, layout):
    path = copy(layout)
    folder = path if path.is_dir() else path.parent if layout == "aio" else path.parent.parent
    if layout == "diffusers":
        folder = folder.rename(folder.parent / "acestep-v15-turbo-diffusers").parent
    monkeypatch.setenv("ACEFAST_MODELS", str(folder))
    checkpoint = open_checkpoint("ace-step-1.5-turbo")
    checkpoint.check()
    assert (checkpoint.name, checkpoint.layout) == ("ace-step-1.5-turbo", LAYOUTS[layout])


def test_a_model_of_its_own_repository_takes_shared_parts_from_the_main_one(written, tmp_path, monkeypatch):
    for repo, source in (("Ace-Step1.5", written("official")), ("acestep-v15-sft", None)):
        hub = Path(os.environ["HF_HUB_CACHE"]) / f"models--ACE-Step--{repo}"
        (hub / "refs").mkdir(parents=True)
        (hub / "refs/main").write_text("abc")
        if source is None:
            source = write_checkpoint(tmp_path, variant="sft") / "acestep-v15-sft"
        shutil.copytree(source, hub / "snapshots/abc")
    checkpoint = open_checkpoint("sft")
    checkpoint.check()
    assert checkpoint.traits.version == "sft" and checkpoint.index["norm.weight"].file.parent.name.startswith("Qwen3")
    assert checkpoint.tokenizer().pad_token_id is not None
    assert {m.name for m in ck.list_models()} == {"ace-step-1.5-turbo", "ace-step-1.5-sft"}


def test_a_download_takes_only_the_models_own_files(written, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo, allow_patterns, cache_dir):
        asked.append((repo, allow_patterns))
        return str(written("official"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find("turbo", offline=False) == written("official") / "acestep-v15-turbo"
    ((repo, patterns),) = asked
    assert repo == "ACE-Step/Ace-Step1.5" and all(p.startswith("acestep-v15-turbo/") for p in patterns)
    assert not any(p.endswith((".py", "/*")) for p in patterns)


def test_a_failed_download_says_what_where_and_what_to_do(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    text = refusal(find, "base", offline=False)
    assert "ACE-Step/acestep-v15-base could not be downloaded (no route)" in text and "acefast.testing" in text


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../b", "..", "~root/x", "a\\b", "turbo/..", ".hidden", "", "x\0y"]
)
def test_a_name_from_a_request_never_leaves_the_model_folder(tmp_path, monkeypatch, name):
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").mkdir()
    monkeypatch.setenv("ACEFAST_MODELS", str(tmp_path / "models"))
    refusal(find, name, paths=False)


def test_names_without_weights_are_refused_in_one_sentence(tmp_path, monkeypatch):
    text = refusal(find, "ace-step-1.5-turbo")
    assert "not on this machine" in text and "$ACEFAST_MODELS" in text and os.environ["HF_HUB_CACHE"] in text
    assert "did you mean 'ace-step-1.5-turbo'?" in refusal(find, "ace-step-1.5-trubo")
    assert "known are" in refusal(find, "zzz")
    assert "downloads are off" in refusal(find, "someone/some-model")
    assert "no folder or file" in refusal(find, tmp_path / "absent")
    if not locate.DEMO.is_dir():
        assert "no demo" in refusal(find, "demo")


# What is refused


DIT = "acestep-v15-turbo/model.safetensors"


def test_unknown_missing_and_wrong_shapes_come_in_one_error(copy):
    path = copy()

    def spoil(values):
        values["decoder.layers.0.extra.weight"] = torch.zeros(1)
        values["decoder.norm_out.weight"] = torch.zeros(65)
        del values["null_condition_emb"]

    edit(path / DIT, spoil)
    edit(path / "vae/diffusion_pytorch_model.safetensors", lambda values: values.pop("decoder.conv2.weight_g"))
    edit(
        path / "Qwen3-Embedding-0.6B/model.safetensors", lambda values: values.update({"lm_head.weight": torch.ones(1)})
    )
    text = refusal(open_checkpoint(path).check)
    assert "2 tensor(s) missing: null_condition_emb, decoder.conv2.weight_g" in text
    assert "2 tensor(s) unknown: decoder.layers.0.extra.weight, lm_head.weight" in text
    assert "1 tensor(s) of a wrong shape: decoder.norm_out.weight must be [64], got [65]" in text


def test_a_long_list_is_cut_and_counted(copy):
    path = copy()
    edit(path / DIT, lambda values: [values.pop(n) for n in list(values) if n.startswith("decoder.layers.2.")])
    text = refusal(open_checkpoint(path).check)
    assert "19 tensor(s) missing" in text
    edit(path / DIT, lambda values: [values.pop(n) for n in list(values) if n.startswith("decoder.layers.1.")])
    assert f"and {38 - SHOWN} more" in refusal(open_checkpoint(path).check)


def truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 1000)


def as_pickle(file: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, file)


def as_old_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"weight": 1}))


def as_lfs_pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


SPOILED = {
    truncate: "truncated or corrupt",
    (lambda file: file.write_bytes(b"")): "truncated or corrupt",
    (lambda file: file.write_bytes(os.urandom(8) + b"?" * 500)): "truncated or corrupt",
    as_pickle: "is a pickle",
    as_old_pickle: "is a pickle",
    as_lfs_pointer: "git-lfs pointer",
    (lambda file: file.rename(file.with_name("pytorch_model.bin"))): "holds a pickle (pytorch_model.bin)",
    (lambda file: file.unlink()): "no safetensors file",
    (lambda file: file.with_name("config.json").write_text("{")): "not readable JSON",
    (lambda file: file.with_name("config.json").write_text("[]")): "must hold a JSON object",
    (
        lambda file: edit(file, lambda v: v.update(x=torch.zeros(1).to(torch.float8_e4m3fn)))
    ): "neither bf16, fp16 nor fp32",
    (lambda file: shutil.rmtree(file.parent)): "no safetensors file",
    (lambda file: shutil.copytree(file.parent, file.parent.with_name("acestep-v15-sft"))): "several models",
    (lambda file: shutil.rmtree(file.parent.parent / "vae")): "the audio autoencoder (vae) is not on this machine",
    (lambda file: shutil.rmtree(file.parent.parent / "Qwen3-Embedding-0.6B")): "the text encoder",
}


@pytest.mark.parametrize("spoil, reason", SPOILED.items(), ids=[str(i) for i in range(len(SPOILED))])
def test_unusable_files_are_refused_in_one_sentence(copy, spoil, reason):
    path = copy()
    spoil(path / DIT)
    assert reason in refusal(open_checkpoint, path)


def test_a_missing_shard_is_named(tmp_path):
    path = write_checkpoint(tmp_path, shard_bytes=500_000)
    gone = sorted(path.glob("acestep-v15-turbo/model-*"))[1]
    gone.unlink()
    assert f"lacks the shard(s) {gone.name}" in refusal(open_checkpoint, path)


def test_a_single_file_that_is_not_this_model_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert "is not an ACE-Step 1.5 model" in refusal(open_checkpoint, tmp_path / "other.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refusal(open_checkpoint, tmp_path / "model.gguf")
    (tmp_path / "empty").mkdir()
    assert "no safetensors file" in refusal(open_checkpoint, tmp_path / "empty")


def test_silence_and_tokenizer_files_that_are_not_are_refused(copy):
    path = copy()
    checkpoint = open_checkpoint(path)
    silence = path / "acestep-v15-turbo/silence_latent.pt"
    silence.write_bytes(b"not a tensor")
    assert "is not a tensor file" in refusal(checkpoint.silence_latent)
    torch.save(torch.zeros(1, 5, 100), silence)
    assert "must hold [1, frames, 8], got [1, 100, 5]" in refusal(checkpoint.silence_latent)
    tokenizer = path / "Qwen3-Embedding-0.6B/tokenizer.json"
    tokenizer.write_text("{}")
    assert "is not a tokenizer file" in refusal(checkpoint.tokenizer)
    tokenizer.unlink()
    assert "the text tokenizer is not on this machine" in refusal(checkpoint.tokenizer)
