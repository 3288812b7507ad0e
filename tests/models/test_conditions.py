"""The condition encoder against diffusers' with the same weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from acefast.models.v15 import names
from acefast.models.v15.conditions import ConditionEncoder, pack
from tests.models.fill import TINY, TINY_XL, diffusers, official_tensors, ours, relative

GATE = 1e-5  # relative L2 in fp32: two orders of summation
FRAMES = 300  # of a timbre reference: beyond the window of 128


@pytest.fixture(scope="module", params={"2B": TINY, "XL": TINY_XL}.values(), ids=["2B", "XL"])
def pair(request):
    config = request.param
    tensors = official_tensors(config)
    return config, ours(ConditionEncoder, config, tensors), diffusers("condition_encoder", config, tensors), tensors


def inputs(config, batch=1, text=20, lyrics=310, references=None, seed=1):
    g = torch.Generator().manual_seed(seed)
    references = batch if references is None else references
    return [
        torch.randn(batch, text, config.text_hidden_dim, generator=g),
        torch.randn(batch, lyrics, config.text_hidden_dim, generator=g),
        torch.randn(references, FRAMES, config.audio_acoustic_hidden_dim, generator=g),
    ]


def upstream(model, text, text_lengths, lyrics, lyric_lengths, timbre, index):
    """Diffusers' result and number of valid rows."""
    masks = [(torch.arange(x.shape[1]) < n[:, None]).long() for x, n in ((text, text_lengths), (lyrics, lyric_lengths))]
    states, mask = model(text, masks[0], lyrics, masks[1], timbre, index)
    return states, mask.sum(1)


def test_one_song_equals_diffusers(pair):
    config, mine, theirs, _ = pair
    text, lyrics, timbre = inputs(config)
    args = (text, torch.tensor([20]), lyrics, torch.tensor([310]), timbre, torch.tensor([0]))
    got, lengths = mine(*args, semantics="diffusers")
    want, want_lengths = upstream(theirs, *args)
    assert got.shape == want.shape == (1, 331, config.encoder_hidden_size)
    assert lengths.tolist() == want_lengths.tolist() == [331]
    assert relative(got, want) <= GATE


def test_a_padded_batch_equals_diffusers_with_its_padding(pair):
    """Unequal texts and lyrics, some rows beyond the window of the last valid one; several references, out of order."""
    config, mine, theirs, _ = pair
    text, lyrics, timbre = inputs(config, batch=3, references=5)
    args = (
        text,
        torch.tensor([20, 3, 11]),
        lyrics,
        torch.tensor([310, 40, 170]),
        timbre,
        torch.tensor([1, 0, 1, 2, 1]),
    )
    got, lengths = mine(*args, semantics="diffusers", pad_mode="upstream")
    want, want_lengths = upstream(theirs, *args)
    assert lengths.tolist() == want_lengths.tolist() == [331, 46, 182]
    assert relative(got, want) <= GATE
    exact, _ = mine(*args, semantics="diffusers")
    for b, n in enumerate(lengths):
        assert relative(exact[b, :n], want[b, :n]) <= GATE


def test_songs_of_a_batch_do_not_depend_on_each_other(pair):
    config, mine, _, _ = pair
    text, lyrics, timbre = inputs(config, batch=3)
    text_lengths, lyric_lengths = torch.tensor([20, 3, 11]), torch.tensor([310, 1, 170])
    together, lengths = mine(text, text_lengths, lyrics, lyric_lengths, timbre, torch.arange(3))
    for b in range(3):
        Lt, Ll = text_lengths[b : b + 1], lyric_lengths[b : b + 1]
        alone, (n,) = mine(text[b : b + 1, :Lt], Lt, lyrics[b : b + 1, :Ll], Ll, timbre[b : b + 1], torch.tensor([0]))
        assert n == lengths[b] == Lt + Ll + 1
        assert relative(together[b, :n], alone[0]) <= GATE


def test_rows_are_packed_as_lyrics_timbre_text():
    """Valid rows first, in that order; then the padding of lyrics, timbre and text."""
    x = torch.arange(9.0).view(1, 9, 1)  # lyrics 0-3, timbre 4-5, text 6-8
    packed, lengths = pack(x, torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1, 0]]).bool())
    assert packed.flatten().tolist() == [0, 1, 4, 6, 7, 2, 3, 5, 8] and lengths.tolist() == [5]


def test_text_is_projected_and_lyrics_are_encoded_apart(pair):
    """Parts of the packed sequence against diffusers' own parts."""
    config, mine, theirs, _ = pair
    text, lyrics, timbre = inputs(config)
    got, _ = mine(text, torch.tensor([20]), lyrics, torch.tensor([310]), timbre, torch.tensor([0]))
    assert relative(got[:, 311:], theirs.text_projector(text)) <= GATE
    assert relative(got[:, :310], theirs.lyric_encoder(lyrics, torch.ones(1, 310))) <= GATE


