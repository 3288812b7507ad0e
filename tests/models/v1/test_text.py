"""What v1's branches are conditioned on, against what upstream's pipeline hands its transformer."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import pytest
import torch

from acefast.conditions import ConditionCache
from acefast.models.v1.conditions import ConditionEncoder
from acefast.models.v1.config import NULL_SCALE
from acefast.models.v1.dit import DiT
from acefast.models.v1.text import Conditioning, encode_text, weakened
from tests.models.v1 import cases
from tests.models.v1.fill import TINY, golden, latents_of, official_tensors, ours, relative, text_encoder

GATE = 1e-5  # relative L2 in fp32: two orders of summation
ERG = [(tag, lyric, diffusion) for tag in (0, 1) for lyric in (0, 1) for diffusion in (0, 1)]


class Tokenizer:
    """Words that are their ids, and an end."""

    def __call__(self, prompt, **_):
        return {"input_ids": [*map(int, prompt.split()), 1], "offset_mapping": [(0, 1)] * (len(prompt.split()) + 1)}

    def num_special_tokens_to_add(self, pair):
        return 1


class LyricTokenizer:
    """The same for lyrics; it notes the languages that it is told."""

    def __init__(self):
        self.languages = []

    def ids(self, lyrics, language):
        self.languages.append(language)
        return [3] if lyrics == "[inst]" else [*map(int, lyrics.split())]


def text_of(ids):
    return " ".join(map(str, ids))


def request(**options):
    """A request's options, as far as conditions depend on them."""
    given = dict(
        prompt=text_of(cases.PROMPT[:-1]), lyrics=text_of(cases.LYRICS), task="text2music", instrumental=False,
        language=None, lyrics_overflow="cut", target_prompt=None, target_lyrics=None, guidance_scale=15.0,
        guidance_text=0.0, guidance_lyric=0.0, erg_tag=True, erg_lyric=True, erg_diffusion=True,
    )  # fmt: skip
    return SimpleNamespace(**given | options)


@pytest.fixture(scope="module")
def want():
    return golden("branches")


@pytest.fixture(scope="module")
def networks():
    tensors = official_tensors()
    return text_encoder(), ours(ConditionEncoder, TINY, tensors), ours(DiT, TINY, tensors)


@pytest.fixture
def model(networks):
    made = Conditioning()
    made.config, made.device, made.encodings = TINY, torch.device("cpu"), ConditionCache()
    made.tokenizer, made.lyric_tokenizer = Tokenizer(), LyricTokenizer()
    made.text_encoder, made.condition_encoder, made.transformer = networks
    return made


def conditions(model, *requests, frames=9):
    with torch.no_grad():
        return model.conditions(list(requests), SimpleNamespace(frames=frames), None, [1.0])


def velocities(model, latents, made):
    return model.transformer.velocity(latents, 1.0, made, unconditional=True)


# -- against upstream --------------------------------------------------------------------------------------------------


def test_weak_text_equals_upstreams_and_a_copy_with_weak_projections(networks, want):
    encoder, ids = networks[0], torch.tensor([cases.PROMPT])
    with torch.no_grad():
        assert relative(encode_text(encoder, ids), want["text"]) <= GATE
        weak = encode_text(encoder, ids, weak=True)
        assert relative(weak, want["weak_text"]) <= GATE
        other = copy.deepcopy(encoder)
        for i in (8, 9):
            other.encoder.block[i].layer[0].SelfAttention.q.weight *= NULL_SCALE
        assert relative(encode_text(other, ids), weak) <= GATE
    assert relative(weak, want["text"]) > 1e-2


@pytest.mark.parametrize("double", (False, True))
@pytest.mark.parametrize("tag, lyric, diffusion", ERG)
def test_every_branch_equals_upstreams(model, want, tag, lyric, diffusion, double):
    scales = dict(guidance_text=5.0, guidance_lyric=1.5) if double else {}
    erg = dict(erg_tag=bool(tag), erg_lyric=bool(lyric), erg_diffusion=bool(diffusion))
    made, later = conditions(model, request(**erg, **scales))
    assert later is None
    assert relative(made.encoder_hidden_states, want["sung.conditional.states"]) <= GATE
    found = velocities(model, latents_of(want["sung.conditional.latents"]), made)
    names = ["sung.conditional", f"sung.{tag}{lyric}{diffusion}.null", f"sung.{lyric}.text_only"][: 2 + double]
    assert len(found) == len(names)
    for got, name in zip(found, names):
        assert relative(got, latents_of(want[f"{name}.v"])) <= GATE


@pytest.mark.parametrize("lyric", (0, 1))
def test_no_lyrics_are_no_tokens_where_upstream_masks_one(model, want, lyric):
    made, _ = conditions(model, request(lyrics="", erg_lyric=bool(lyric), guidance_text=5.0, guidance_lyric=1.5))
    assert made.lengths.tolist() == [int(want["wordless.conditional.mask"].sum())]
    found = velocities(model, latents_of(want["wordless.conditional.latents"]), made)
    for got, name in zip(found, ("conditional", f"1{lyric}1.null", f"{lyric}.text_only")):
        assert relative(got, latents_of(want[f"wordless.{name}.v"])) <= GATE
    assert not model.lyric_tokenizer.languages  # no vocabulary is needed


