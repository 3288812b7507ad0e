"""ACE-Step 1.5 behind the seams that the pipeline speaks: conditions, velocity, encode, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acefast.backends import cpu_kernels_take, named_backend
from acefast.conditions import Conditions
from acefast.guidance import Guidance
from acefast.host import host_memory, on_host
from acefast.models import model
from acefast.models.v15 import vae, vae_static
from acefast.models.v15.buffers import padded_tokens
from acefast.models.v15.checkpoint import load_text_encoder
from acefast.models.v15.codes import AudioDetokenizer, AudioTokenizer
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.dit import DiT
from acefast.models.v15.loop import Sampling
from acefast.models.v15.step import Step
from acefast.models.v15.tasks import build_task, continuation, frames_of
from acefast.models.v15.text import Conditioning
from acefast.models.v15.vae_range import load_coder
from acefast.request import Request
from acefast.residence import Part
from acefast.tasks import Recording, Task, read_audio

SILENT_FRAMES = 64  # of digital silence to encode where a checkpoint brings no silence latent


class Model(Conditioning, Sampling, model.Model):
    """A checkpoint's networks on one device. Parts that only some tasks need are loaded when one asks for them."""

    early = ("decoder", "text_encoder", "condition_encoder", "transformer")
    continues = True

    text_encoder = Part("text", lambda m: load_text_encoder(m.checkpoint, m.device, m.dtype))
    condition_encoder = Part("text", lambda m: m._load(ConditionEncoder, m.config))
    transformer = Part("diffusion", lambda m: m._load(DiT, m.config, m.quantization == "int8"))
    decoder = Part("decode", lambda m: m._coder(vae.Decoder))
    encoder = Part("source", lambda m: m._coder(vae.Encoder), "Of source and reference audio.")
    audio_tokenizer = Part("source", lambda m: m._load(AudioTokenizer, m.config), "Latents to 5 Hz codes, for covers.")
    audio_detokenizer = Part(
        "source", lambda m: m._load(AudioDetokenizer, m.config), "5 Hz codes to latent hints, for covers and codes."
    )

    def __init__(self, *about: Any, **options: Any) -> None:
        """See ``acefast.models.model.Model``."""
        self.silences = {}
        super().__init__(*about, **options)

    def _coder(self, kind: type[nn.Module]) -> nn.Module:
        def load(dtype: torch.dtype) -> nn.Module:
            spectral = cpu_kernels_take(dtype, self.device)
            return self._load(kind, self.checkpoint.vae_config, spectral, dtype=dtype)

        coder = load_coder(load, self.dtype, self.device)
        coder.graphs = self.tile_graphs
        return coder

    def forget(self) -> None:
        """Forget what was computed with the weights that the networks had: encodings, and what steps hold of them."""
        super().forget()
        self.silences.clear()

    # -- before work starts ------------------------------------------------------------------------------------------

    def check(self, requests: list[Request]) -> tuple[Recording | None, np.ndarray | None]:
        """Read the source and reference audio of a batch; raises RequestError before anything is computed."""
        recording, reference = read_audio(requests[0])
        for request in requests:
            if request.lyrics_overflow == "refuse":
                self.tokens(request, request.duration if recording is None else recording.seconds)
        return recording, reference

    # -- what a song begins with -------------------------------------------------------------------------------------

    def task(self, requests: list[Request], recording: Recording | None) -> Task:
        """Source latents, mask and length of a batch."""
        return build_task(
            requests,
            recording,
            silence=self.silence,
            encode=self.encode,
            to_codes=self.codes,
            from_codes=self.hints,
        )

    def continuation(self, frames: int, kept: Tensor | None = None) -> Task:
        """A song of ``frames`` frames that goes on from its first latents, ``kept`` [1, n, D]; None: all is made."""
        return continuation(frames, kept, self.silence(frames))

    def bucket(self, request: Request) -> int:
        """Of text2music: the number of tokens that the song's length is rounded up to on a GPU."""
        frames = frames_of(request.duration, request.semantics)
        return padded_tokens(-(-frames // self.config.patch_size))

    @cached_property
    def null_condition(self) -> Tensor | None:
        """What unconditional rows are conditioned on, [1, 1, W], a tensor of its own; turbo models need none."""
        return None if self.traits.is_turbo else self.condition_encoder.null_condition_emb.clone()

    # -- the diffusion loop's side -----------------------------------------------------------------------------------

    def velocity(self, latents: Tensor, timestep: float, conditions: Conditions, **options) -> Tensor:
        """Velocity (noise minus data) at ``timestep``: [B, T, 64] float32; see ``DiT.forward``."""
        return self.transformer(latents, timestep, conditions, **options)

    def advance(
        self,
        conditions: Conditions,
        timesteps: list[float],
        songs: int,
        guidance: Guidance,
        solver: str,
        seeds: list[int],
        *,
        held: tuple[Tensor, Tensor, Tensor, int] | None = None,
        later: Conditions | None = None,
        switch: int | None = None,
    ) -> Step | None:
        """What takes whole steps on a GPU's static memory; None where there is none, and for what no such step does.

        Args:
            conditions, timesteps, songs, guidance, seeds, held, later, switch: see ``Step.load``.
        """
        if not self.transformer.static or solver == "heun" or not Step.fuses(guidance):
            return None
        sde = solver == "sde"
        structure = dict(sde=sde, repaint=held is not None, later=later)
        shape = Step.shape_of(self.transformer, songs, conditions, len(timesteps), guidance, **structure)
        key = (shape, self.dtype, self.device, named_backend())
        step = self.graphs.kept("step", key, lambda: Step(self.transformer, shape, self.graphs))
        options = dict(seeds=seeds if sde else None, held=held, later=later, switch=switch)
        return step.load(conditions, timesteps, guidance, **options)

    # -- latents, codes, audio ---------------------------------------------------------------------------------------

    @cached_property
    def _silence(self) -> Tensor:
        silence = self.checkpoint.silence_latent()
        if silence is None:  # single-file checkpoints: encode silence; beyond its first frames it is constant
            hop = self.checkpoint.vae_config.hop
            frames = self.encode(np.zeros((2, SILENT_FRAMES * hop), np.float32))[0][0].cpu()
            half = SILENT_FRAMES // 2
            silence = torch.cat([frames[:half], frames[half : half + 1].expand(15_000 - half, -1)])
        return silence.to(torch.float32)

    def silence(self, frames: int) -> Tensor:
        """[1, frames, D] float32 on the model's device: the latents of silence, tiled beyond the checkpoint's 600 s."""
        times = -(-frames // len(self._silence))
        return self._silence.repeat(times, 1)[None, :frames].to(self.device)

    def encode(self, audio: np.ndarray) -> tuple[Tensor, Tensor]:
        """[2, N] audio at 48 kHz to the posterior's mean and standard deviation, each [1, N // 1920, D] float32."""
        with self.coding.held():
            return vae.encode(self.encoder, torch.from_numpy(audio)[None].to(self.device))

    def codes(self, latents: Tensor) -> list[int]:
        """5 Hz codes of latents [1, T, D]; the last code is filled up with silence."""
        silence = self.silence(self.config.pool_window_size)[0]
        return self.audio_tokenizer.tokenize(latents.to(self.dtype), silence.to(self.dtype))[0].tolist()

    def hints(self, codes: list[int]) -> Tensor:
        """[1, 5 * n, D] float32 latents of 5 Hz codes."""
        return self.audio_detokenizer(torch.tensor([codes], device=self.device)).float()

    def decode(
        self, latents: Tensor, on_tile: Callable[[int, int], None] | None = None, level: float | None = None
    ) -> Tensor:
        """[B, T, D] latents to audio [B, 2, 1920 * T] float32 on the CPU, tile by tile.

        Args:
            level: each song's peak, in dBFS; None leaves it as decoded, as does a sample that is NaN or infinite.
        """

        def told(done: int, frames: int) -> None:
            if on_tile:
                on_tile(done, frames)
                _ = self.decoder  # back, if a song made there has sent it away

        if vae.on_kernels(self.decoder):
            return self._decode_on_kernels(latents, told, level)
        audio, peaks = vae.decode(self.decoder, latents, on_tile=told)
        if level is not None:
            model.levelled(audio, level, peaks)
        return audio.cpu()

    def _decode_on_kernels(self, latents: Tensor, on_tile: Callable[[int, int], None], level: float | None) -> Tensor:
        (B, T, _), hop = latents.shape, self.decoder.hop
        host = host_memory(B, self.decoder.channels, T * hop)
        if level is None:
            pieces = ((at * hop, piece) for at, piece in vae.decode_tiles(self.decoder, latents, soon=False))
        else:  # no sample is known before all are
            audio, peaks = vae.decode(self.decoder, latents, on_tile=on_tile)
            host.zero_()  # so that its pages are there; meanwhile the GPU decodes
            pieces = vae_static.finished(self.decoder, audio, peaks, 10 ** (level / 20))
        for at, piece in on_host(pieces):
            end = at + piece.shape[2]
            host[:, :, at:end] = piece
            if level is None:
                on_tile(end // hop, T)
        return host

    def samples(self, frames: int) -> int:
        """Samples at 48 kHz of so many latent frames."""
        return frames * self.checkpoint.vae_config.hop

    def decode_tiles(self, latents: Tensor, keep: tuple[int, int] | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first frame, audio [B, 2, N] float32 on the CPU) of each tile as it is decoded: the bits of ``decode``.

        ``keep``: the frames from the one to before the other, with the rest as their context; None decodes all.
        """
        tiles = on_host(vae.decode_tiles(self.decoder, latents, keep=keep))
        while self.decoder and (tile := next(tiles, None)):  # back, if others have sent it away since the last tile
            yield tile

    @cached_property
    def context_frames(self) -> int:
        """How many frames on either side a frame's audio depends on."""
        with torch.device("meta"):
            return vae.Decoder(self.checkpoint.vae_config).halo
