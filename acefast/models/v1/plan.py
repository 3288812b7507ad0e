"""The memory of ACE-Step v1: its networks' sizes, and what a song takes beside them in each stage."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from acefast.checkpoint import Checkpoint
from acefast.conditions import CACHE_BYTES
from acefast.config_files import umt5_config_for
from acefast.families import V1_LONGEST
from acefast.locate import NAMES
from acefast.memory import LIBRARY, SMALL, Job, Networks, module_bytes, tensor_bytes
from acefast.models.v1 import codec, names
from acefast.models.v1.conditions import ConditionEncoder
from acefast.models.v1.config import FRAME, MEL_HOP, ROWS, Config, DCAEConfig, VocoderConfig
from acefast.models.v1.dit import DiT
from acefast.models.v1.tasks import frames_of
from acefast.prompts import TEXT_TOKENS

LYRIC_TOKENS = 4096  # that the model was trained on; it takes more


@dataclass(frozen=True)
class V1Networks(Networks):
    """Sizes of an ACE-Step v1 model's networks."""

    name: str
    config: Config
    dcae_config: DCAEConfig
    vocoder_config: VocoderConfig
    text_config: dict[str, Any] = dataclasses.field(hash=False)

    longest = V1_LONGEST
    stages = {  # noqa: RUF012 (read only)
        "text": (("text_encoder", "condition_encoder"), ("text",)),
        "source": (("encoder",), ("tile", "song")),
        "diffusion": (("transformer",), ("steps", "sampling")),
        "decode": (("decoder",), ("tile", "song")),
    }

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> V1Networks:
        c = checkpoint
        return cls(c.name, c.config, c.dcae_config, c.vocoder_config, c.text_config)

    @classmethod
    def published(cls, variant: str) -> V1Networks:
        config = Config()
        return cls(NAMES[variant], config, DCAEConfig(), VocoderConfig(), umt5_config_for(config))

    def completed(self, job: Job) -> Job:
        return job.or_else(steps=60, guided=True, conditions=1 + TEXT_TOKENS + LYRIC_TOKENS)

    def weights(self, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
        return _weights(self, dtype, device.type)

    def work(
        self,
        job: Job,
        dtype: torch.dtype,
        device: torch.device,
        kernels: bool,
        total: int | None,
        captures: bool,
    ) -> tuple[dict[str, int], int]:
        """See ``Networks.work``; all of it is an estimate.

        text       what the lyric encoder needs for one song
        cache      prompts and lyrics encoded, kept by content, and where one is encoded
        steps      keys and values of all blocks, and a block's activations
        sampling   latents, noise, guidance
        tile       the codec's layers on a tile, see ``acefast.models.v1.codec``
        song       what of the codec is the whole song's, and its audio in fp32
        libraries  of a GPU: scratch of cuBLAS and many small things
        """
        c, gpu, size = self.config, device.type == "cuda", dtype.itemsize
        H, rows = c.hidden_size, job.songs * (2 if job.guided else 1)
        frames = frames_of(job.seconds)
        encoded = job.conditions * H * size
        kept = rows * job.conditions * H * size * (1 + 2 * c.num_layers)
        block = rows * frames * H * (8 * 4 + 8 * size)  # residual stream, attention in fp32; the feed-forward's five
        width = self.dcae_config.block_out_channels[-1]
        tile_frames = min(frames, codec.tile_frames_on(device))
        wave = 2 * job.songs * self.vocoder_config.upsample_initial_channel * MEL_HOP * tile_frames
        return {
            "text": job.conditions * c.lyric_hidden_size * 4 * 14 + 3 * encoded,
            "cache": min(CACHE_BYTES, 2 * rows * encoded) + encoded,
            "steps": kept + block,
            "sampling": 4 * 8 * job.songs * frames * c.frame_size + 4 * 6 * c.num_layers * H * 4,
            "tile": wave * 4,
            "song": job.songs * frames * (2 * 4 * ROWS * width + 4 * 2 * 2 * FRAME),
            "libraries": LIBRARY + SMALL if gpu else 0,
        }, tile_frames


@cache
def _weights(networks: V1Networks, dtype: torch.dtype, device: str) -> dict[str, int]:
    def of(kind: type[nn.Module], *configs: Any) -> int:
        return module_bytes(kind, *configs, dtype=dtype, rounded=device == "cuda")

    n = networks
    text = names.text_encoder_tensors(n.text_config).values()
    return {
        "transformer": of(DiT, n.config),
        "condition_encoder": of(ConditionEncoder, n.config),
        "text_encoder": tensor_bytes(((math.prod(shape), dtype) for shape in text), device == "cuda"),
        "decoder": of(codec.Decoder, *codec.decoder_configs(n, torch.device(device))),
        "encoder": of(codec.Encoder, *codec.encoder_configs(n, torch.device(device))),
    }
