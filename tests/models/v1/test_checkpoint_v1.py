"""ACE-Step v1 checkpoints: every name and size, both layouts, what is not loaded, and what is wrong with one."""

from __future__ import annotations

import itertools
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from acefast import report
from acefast.checkpoint import open_checkpoint
from acefast.config_files import umt5_config_for
from acefast.models.v1 import names
from acefast.models.v1.checkpoint import load_text_encoder
from acefast.models.v1.codec import Decoder, Encoder
from acefast.models.v1.conditions import ConditionEncoder
from acefast.models.v1.config import Config, DCAEConfig, VocoderConfig
from acefast.models.v1.dit import DiT
from acefast.sizes import METADATA_KEY
from acefast.testing import TINY_DCAE, TINY_V1, TINY_VOCODER, write_checkpoint
from tests.checkpoints import edit, refusal, tensors

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")
DIT, DCAE, VOCODER, UMT5 = (
    f"{folder}/{'model' if part == 'umt5' else 'diffusion_pytorch_model'}.safetensors"
    for part, folder in names.FOLDERS.items()
)
LAYOUTS = ("official", "aio")


def count(*tables: names.Shapes) -> tuple[int, int]:
    """(tensors, parameters)."""
    shapes = list(itertools.chain(*(table.values() for table in tables)))
    return len(shapes), sum(math.prod(shape) for shape in shapes)


def test_the_published_model_has_its_published_sizes():
    c, d, v = Config(), DCAEConfig(), VocoderConfig()
    transformer, conditions = names.transformer_tensors(c), names.condition_encoder_tensors(c)
    unused = names.unused_tensors(c)
    dit = {n: s for n, s in unused.items() if n.startswith("dit.")}
    assert count(transformer, conditions, dit) == (874, 3_305_659_264)
    assert count(transformer, conditions)[1] == 2_588_427_392
    assert count({n: s for n, s in dit.items() if "projectors" not in n}) == (192, 629_391_360)
    assert count({n: s for n, s in dit.items() if "projectors" in n}) == (12, 87_840_512)
    lyric = {n: s for n, s in conditions.items() if n.startswith("dit.lyric_encoder.")}
    assert count(lyric)[1] == 82_934_784 and conditions["dit.lyric_embs.weight"] == (6693, 1024)
    assert count({n: s for n, s in transformer.items() if ".proj_in." in n})[1] == 5_513_728
    assert count({n: s for n, s in transformer.items() if "timestep_embedder" in n})[1] == 7_214_080
    assert count(names.dcae_encoder_tensors(d))[1] == 77_668_232
    assert count(names.dcae_encoder_tensors(d), names.dcae_decoder_tensors(d)) == (192, 156_812_426)
    mel = {n: s for n, s in unused.items() if n.startswith("vocoder.")}
    assert count(names.vocoder_tensors(v))[1] == 103_005_138 and count(names.vocoder_tensors(v), mel)[0] == 713
    assert count(names.text_encoder_tensors(umt5_config_for(c)))[1] == 281_861_376


@pytest.mark.parametrize("config", (TINY_DCAE, DCAEConfig()), ids=("tiny", "full"))
def test_the_autoencoders_names_are_those_of_diffusers(tmp_path, config):
    diffusers = pytest.importorskip("diffusers")
    path = write_checkpoint(tmp_path / "x", variant="v1")
    values = json.loads((path / "music_dcae_f8c8/config.json").read_text())
    for side in ("encoder", "decoder"):
        values[f"{side}_block_out_channels"] = config.block_out_channels
        values[f"{side}_layers_per_block"] = getattr(config, f"{side}_layers_per_block")
    values["attention_head_dim"] = config.attention_head_dim
    with torch.device("meta"):
        theirs = diffusers.AutoencoderDC.from_config(values)
    ours = names.dcae_encoder_tensors(config) | names.dcae_decoder_tensors(config)
    assert ours == {f"dcae.{n}": tuple(t.shape) for n, t in theirs.state_dict().items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_both_layouts_hold_the_same_tensors_and_sizes(written, tmp_path, layout, dtype):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, variant="v1", layout=layout, dtype=dtype))
    checkpoint.check()
    assert (checkpoint.family, checkpoint.layout) == ("v1", {"aio": "all-in-one"}.get(layout, layout))
    assert (checkpoint.config, checkpoint.dcae_config) == (TINY_V1, TINY_DCAE)
    assert checkpoint.vocoder_config == TINY_VOCODER and checkpoint.text_config == umt5_config_for(TINY_V1)
    assert {part.dtype for part in checkpoint.parts} == {dtype} == {s.dtype for s in checkpoint.index.values()}
    reference, found = (tensors(open_checkpoint(written("official", "v1"))), tensors(checkpoint))
    assert reference.keys() == found.keys()
    assert all(torch.equal(found[name], value.to(dtype)) for name, value in reference.items())
    assert checkpoint.traits.version == checkpoint.traits.family == "v1" and not checkpoint.traits.is_turbo


