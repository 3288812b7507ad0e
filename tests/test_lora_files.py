"""Which LoRA files are taken, where they are found, what each tensor in them is for and how much it counts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import acefast
from acefast import cli
from acefast.checkpoint import open_checkpoint
from acefast.lora_files import FILE, METADATA, find, open_lora
from tests.checkpoints import in_hub, refusal
from tests.loras import adapters, write
from tests.songs import from_shell

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("offline")
Q, K = "decoder.layers.0.self_attn.q_proj", "decoder.layers.0.self_attn.k_proj"
RAP = {"r": 256, "lora_alpha": 32, "use_rslora": True}  # how the published rap LoRA was trained


@pytest.fixture
def checkpoint(tiny):
    return open_checkpoint(tiny, offline=True)


@pytest.fixture
def opened(tiny, checkpoint, tmp_path):
    """A LoRA of Q and K, ranks 4 and 2, whose tensors and metadata are changed, as it is opened."""

    def run(change=lambda tensors: None, config=None, weight=1.0):
        tensors = adapters(tiny, {Q: 4, K: 2})
        change(tensors)
        metadata = None if config is None else {METADATA: config if isinstance(config, str) else json.dumps(config)}
        return open_lora(write(tmp_path / "x.safetensors", tensors, metadata), weight, checkpoint)

    return run


def scales(lora):
    return [adapter.scale for adapter in lora.adapters.values()]


# -- how much it counts ------------------------------------------------------------------------------------------------


def test_without_metadata_it_counts_once_as_in_diffusers(opened):
    """Whatever it was trained with: the published rap LoRA acts at half of its training's scale."""
    peft = pytest.importorskip("diffusers.utils.peft_utils")
    lora = opened()
    halves = {f"{m}.lora_{h}.weight": getattr(lora.adapters[f"{m}.weight"], n) for m in (K, Q) for h, n in HALVES}
    ranks = {f"^{name}": half.shape[1] for name, half in halves.items() if "lora_B" in name}
    told = peft.get_peft_kwargs(ranks, None, halves)
    for module, scale in zip((K, Q), scales(lora)):
        rank = told["rank_pattern"].get(f"^{module}", told["r"])
        assert scale == 1.0 == told["alpha_pattern"].get(f"^{module}", told["lora_alpha"]) / rank
    assert RAP["lora_alpha"] / math.sqrt(RAP["r"]) == 2.0


HALVES = (("A", "down"), ("B", "up"))


def test_the_weight_multiplies(opened):
    assert scales(opened(weight=-0.5)) == [-0.5, -0.5]
    assert scales(opened(config={"r": 4, "lora_alpha": 8, "rank_pattern": {K: 2}}, weight=0.5)) == [2.0, 1.0]


CONFIGS = {  # scales of K (rank 2) and Q (rank 4)
    "alpha over rank": ({"r": 4, "lora_alpha": 8, "rank_pattern": {f"^{K}": 2}}, [4.0, 2.0]),
    "over its root": ({"r": 4, "lora_alpha": 8, "rank_pattern": {"k_proj": 2}, "use_rslora": True}, [8 / 2**0.5, 4.0]),
    "an own alpha": ({"r": 2, "lora_alpha": 2, "rank_pattern": {Q: 4}, "alpha_pattern": {"q_proj": 1}}, [1, 0.25]),
    "an expression": ({"r": 1, "lora_alpha": 4, "rank_pattern": {"q_proj": 4, "self_attn.[a-z]_proj": 2}}, [2.0, 1.0]),
    "only whole names": ({"r": 2, "lora_alpha": 4, "rank_pattern": {"proj": 9, "q_proj": 4}}, [2.0, 1.0]),
}  # fmt: skip


@pytest.mark.parametrize("config, want", CONFIGS.values(), ids=CONFIGS)
def test_metadata_says_how_much_it_counts(opened, config, want):
    assert scales(opened(config=config)) == want


