"""ACE-Step v1's codec: latents [B, T, 128] to 48 kHz stereo and back, in memory that grows little with a song.

Decoding is DCAE's decoder, then the vocoder, then soxr from 44.1 to 48 kHz. What depends on the whole song: the three
attention blocks at the latents' rate, which sum over all frames. They run first, over the whole song in pieces, and
leave [B, T, 16, 1024], 64 kB a frame in fp32, 169 MB for 240 s. While they run they need twice that and a piece, on
kernels, which see all places at once, 7.5 times the 85 MB of 16 bits. Everything behind them, DCAE's upsampling
and the vocoder, looks at ``Decoder.halo`` frames on either side, and runs in tiles with exactly the rows that each
layer needs: a tile's samples are those of the whole song, up to rounding, and its memory does not depend on the song's
length. No GroupNorm is in the codec; upstream's overlapped decoding, whose windows cut the attention and crossfade what
comes out, is not needed.

Encoding is the same the other way round: soxr to 44.1 kHz, log-mel in fp32, DCAE's encoder in tiles up to the latents'
rate, its attention over the whole song.

Source: MusicDCAE in ace-step/ACE-Step music_dcae_pipeline.py. It resamples with torchaudio's short sinc, whose
passband ends earlier; samples differ from these, spectra hardly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.checks import check_shape
from acefast.models.v1 import local
from acefast.models.v1.config import FRAME, RATE, ROWS, DCAEConfig, VocoderConfig
from acefast.models.v1.dcae import MelDecoder, MelEncoder
from acefast.models.v1.local import Rows, Step
from acefast.models.v1.mel import log_mel, normalised
from acefast.models.v1.vocoder import Vocoder
from acefast.waveform import SAMPLE_RATE
from acefast.weights import WeightTable

SCALE, SHIFT = 0.1786, -1.9091  # of latents, from the autoencoder's; its own scaling_factor is not used
TILE_FRAMES, GPU_TILE_FRAMES = 128, 64  # latent frames that are coded at a time, 11.9 and 5.9 s


class Decoder(nn.Module):
    """Latents to 44.1 kHz audio, both channels as one batch.

    ``fast_filters`` are a CPU's: of fewer products, see acefast.models.v1.dcae_layers, and ``spectral`` in the vocoder.
    """

    def __init__(self, dcae: DCAEConfig, vocoder: VocoderConfig, fast_filters: bool = False):
        super().__init__()
        self.channels, self.latent_channels = dcae.in_channels, dcae.latent_channels
        self.dcae, self.vocoder = MelDecoder(dcae, fast_filters), Vocoder(vocoder, fast_filters)
        self.halo = local.halo(self.steps(), FRAME)

    def latent(self, latents: Tensor) -> Tensor:
        """[B, T, 16, 1024] of the whole song's latents [B, T, 128] in the model's scale: all that is not local."""
        z = latents.unflatten(2, (ROWS, self.latent_channels)).float() / SCALE + SHIFT
        return self.dcae.latent(z.to(self.dcae.conv_in.weight.dtype))

    def steps(self) -> list[Step]:
        """From what ``latent`` returns to audio [B * 2, 4096 * T, 1] fp32."""
        return [*self.dcae.steps(), Step(lambda mel: mel.movedim(3, 1).flatten(0, 1)), *self.vocoder.steps()]

    @staticmethod
    def weight_table(dcae: DCAEConfig, vocoder: VocoderConfig, fast_filters: bool = False) -> WeightTable:
        """Our parameters and the checkpoint's tensors they are made of."""
        dcae_table = MelDecoder.weight_table(dcae, fast_filters)
        return _under("dcae", dcae_table) | _under("vocoder", Vocoder.weight_table(vocoder, fast_filters))


def decoder_configs(sizes: Any, device: torch.device) -> tuple[DCAEConfig, VocoderConfig, bool]:
    """Arguments of ``Decoder`` on a device; ``sizes``: what has the configs, as a checkpoint does."""
    return sizes.dcae_config, sizes.vocoder_config, device.type == "cpu"


class Encoder(nn.Module):
    """Mel to latents; ``fast_filters`` as of ``Decoder``."""

    def __init__(self, dcae: DCAEConfig, fast_filters: bool = False):
        super().__init__()
        self.dcae = MelEncoder(dcae, fast_filters)

    @staticmethod
    def weight_table(dcae: DCAEConfig, fast_filters: bool = False) -> WeightTable:
        """Our parameters and the checkpoint's tensors they are made of."""
        return _under("dcae", MelEncoder.weight_table(dcae, fast_filters))


def encoder_configs(sizes: Any, device: torch.device) -> tuple[DCAEConfig, bool]:
    """Arguments of ``Encoder`` on a device."""
    return sizes.dcae_config, device.type == "cpu"


def _under(name: str, table: WeightTable) -> WeightTable:
    return {f"{name}.{ours}": source for ours, source in table.items()}