def test_shards_and_either_file_or_folder_of_the_transformer_are_the_model(tmp_path, written):
    path = write_checkpoint(tmp_path, variant="v1", shard_bytes=300_000)
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    assert len({one.file for one in checkpoint.index.values()}) > 8
    shard = sorted((path / "ace_step_transformer").glob("*.safetensors"))[1]
    for asked in (path / "ace_step_transformer", shard):
        assert open_checkpoint(asked).index == checkpoint.index
    shard.unlink()
    assert f"lacks the shard(s) {shard.name}" in refusal(open_checkpoint, path)
    whole = written("official", "v1")
    assert open_checkpoint(whole / DIT).index == open_checkpoint(whole).index


def test_both_spellings_of_weight_norm_and_of_the_embedding_are_known(copy):
    path = copy("official", "v1")
    before = tensors(open_checkpoint(path))

    def respell(values):
        for name in [n for n in values if n.endswith(("weight_g", "weight_v"))]:
            new = name.replace("weight_g", "parametrizations.weight.original0")
            values[new.replace("weight_v", "parametrizations.weight.original1")] = values.pop(name)

    edit(path / VOCODER, respell)
    edit(path / UMT5, lambda v: v.update({"encoder.embed_tokens.weight": v["shared.weight"].clone()}))
    for _ in range(2):
        checkpoint = open_checkpoint(path)
        checkpoint.check()
        after = tensors(checkpoint)
        assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
        edit(path / UMT5, lambda v: v.pop("shared.weight", None))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_no_song_needs_is_not_loaded_and_told_with_its_size(written, layout):
    path = written(layout, "v1")
    checkpoint = open_checkpoint(path)
    H, unused = TINY_V1.hidden_size, {part.name: part for part in checkpoint.unused}
    assert unused["unused projections"].params == 2 * 4 * (H * H + H)
    assert (
        unused["REPA heads"].params
        == count({n: s for n, s in names.unused_tensors(TINY_V1).items() if "projectors" in n})[1]
    )
    assert {*unused} == {"unused projections", "REPA heads", "mel filters"}
    assert not any(names.unused_kind(name) for name in checkpoint.index)
    facts = report.model(str(path))
    (model,) = facts["models"]
    assert [part["name"] for part in model["parts"]] == [*checkpoint.expected] and model["version"] == "v1"
    assert {part["name"]: part["bytes"] for part in model["unused"]} == {n: p.bytes for n, p in unused.items()}
    text = report.as_text(facts)
    total = sum(p.params for p in unused.values()) / 1e6
    assert "not loaded, as no song needs it: REPA heads, unused projections, mel filters" in text
    assert (
        f"; {total:.1f} M, " in text
        and f"unused projections {unused['unused projections'].params / 1e6:9.1f} M" in text
    )


