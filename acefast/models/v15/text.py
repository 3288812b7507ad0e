"""Prompts, lyrics and reference audio to what ACE-Step 1.5 is conditioned on.

A song's sequence is its lyrics, one token of timbre and its prompt, each encoded on its own and once by content. On a
GPU's kernels a text is padded to a few lengths and encoded on static memory, which a CUDA graph holds.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acefast.backends import choose_backend, named_backend
from acefast.conditions import ConditionCache, Conditions, Encoded
from acefast.graphs import Graphs
from acefast.models.v15.buffers import padded_conditions
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.config import Config
from acefast.models.v15.tasks import REFERENCE_STREAM, posterior
from acefast.ops.qk_norm_rope import rope_table
from acefast.ops.self_attention import row_starts
from acefast.options import listed
from acefast.prompts import LYRIC_TOKENS, TEXT_TOKENS, Tokens, lost_hints, lyric_prompt, text_prompt, tokenize
from acefast.request import Request
from acefast.tasks import Task
from acefast.values import shown
from acefast.waveform import reference_segments

Networks = tuple[nn.Module, ConditionEncoder]  # transformers' Qwen3Model, and ours behind it
OP = "text"


def encode_prompt(networks: Networks, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Prompt ids [B, L] to [B, L, W]; the text encoder is causal, so what is behind a prompt changes none of it."""
    text_encoder, condition_encoder = networks
    # Causal as it is; where transformers makes a mask it reads the positions back.
    no_mask = dict.fromkeys(text_encoder.config.layer_types)
    hidden = text_encoder(input_ids=ids, attention_mask=no_mask, use_cache=False).last_hidden_state
    return condition_encoder.text_encode(hidden)