class Resampler:
    """44.1 to 48 kHz as a stream: the samples, to the bit, of resampling the whole."""

    def __init__(self, channels: int):
        import soxr

        self.channels, self.taken, self.given = channels, 0, 0
        self.stream = soxr.ResampleStream(RATE, SAMPLE_RATE, channels, dtype="float32", quality="VHQ")

    def __call__(self, audio: Tensor, last: bool) -> Tensor:
        """The samples [C, n] that [C, N] makes known; of all N together ceil(160 * N / 147) come out."""
        x = audio.T.numpy(force=True)
        self.taken += len(x)
        total = samples(self.taken)
        if last:  # soxr rounds the number of samples, and one more zero brings it to at least ``total``
            x = np.concatenate([x, np.zeros((1, self.channels), np.float32)])
        y = self.stream.resample_chunk(np.ascontiguousarray(x), last=last)
        if last:
            y = y[: total - self.given]
        self.given += len(y)
        return torch.from_numpy(np.ascontiguousarray(y.T))


def samples(at_44100: int) -> int:
    """Samples at 48 kHz of so many at 44.1 kHz."""
    return -(-160 * at_44100 // 147)


def tile_frames_on(device: torch.device) -> int:
    """Latent frames that are coded at a time, of which ``halo`` more on either side have to be computed."""
    return GPU_TILE_FRAMES if device.type == "cuda" else TILE_FRAMES


def _tiles(what: str, frames: int, size: int | None, device: torch.device) -> Iterator[tuple[int, int]]:
    size = tile_frames_on(device) if size is None else size
    if size < 1:
        raise ValueError(f"{what}: tile_frames must be at least 1, got {size}")
    return local.pieces(0, frames, size)


def decode_tiles(
    decoder: Decoder, latents: Tensor, keep: tuple[int, int] | None = None, tile_frames: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Decode songs tile by tile, from their start to their end.

    Args:
        latents: [B, T, 128], any floating dtype, in the model's scale.
        keep: not for this family; None.
        tile_frames: latent frames decoded at a time; None takes 128 (11.9 s), on a GPU 64. The same number gives the
            same bits.
    Yields:
        First sample and audio [B, 2, n] fp32 on the CPU, 48 kHz, of consecutive pieces, each of memory of its own; all
        together ceil(160 * 4096 * T / 147) samples. The resampler holds the last 7 ms back until it knows what follows.
    Raises:
        ValueError: a shape or ``tile_frames`` is wrong, or ``keep`` is given.
    """
    frame = ROWS * decoder.latent_channels
    check_shape("decode", "latents", latents, (None, None, frame), "[B, T, latent numbers]")
    if keep is not None:
        raise ValueError(f"decode: ACE-Step v1 decodes whole songs, got keep={keep}; leave it out")
    B, T, _ = latents.shape
    if not B * T:
        raise ValueError(f"decode: latents must have at least one song and frame, got {list(latents.shape)}")
    tiles = _tiles("decode", T, tile_frames, latents.device)
    rows, steps, resampler = Rows(decoder.latent(latents), 0, T), decoder.steps(), Resampler(B * decoder.channels)
    at = 0
    for lo, hi in tiles:
        audio = local.run(steps, rows, lo * FRAME, hi * FRAME).x.squeeze(2)
        piece = resampler(audio, last=hi == T).view(B, decoder.channels, -1)
        yield at, piece
        at += piece.shape[2]


def decode(decoder: Decoder, latents: Tensor, tile_frames: int | None = None) -> Tensor:
    """All of ``decode_tiles`` in one tensor: [B, 2, ceil(160 * 4096 * T / 147)] fp32 on the CPU."""
    return torch.cat([piece for _, piece in decode_tiles(decoder, latents, None, tile_frames)], 2)


def encode(encoder: Encoder, audio: Tensor, tile_frames: int | None = None) -> Tensor:
    """Encode a song.

    Args:
        audio: [2, N] at 48 kHz, any floating dtype, N at least 1; zeros follow up to a whole latent frame. A sample
            at 44.1 kHz beyond one comes of rounding, as of a song that was decoded here, and is left out.
        tile_frames: latent frames encoded at a time; None takes 128, on a GPU 64.
    Returns:
        [1, T, 128] fp32, T = ceil(round(147 * N / 160) / 4096) but for that, in the model's scale; nothing is drawn at
        random.
    Raises:
        ValueError: the shape or ``tile_frames`` is not as above.
    """
    import soxr

    check_shape("encode", "audio", audio, (2, None), "[2, N]")
    if not audio.shape[1]:
        raise ValueError("encode: audio must have at least one sample, got none")
    wave = soxr.resample(audio.float().T.numpy(force=True), SAMPLE_RATE, RATE, quality="VHQ")
    if len(wave) % FRAME == 1 < len(wave):
        wave = wave[:-1]
    wave = torch.from_numpy(np.ascontiguousarray(wave.T))
    return encode_resampled(encoder, wave, tile_frames)


def encode_resampled(encoder: Encoder, audio: Tensor, tile_frames: int | None = None) -> Tensor:
    """``encode`` of [2, N] at 44.1 kHz: [1, ceil(N / 4096), 128]."""
    weight, steps = encoder.dcae.conv_in.weight, encoder.dcae.steps()
    T = max(-(-audio.shape[1] // FRAME), 1)
    mel = normalised(log_mel(F.pad(audio.to(weight.device), (0, T * FRAME - audio.shape[1]))))
    rows = Rows(mel.movedim(0, 2)[None].to(weight.dtype), 0, mel.shape[1])
    tiles = _tiles("encode", T, tile_frames, weight.device)
    x = torch.cat([local.run(steps, rows, lo, hi).x for lo, hi in tiles], 1)
    z = encoder.dcae.latent(x).float()
    return (z - SHIFT).mul_(SCALE).flatten(2)
