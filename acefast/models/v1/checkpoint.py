"""An ACE-Step v1 checkpoint, the hub's four folders or ComfyUI's single file, under the names of ``v1.names``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from acefast import checkpoint as common
from acefast import locate
from acefast.layouts import Bundle
from acefast.mapped import only_while_used
from acefast.models.v1 import names
from acefast.models.v1.config import Config, DCAEConfig, VocoderConfig
from acefast.models.v1.sizes import infer_configs, read_configs
from acefast.models.v15.layers import Linear
from acefast.weights import CheckpointError, Index, Source, Stored, load, open_file, read_header

if TYPE_CHECKING:
    from acefast.request import CheckpointTraits, Request
    from acefast.tasks import Recording

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SHARED, TIED = "umt5.shared.weight", "umt5.encoder.embed_tokens.weight"  # one embedding, under either name or both
CONSTANT = "text_encoders.umt5base.logit_scale"  # of every ComfyUI text model


@dataclass(kw_only=True)
class Checkpoint(common.Checkpoint):
    """See ``acefast.checkpoint.Checkpoint``; its layouts are "official" and "all-in-one"."""

    config: Config
    dcae_config: DCAEConfig
    vocoder_config: VocoderConfig
    text_config: dict[str, Any]  # arguments of transformers' UMT5Config
    spiece: Stored | None = None  # the text tokeniser in a single file

    family = "v1"

    @cached_property
    def traits(self) -> CheckpointTraits:
        """What a request needs to know of the checkpoint for its defaults and its tasks."""
        from acefast.request import CheckpointTraits

        return CheckpointTraits(self.name, False, "v1", family="v1")

    @cached_property
    def expected(self) -> dict[str, names.Shapes]:
        """The tensors of each part and their shapes, by the configs."""
        return {
            "transformer": names.transformer_tensors(self.config),
            "condition_encoder": names.condition_encoder_tensors(self.config),
            "dcae": names.dcae_encoder_tensors(self.dcae_config) | names.dcae_decoder_tensors(self.dcae_config),
            "vocoder": names.vocoder_tensors(self.vocoder_config),
            "text_encoder": names.text_encoder_tensors(self.text_config),
        }

    def is_unused(self, name: str) -> bool:
        """Whether ``name`` is of a tensor that published checkpoints hold and no song needs."""
        return names.unused_kind(name) is not None

    @property
    def vocabulary_folders(self) -> list[Path]:
        """Where a lyric vocabulary may lie: beside the model first."""
        return locate.shared_folders([self.folder, self.folder / names.FOLDERS["dit"], self.folder.parent])

    def model(
        self,
        device: torch.device,
        dtype: torch.dtype,
        graphs: bool | None,
        memory: str,
        quantization: str | None = None,
    ) -> Any:
        """Its networks on a device, an ``acefast.models.v1.model.Model``."""
        from acefast.models.v1.model import Model

        return Model(self, device, dtype, graphs, memory, quantization)

    def check_source(self, request: Request, recording: Recording | None) -> None:
        """Refuse a source that is too long for its task."""
        from acefast.models.v1.tasks import check_source

        check_source(request, recording)

    def tokenizer(self) -> Any:
        """The text encoder's tokeniser (``transformers.PreTrainedTokenizerFast``), from files only.

        It pads on the right with ``<pad>`` and appends ``</s>``, which truncation keeps.
        Raises:
            CheckpointError: there is none, or it is not of this text encoder.
        """
        from tokenizers import Tokenizer
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        from acefast.models.v1.spiece import tokenizer_of

        where = self._tokenizer_file() if self.spiece is None else f"{names.SPIECE} in {self.spiece.file}"
        try:
            tokenizer = Tokenizer.from_file(str(where)) if self.spiece is None else tokenizer_of(self._spiece_bytes())
        except Exception as error:  # the tokenizers library raises plain Exception
            raise CheckpointError(f"{where} is not a tokenizer ({error}); download the checkpoint again") from error
        end, rows = tokenizer.token_to_id(END), self.text_config["vocab_size"]
        if end is None or tokenizer.get_vocab_size() > rows:
            raise CheckpointError(
                f"{where} is not the tokenizer of this text encoder: it needs {END} and at most {rows} tokens, "
                f"got {tokenizer.get_vocab_size()}; use the one of {locate.V1_REPO}"
            )
        if tokenizer.encode("a").ids[-1] != end:
            tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, end)])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokens = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **tokens)

    def _spiece_bytes(self) -> bytes:
        with open_file(self.spiece.file) as file:
            return file.get_tensor(self.spiece.name).numpy().tobytes()

    def _tokenizer_file(self) -> Path:
        file = f"{names.FOLDERS['umt5']}/tokenizer.json"
        if (self.folder / file).is_file():
            return self.folder / file
        return locate.download(locate.V1_REPO, [file], "the text tokenizer", offline=self.offline) / file


def read(bundle: Bundle, asked: str, offline: bool | None = None) -> Checkpoint:
    """Read the headers of all four parts.

    Args:
        asked: the name or path that was asked for.
    Raises:
        CheckpointError: a file is not readable, or a part is missing.
    """
    index, extra, metadata, spiece = {}, {}, {}, None
    for part, files in bundle.parts.items():
        for file in files:
            stored, found = read_header(file)
            metadata |= found
            for name, one in stored.items():
                official = _official(name, part)
                kind = names.unused_kind(official)
                if name == names.SPIECE:
                    spiece = one
                elif kind:
                    extra.setdefault(kind, []).append(one)
                elif name != CONSTANT:
                    index[official] = one
    _tie(index)
    single = bundle.layout == "all-in-one"
    file = bundle.parts[""][0] if single else bundle.folder
    sizes = infer_configs(index, metadata, file) if single else read_configs(bundle.folder, index)
    own = file.stem if single else file.name
    name = next((locate.NAMES["v1"] for text in (Path(asked).name, own) if locate.variant_of(text) == "v1"), own)
    return Checkpoint(
        name=name,
        layout=bundle.layout,
        folder=bundle.folder,
        index=index,
        extra=extra,
        offline=offline,
        spiece=spiece,
        **dict(zip(("config", "dcae_config", "vocoder_config", "text_config"), sizes)),
    )


def _official(name: str, part: str) -> str:
    """Our name of tensor ``name`` of a file with one part, or with "" all of them; of no part it is left as it is."""
    if part:
        return names.plain(f"{part}.{name}")
    for part, prefix in names.PREFIXES.items():
        if name.startswith(prefix):
            return names.plain(f"{part}.{name.removeprefix(prefix)}")
    return name


def _tie(index: Index) -> None:
    """Keep one of the two names of the text encoder's embedding, in place."""
    tied = index.pop(TIED, None)
    if tied is not None:
        index.setdefault(SHARED, tied)