def test_timbre_equals_diffusers(pair):
    config, mine, theirs, _ = pair
    _, _, timbre = inputs(config, references=3)
    want, mask = theirs.timbre_encoder(timbre, torch.arange(3))
    assert relative(mine.timbre_encode(timbre, semantics="diffusers"), want[:, 0]) <= GATE and mask.all()


def test_official_xl_timbre_has_a_token_in_front_and_diffusers_has_none():
    """Upstream's two implementations differ: the token is position 0 of 751 officially, and unused in diffusers."""
    tensors = official_tensors(TINY_XL)
    mine, theirs = ours(ConditionEncoder, TINY_XL, tensors), diffusers("condition_encoder", TINY_XL, tensors)
    _, _, timbre = inputs(TINY_XL)
    official, other = (mine.timbre_encode(timbre, semantics=s) for s in ("official", "diffusers"))
    assert relative(official, other) > 0.1
    encoder = theirs.timbre_encoder
    token = tensors["encoder.timbre_encoder.special_token"]

    class Prepend(torch.nn.Module):
        def forward(self, x):
            return torch.cat((token.expand(len(x), -1, -1), embed(x)), 1)

    embed, encoder.embed_tokens = encoder.embed_tokens, Prepend()
    want, _ = encoder(timbre, torch.tensor([0]))
    assert relative(official, want[:, 0]) <= GATE


def test_2b_timbre_never_uses_the_token():
    tensors = official_tensors(TINY)
    _, _, timbre = inputs(TINY)
    a, b = (ours(ConditionEncoder, TINY, tensors).timbre_encode(timbre, semantics=s) for s in ("official", "diffusers"))
    assert torch.equal(a, b)


@pytest.mark.parametrize("layers", (1, 2, 3))
def test_only_the_first_row_is_computed_in_the_last_layer_of_any_kind(layers):
    """The last layer slides for an odd number of layers and is full for an even one."""
    config = dataclasses.replace(TINY, num_timbre_encoder_hidden_layers=layers)
    mine = ours(ConditionEncoder, config, official_tensors(config))
    _, _, timbre = inputs(config)
    x = mine.timbre_embed(timbre)
    assert relative(mine.timbre(x, first_row=True), mine.timbre(x)[:, :1]) <= GATE


def test_songs_without_a_reference_take_the_timbre_of_silence(pair):
    config, mine, _, _ = pair
    text, lyrics, timbre = inputs(config, batch=2, references=2)
    lengths = torch.tensor([20, 20]), torch.tensor([310, 310])
    silence = mine.timbre_encode(timbre[1:])
    both, n = mine(text, lengths[0], lyrics, lengths[1], timbre, torch.tensor([0, 1]))
    mixed, m = mine(text, lengths[0], lyrics, lengths[1], timbre[:1], torch.tensor([0]), silence)
    alone, _ = mine(text[1:], lengths[0][1:], lyrics[1:], lengths[1][1:], timbre_vector=silence)
    assert n.tolist() == m.tolist() == [331, 331]
    assert relative(mixed, both) <= GATE and relative(alone[0], both[1]) <= GATE


@pytest.mark.parametrize("dtype, gate", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)], ids=str)
def test_sixteen_bit_encoders_stay_near_fp32(pair, dtype, gate):
    """All layers together; single ops have the tight gates."""
    config, _, _, tensors = pair
    tensors = {name: t.to(dtype).float() for name, t in tensors.items()}
    text, lyrics, timbre = inputs(config)
    args = (text, torch.tensor([20]), lyrics, torch.tensor([310]), timbre, torch.tensor([0]))
    want, _ = ours(ConditionEncoder, config, tensors)(*args)
    got, _ = ours(ConditionEncoder, config, tensors, dtype)(*args)
    assert got.dtype == dtype and relative(got, want) <= gate


def test_wrong_shapes_are_refused_with_a_sentence(pair):
    config, mine, _, _ = pair
    text, lyrics, timbre = inputs(config)
    n = torch.tensor([20])
    with pytest.raises(ValueError, match="conditions: lyric_embeddings must be"):
        mine(text, n, lyrics[..., 1:], n)
    with pytest.raises(ValueError, match="timbre_index must be"):
        mine(text, n, lyrics, n, timbre)


@pytest.mark.parametrize("config", (TINY, TINY_XL), ids=["2B", "XL"])
def test_every_official_tensor_is_used_exactly_once(config):
    """The 2B models' timbre token as well, although they never look at it: a bundle is read whole."""
    used = [name for source in ConditionEncoder.weight_table(config).values() for name in source.names]
    assert sorted(used) == sorted(names.condition_encoder_tensors(config))
