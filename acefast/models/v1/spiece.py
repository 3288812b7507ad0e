"""A text tokeniser from the bytes of a SentencePiece unigram model, which is how ComfyUI's single file carries it.

The model is a protocol buffer of which five fields matter; they are read here, so that neither ``sentencepiece`` nor
``protobuf`` is needed. The tokeniser is the one that transformers makes of such a model for T5, and gives its ids.

    ModelProto       1: pieces  2: trainer  3: normalizer
    SentencePiece    1: text    2: score (float)    3: type (1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte)
    TrainerSpec      3: type of model (1 unigram, 2 BPE)    40: id of the unknown piece
    NormalizerSpec   2: character map
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNIGRAM, CONTROL, USER_DEFINED = 1, 3, 4


def tokenizer_of(model: bytes) -> Tokenizer:
    """The tokeniser of a SentencePiece model.

    Raises:
        ValueError: it is damaged or not a unigram model.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    pieces, kinds, trainer, charsmap = [], [], {}, b""
    for number, value in fields(model):
        if number == 1:
            piece = dict(fields(value))
            pieces.append((piece.get(1, b"").decode(), struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0))
            kinds.append(piece.get(3, 1))
        elif number == 2:
            trainer = dict(fields(value))
        elif number == 3:
            charsmap = dict(fields(value)).get(2, b"")
    if trainer.get(3, UNIGRAM) != UNIGRAM or not pieces:
        raise ValueError(f"it must be a unigram model, got type {trainer.get(3, UNIGRAM)} of {len(pieces)} pieces")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=trainer.get(40, 0)))
    tokens = [(p, kind == CONTROL) for (p, _), kind in zip(pieces, kinds) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(p, normalized=False, special=special) for p, special in tokens])
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap), spaces]) if charsmap else spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return tokenizer


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protocol buffer's fields: integers as they are, all else as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    try:
        while at < len(message):
            key = varint()
            if key & 7 == 0:
                yield key >> 3, varint()
                continue
            size = {1: 8, 5: 4}[key & 7] if key & 7 != 2 else varint()
            at += size
            if at > len(message):
                raise IndexError
            yield key >> 3, message[at - size : at]
    except (IndexError, KeyError) as error:
        raise ValueError("it is no protocol buffer") from error