BAD = {
    "no JSON": ("{", "1 entry of its metadata not understood: lora_adapter_metadata"),
    "no object": ("[]", "not understood"),
    "no rank": ({"lora_alpha": 8}, "not understood: lora_adapter_metadata (\"'r'\")"),
    "no number": ({"r": 4, "lora_alpha": "much"}, "not understood"),
    "infinite": ('{"r": 4, "lora_alpha": 1e999}', "lora_alpha is inf"),
    "too large": ('{"r": 4, "lora_alpha": 1' + 400 * "0" + "}", "not understood"),
    "too deep": ('{"r":' + 100_000 * "[" + "]" * 100_000 + "}", "not understood"),
    "no expression": ({"r": 4, "lora_alpha": 8, "rank_pattern": {"(": 2}}, "not understood"),
    "another rank": ({"r": 4, "lora_alpha": 8}, f"1 module(s) of another rank than its metadata tells: {K}"),
    "DoRA": ({"r": 4, "lora_alpha": 8, "rank_pattern": {K: 2}, "use_dora": True}, "not merged: use_dora"),
}


@pytest.mark.parametrize("config, words", BAD.values(), ids=BAD)
def test_metadata_that_cannot_be_are_refused(opened, config, words):
    assert words in refusal(opened, config=config)


# -- what is in it -----------------------------------------------------------------------------------------------------