def test_a_checkpoint_without_them_is_whole(copy):
    path = copy("official", "v1")
    edit(path / DIT, lambda v: [v.pop(n) for n in list(v) if names.unused_kind(f"dit.{n}")])
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    assert [part.name for part in checkpoint.unused] == ["mel filters"]
    assert "not loaded, as no song needs it: mel filters" in report.as_text(report.model(str(path)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unknown_missing_and_wrong_shapes_come_in_one_error(copy, layout):
    path = copy(layout, "v1")
    files = {part: path / file for part, file in zip(names.FOLDERS, (DIT, DCAE, VOCODER, UMT5))}
    aio = layout == "aio"

    def change(part, name, value=None):
        file, name = (path, names.PREFIXES[part] + name) if aio else (files[part], name)
        metadata = {METADATA_KEY: '{"attention_head_dim": 16}'} if aio else None
        values = load_file(file)
        values.pop(name, None) if value is None else values.update({name: value})
        save_file(values, file, metadata)

    change("dit", "transformer_blocks.1.attn.to_q.bias")
    change("dcae", "decoder.up_blocks.3.0.attn.to_out.weight")
    change("dcae", "decoder.extra", torch.zeros(1))
    change("vocoder", "head.conv_post.bias", torch.zeros(2))
    change("umt5", "decoder.final_layer_norm.weight", torch.zeros(32))
    if aio:
        change("dit", "../clip.logit_scale", torch.zeros(1))
    text = refusal(open_checkpoint(path).check)
    assert "2 tensor(s) missing: dit.transformer_blocks.1.attn.to_q.bias, dcae.decoder.up_blocks.3.0.attn.to_" in text
    assert f"{2 + aio} tensor(s) unknown: " in text and "dcae.decoder.extra" in text
    assert "umt5.decoder.final_layer_norm.weight" in text
    assert "1 tensor(s) of a wrong shape: vocoder.head.conv_post.bias must be [1], got [2]" in text


@pytest.mark.parametrize("part", ["lyric_embs.weight", "proj_in.early_conv_layers.0.weight"])
def test_a_single_file_whose_shapes_tell_no_size_is_refused(copy, part):
    path = copy("aio", "v1")
    name = names.PREFIXES["dit"] + part
    edit(path, lambda values: values.update({name: torch.zeros(3)}))
    assert "has tensors of shapes that no ACE-Step v1 has" in refusal(open_checkpoint, path)
    edit(path, lambda values: values.pop(name))
    assert f"the checkpoint lacks dit.{part}, which tells its sizes" in refusal(open_checkpoint, path)


CONFIGS = {part: f"{folder}/config.json" for part, folder in names.FOLDERS.items()}
DAMAGED = [
    *[("dit", {"num_layers": value}) for value in ("2", 2.0, -1, True, [2])],
    *[("dit", values) for values in ({"mlp_ratio": "x"}, {"patch_size": 16}, {"rope_theta": 0})],
    *[("dcae", values) for values in ({"latent_channels": "8"}, {"encoder_layers_per_block": 2})],
    *[("dcae", {"encoder_layers_per_block": [1, 1, 2]}), ("dcae", {"decoder_block_out_channels": [8, 16, 32, 48]})],
    *[("dcae", {"upsample_block_type": "pixel_shuffle"}), ("dcae", {"downsample_block_type": "pixel_unshuffle"})],
    *[("dcae", {"decoder_block_types": ["ResBlock"] * 4}), ("dcae", {"encoder_qkv_multiscales": [[], [], [5], [3]]})],
    *[("dcae", {"decoder_act_fns": "relu"}), ("vocoder", {"kernel_sizes": [7, 9]}), ("vocoder", {"depths": [1, "1"]})],
    *[("vocoder", {"upsample_kernel_sizes": [8, 8]}), ("vocoder", {"upsample_rates": [4, 4, 2, 2, 2, 2, 4]})],
    *[("vocoder", {"resblock_dilation_sizes": value}) for value in ([[1, 3, 5], [1, 3, 7]], [5, 5], "135", [])],
    *[("vocoder", {"dims": [16, 24, 32]}), ("vocoder", {"f_max": 22_050}), ("umt5", {"d_model": "32"})],
    *[("umt5", {"feed_forward_proj": "relu"}), ("umt5", {"layer_norm_epsilon": -1})],
]


@pytest.mark.parametrize("part, values", DAMAGED, ids=str)
def test_a_config_of_another_model_is_told_by_file_and_name(copy, part, values):
    path = copy("official", "v1")
    file = path / CONFIGS[part]
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    assert f"{file} has a damaged config: {next(iter(values))} must be" in refusal(open_checkpoint, path)


@pytest.mark.parametrize(
    "part, name",
    [
        *(("dit", name) for name in ("num_layers", "attention_head_dim", "mlp_ratio", "lyric_encoder_vocab_size")),
        *(("dcae", name) for name in ("in_channels", "encoder_layers_per_block", "upsample_block_type")),
        *(("umt5", name) for name in ("vocab_size", "d_ff")),
    ],
)
def test_no_default_of_upstreams_classes_stands_in_for_a_value(copy, part, name):
    """They are of other models: 28 layers of 24 x 64 heads, 6681 lyric tokens, an autoencoder of images."""
    path = copy("official", "v1")
    values = json.loads((path / CONFIGS[part]).read_text())
    del values[name]
    (path / CONFIGS[part]).write_text(json.dumps(values))
    assert f"has a damaged config: {name} must be" in refusal(open_checkpoint, path)


def test_a_vocoder_has_its_classs_defaults(copy):
    path = copy("official", "v1")
    kept = {"dims", "depths", "upsample_initial_channel", "resblock_kernel_sizes"}  # the others are the published ones
    values = json.loads((path / CONFIGS["vocoder"]).read_text())
    (path / CONFIGS["vocoder"]).write_text(json.dumps({name: values[name] for name in kept}))
    assert open_checkpoint(path).vocoder_config == TINY_VOCODER


def outside(path, name):
    """The transformer, whole, but where its index has no business."""
    (path / DIT).rename(path.parent / "outside.safetensors")
    (path / DIT).with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda path: shutil.rmtree(path / "music_vocoder"), "music_vocoder does not exist"),
        (lambda path: (path / CONFIGS["umt5"]).unlink(), "umt5-base/config.json is not readable JSON"),
        (lambda path: (path / DIT).rename((path / DIT).with_suffix(".bin")), "holds a pickle"),
        (
            lambda path: (path / DIT).rename((path / DIT).with_name("diffusion_pytorch_model_int4wo.bin")),
            "holds int4 weights, which are not supported; take those of ACE-Step/ACE-Step-v1-3.5B",
        ),
        (lambda path: edit(path / DIT, lambda v: v.pop("lyric_encoder.encoders.0.self_attn.pos_bias_u")), "lacks dit."),
        (lambda path: (path / CONFIGS["dit"]).write_text("[" * 100_000), "config.json is not readable JSON"),
        (lambda path: outside(path, "../../outside.safetensors"), "outside.safetensors', which is not beside it"),
        (lambda path: outside(path, str(path.parent / "outside.safetensors")), "which is not beside it"),
    ],
)
def test_an_unusable_folder_is_refused_in_one_sentence(copy, spoil, reason):
    path = copy("official", "v1")
    spoil(path)
    assert reason in refusal(open_checkpoint, path)


