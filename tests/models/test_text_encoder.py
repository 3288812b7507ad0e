"""The text encoder on our ops beside transformers' Qwen3Model: random weights, every level of instructions here."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import use_backend
from acefast.models.v15.checkpoint import empty_text_encoder
from tests.cpu.isas import NAMES, at_isa, extension
from tests.models.fill import relative

BF16 = torch.bfloat16
SIZES = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6}
SIZES |= {"rope_theta": 1_000_000, "max_position_embeddings": 512, "use_cache": False}
LENGTHS = (1, 13, 77, 230)


def made(dtype, **changed):
    """Ours and transformers' of the same weights, which are away from 0 and 1 where theirs begin there."""
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    theirs = Qwen3Model(Qwen3Config(**SIZES | changed, attn_implementation="sdpa")).eval()
    for name, p in theirs.named_parameters():
        torch.nn.init.normal_(p, 1.0, 0.3) if "norm" in name else torch.nn.init.normal_(p, 0.0, 0.2)
    theirs = theirs.to(dtype)
    ours = empty_text_encoder(SIZES | changed)
    ours.rotary_emb = type(ours.rotary_emb)(ours.config)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return ours.requires_grad_(False), theirs.requires_grad_(False)


def ids(length, rows=1):
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(length))


def states(model, tokens, **options):
    return model(input_ids=tokens, use_cache=False, **options).last_hidden_state


@pytest.fixture
def ours_alone(monkeypatch):
    """Fails where transformers' layers run."""
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

    monkeypatch.setattr(Qwen3DecoderLayer, "forward", lambda *_, **__: pytest.fail("a layer of transformers ran"))


@pytest.mark.parametrize("length", LENGTHS)
def test_on_our_ops_equals_transformers_in_fp32(length):
    ours, theirs = made(torch.float32)
    tokens = ids(length, rows=2)
    want = states(theirs, tokens)
    assert want.std() > 0.5 and relative(ours.on_our_ops(tokens), want) <= 1e-5


@pytest.mark.parametrize("isa", NAMES)
def test_in_bf16_is_as_near_to_fp32_as_transformers(isa):
    extension()
    ours, theirs = made(BF16)
    with at_isa(isa):
        for length in LENGTHS:
            tokens = ids(length, rows=2)
            got, near = states(ours, tokens), states(theirs, tokens)
            exact = states(theirs.float(), tokens)
            theirs.to(BF16)
            assert got.dtype == BF16 and relative(got.float(), exact) <= 1.1 * relative(near.float(), exact)


@pytest.mark.parametrize("mask", (None, {"full_attention": None}), ids=str)
def test_the_kernels_run_in_bf16(ours_alone, mask):
    extension()
    ours, _ = made(BF16)
    assert torch.equal(states(ours, ids(20), attention_mask=mask), ours.on_our_ops(ids(20)))


def test_is_the_same_on_any_number_of_threads_and_in_any_batch(monkeypatch):
    extension()
    ours, _ = made(BF16)
    found = []
    for threads in (1, 2, 3):
        for op in ("linear", "linear_swiglu", "qk_norm_rope", "residual_norm", "self_attention"):
            monkeypatch.setattr(f"acefast.cpu.{op}.threads", lambda threads=threads: threads)
        found.append(states(ours, ids(230, rows=2)))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert torch.equal(states(ours, ids(230, rows=2)[1:]), found[0][1:])


def test_what_follows_changes_no_bit():
    extension()
    ours, _ = made(BF16)
    tokens = ids(100)
    assert torch.equal(states(ours, tokens)[:, :40], states(ours, tokens[:, :40]))


def test_weights_are_as_they_were_and_so_are_hooks():
    """A layer runs as a module, since its weights may come and go with it."""
    extension()
    ours, _ = made(BF16)
    before, ran = {name: p.clone() for name, p in ours.named_parameters()}, []
    for i, layer in enumerate(ours.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    assert torch.equal(states(ours, ids(9)), states(ours, ids(9))) and ran == [0, 1, 2] * 2
    assert all(torch.equal(p, before[name]) for name, p in ours.named_parameters())


@pytest.mark.parametrize(
    "dtype, changed, options",
    [
        (torch.float32, {}, {}),
        (torch.float16, {}, {}),
        (BF16, {"hidden_act": "gelu"}, {}),
        (BF16, {"attention_bias": True}, {}),
        (BF16, {}, {"attention_mask": torch.tensor([[1] * 12 + [0] * 8])}),
        (BF16, {}, {"position_ids": torch.arange(5, 25)[None]}),
    ],
    ids=["fp32", "fp16", "gelu", "biases", "a mask", "positions"],
)
def test_everything_else_is_transformers(dtype, changed, options, monkeypatch):
    ours, theirs = made(dtype, **changed)
    monkeypatch.setattr(type(ours), "on_our_ops", lambda *_: pytest.fail("our ops ran"))
    got, want = states(ours, ids(20), **options), states(theirs, ids(20), **options)
    assert relative(got.float(), want.float()) <= (0 if dtype == torch.float32 else 2e-2)  # products are ours


def test_a_cache_and_inputs_that_are_no_ids_are_transformers():
    ours, theirs = made(BF16)
    kept, want = (model(input_ids=ids(20), use_cache=True) for model in (ours, theirs))
    assert len(kept.past_key_values) == 3 and relative(*(t.last_hidden_state.float() for t in (kept, want))) <= 2e-2
    embedded = ours(inputs_embeds=ours.embed_tokens(ids(20)), use_cache=False).last_hidden_state
    assert torch.equal(embedded, kept.last_hidden_state)


def test_a_reference_that_is_named_is_transformers(monkeypatch):
    ours, theirs = made(BF16)
    monkeypatch.setattr(type(ours), "on_our_ops", lambda *_: pytest.fail("our ops ran"))
    with use_backend("reference"):
        assert relative(states(ours, ids(20)).float(), states(theirs, ids(20)).float()) <= 2e-2
