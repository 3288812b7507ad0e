"""Songs on a GPU's static memory, tile by tile: a tile is loaded, replayed, and copied to where it belongs.

Tiles of all sizes and songs share their memory, but only from the load to the copy: between two tiles of a song others
may be decoded. What is handed out is memory of its own, or the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acefast.backends import named_backend
from acefast.checks import check_shape
from acefast.models.v15.vae_tile import FinishTile
from acefast.models.v15.vae_tiling import Window

if TYPE_CHECKING:
    from acefast.models.v15.vae import Decoder, Encoder

FINISH_FRAMES = 512  # of which the level is set at once: 8 MB a song


def decoded(
    decoder: Decoder, latents: Tensor, windows: list[Window], song: Tensor | None = None, peaks: Tensor | None = None
) -> Iterator[tuple[Window, Tensor]]:
    """Decode tile after tile.

    Args:
        latents: [B, T, 64].
        song: [B, 2, 1920 * T] fp32: where the audio goes; None: each tile's to memory of its own.
        peaks: [B, 1] fp32, raised to the largest |sample|.
    Yields:
        each window, and the audio [B, 2, 1920 * n] fp32 of the n frames that it keeps.
    """
    check_shape("Decoder", "latents", latents, (None, None, decoder.latent_channels), "[B, T, latent channels]")
    B, hop, graphs = len(latents), decoder.hop, decoder.graphs
    places = [((first - start) * hop, (end - start) * hop, 0) for start, _, first, end in windows]
    places = torch.tensor(places, dtype=torch.int32).to(latents.device)
    with graphs.turn():
        decoder.tile(B, max((window.size for window in windows), default=1))  # so that the arena grows once at most
    for (start, size, first, end), place in zip(windows, places):
        with graphs.turn():
            tile = decoder.tile(B, size)  # asked for each time: it may have been forgotten meanwhile
            tile.load(latents[:, start : start + size], place)
            tile.replay()
            piece = tile.audio[:, :, : (end - first) * hop]
            if song is None:
                piece = piece.clone(memory_format=torch.contiguous_format)
            else:
                piece = song[:, :, first * hop : end * hop].copy_(piece)
            if peaks is not None:
                torch.maximum(peaks, tile.peaks.amax(1, keepdim=True), out=peaks)
        yield Window(start, size, first, end), piece


def finished(decoder: Decoder, audio: Tensor, peaks: Tensor, level: float) -> Iterator[tuple[int, Tensor]]:
    """Bring songs to their level, piece by piece.

    Args:
        audio, peaks: [B, 2, N] and [B, 1] fp32, what ``decoded`` made.
        level: as of ``acefast.ops.pcm``, one for all.
    Yields:
        a sample's number, and the [B, 2, n] fp32 samples from it on, in memory of their own.
    """
    B, channels, N = audio.shape
    graphs, samples = decoder.graphs, FINISH_FRAMES * decoder.hop
    for at in range(0, N, samples):
        key = (B, channels, samples, named_backend())
        piece = audio[:, :, at : at + samples]
        with graphs.turn():
            tile = graphs.kept("finish", key, lambda: FinishTile(graphs, B, channels, samples))
            tile.load(piece, peaks, level)
            tile.replay()
            piece = tile.audio[:, :, : piece.shape[2]].clone(memory_format=torch.contiguous_format)
        yield at, piece


def encoded(encoder: Encoder, audio: Tensor, windows: list[Window]) -> Iterator[tuple[Window, Tensor, Tensor]]:
    """Encode tile after tile: each window, and mean and standard deviation [B, size, 64] fp32 of all its frames.

    ``audio``: [B, 2, N], of which the last window has all samples, those beyond its last frame too.
    """
    (B, _, N), hop = audio.shape, encoder.hop
    with encoder.graphs.turn():
        encoder.tile(B, windows[-1].size, N % hop)
    for window in windows:
        start, size, _, _ = window
        extra = N % hop if start + size == N // hop else 0
        with encoder.graphs.turn():
            tile = encoder.tile(B, size, extra)
            tile.load(audio[:, :, start * hop : (start + size) * hop + extra])
            if extra:
                tile.launch()  # not worth a graph: hardly another recording ends within a frame as this one
            else:
                tile.replay()
            mean, std = encoder.posterior(tile.moments[..., : 2 * encoder.latent_channels])
        yield window, mean, std