def test_a_truncated_file_is_no_pickle_whatever_the_length_of_its_header(copy):
    path = copy("official", "v1")
    for length in (0x80, 0x0480):
        header = b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'.ljust(length)
        (path / DIT).write_bytes(length.to_bytes(8, "little") + header)
        assert "is a truncated or corrupt safetensors file" in refusal(open_checkpoint, path)


def test_weight_tables_and_text_encoder_take_every_tensor_of_the_checkpoint(written):
    checkpoint = open_checkpoint(written("official", "v1"))
    modules = {ConditionEncoder: (checkpoint.config,), DiT: (checkpoint.config,)}
    modules |= {Decoder: (checkpoint.dcae_config, checkpoint.vocoder_config), Encoder: (checkpoint.dcae_config,)}
    tables = [source for kind, sizes in modules.items() for source in kind.weight_table(*sizes).values()]
    tables += load_text_encoder(checkpoint).origin.table.values()
    assert {name for source in tables for name in source.names} == checkpoint.index.keys()


def test_the_transformer_alone_is_no_model(written, tmp_path):
    file = shutil.copy(written("official", "v1") / DIT, tmp_path / "finetune.safetensors")
    assert "is ACE-Step v1's transformer alone; give the folder of its four parts" in refusal(open_checkpoint, file)


def test_a_single_file_without_our_metadata_has_the_published_heads(tmp_path):
    config = Config(
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=128,
        **{
            name: getattr(TINY_V1, name)
            for name in (
                "speaker_embedding_dim",
                "text_embedding_dim",
                "lyric_hidden_size",
                "lyric_layers",
                "lyric_heads",
            )
        },
        patch_hidden_size=64,
    )
    path = write_checkpoint(tmp_path, config=config, layout="aio")
    save_file(load_file(path), path)
    checkpoint = open_checkpoint(path)
    checkpoint.check()
    assert checkpoint.config == config
    save_file(load_file(path), path, {METADATA_KEY: '{"attention_head_dim": "x"}'})
    assert "has a damaged config: attention_head_dim must be" in refusal(open_checkpoint, path)
