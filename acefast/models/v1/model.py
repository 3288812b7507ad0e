"""ACE-Step v1 behind the seams that the pipeline speaks: conditions, velocity, encode, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from acefast.conditions import Conditions
from acefast.models import model
from acefast.models.v1 import codec
from acefast.models.v1.checkpoint import load_text_encoder
from acefast.models.v1.conditions import ConditionEncoder
from acefast.models.v1.config import FRAME
from acefast.models.v1.dit import DiT
from acefast.models.v1.loop import Sampling
from acefast.models.v1.lyrics import LyricTokenizer, find_vocabulary
from acefast.models.v1.text import INSTRUMENTAL, Conditioning
from acefast.request import Request
from acefast.residence import Part
from acefast.tasks import Recording, read_audio


class Model(Conditioning, Sampling, model.Model):
    """A checkpoint's networks on one device. The encoder is loaded when a task with a source asks for it."""

    early = ("decoder", "text_encoder", "condition_encoder", "transformer")

    text_encoder = Part("text", lambda m: load_text_encoder(m.checkpoint, m.device, m.dtype))
    condition_encoder = Part("text", lambda m: m._load(ConditionEncoder, m.config))
    transformer = Part("diffusion", lambda m: m._transformer())
    decoder = Part("decode", lambda m: m._load(codec.Decoder, *codec.decoder_configs(m.checkpoint, m.device)))
    encoder = Part(
        "source", lambda m: m._load(codec.Encoder, *codec.encoder_configs(m.checkpoint, m.device)), "Of source audio."
    )

    @cached_property
    def lyric_tokenizer(self) -> LyricTokenizer:
        """Lyrics to ids; raises CheckpointError where there is no vocabulary, see ``find_vocabulary``."""
        entries, offline = self.config.lyric_encoder_vocab_size, self.checkpoint.offline
        file = find_vocabulary(self.checkpoint.vocabulary_folders, offline, entries)
        return LyricTokenizer(file, entries)

    def _transformer(self) -> DiT:
        transformer = self._load(DiT, self.config)
        transformer.graphs = self.graphs
        return transformer

    # -- before work starts ------------------------------------------------------------------------------------------

    def check(self, requests: list[Request]) -> tuple[Recording | None, np.ndarray | None]:
        """Read the source audio of a batch and its texts; raises before anything is computed."""
        recording, reference = read_audio(requests[0])
        self.checkpoint.check_source(requests[0], recording)
        for request in requests:
            if request.lyrics_overflow == "refuse":
                self.cuts(request, request.duration if recording is None else recording.seconds)
            for lyrics in (INSTRUMENTAL if request.instrumental else request.lyrics, request.target_lyrics):
                if lyrics:
                    self.lyric_tokenizer.lines(lyrics, request.language)
        return recording, reference

    def velocity(
        self, latents: Tensor, timestep: float, conditions: Conditions, *, unconditional: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """Velocity (noise minus data) at ``timestep``: [B, T, 128] float32; see ``DiT.velocity``."""
        return self.transformer.velocity(latents, timestep, conditions, unconditional=unconditional)

    # -- latents, audio ----------------------------------------------------------------------------------------------

    def encode(self, audio: np.ndarray) -> Tensor:
        """[2, N] audio at 48 kHz to [1, T, 128] float32."""
        with self.coding.held():
            return codec.encode(self.encoder, torch.from_numpy(audio))

    def samples(self, frames: int) -> int:
        """Samples at 48 kHz of so many latent frames."""
        return codec.samples(frames * FRAME)

    def decode(
        self, latents: Tensor, on_tile: Callable[[int, int], None] | None = None, level: float | None = None
    ) -> Tensor:
        """[B, T, 128] latents to audio [B, 2, N] float32 on the CPU, tile by tile; see ``samples``.

        Args:
            level: each song's peak, in dBFS; None leaves it as decoded, as does a sample that is NaN or infinite.
        """
        (B, T, _), done = latents.shape, 0
        audio = torch.empty(B, 2, self.samples(T))
        for at, piece in self.decode_tiles(latents):
            done = at + piece.shape[2]
            audio[:, :, at:done] = piece
            if on_tile:
                on_tile(T * done // audio.shape[2], T)
        return audio if level is None else model.levelled(audio, level)

    def decode_tiles(self, latents: Tensor, keep: tuple[int, int] | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first sample, audio [B, 2, n] float32 on the CPU) of each tile as it is decoded: the bits of ``decode``.

        ``keep``: all frames, which None stands for.
        """
        whole = keep in (None, (0, latents.shape[1]))
        tiles = codec.decode_tiles(self.decoder, latents, None if whole else keep)
        while self.decoder and (tile := next(tiles, None)):  # back, if others have sent it away since the last tile
            yield tile