def encode_lyrics(networks: Networks, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Lyric ids [B, L], of which ``lengths`` [B] count (None: all), to [B, L, W]."""
    text_encoder, condition_encoder = networks
    return condition_encoder.lyric_encode(text_encoder.get_input_embeddings()(ids), lengths)


ENCODERS = {"prompt": encode_prompt, "lyrics": encode_lyrics}
STEPS = {"prompt": 64, "lyrics": 128}  # tokens are padded to multiples


def padded_text(name: str, tokens: int) -> int:
    """Rows that a prompt or lyrics of so many tokens take: 64 to 256, 128 to 2048."""
    return -(-tokens // STEPS[name]) * STEPS[name]


class Encoding:
    """A prompt or lyrics of one padded length on static memory."""

    def __init__(self, encode: Callable[[Tensor, Tensor], Tensor], rows: int, config: Config, weight: Tensor) -> None:
        """
        Args:
            encode: ids [1, rows] and their count [1] to states [1, rows, W].
            weight: whose device and dtype the states have.
        """
        device = weight.device
        self.encode = encode
        self.ids = torch.zeros(1, rows, dtype=torch.int64, device=device)
        self.length = torch.ones(1, dtype=torch.int32, device=device)
        self.states = torch.zeros(1, rows, config.encoder_hidden_size, dtype=weight.dtype, device=device)
        # a graph reads them, and the caches they come from may forget them
        self.held = rope_table(rows, config.head_dim, config.rope_theta, device), row_starts(1, rows, device)
        self.replay: Callable[[], None] = self.launch

    def load(self, ids: tuple[int, ...], padding: int) -> None:
        """Put a text where the next launch reads it."""
        self.ids.copy_(torch.tensor([[*ids, *[padding] * (self.ids.shape[1] - len(ids))]]), non_blocking=True)
        self.length.fill_(len(ids))

    def launch(self) -> None:
        """What a graph holds."""
        self.states.copy_(self.encode(self.ids, self.length))

    def __call__(self, ids: tuple[int, ...], padding: int) -> Tensor:
        """States [n, W] of n ids, in memory of their own."""
        self.load(ids, padding)
        self.replay()
        return self.states[0, : len(ids)].clone()


class Conditioning:
    """The half of ``Model`` that makes conditions."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    tokenizer: Any
    text_encoder: nn.Module
    condition_encoder: ConditionEncoder
    null_condition: Tensor | None
    transformer: Any
    graphs: Graphs
    encodings: ConditionCache
    silences: dict[tuple, Encoded]  # timbres of no reference

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
            reference: [2, N] reference audio whose timbre is taken, or None.
            timesteps: the schedule, whose time embeddings are computed together.
            and_text2music: also make what a cover turns to when its strength is used up: the same under the text2music
                instruction and, in the official semantics, over silence.
        """
        timbres = self._timbres(requests, reference)
        own = self._prepared(requests, task, timbres, timesteps, as_text2music=False)
        return own, self._prepared(requests, task, timbres, timesteps, as_text2music=True) if and_text2music else None

    def _prepared(
        self,
        requests: list[Request],
        task: Task,
        timbres: list[Encoded],
        timesteps: list[float],
        *,
        as_text2music: bool,
    ) -> Conditions:
        request = requests[0]
        ids = [tuple(tuple(t.ids) for t in self.tokens(r, task.told(r), as_text2music)) for r in requests]
        alike = len(set(ids)) == len(timbres) == len(task.source) == 1  # variations of one song: one row serves all
        shared = alike and task.lengths is None
        rows = ids[:1] if shared else ids
        source = task.source
        if as_text2music and request.semantics == "official":
            source = self.silence(task.frames)
        encode = self._encoded_as_upstream if request.pad_mode == "upstream" else self._encoded
        states, lengths, key = encode(rows, timbres)
        null = self.null_condition  # asked for before the transformer, which may take its place on the device
        made = self.transformer.prepare(
            states,
            lengths,
            self.context(source.expand(len(rows), -1, -1), task.mask),
            [*timesteps, 0.0] if request.solver == "heun" else timesteps,
            null_condition=null,
            frames=None if task.lengths is None else torch.tensor(task.lengths),
            upstream_time=request.precision == "upstream",
        )
        made.key = key
        return made

    def context(self, source: Tensor, mask: Tensor) -> Tensor:
        """Source latents [B, T, D] and the mask [T] of every one of their channels, side by side: [B, T, 2 * D]."""
        source = source.to(self.device, self.dtype)
        return torch.cat([source, mask.to(source)[None, :, None].expand_as(source)], -1)

    # -- text --------------------------------------------------------------------------------------------------------

    def tokens(self, request: Request, seconds: float, as_text2music: bool = False) -> tuple[Tokens, Tokens]:
        """A song's text and lyric prompt in tokens."""
        # Only the official code does it, and leaves out a cover's second prompt.
        lego_sft = self.config.is_lego_sft and request.semantics == "official" and not as_text2music
        text = text_prompt(request, seconds, task="text2music" if as_text2music else None, lego_sft=lego_sft)
        overflow = request.lyrics_overflow
        return (
            tokenize(self.tokenizer, text, TEXT_TOKENS, overflow=overflow, name="prompt"),
            tokenize(self.tokenizer, lyric_prompt(request), LYRIC_TOKENS, overflow=overflow, name="lyrics"),
        )

    def cuts(self, request: Request, seconds: float) -> list[str]:
        """What of a song's prompt and lyrics is over the model's limits and is cut, a sentence each."""
        told = []
        for name, tokens in zip(("prompt", "lyrics"), self.tokens(request, seconds)):
            if tokens.cut:
                hints = lost_hints(request, tokens.lost) if name == "prompt" else []
                told.append(
                    f"{name} is too long: its last {tokens.cut} tokens were cut, from {shown(tokens.lost[:60])} on"
                    + (f", and with them {listed(hints)}" if hints else "")
                )
        return told

    def _encoded(self, ids: list, timbres: list[Encoded]) -> tuple[Tensor, Tensor, tuple]:
        """Of each song's (prompt, lyrics): states [B, E, W], how many of them count [B], and a key of all of it.

        Each text is encoded on its own, so that no song depends on the padding of another. On static memory nothing
        waits for the GPU.
        """
        songs = [
            (self._text("lyrics", lyrics), timbres[i % len(timbres)], self._text("prompt", prompt))
            for i, (prompt, lyrics) in enumerate(ids)
        ]
        lengths = [sum(len(part.states) for part in song) for song in songs]
        longest = max(lengths)
        states = timbres[0].states.new_zeros(
            len(songs), padded_conditions(longest) if self._static else longest, self.config.encoder_hidden_size
        )
        for row, song, length in zip(states, songs, lengths):
            torch.cat([part.states for part in song], out=row[:length])
        counts = torch.tensor(lengths).to(self.device, non_blocking=True)
        return states, counts, tuple(tuple(part.serial for part in song) for song in songs)

    def _encoded_as_upstream(self, ids: list, timbres: list[Encoded]) -> tuple[Tensor, None, int]:
        """The same as one padded batch, all of which counts: upstream attends to the padding as well."""

        def padded(texts: tuple) -> tuple[Tensor, Tensor]:
            rows, counts = [torch.tensor(t) for t in texts], torch.tensor([len(t) for t in texts])
            pad = self.tokenizer.pad_token_id
            return nn.utils.rnn.pad_sequence(rows, True, pad).to(self.device), counts.to(self.device)

        def encode() -> Tensor:
            (prompts, prompt_lengths), (lyrics, lyric_lengths) = map(padded, zip(*ids))
            states, _ = self.condition_encoder(
                self.text_encoder(input_ids=prompts, use_cache=False).last_hidden_state,
                prompt_lengths,
                self.text_encoder.get_input_embeddings()(lyrics),
                lyric_lengths,
                timbre_vector=torch.cat([timbre.states for timbre in timbres]),
                pad_mode="upstream",
            )
            return states

        key = ("batch", tuple(ids), tuple(timbre.serial for timbre in timbres), *self._way)
        found = self.encodings.get(key, encode)
        return found.states, None, found.serial

    def _text(self, name: str, ids: tuple[int, ...]) -> Encoded:
        """A prompt's or lyrics' states."""
        return self.encodings.get((name, ids, *self._way), lambda: self._encode_text(name, ids))

    def _encode_text(self, name: str, ids: tuple[int, ...]) -> Tensor:
        encode = partial(ENCODERS[name], (self.text_encoder, self.condition_encoder))
        if not self._static:
            return encode(torch.tensor([ids], device=self.device))[0]
        rows = padded_text(name, len(ids))

        def make() -> Encoding:
            made = Encoding(encode, rows, self.config, self.condition_encoder.null_condition_emb)
            own = weakref.proxy(made)  # so that what is forgotten is gone at once, its graph too
            made.replay = self.graphs.replayed(name, lambda: own.launch())
            return made

        return self.graphs.kept(name, (rows, named_backend()), make)(ids, self.tokenizer.pad_token_id)

    @property
    def _static(self) -> bool:
        """Whether texts are encoded on static memory: where the Triton kernels are in force."""
        return choose_backend(OP, None, self.device, ("triton",)) == "triton"

    @property
    def _way(self) -> tuple:
        """What the bits of an encoding depend on beside its content."""
        return named_backend(), self._static

    # -- timbre ------------------------------------------------------------------------------------------------------

    def _timbres(self, requests: list[Request], reference: np.ndarray | None) -> list[Encoded]:
        """Timbre [1, W] of the reference audio, one a song where it is sampled; the checkpoint's constant for none."""
        semantics = requests[0].semantics
        if reference is None:
            key = (semantics, *self._way)
            if key not in self.silences:
                frames = self.silence(self.config.timbre_fix_frame).to(self.device, self.dtype)
                made = self.condition_encoder.timbre_encode(frames, semantics=semantics)
                self.silences[key] = Encoded.of(made)
            return [self.silences[key]]
        segments = reference_segments(reference)
        digest, encoded = hashlib.blake2b(segments).digest(), cache(lambda: self.encode(segments))

        def timbre(request: Request) -> Tensor:
            frames = posterior([request], encoded(), REFERENCE_STREAM)
            return self.condition_encoder.timbre_encode(frames.to(self.dtype), semantics=semantics)

        if requests[0].posterior == "mean":
            return [self.encodings.get(("timbre", digest, semantics, *self._way), partial(timbre, requests[0]))]
        keys = [("timbre", digest, semantics, r.seed, *self._way) for r in requests]
        return [self.encodings.get(key, partial(timbre, r)) for key, r in zip(keys, requests)]
