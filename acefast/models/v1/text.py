"""Prompts and lyrics to what ACE-Step v1 is conditioned on, each text encoded on its own and once by content.

A song's sequence is a speaker token, its prompt and its lyrics. Guidance compares it with a null sequence of the same
length, and double guidance with one that knows the prompt alone. Entropy-rectified guidance (ERG) makes them not of
nothing but of weakened encodings: some layers see their queries scaled by ``NULL_SCALE``, which evens attention out.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acefast.conditions import ConditionCache, Conditions, Encoded
from acefast.models.v1.conditions import ConditionEncoder
from acefast.models.v1.config import NULL_SCALE, Config
from acefast.prompts import TEXT_TOKENS, Tokens, tokenize
from acefast.request import Request
from acefast.tasks import Task
from acefast.values import shown

WEAK_BLOCKS = range(8, 10)  # of the text encoder
INSTRUMENTAL = "[inst]"  # a token of the lyric vocabulary, which "[instrumental]" is not
Words = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and lyrics in tokens


def encode_text(encoder: nn.Module, ids: Tensor, *, weak: bool = False) -> Tensor:
    """Prompt ids [B, L] to the last states [B, L, 768] of transformers' ``UMT5EncoderModel``; ``weak``: as in ERG."""
    with weakened(encoder) if weak else contextlib.nullcontext():
        return encoder(input_ids=ids).last_hidden_state  # all of them count: one text, no padding


@contextlib.contextmanager
def weakened(encoder: nn.Module) -> Iterator[None]:
    """Within the block, and in this thread alone, queries of the encoder's ``WEAK_BLOCKS`` are scaled."""
    own = threading.get_ident()

    def scale(_: nn.Module, __: tuple, out: Tensor) -> Tensor | None:
        return out * NULL_SCALE if threading.get_ident() == own else None

    blocks = encoder.encoder.block[WEAK_BLOCKS.start : WEAK_BLOCKS.stop]
    hooks = [block.layer[0].SelfAttention.q.register_forward_hook(scale) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Conditioning:
    """The half of ``Model`` that makes conditions."""

    config: Config
    device: torch.device
    tokenizer: Any
    lyric_tokenizer: Any
    text_encoder: nn.Module
    condition_encoder: ConditionEncoder
    transformer: Any
    encodings: ConditionCache

    def conditions(
        self,
        requests: list[Request],
        task: Task,
        reference: np.ndarray | None,
        timesteps: list[float],
        *,
        and_text2music: bool = False,
    ) -> tuple[Conditions, Conditions | None]:
        """What the transformer is conditioned on, prepared for sampling.

        Args:
            reference: recordings set no condition of this model.
            timesteps: the schedule, whose time embeddings are computed together.
            and_text2music: nor does any task turn to text2music on its way.
        Returns:
            the songs' conditions and, of the task "edit", those of the source: the first are then of the target.
        """
        edit = requests[0].task == "edit"
        # all texts first: where memory is low, the transformer takes the encoders' place
        branches = [self._branches(requests, target=target) for target in ((True, False) if edit else (False,))]
        made = []
        for key, given in branches:
            made.append(self.transformer.prepare(frames=task.frames, timesteps=timesteps, **given))
            made[-1].key = key
        return made[0], made[1] if edit else None

    def _branches(self, requests: list[Request], *, target: bool) -> tuple[Hashable, dict[str, Any]]:
        """The key of songs' content, and their branches as ``DiT.prepare`` takes them."""
        request = requests[0]
        words = [self._words(r, target=target) for r in requests]
        if len(set(words)) == 1:  # variations of one song: one row serves all
            words = words[:1]
        edit, guided = request.task == "edit", request.guidance_scale not in (0, 1)
        double = guided and request.guidance_text > 1 and request.guidance_lyric > 1
        weak_text = request.erg_tag and request.erg_lyric
        sequence = self.condition_encoder.sequence
        conditional, null, text_only, key = [], [], [], []
        for prompt, lyrics in words:
            text, sung = self._text(prompt), self._lyrics(lyrics)
            key.append((text.serial, sung and sung.serial))
            conditional.append(sequence(text.states, sung and sung.states))
            if not guided:
                continue
            if edit:  # upstream masks the lyrics of this one
                null.append(sequence(len(prompt)))
                continue
            other = self._lyrics(lyrics, weak=True) if request.erg_lyric else self._lyrics((0,) * len(lyrics))
            other = other and other.states
            null.append(sequence(self._text(prompt, weak=True).states if weak_text else len(prompt), other))
            if double:
                text_only.append(sequence(text.states, other))
        given = dict(conditional=conditional, null=null, text_only=text_only)
        given["weak_null"] = request.erg_diffusion and not edit
        return (guided, edit, double, request.erg_tag, request.erg_lyric, request.erg_diffusion, *key), given

    # -- tokens ------------------------------------------------------------------------------------------------------

    def prompt_tokens(self, request: Request, prompt: str) -> Tokens:
        """A prompt as it is, in tokens: at most 256, the last of them the end."""
        return tokenize(self.tokenizer, prompt, TEXT_TOKENS, overflow=request.lyrics_overflow, name="prompt")

    def cuts(self, request: Request, seconds: float) -> list[str]:
        """What of a song's prompts is over the model's limit and is cut, a sentence each. Lyrics have no limit."""
        prompts = {"prompt": request.prompt, "target_prompt": request.target_prompt}
        told = []
        for name, prompt in prompts.items():
            tokens = None if prompt is None else self.prompt_tokens(request, prompt)
            if tokens and tokens.cut:
                told.append(
                    f"{name} is too long: its last {tokens.cut} tokens were cut, from {shown(tokens.lost[:60])} on"
                )
        return told

    def _words(self, request: Request, *, target: bool) -> Words:
        """A song's prompt and lyrics, or what an edit is to make of them; of no lyrics there are no tokens."""
        prompt, lyrics = request.prompt, INSTRUMENTAL if request.instrumental else request.lyrics
        if target:
            prompt = prompt if request.target_prompt is None else request.target_prompt
            lyrics = lyrics if request.target_lyrics is None else request.target_lyrics
        ids = self.lyric_tokenizer.ids(lyrics, request.language) if lyrics else ()
        return tuple(self.prompt_tokens(request, prompt).ids), tuple(ids)

    # -- encodings, of which nobody may write to one -----------------------------------------------------------------

    def _text(self, ids: Sequence[int], *, weak: bool = False) -> Encoded:
        """A prompt's states [Lt, H]."""

        def make() -> Tensor:
            hidden = encode_text(self.text_encoder, torch.tensor([ids], device=self.device), weak=weak)
            return self.condition_encoder.text_encode(hidden)[0]

        return self.encodings.get(("prompt", ids, weak), make)

    def _lyrics(self, ids: Sequence[int], *, weak: bool = False) -> Encoded | None:
        """Lyrics' states [Ll, H]; None of no lyrics."""

        def make() -> Tensor:
            return self.condition_encoder.lyric_encode(torch.tensor([ids], device=self.device), weak=weak)[0]

        return self.encodings.get(("lyrics", ids, weak), make) if ids else None
