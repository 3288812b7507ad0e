"""A small byte-level BPE in the real tokeniser's format, trained on the prompts that the demo model will read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"
VOCABULARY = 1280
# As the real one: words with the space ahead of them; but numbers are whole, so that a tempo is one token.
SPLIT = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+")


def train_tokenizer(texts: Iterable[str], size: int = VOCABULARY) -> Tokenizer:
    """Learn merges from ``texts``; every byte stays a token, so that any text can be written.

    Returns:
        a tokeniser of at most ``size`` tokens that appends ``<|endoftext|>``.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(SPLIT, "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    end = AddedToken(END, normalized=False, special=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((text.replace(END, "") for text in texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and its config."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": END, "eos_token": END}
    values |= {"padding_side": "right", "model_max_length": 32_768}
    (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2) + "\n")
