"""v1's transformer and lyric encoder against upstream's numbers, and the savings against computing everything."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import use_backend
from acefast.models.v1 import lyric_encoder
from acefast.models.v1.conditions import ConditionEncoder
from acefast.models.v1.config import NULL_SCALE, Config
from acefast.models.v1.dit import DiT
from acefast.models.v1.dit_layer import CrossAttention, Evaluation, Layer, LayerCondition
from acefast.ops.linear_attention import linear_attention
from acefast.ops.paired_rope import paired_rope, paired_rope_table
from tests.live_bytes import LiveBytes
from tests.models.v1 import cases
from tests.models.v1.fill import TINY, golden, latents_of, normal, official_tensors, ours, relative

GATE = 1e-5  # relative L2 in fp32: two orders of summation
H, HEADS, D = TINY.hidden_size, TINY.num_attention_heads, TINY.attention_head_dim


@pytest.fixture(scope="module")
def want():
    return golden("dit")


@pytest.fixture(scope="module")
def encoder():
    return ours(ConditionEncoder, TINY, official_tensors())


@pytest.fixture(scope="module")
def dit():
    return ours(DiT, TINY, official_tensors())


def prepared(dit, frames, lengths=(12, 7), **branches):
    states = cases.states(len(lengths), 12)
    return dit.prepare([row[:n] for row, n in zip(states, lengths)], frames, **branches)


# -- against upstream --------------------------------------------------------------------------------------------------


def test_lyric_encoder_equals_upstream_with_padding_and_with_no_lyrics_at_all(encoder, want):
    ids, mask = cases.padded_lyrics()
    got = encoder.lyric_encoder(ids, mask.sum(1))
    assert got.isfinite().all()
    assert [relative(*pair) <= GATE for pair in zip(got, want["lyrics"])] == [True] * 3


def test_condition_sequence_equals_upstreams_encode(encoder, want):
    ids, mask = cases.padded_lyrics()
    text, _ = cases.padded_text()
    lyrics = encoder.lyric_encode(ids, mask.sum(1))
    got = torch.stack([encoder.sequence(*song) for song in zip(encoder.text_encode(text), lyrics)])
    assert relative(got, want["encode"]) <= GATE
    assert want["encode_mask"].sum(1).tolist() == [1 + 5 + n for n in (11, 6, 0)]  # speaker and text are never masked


def test_time_embedding_equals_upstream(dit, want):
    blocks, out = dit.embeddings(cases.TIMES)
    assert relative(out, want["time"]) <= GATE
    assert relative(blocks.flatten(1), want["time_blocks"]) <= GATE


def test_patch_embedding_equals_upstream(dit, want):
    assert relative(dit.patch(cases.latents(2, 33)), want["patch"]) <= GATE


def test_every_block_equals_upstream(dit, want):
    got = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, out: got.append(out[0] + out[1] * out[2]) if isinstance(module, Layer) else None
    )
    dit.velocity(cases.latents(1, 17), cases.TIME, prepared(dit, 17, (12,)))
    hook.remove()
    assert len(got) == TINY.num_layers
    assert max(relative(*pair) for pair in zip(got, want["blocks"].unsqueeze(1))) <= GATE


@pytest.mark.parametrize("frames", cases.FRAMES)
def test_velocity_equals_upstreams_decode_with_masks(dit, want, frames):
    got = dit.velocity(cases.latents(2, frames), cases.TIME, prepared(dit, frames))
    assert got.dtype == torch.float32
    assert relative(got, latents_of(want[f"decode_{frames}"])) <= GATE


# -- upstream's habits -------------------------------------------------------------------------------------------------


def test_position_embedding_is_upstreams_and_no_rotation(want):
    """The two channels of a pair have different angles: norms change, and scores depend on more than the distance."""
    x, table = cases.heads(), paired_rope_table(19, D, TINY.rope_theta, torch.device("cpu"))
    got = paired_rope(x, table)
    assert relative(got, want["rope"]) <= GATE
    assert relative(got.norm(dim=-1)[:, 1:], x.norm(dim=-1)[:, 1:]) > 0.05
    same = paired_rope(x[:, :1].expand(-1, 19, -1, -1), table)
    scores = torch.einsum("bihd,bjhd->bhij", same, same)
    assert relative(scores.diagonal(1, 2, 3)[..., 0], scores.diagonal(1, 2, 3)[..., -1]) > 0.05


def test_weak_queries_of_self_attention_change_nothing():
    """Upstream scales them by 0.01 in the null branch's blocks 15 to 19; a mean's weights keep their proportions."""
    qkv, table = normal(3, 2, 19, 3 * H), paired_rope_table(19, D, TINY.rope_theta, torch.device("cpu"))
    weak = qkv.clone()
    weak[..., :H] *= NULL_SCALE
    assert relative(*(linear_attention(x, table, HEADS) for x in (weak, qkv))) <= 1e-6


def test_self_attention_adds_no_more_than_fp16_holds(dit):
    """Upstream clamps what self-attention adds to 65504 in any dtype; so does this."""
    attention, table = dit.layers[0].self_attention, paired_rope_table(5, D, TINY.rope_theta, torch.device("cpu"))
    got = attention(1e7 * normal(4, 1, 5, H), table)
    assert got.abs().max() == 65504.0


# -- savings -----------------------------------------------------------------------------------------------------------


def test_branches_in_one_batch_equal_each_alone(dit):
    latents, others = cases.latents(2, 9), normal(21, 4, 12, H)
    branches = [[row[:n] for row, n in zip(others[i : i + 2], (12, 7))] for i in (0, 2)]
    conditions = prepared(dit, 9, null=branches[0], text_only=branches[1], weak_null=False)
    found = dit.velocity(latents, cases.TIME, conditions, unconditional=True)
    alone = [prepared(dit, 9), *(dit.prepare(branch, 9) for branch in branches)]
    assert len(found) == 3
    for got, one in zip(found, alone):
        assert relative(got, dit.velocity(latents, cases.TIME, one)) <= GATE
    assert relative(found[0], found[1]) > 1e-2 and relative(found[1], found[2]) > 1e-2
    assert relative(dit.velocity(latents, cases.TIME, conditions), found[0]) <= GATE


def test_erg_weakens_the_null_branch_alone(dit):
    latents, null = cases.latents(2, 9), [*normal(21, 2, 12, H)]
    pairs = [
        dit.velocity(latents, cases.TIME, prepared(dit, 9, null=null, weak_null=weak), unconditional=True)
        for weak in (False, True)
    ]
    assert relative(pairs[0][0], pairs[1][0]) <= GATE
    assert relative(pairs[0][1], pairs[1][1]) > 1e-2


@pytest.mark.parametrize("lengths", [(12, 7), (3, 12), (12, 12)])
def test_a_song_in_a_batch_equals_the_song_alone(dit, lengths):
    latents, null = cases.latents(2, 9), [row[:n] for row, n in zip(normal(21, 2, 12, H), lengths)]
    both = dit.velocity(latents, cases.TIME, prepared(dit, 9, lengths, null=null), unconditional=True)
    for i, n in enumerate(lengths):
        one = dit.prepare([cases.states(2, 12)[i, :n]], 9, null=[null[i]])
        alone = dit.velocity(latents[i : i + 1], cases.TIME, one, unconditional=True)
        assert max(relative(a[i : i + 1], b) for a, b in zip(both, alone)) <= GATE


def test_songs_that_share_their_conditions_equal_songs_with_their_own(dit):
    latents, states, null = cases.latents(3, 9), cases.states(1, 12)[0], normal(21, 7, H)
    shared = dit.velocity(latents, cases.TIME, dit.prepare([states], 9, null=[null]), unconditional=True)
    own = dit.velocity(latents, cases.TIME, dit.prepare([states] * 3, 9, null=[null] * 3), unconditional=True)
    assert max(relative(*pair) for pair in zip(shared, own)) <= GATE


def test_branches_split_at_the_first_conditions_they_meet(dit):
    rows = []
    hooks = [
        module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
        for layer in dit.layers[:2]
        for module in (layer.self_attention, layer.cross_attention, layer.mlp)
    ]
    conditions = prepared(dit, 9, null=[*normal(21, 2, 12, H)])
    dit.velocity(cases.latents(2, 9), cases.TIME, conditions, unconditional=True)
    for hook in hooks:
        hook.remove()
    assert rows == [2, 4, 4, 4, 4, 4]


def test_a_timestep_of_the_schedule_is_embedded_once_and_any_other_when_met(dit, monkeypatch):
    asked = []
    plain = dit.embeddings
    monkeypatch.setattr(dit, "embeddings", lambda times: asked.append(list(times)) or plain(times))
    conditions = prepared(dit, 5, timesteps=cases.TIMES)
    for t in (cases.TIMES[1], 0.3, 0.3):
        got = dit.velocity(cases.latents(2, 5), t, conditions)
    assert asked == [list(cases.TIMES), [0.3]]
    assert relative(got, dit.velocity(cases.latents(2, 5), 0.3, prepared(dit, 5))) <= GATE


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_16_bit_stays_near_fp32(dit, dtype):
    rough = ours(DiT, TINY, official_tensors(), dtype)
    want, got = (m.velocity(cases.latents(2, 33), cases.TIME, prepared(m, 33)) for m in (dit, rough))
    assert got.dtype == torch.float32
    assert relative(got, want) <= (0.05 if dtype == torch.bfloat16 else 0.01)


def test_neither_conditions_nor_a_velocity_read_a_number_back():
    """On "meta" there is none to read, as on a GPU none without waiting for it."""
    with torch.device("meta"):
        dit = DiT(TINY)
        states = [torch.empty(n, H) for n in (12, 7)]
        conditions = dit.prepare(states, 9, [1.0], null=states, text_only=states)
        found = dit.velocity(torch.empty(2, 9, 128), 0.5, conditions, unconditional=True)
    assert [(v.device.type, v.shape) for v in found] == [("meta", (2, 9, 128))] * 3


# -- lyric encoder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", (1, 3, 11))
def test_scores_in_blocks_of_rows_equal_all_at_once(encoder, want, monkeypatch, rows):
    ids, mask = cases.padded_lyrics()
    monkeypatch.setattr(lyric_encoder, "SCORES", rows * 3 * TINY.lyric_heads * 11)
    assert relative(encoder.lyric_encoder(ids, mask.sum(1)), want["lyrics"]) <= GATE


def test_4096_lyric_tokens_take_bounded_memory(monkeypatch):
    one = lyric_encoder.RelativeAttention(16, 1)
    for i, weights in enumerate(one.parameters()):
        weights.copy_(normal(i, *weights.shape))
    monkeypatch.setattr(lyric_encoder, "SCORES", 1 << 20)  # a sixteenth of this head's
    with LiveBytes() as live:
        got = one(normal(9, 1, 4096, 16), lyric_encoder.position_table(4096, 16))
    assert got.isfinite().all()
    assert live.peak < 5 * 4 * (1 << 20)


def test_weak_lyrics_differ_from_layer_4_on(encoder):
    ids, got = cases.padded_lyrics()[0][:1], {}
    for weak in (False, True):
        seen = got.setdefault(weak, [])
        hooks = [
            layer.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
            for layer in encoder.lyric_encoder.layers
        ]
        encoder.lyric_encoder(ids, weak=weak)
        for hook in hooks:
            hook.remove()
    differ = [relative(*pair) > 1e-3 for pair in zip(got[False], got[True])]
    assert differ == [False] * 4 + [True] * 2


def test_the_published_sizes_have_the_parameters_that_inference_needs():
    with torch.device("meta"):
        parts = DiT(Config()), ConditionEncoder(Config())
    assert sum(p.numel() for part in parts for p in part.parameters()) == 2_588_427_392  # of 3,305,659,264


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_in_a_sentence(dit):
    states = [*cases.states(2, 12)]
    with pytest.raises(ValueError, match="branches must be of 2 songs each"):
        dit.prepare(states, 9, null=states[:1])
    with pytest.raises(ValueError, match=r"sequence must be \[E, H\]"):
        dit.prepare([states[0][:, :3]], 9)
    conditions = dit.prepare(states, 9)
    with pytest.raises(ValueError, match="needs prepare"):
        dit.velocity(cases.latents(2, 9), 0.5, conditions, unconditional=True)
    with pytest.raises(ValueError, match="latents must be"):
        dit.velocity(cases.latents(2, 8), 0.5, conditions)
    with pytest.raises(ValueError, match="latents must be"):
        dit.velocity(cases.latents(3, 9), 0.5, conditions)


def test_a_cpus_kernel_sees_the_conditions_that_the_mask_leaves():
    config = Config(num_attention_heads=2, attention_head_dim=32)
    attention = CrossAttention(config).bfloat16()
    for i, weight in enumerate(attention.parameters()):
        weight.data.copy_(normal(40 + i, *weight.shape) * 0.1)
    q, k, v = normal(50, 4, 9, 64).bfloat16(), normal(51, 2, 2, 12, 32).bfloat16(), normal(52, 2, 2, 12, 32).bfloat16()
    lengths = torch.tensor([12, 7])
    mask = torch.zeros(2, 1, 1, 12).masked_fill_(torch.arange(12) >= lengths[:, None, None, None], -1e30)
    found = {}
    for backend in ("reference", "auto"):
        with use_backend(backend), torch.inference_mode():
            found[backend] = attention(q.clone(), LayerCondition(k, v), Evaluation(4, None, mask, lengths)).double()
    assert relative(found["auto"], found["reference"]) <= 1e-2