def load_text_encoder(
    checkpoint: Checkpoint, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    """The text encoder, a ``transformers.UMT5EncoderModel`` in eval mode, its embedding held once.

    It makes ``last_hidden_state`` [B, L, 768] of ids [B, L] and their mask.
    Raises:
        CheckpointError: tensors are missing or of a wrong shape.
    """
    model = empty_text_encoder(checkpoint.text_config)
    table = {name: Source((f"umt5.encoder.{name}",)) for name in model.encoder.state_dict()}
    load(model.encoder, table | {"embed_tokens.weight": Source((SHARED,))}, checkpoint, device, dtype)
    model.shared = model.encoder.embed_tokens  # one embedding, of two names the first
    table = {f"encoder.{name}": source for name, source in table.items() if name != "embed_tokens.weight"}
    model.origin = model.encoder.origin._replace(table=table | {"shared.weight": Source((SHARED,))})
    only_while_used(model.encoder.block, model.origin.stamps)
    return model


def empty_text_encoder(text_config: dict[str, Any]) -> nn.Module:
    """The text encoder on "meta"; ``text_config``: arguments of its UMT5Config."""
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(**text_config))
        for module in [*model.modules()]:  # ours are faster on a CPU that is slow at 16 bits
            for name, layer in [*module.named_children()]:
                if type(layer) is nn.Linear:
                    setattr(module, name, Linear(layer.in_features, layer.out_features, layer.bias is not None))
    return model.eval()
