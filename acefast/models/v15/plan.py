"""The memory of ACE-Step 1.5: its networks' sizes, and what a song takes beside them in each stage."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from acefast.backends import cpu_kernels_take
from acefast.checkpoint import Checkpoint
from acefast.conditions import CACHE_BYTES
from acefast.config_files import text_config_for
from acefast.locate import NAMES
from acefast.memory import LIBRARY, SMALL, Job, Networks, module_bytes, tensor_bytes
from acefast.models.v15 import vae
from acefast.models.v15.buffers import Shape, padded_conditions, padded_steps, padded_tokens, plan_bytes, step_plan
from acefast.models.v15.codes import AudioDetokenizer, AudioTokenizer
from acefast.models.v15.conditions import ConditionEncoder
from acefast.models.v15.config import Config, VAEConfig
from acefast.models.v15.dit import DiT
from acefast.models.v15.layers import residual_dtype
from acefast.models.v15.tasks import frames_of
from acefast.models.v15.vae_range import compute_dtype
from acefast.models.v15.vae_tiling import TILE_FRAMES, arena_bytes, even_size, frames_that_fit
from acefast.prompts import LYRIC_TOKENS, TEXT_TOKENS
from acefast.sizes import text_encoder_tensors

STAGES = {
    "text": (("text_encoder", "condition_encoder"), ("text",)),
    "source": (("encoder", "audio_tokenizer", "audio_detokenizer"), ("tile",)),
    "diffusion": (("transformer",), ("steps", "sampling")),
    "decode": (("decoder",), ("tile", "song")),
}
SIXTEEN = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class V15Networks(Networks):
    """Sizes of an ACE-Step 1.5 model's networks."""

    name: str
    config: Config
    vae_config: VAEConfig
    text_config: dict[str, Any] = dataclasses.field(hash=False)
    quantization: str | None = None

    longest, stages = 600.0, STAGES

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> V15Networks:
        return cls(checkpoint.name, checkpoint.config, checkpoint.vae_config, checkpoint.text_config)

    @classmethod
    def published(cls, variant: str) -> V15Networks:
        from acefast.testing import full_size

        config = dataclasses.replace(full_size(variant)["config"], is_turbo="turbo" in variant)
        return cls(NAMES[variant], config, VAEConfig(), text_config_for(config))

    def completed(self, job: Job) -> Job:
        turbo, most = self.config.is_turbo, TEXT_TOKENS + 1 + LYRIC_TOKENS
        return job.or_else(steps=8 if turbo else 50, guided=not turbo, conditions=most)

    def weights(self, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
        vae_dtype = compute_dtype(dtype, device)
        return _weights(self, dtype, device.type == "cuda", vae_dtype, cpu_kernels_take(vae_dtype, device))

    def work(
        self,
        job: Job,
        dtype: torch.dtype,
        device: torch.device,
        kernels: bool,
        total: int | None,
        captures: bool,
    ) -> tuple[dict[str, int], int]:
        """See ``Networks.work``.

        text       what the encoders of prompt and lyrics need for one song
        cache      prompts and lyrics encoded, kept by content, and where one is encoded
        steps      the steps' arena: activations, conditions with their keys and values, modulations
        sampling   beside it: latents, noise, a schedule's modulations and a weight of the time embedding in fp32
        tile       buffers of the audio autoencoder
        song       while it is decoded: its latents and audio in fp32; of a GPU two tiles' on their way to the host,
                   else what it is finished in
        libraries  of a GPU: scratch of cuBLAS and many small things
        """
        c, v, gpu, size = self.config, self.vae_config, device.type == "cuda", dtype.itemsize
        frames, rows = frames_of(job.seconds, "official"), padded_conditions(job.conditions)
        encoded = rows * c.encoder_hidden_size * size
        text = rows * (3 * c.encoder_intermediate_size + 8 * c.text_hidden_dim) * size + 6 * encoded
        tokens = padded_tokens(-(-frames // c.patch_size))
        shape = Shape(job.songs, job.songs, tokens, rows, padded_steps(job.steps), guided=bool(job.guided))
        arena = step_plan(c, shape, dtype, residual_dtype(dtype))
        steps, latents = plan_bytes(arena), 4 * job.songs * frames * c.audio_acoustic_hidden_dim
        schedule = 4 * job.steps * (6 * c.num_hidden_layers + 2) * c.hidden_size
        if not kernels:  # activations come and go, and attention is computed in fp32
            kept = plan_bytes({name: arena[name] for name in ("cache", "context", "modulation", "modulation_out")})
            steps = kept + 3 * (steps - kept)
        tile, tile_frames = _tile(v, job.songs, frames, device, kernels and dtype in SIXTEEN, total)
        frame = 4 * job.songs * v.audio_channels * v.hop  # of audio in fp32
        audio = (frames + 2 * min(tile_frames, frames)) * frame if gpu else 3 * frames * frame
        return {
            "text": text,
            "cache": min(CACHE_BYTES, job.songs * encoded) + encoded,
            "steps": steps,
            "sampling": 6 * latents + schedule + 4 * 6 * c.hidden_size**2,
            "tile": tile,
            "song": 2 * latents + audio,
            "libraries": LIBRARY * (1 + captures) + SMALL if gpu else 0,
        }, tile_frames


@cache
def _weights(
    networks: V15Networks, dtype: torch.dtype, rounded: bool, vae_dtype: torch.dtype, spectral: bool
) -> dict[str, int]:
    def of(kind: type[nn.Module], config: Any, dtype: torch.dtype, *more: Any) -> int:
        return module_bytes(kind, config, *more, dtype=dtype, rounded=rounded)

    c, v = networks.config, networks.vae_config
    text = text_encoder_tensors(networks.text_config).values()
    return {
        "transformer": of(DiT, c, dtype, networks.quantization == "int8"),
        "condition_encoder": of(ConditionEncoder, c, dtype),
        "text_encoder": tensor_bytes(((math.prod(shape), dtype) for shape in text), rounded),
        "decoder": of(vae.Decoder, v, vae_dtype, spectral),
        "encoder": of(vae.Encoder, v, vae_dtype, spectral),
        "audio_tokenizer": of(AudioTokenizer, c, dtype),
        "audio_detokenizer": of(AudioDetokenizer, c, dtype),
    }


def _tile(
    v: VAEConfig, songs: int, frames: int, device: torch.device, kernels: bool, total: int | None
) -> tuple[int, int]:
    """Memory and frames of a tile of the decoder; one of the encoder takes the same."""
    with torch.device("meta"):
        decoder = vae.Decoder(v)
    if kernels:
        decoder.conv1.weight.data = decoder.conv1.weight.data.half()
        most = frames_that_fit(decoder, songs, total) if total else TILE_FRAMES["decode"]  # the latter in an emulation
        size = even_size(frames, most, decoder.halo)
        return arena_bytes(decoder.levels(size), songs, torch.float16), size
    size = min(frames, TILE_FRAMES["decode"])
    levels = decoder.levels(size)
    if device.type == "cpu":  # its outer blocks run over spans, see acefast.models.v15.vae
        widest = math.prod(levels[max(len(levels) - 1 - vae.SPAN_BLOCKS, 0)])
        return int(4.2 * 4 * songs * widest), size
    folded = 2 * 4 * sum(p.numel() for p in decoder.parameters())
    return int(3.2 * 4 * songs * math.prod(levels[-1])) + folded, size