def test_edit_goes_from_the_source_to_the_target_and_masks_the_nulls_lyrics(model, want):
    targets = dict(target_prompt=text_of(cases.TARGET_PROMPT[:-1]), target_lyrics=text_of(cases.TARGET_LYRICS))
    sides = conditions(model, request(task="edit", guidance_text=5.0, guidance_lyric=1.5, **targets))
    for made, side in zip(sides, ("target", "source")):
        found = velocities(model, latents_of(want[f"edit.{side}.latents"])[:1], made)
        assert len(found) == 2
        for got, expected in zip(found, latents_of(want[f"edit.{side}.v"])):
            assert relative(got[0], expected) <= GATE


def test_tag_erg_without_lyric_erg_changes_nothing(model, want):
    """Upstream's web page has it so by default: the weak text is made and never used. Here it is not made."""
    assert torch.equal(want["sung.101.null.v"], want["sung.001.null.v"])
    keys = []
    model.encodings.get = lambda key, make, plain=model.encodings.get: keys.append(key) or plain(key, make)
    conditions(model, request(erg_lyric=False))
    assert not [key for key in keys if key[-1] is True]


# -- what is made, and how often ---------------------------------------------------------------------------------------


def test_texts_are_encoded_once_by_content(model, monkeypatch):
    encoded = []
    for owner, name in ((model.condition_encoder, "text_encode"), (model.condition_encoder, "lyric_encode")):
        plain = getattr(owner, name)
        note = lambda *args, name=name, plain=plain, **kw: encoded.append(name) or plain(*args, **kw)  # noqa: E731
        monkeypatch.setattr(owner, name, note)
    first, _ = conditions(model, request())
    assert sorted(encoded) == ["lyric_encode"] * 2 + ["text_encode"] * 2  # as they are, and weak
    again, _ = conditions(model, request(), request(prompt="9 9", lyrics="5"))
    assert sorted(encoded) == ["lyric_encode"] * 4 + ["text_encode"] * 4
    same, _ = conditions(model, request(), request())
    assert len(encoded) == 8
    assert same.batch == 1 and same.key == first.key != again.key
    keys = {conditions(model, request(**{name: False}))[0].key for name in ("erg_tag", "erg_lyric", "erg_diffusion")}
    assert len({first.key, *keys}) == 4
    model.encodings.clear()
    assert conditions(model, request())[0].key != first.key  # the weights may have changed


def test_texts_of_a_batch_differ_freely(model):
    others = dict(prompt="9 9", lyrics="")
    made, _ = conditions(model, request(), request(**others))
    assert made.lengths.tolist() == [15, 4] and made.context.shape == (2, 9, 0)
    latents = cases.latents(2, 9)
    both = velocities(model, latents, made)
    for i, options in enumerate(({}, others)):
        alone = velocities(model, latents[i : i + 1], conditions(model, request(**options))[0])
        assert max(relative(a[i : i + 1], b) for a, b in zip(both, alone)) <= GATE


@pytest.mark.parametrize("scale", (0, 1))
def test_without_guidance_there_is_no_other_branch(model, scale):
    made, _ = conditions(model, request(guidance_scale=scale, guidance_text=5.0, guidance_lyric=5.0))
    assert len(made.prepared["layers"][0].k) == 1
    with pytest.raises(ValueError, match="unconditional"):
        velocities(model, cases.latents(1, 9), made)


def test_edit_takes_from_the_source_what_has_no_target(model):
    source = request(task="edit")
    assert model._words(source, target=True) == model._words(source, target=False)
    changed = request(task="edit", target_lyrics="")
    assert model._words(changed, target=True) == (tuple(cases.PROMPT), ())


def test_instrumental_songs_are_told_so_by_the_vocabularys_own_word(model):
    assert model._words(request(instrumental=True), target=False) == (tuple(cases.PROMPT), (3,))


def test_the_lyrics_language_is_handed_on(model):
    for language in ("ja", None):
        model._words(request(language=language), target=False)
    assert model.lyric_tokenizer.languages == ["ja", None]


def test_a_prompt_over_256_tokens_is_cut_and_the_cut_is_told(model):
    long = " ".join(["9"] * 300)
    prompt, _ = model._words(request(prompt=long), target=False)
    assert len(prompt) == 256 and prompt[-1] == 1
    (told,) = model.cuts(request(prompt=long), 60.0)
    assert told.startswith("prompt is too long: its last 45 tokens were cut")
    (told,) = model.cuts(request(target_prompt=long), 60.0)
    assert told.startswith("target_prompt is too long")
    assert not model.cuts(request(lyrics=long), 60.0)  # lyrics are never cut, as upstream


# -- weak text ---------------------------------------------------------------------------------------------------------


def test_weak_text_leaves_no_trace_and_other_threads_alone(networks):
    encoder, ids, found = networks[0], torch.tensor([cases.PROMPT]), {}
    projections = [block.layer[0].SelfAttention.q for block in encoder.encoder.block]

    def other():
        with torch.no_grad():
            found["other"] = encode_text(encoder, ids)

    with torch.no_grad():
        plain = encode_text(encoder, ids)
        with weakened(encoder):
            assert [bool(p._forward_hooks) for p in projections] == [False] * 8 + [True] * 2 + [False] * 2
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            own = encode_text(encoder, ids)
    assert torch.equal(found["other"], plain)
    assert relative(own, plain) > 1e-2
    with pytest.raises(KeyError), weakened(encoder):
        raise KeyError
    assert not any(p._forward_hooks for p in projections)
