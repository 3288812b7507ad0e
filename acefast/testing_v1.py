"""Random checkpoints of ACE-Step v1 for ``acefast.testing``: both layouts, a text tokeniser, a lyric vocabulary."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from acefast.config_files import umt5_config_for, v1_configs
from acefast.models.v1 import names
from acefast.models.v1.config import Config, DCAEConfig, VocoderConfig
from acefast.models.v1.sizes import UNSEEN
from acefast.random_weights import Item, RandomTensors, write_safetensors, write_sharded
from acefast.sizes import METADATA_KEY

LAYOUTS = ("official", "aio")
FILE = "ace_step_v1_3.5b.safetensors"  # as ComfyUI's download is called

TINY_V1 = Config(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    speaker_embedding_dim=16,
    text_embedding_dim=32,
    lyric_hidden_size=64,
    lyric_layers=2,
    lyric_heads=4,
    lyric_intermediate_size=128,
    patch_hidden_size=64,
)
TINY_DCAE = DCAEConfig(
    attention_head_dim=16,
    block_out_channels=(8, 16, 32, 64),
    encoder_layers_per_block=(1, 1, 1, 2),
    decoder_layers_per_block=(2, 1, 1, 2),
)
# Seven stages that halve it make one channel of 128; mel frames have 128 bands whatever the size.
TINY_VOCODER = VocoderConfig(
    depths=(1, 1, 2, 1), dims=(16, 24, 32, 48), resblock_kernel_sizes=(3, 7), upsample_initial_channel=128
)
PIECES = ["▁", "▁the", "▁a", "▁and", "the", "ing", "er", "on", "in", "th", "▁s", "▁b", "▁lo", "drum", "beat", "um"]
SPECIAL = {  # of the lyric vocabulary, by id
    **{0: "[STOP]", 1: "[UNK]", 2: "[SPACE]", 259: "[en]", 260: "[de]", 261: "[START]", 262: "[fr]", 267: "[ru]"},
    **{284: "[es]", 285: "[it]", 286: "[pt]", 293: "[cs]", 294: "[pl]", 295: "[tr]", 297: "[nl]", 5022: "[ar]"},
    **{5023: "[zh-cn]", 5412: "[ja]", 5753: "[hu]", 6152: "[ko]", 6680: "[hi]", 6681: "[start]", 6682: "[intro]"},
    **{6683: "[verse]", 6684: "[chorus]", 6685: "[bridge]", 6686: "[outro]", 6687: "[end]", 6688: "[inst]"},
    **{6689: "[solo]", 6690: "[hook]", 6691: "[pre-chorus]", 6692: "[break]"},
}


@dataclass
class Writer:
    """Writes one checkpoint; see ``acefast.testing.write_checkpoint``."""

    folder: Path
    config: Config
    dcae_config: DCAEConfig
    vocoder_config: VocoderConfig
    dtype: torch.dtype
    random: RandomTensors
    shard_bytes: int | None

    def __post_init__(self) -> None:
        c, d = self.config, self.dcae_config
        self.text_config = umt5_config_for(c)
        found = names.transformer_tensors(c) | names.condition_encoder_tensors(c)
        found |= names.dcae_encoder_tensors(d) | names.dcae_decoder_tensors(d)
        found |= names.vocoder_tensors(self.vocoder_config) | names.text_encoder_tensors(self.text_config)
        self.shapes = found | names.unused_tensors(c)

    def items(self, part: str, rename: Callable[[str], str] = str) -> list[Item]:
        """Entries of a file: random values by official name, under the name the layout has."""
        prefix = f"{part}."
        return [
            (rename(n.removeprefix(prefix)), s, lambda n=n, s=s: self.random.pieces(n, s))
            for n, s in self.shapes.items()
            if n.startswith(prefix)
        ]

    def official(self) -> Path:
        """The hub's four folders."""
        configs = v1_configs(self.config, self.dcae_config, self.vocoder_config, self.text_config)
        for part, sub in names.FOLDERS.items():
            folder = self.folder / sub
            stem = "model" if part == "umt5" else "diffusion_pytorch_model"
            write_sharded(folder, stem, self.items(part), self.dtype, self.shard_bytes)
            (folder / "config.json").write_text(json.dumps(configs[part], indent=2) + "\n")
        write_tokenizer(self.folder / names.FOLDERS["umt5"])
        write_vocabulary(self.folder / "vocab.json")
        return self.folder

    def aio(self) -> Path:
        """ComfyUI's single file, with weight norm's newer names."""

        def renamed(prefix: str, name: str) -> str:
            name = name.replace(".weight_g", ".parametrizations.weight.original0")
            return prefix + name.replace(".weight_v", ".parametrizations.weight.original1")

        items: list[Item] = []
        for part, prefix in names.PREFIXES.items():
            items += self.items(part, lambda name, prefix=prefix: renamed(prefix, name))
        spiece = torch.frombuffer(bytearray(spiece_bytes(pieces())), dtype=torch.uint8)
        unseen = {name: getattr(self.config, name) for name in UNSEEN}
        write_safetensors(
            self.folder / FILE,
            [*items, (names.SPIECE, (len(spiece),), lambda: [spiece])],
            self.dtype,
            {METADATA_KEY: json.dumps(unseen)},
        )
        write_vocabulary(self.folder / "vocab.json")
        return self.folder / FILE