def test_everything_that_does_not_fit_is_told_at_once(opened):
    def change(tensors):
        tensors[f"{Q}.lora_A.weight"] = torch.zeros(4, 63)
        tensors[f"{K}.lora_B.weight"][0] = torch.nan
        for name, shape in {
            "decoder.layers.9.self_attn.q_proj.lora_A": (4, 64),
            "decoder.layers.0.mlp.up_proj.lora_B": (128, 4),
            "decoder.proj_in.1.lora_A": (4, 24, 2),
            "decoder.proj_in.1.lora_B": (64, 4, 1),
            "decoder.norm_out.lora_A": (4, 64),
            "decoder.norm_out.lora_B": (64, 4),
            "decoder.condition_embedder.lora_A": (0, 64),
            "decoder.condition_embedder.lora_B": (64, 0),
        }.items():
            tensors[f"{name}.weight"] = torch.zeros(shape)
        tensors["lyric.lora_embedding_A"] = torch.zeros(4, 10)
        tensors[f"{Q}.alpha"] = torch.tensor(4.0)
        tensors["decoder.layers.1.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64, dtype=torch.int32)

    text = refusal(opened, change)
    assert "x.safetensors is no LoRA for ace-step-1.5-turbo: " in text
    for words in (
        "1 tensor(s) of embeddings, of which none are merged: lyric.lora_embedding_A;",
        f"2 tensor(s) not understood: {Q}.alpha, decoder.layers.1.self_attn.q_proj.lora_A.weight;",
        "1 module(s) that the model lacks: decoder.layers.9.self_attn.q_proj;",
        "1 module(s) with lora_A or lora_B alone: decoder.layers.0.mlp.up_proj;",
        "2 module(s) that are no linear layers, of which alone any are merged: decoder.norm_out, decoder.proj_in.1;",
        "3 tensor(s) of a wrong shape: decoder.condition_embedder.lora_A.weight must be [1, 64], got [0, 64], ",
        f"{Q}.lora_A.weight must be [4, 64], got [4, 63];",
        f"1 module(s) with NaN or infinite values: {K}; use one that was trained on this model",
    ):
        assert words in text


def test_a_file_without_any_is_refused(checkpoint, tiny, tmp_path):
    (model,) = tiny.glob("acestep-v15-*/model.safetensors")
    text = refusal(open_lora, model, 1.0, checkpoint)
    assert "holds no LoRA: none of its " in text and "tensors is named <module>.lora_A.weight; give a" in text
    (tmp_path / "x.safetensors").write_bytes(b"PK\3\4")
    assert "is a pickle" in refusal(open_lora, tmp_path / "x.safetensors", 1.0, checkpoint)


def test_what_is_written_over_the_file_does_not_matter_any_more(opened, tmp_path):
    lora = opened()
    before = [half.clone() for a in lora.adapters.values() for half in (a.down, a.up)]
    with (tmp_path / "x.safetensors").open("r+b") as file:
        file.truncate(100)
    assert all(map(torch.equal, (half for a in lora.adapters.values() for half in (a.down, a.up)), before))


# -- where it is -------------------------------------------------------------------------------------------------------


def test_files_and_folders_are_found_by_path_and_in_the_model_folder(tmp_path, folder, monkeypatch):
    file, named = write(tmp_path / "rap" / FILE, {}), write(tmp_path / "choir.safetensors", {})
    assert find(file) == find(tmp_path / "rap") == find(f"{tmp_path}/rap/") == (file, "rap")
    assert find(named) == (named, "choir")
    monkeypatch.chdir(tmp_path / "rap")
    assert find(FILE) == (Path(FILE), "rap") and find(".") == (Path(FILE), "rap")
    monkeypatch.chdir(folder)
    assert "there is no LoRA 'choir.safetensors'; give a .safetensors file, a folder" in refusal(find, named.name)
    monkeypatch.setenv("ACEFAST_MODELS", str(tmp_path))
    assert find("rap") == (file, "rap") and find("choir.safetensors") == (named, "choir")
    (tmp_path / "empty").mkdir()
    assert f"empty holds no {FILE}; give a" in refusal(find, tmp_path / "empty")
    for bad in (3, "", None, "../nothing", "a/b/c", "org/x.safetensors"):
        refusal(find, bad)


def test_hub_ids_are_found_in_the_cache_or_downloaded_as_safetensors_alone(downloads, tmp_path):
    repo = "ACE-Step/ACE-Step-v1-chinese-rap-LoRA"
    text = refusal(find, repo)
    assert f"LoRA {repo} is not on this machine" in text and text.endswith(f"or a hub id such as {repo}")
    assert downloads == [(repo, [FILE])]
    downloads.answer = tmp_path
    assert f"{repo} on the hub holds no {FILE}; give" in refusal(find, repo)
    file = write(tmp_path / FILE, {})
    assert find(repo) == (file, repo)
    cached = write(in_hub(repo) / FILE, {})
    del downloads[:]
    assert find(repo) == (cached, repo) and not downloads
    assert "downloads are off; give a .safetensors file" in refusal(find, "org/other", offline=True)


# -- the command line --------------------------------------------------------------------------------------------------


def test_commands_take_one(tiny, tmp_path, folder, monkeypatch, capsys):
    file, given = write(tmp_path / "rap.safetensors", adapters(tiny, {Q: 4})), []
    real = acefast.pipeline.load
    monkeypatch.setattr(acefast.pipeline, "load", lambda *a, **k: given.append(k) or real(*a, **k))
    words = ["boom bap", "--model", str(tiny), "--duration", "5", "--steps", "1", "--lora", str(file)]
    assert cli.main(["generate", *words, "--lora-weight", "-.5", "-o", "x.wav", "--json"]) == 0
    assert json.loads(Path("x.json").read_text())["lora"] == {"name": "rap", "weight": -0.5}
    assert cli.main(["stream", *words, "-o", "y.wav"]) == 0
    assert [(k["lora"], k["lora_weight"]) for k in given] == [(str(file), -0.5), (str(file), 1.0)]


REFUSED = {
    "a weight alone": (2, ["--lora-weight", "1"], "--lora-weight has no use without --lora"),
    "no number": (2, ["--lora", "x", "--lora-weight", "much"], "lora_weight must be -3 to 3, got 'much'"),
    "out of range": (2, ["--lora", "x", "--lora-weight", "4"], "lora_weight must be -3 to 3, got 4"),
    "not there": (3, ["--lora", "x"], "there is no LoRA 'x'"),
    "another flag": (2, ["--lora-scale", "1"], "unknown option --lora-scale"),
}


@pytest.mark.parametrize("code, words, told", REFUSED.values(), ids=REFUSED)
def test_what_a_command_cannot_do_is_one_line(tiny, folder, capsys, code, words, told):
    from_shell(folder, capsys, code, [*words, "--model", str(tiny), "-o", "x.wav"], told)
