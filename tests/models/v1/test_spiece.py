"""The text tokeniser: from the hub's tokenizer.json, and with the same ids from a single file's SentencePiece bytes."""

from __future__ import annotations

import io
import json

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from acefast.checkpoint import open_checkpoint
from acefast.models.v1.names import SPIECE
from acefast.models.v1.spiece import tokenizer_of
from acefast.testing_v1 import pieces, spiece_bytes
from tests.checkpoints import edit, refusal

pytest_plugins = ["tests.checkpoints"]
pytestmark = pytest.mark.usefixtures("no_network_and_no_models")
TEXTS = [
    *("boom bap, 90 bpm, dusty drums", "the singing and the beating", "a", "", " ", "  two  spaces \n\t and lines "),
    *("été à Noël", "日本語 lo-fi", "UPPER lower", "</s> in a prompt", "<unk><pad>", "drum" * 40, "▁ ▁▁"),
]
PLAIN = [text for text in TEXTS if not {"<", "▁"} & {*text}]  # control tokens in a text are transformers' alone


def test_both_layouts_have_the_same_ids_and_end_with_one_end(written):
    official, single = (open_checkpoint(written(layout, "v1")).tokenizer() for layout in ("official", "aio"))
    for text in TEXTS:
        ids = official(text).input_ids
        assert ids == single(text).input_ids and ids[-1] == 1, text
    assert official("the beat", truncation=True, max_length=2).input_ids == [official("the").input_ids[0], 1]
    batch = single(["the beat", "the"], padding=True)
    assert batch.input_ids[1][-1] == single.pad_token_id == 0 and batch.attention_mask[1][-1] == 0
    assert official("the").input_ids == [4, 1]


def trained() -> Tokenizer:
    """A unigram model of a few lines, as transformers makes T5's of it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace("  ", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(PLAIN * 8 + ["ein Lied", "la canción"], trainer)
    return tokenizer


def test_a_trained_model_keeps_its_ids():
    tokenizer = trained()
    model = json.loads(tokenizer.to_str())["model"]
    ours = tokenizer_of(spiece_bytes([tuple(piece) for piece in model["vocab"]]))
    assert len(model["vocab"]) > 50 and ours.get_vocab_size() == len(model["vocab"])
    for text in TEXTS[:10]:
        assert ours.encode(text).ids == tokenizer.encode(" ".join(text.split())).ids, text


def test_sentencepiece_reads_the_same_model_and_gives_the_same_ids():
    sentencepiece = pytest.importorskip("sentencepiece")
    model = spiece_bytes(pieces())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = tokenizer_of(model)
    assert theirs.get_piece_size() == ours.get_vocab_size() and theirs.unk_id() == 2 and theirs.eos_id() == 1
    for text in (text for text in PLAIN if "\n" not in text):  # its normalizer is none
        assert ours.encode(text).ids == theirs.encode(text), text


def test_a_model_of_sentencepieces_own_gives_its_ids():
    """With umt5's kind of normalizer, a character map that makes spaces of all white space."""
    sentencepiece, model = pytest.importorskip("sentencepiece"), io.BytesIO()
    lines = [text.replace("\n", " ") for text in PLAIN if text.strip()] * 20
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "user_defined_symbols": ["<extra_id_0>"]}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=80, normalization_rule_name="nmt_nfkc",
        model_type="unigram", hard_vocab_limit=False, minloglevel=2, **special,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = tokenizer_of(model.getvalue())
    assert theirs.get_piece_size() == ours.get_vocab_size() and "Precompiled" in ours.to_str()
    wide = "\uff44\uff52\uff55\uff4d\u3000\ufb01"  # full-width letters and space, a ligature
    for text in (*PLAIN, wide):
        assert ours.encode(text).ids == theirs.encode(text), text
    assert ours.encode("<extra_id_0>").ids == [theirs.piece_to_id("<extra_id_0>")]
    bpe = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=bpe, vocab_size=80, model_type="bpe", minloglevel=2
    )
    with pytest.raises(ValueError, match="it must be a unigram model, got type 2"):
        tokenizer_of(bpe.getvalue())


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda model: model[:-2], "it is no protocol buffer"),
        (lambda model: b"\xff" * 20, "it is no protocol buffer"),
        (lambda model: b"", "it must be a unigram model, got type 1 of 0 pieces"),
        (lambda model: model + bytes([2 << 3 | 2, 2, 3 << 3, 2]), "it must be a unigram model, got type 2 of"),
        (lambda model: spiece_bytes(pieces()[:1]), "is not"),
        (
            lambda model: spiece_bytes([*pieces(), *((f"w{i}", -9.0) for i in range(200))]),
            "and at most 384 tokens, got",
        ),
    ],
)
def test_bytes_that_are_no_such_model_are_refused_in_one_sentence(copy, spoil, reason):
    path = copy("aio", "v1")
    model = spoil(spiece_bytes(pieces()))
    edit(
        path, lambda v: v.update({SPIECE: torch.frombuffer(bytearray(model or b"\0"), dtype=torch.uint8)[: len(model)]})
    )
    text = refusal(open_checkpoint(path).tokenizer)
    assert reason in text and SPIECE in text


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda file: file.write_text("{}"), "is not a tokenizer"),
        (lambda file: file.unlink(), "the text tokenizer is not on this machine"),
        (lambda file: file.write_text(file.read_text().replace("</s>", "</z>")), "it needs </s>"),
    ],
)
def test_a_tokenizer_file_that_is_not_is_refused(copy, spoil, reason):
    path = copy("official", "v1")
    spoil(path / "umt5-base/tokenizer.json")
    assert reason in refusal(open_checkpoint(path).tokenizer)


def test_a_tokenizer_file_without_the_end_gets_it(copy):
    path = copy("official", "v1")
    file = path / "umt5-base/tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    assert open_checkpoint(path).tokenizer()("the").input_ids == [4, 1]


def test_a_single_file_without_a_tokenizer_takes_the_hubs(copy, written, downloads):
    path = copy("aio", "v1")
    edit(path, lambda values: values.pop(SPIECE))
    checkpoint = open_checkpoint(path)
    assert "the text tokenizer is not on this machine" in refusal(checkpoint.tokenizer)
    downloads.answer = written("official", "v1")
    assert checkpoint.tokenizer()("the").input_ids == [4, 1]
    assert downloads[-1] == ("ACE-Step/ACE-Step-v1-3.5B", ["umt5-base/tokenizer.json"])