def pieces() -> list[tuple[str, float]]:
    """A vocabulary like umt5's in small, with log probabilities: words' beginnings, letters, then single characters."""
    letters = [chr(c) for c in (*range(33, 127), *range(0xC0, 0x180))]
    words = [(piece, -3.0 - 0.05 * i) for i, piece in enumerate(PIECES)]
    return [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *words,
        *((c, -6.0 - 0.01 * i) for i, c in enumerate(letters)),
    ]


def write_tokenizer(folder: Path) -> None:
    """A unigram tokeniser that, like umt5's, ends with ``</s>``."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram(pieces(), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<pad>", "</s>", "<unk>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values, indent=2) + "\n")


def spiece_bytes(pieces: list[tuple[str, float]]) -> bytes:
    """A SentencePiece unigram model (protocol buffer ``ModelProto``) of pieces that begin with pad, end and unknown."""

    def field(number: int, kind: int, payload: bytes) -> bytes:
        return _varint(number << 3 | kind) + (_varint(len(payload)) if kind == 2 else b"") + payload

    kinds = {0: 3, 1: 3, 2: 2}  # control, control, unknown; the rest are normal
    model = b""
    for i, (text, score) in enumerate(pieces):
        piece = field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", score))
        piece += field(3, 0, _varint(kinds.get(i, 1)))
        model += field(1, 2, piece)
    special = {40: 2, 42: 1, 43: 0}  # ids of the unknown, the end, the padding
    trainer = field(3, 0, _varint(1)) + b"".join(field(n, 0, _varint(i)) for n, i in special.items())
    trainer += field(41, 0, _varint((1 << 64) - 1))  # there is no beginning: -1
    normalizer = field(1, 2, b"identity") + b"".join(field(n, 0, _varint(1)) for n in (3, 4, 5))
    return model + field(2, 2, trainer) + field(3, 2, normalizer)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def write_vocabulary(path: Path) -> None:
    """A made-up lyric vocabulary: the special tokens at their ids, letters and a few pairs of them in between."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    letters = [
        chr(c) for c in (*range(33, 91), *range(92, 93), *range(94, 127), *range(0xA1, 0x100), *range(0x410, 0x450))
    ]
    merges = [("t", "h"), ("e", "r"), ("o", "n"), ("i", "n"), ("a", "n"), ("th", "e"), ("in", "g")]
    filling = [*letters, *("".join(m) for m in merges)]
    free = [i for i in range(6681) if i not in SPECIAL]
    rest = (chr(c) for c in range(0x4E00, 0x4E00 + len(free) - len(filling)))
    vocabulary = dict(zip([*filling, *rest], free)) | {t: i for i, t in SPECIAL.items() if i < 6681}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="[UNK]", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(SPECIAL[i], normalized=False, special=True) for i in sorted(SPECIAL)])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
