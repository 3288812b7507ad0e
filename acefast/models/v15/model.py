"""ACE-Step 1.5 behind the seams that the pipeline speaks: conditions, velocity, encode, decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from acefast.checkpoint import Checkpoint, load, load_text_encoder
from acefast.conditions import Conditions
from acefast.guidance import Guidance
from acefast.lanes import Lane
from acefast.models.v15 import vae
from acefast.models.v15.buffers import padded_tokens
from acefast.models.v15.codes import AudioDetokenizer, AudioTokenizer
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.dit import DiT
from acefast.models.v15.step import Step
from acefast.models.v15.tasks import REFERENCE_STREAM, build_task, continuation, frames_of, posterior
from acefast.models.v15.vae_range import load_coder
from acefast.ops.pcm import pcm
from acefast.ops.sampler_step import Repaint
from acefast.options import listed
from acefast.prompts import LYRIC_TOKENS, TEXT_TOKENS, Tokens, lost_hints, lyric_prompt, text_prompt, tokenize
from acefast.request import Request
from acefast.tasks import Recording, Task, read_audio
from acefast.values import shown
from acefast.waveform import reference_segments

SILENT_FRAMES = 64  # of digital silence to encode where a checkpoint brings no silence latent


class Model:
    """A checkpoint's networks on one device. Parts that only some tasks need are loaded when one asks for them."""

    sample_rate = 48_000

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.config, self.traits = checkpoint.config, checkpoint.traits
        self.coding = Lane(device, beside=True)  # work of the audio autoencoder, whose memory is its own
        self.tokenizer = checkpoint.tokenizer()
        self.decoder = self._coder(vae.Decoder)
        self.text_encoder = load_text_encoder(checkpoint, device, dtype)
        self.condition_encoder = self._load(ConditionEncoder, self.config)
        self.transformer = self._load(DiT, self.config)

    @cached_property
    def encoder(self) -> nn.Module:
        """The audio encoder, for tasks with source or reference audio."""
        return self._coder(vae.Encoder)

    @cached_property
    def audio_tokenizer(self) -> nn.Module:
        """Latents to 5 Hz codes, for covers."""
        return self._load(AudioTokenizer, self.config)

    @cached_property
    def audio_detokenizer(self) -> nn.Module:
        """5 Hz codes to latent hints, for covers and codes."""
        return self._load(AudioDetokenizer, self.config)

    def _coder(self, kind: type[nn.Module]) -> nn.Module:
        return load_coder(partial(self._load, kind, self.checkpoint.vae_config), self.dtype, self.device)

    def _load(self, kind: type[nn.Module], config: object, dtype: torch.dtype | None = None) -> nn.Module:
        with torch.device("meta"):
            module = kind(config)
        load(module, kind.weight_table(config), self.checkpoint, self.device, dtype or self.dtype)
        return module.eval()

    # -- before work starts ------------------------------------------------------------------------------------------

    def check(self, requests: list[Request]) -> tuple[Recording | None, np.ndarray | None]:
        """Read the source and reference audio of a batch; raises RequestError before anything is computed."""
        recording, reference = read_audio(requests[0])
        for request in requests:
            if request.lyrics_overflow == "refuse":
                self._tokens(request, request.duration if recording is None else recording.seconds)
        return recording, reference

    # -- conditions --------------------------------------------------------------------------------------------------

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
        timbre = self._timbre(requests, reference)
        own = self._prepared(requests, task, timbre, timesteps, as_text2music=False)
        return own, self._prepared(requests, task, timbre, timesteps, as_text2music=True) if and_text2music else None

    def _prepared(
        self, requests: list[Request], task: Task, timbre: Tensor, timesteps: list[float], *, as_text2music: bool
    ) -> Conditions:
        request = requests[0]
        ids = [tuple(tuple(t.ids) for t in self._tokens(r, task.told(r), as_text2music)) for r in requests]
        alike = len(set(ids)) == len(timbre) == len(task.source) == 1  # variations of one song: one row serves all
        shared = alike and task.lengths is None
        rows = ids[:1] if shared else ids
        source = task.source
        if as_text2music and request.semantics == "official":
            source = self.silence(task.frames)
        context = self.context(source.expand(len(rows), -1, -1), task.mask)
        if request.pad_mode == "upstream":
            states, _ = self._encode(rows, timbre, request)
            lengths = None  # upstream attends to the padding as well
        else:
            states, lengths = self._encode_each(rows, timbre, request)
        return self.transformer.prepare(
            states,
            lengths,
            context,
            [*timesteps, 0.0] if request.solver == "heun" else timesteps,
            null_condition=None if self.traits.is_turbo else self.condition_encoder.null_condition_emb,
            frames=None if task.lengths is None else torch.tensor(task.lengths),
            upstream_time=request.precision == "upstream",
        )

    def bucket(self, request: Request) -> int:
        """Of text2music: the number of tokens that the song's length is rounded up to on a GPU."""
        frames = frames_of(request.duration, request.semantics)
        return padded_tokens(-(-frames // self.config.patch_size))

    def context(self, source: Tensor, mask: Tensor) -> Tensor:
        """Source latents [B, T, D] and the mask [T] of every one of their channels, side by side: [B, T, 2 * D]."""
        source = source.to(self.device, self.dtype)
        return torch.cat([source, mask.to(source)[None, :, None].expand_as(source)], -1)

    def cuts(self, request: Request, seconds: float) -> list[str]:
        """What of a song's prompt and lyrics is over the model's limits and is cut, a sentence each."""
        told = []
        for name, tokens in zip(("prompt", "lyrics"), self._tokens(request, seconds)):
            if tokens.cut:
                hints = lost_hints(request, tokens.lost) if name == "prompt" else []
                told.append(
                    f"{name} is too long: its last {tokens.cut} tokens were cut, from {shown(tokens.lost[:60])} on"
                    + (f", and with them {listed(hints)}" if hints else "")
                )
        return told

    def _tokens(self, request: Request, seconds: float, as_text2music: bool = False) -> tuple[Tokens, Tokens]:
        """A song's text and lyric prompt in tokens."""
        # Only the official code does it, and leaves out a cover's second prompt.
        lego_sft = self.config.is_lego_sft and request.semantics == "official" and not as_text2music
        text = text_prompt(request, seconds, task="text2music" if as_text2music else None, lego_sft=lego_sft)
        overflow = request.lyrics_overflow
        return (
            tokenize(self.tokenizer, text, TEXT_TOKENS, overflow=overflow, name="prompt"),
            tokenize(self.tokenizer, lyric_prompt(request), LYRIC_TOKENS, overflow=overflow, name="lyrics"),
        )

    def _encode_each(self, ids: list, timbre: Tensor, request: Request) -> tuple[Tensor, Tensor]:
        """Every distinct prompt on its own, so that no song depends on the padding of another; then one batch."""
        keys = [(pair, i if len(timbre) > 1 else 0) for i, pair in enumerate(ids)]
        found = {(pair, i): self._encode([pair], timbre[i : i + 1], request)[0][0] for pair, i in dict.fromkeys(keys)}
        rows = [found[key] for key in keys]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths

    def _encode(self, ids: list, timbre: Tensor, request: Request) -> tuple[Tensor, Tensor]:
        """One padded batch of (text ids, lyric ids) through the text encoder and the condition encoder."""
        (text, text_lengths), (lyric, lyric_lengths) = (self._pad([pair[i] for pair in ids]) for i in (0, 1))
        return self.condition_encoder(
            self.text_encoder(input_ids=text).last_hidden_state,
            text_lengths,
            self.text_encoder.get_input_embeddings()(lyric),
            lyric_lengths,
            timbre_vector=timbre,
            semantics=request.semantics,
            pad_mode=request.pad_mode,
        )

    def _pad(self, rows: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Right-padded ids [B, L] and lengths [B]; the text encoder is causal, so padding changes no valid state."""
        padded = nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=self.tokenizer.pad_token_id
        )
        return padded.to(self.device), torch.tensor([len(row) for row in rows], device=self.device)

    def _timbre(self, requests: list[Request], reference: np.ndarray | None) -> Tensor:
        """[1, W]: timbre of the reference audio, the checkpoint's constant for none; [B, W] where it is sampled."""
        semantics = requests[0].semantics
        if reference is None:
            key = f"silence_timbre_{semantics}"
            if key not in self.__dict__:
                frames = self.silence(self.config.timbre_fix_frame).to(self.device, self.dtype)
                self.__dict__[key] = self.condition_encoder.timbre_encode(frames, semantics=semantics)
            return self.__dict__[key]
        frames = posterior(requests, self.encode(reference_segments(reference)), REFERENCE_STREAM)
        return self.condition_encoder.timbre_encode(frames.to(self.dtype), semantics=semantics)

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
            held: of a repaint: what it makes [T] or [B, T], clean source, initial noise, number of steps to hold on.
            conditions, timesteps, songs, guidance, later, switch: see ``Step``.
        """
        if "buffers" not in conditions.prepared or solver == "heun" or not Step.fuses(guidance):
            return None
        repaint = None
        if held is not None:
            mask, source, noise, steps = held
            mask = (mask != 0).expand(songs, -1).contiguous()
            repaint = Repaint(
                mask, source.contiguous(), noise, torch.tensor([steps], dtype=torch.int32).to(mask.device)
            )
        seeds = seeds if solver == "sde" else None
        return Step(
            *(self.transformer, conditions, timesteps, songs, guidance),
            **dict(seeds=seeds, repaint=repaint, later=later, switch=switch),
        )

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
        audio, peaks = vae.decode(self.decoder, latents, on_tile=on_tile)
        if level is not None:
            levels = torch.full((len(audio),), 10 ** (level / 20), dtype=torch.float64)  # on the CPU: mps has no fp64
            pcm(audio, levels, peaks=peaks, out=audio)
        return audio.cpu()

    def decode_tiles(self, latents: Tensor, keep: tuple[int, int] | None = None) -> Iterator[tuple[int, Tensor]]:
        """(first frame, audio [B, 2, N] float32 on the CPU) of each tile as it is decoded: the bits of ``decode``.

        ``keep``: the frames from the one to before the other, with the rest as their context; None decodes all.
        """
        for first, audio in vae.decode_tiles(self.decoder, latents, keep=keep):
            yield first, audio.cpu()

    @property
    def context_frames(self) -> int:
        """How many frames on either side a frame's audio depends on."""
        return self.decoder.halo
