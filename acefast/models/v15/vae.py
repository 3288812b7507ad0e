"""The ACE-Step 1.5 audio autoencoder (Oobleck): 48 kHz stereo to 25 latent frames a second and back.

Activations are channels-last, [B, rows, C] contiguous; the public ends are audio [B, 2, N] and latents [B, T, 64].
Both directions run piece by piece with exactly the neighbours that the result depends on, so that memory is bounded
by the piece and not by the song, and a piece's rows are those of the whole song up to fp32 rounding (library
convolutions may block differently for another length). At the song's true ends every layer sees zeros.

Pieces come in two sizes. A *tile* is a window of latent frames, every one of the same length, the last one aligned to
the song's end; consecutive ones overlap by the receptive field (decoder 9 frames a side, encoder 7). Inside a tile,
the decoder drops rows as soon as no later layer needs them, which leaves of the overlap about one frame's work, and
the two layers next to the audio, where a frame is 1 MB, run over *spans* of rows that fit a CPU's outer cache.

On the CPU's kernels a snake is the end of the layer before it, and the residual units' filters are transformed at load
(``spectral``): a row is then rounded together with its neighbours in a piece of 34, so that its bits, but nothing more,
depend on where its tile and its span begin.

Where Triton's kernels are in force a tile is a list of launches on static memory instead, longer and computed whole:
see acefast.models.v15.vae_tile and vae_static. There a row's bits do not depend on the tile it is in.

Source: AutoencoderOobleck in huggingface/diffusers autoencoder_oobleck.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acefast.checks import check_shape
from acefast.models.v15 import vae_static
from acefast.models.v15.config import VAEConfig
from acefast.models.v15.vae_layers import (
    UNITS_REACH,
    Conv,
    DecoderBlock,
    EncoderBlock,
    Snake,
    conv_entries,
    fold_transposed,
    snake_entries,
    then,
    unit_entries,
    unit_kind,
)
from acefast.models.v15.vae_tile import DecoderTile, EncoderTile, Tiled
from acefast.models.v15.vae_tiling import Window, on_kernels, tiles
from acefast.weights import WeightTable

SPAN_ROWS = 4096  # at the inner end of the two blocks next to the audio: 17 frames, 17 MB at 48 kHz in fp32
SPAN_BLOCKS = 2

OnTile = Callable[[int, int], None]  # latent frames done, of how many


class Decoded(NamedTuple):
    """A batch of songs on the decoder's device."""

    audio: Tensor  # [B, 2, 1920 * T] fp32
    peaks: Tensor | None  # [B, 1] fp32: the largest |sample|; None: nobody has looked


def _crop(x: Tensor, start: int, first: int, end: int) -> tuple[Tensor, int]:
    """Rows ``first`` to ``end`` of a song, as far as x, which begins at row ``start``, holds them; where they begin."""
    first, end = max(first, start), min(end, start + x.shape[1])
    return x[:, first - start : end - start].contiguous(), first


class Decoder(Tiled):
    """Latents to audio; ``halo`` is how many frames away the latents are that a frame's audio depends on (9).

    ``spectral`` chooses the weights that suit a CPU's kernels, see SpectralUnit.
    """

    kind = DecoderTile

    def __init__(self, config: VAEConfig, spectral: bool = False):
        super().__init__()
        widths = [config.decoder_channels * m for m in (1, *config.channel_multiples)][::-1]
        strides = config.downsampling_ratios[::-1]
        self.spectral = spectral
        self.hop, self.channels, self.latent_channels = config.hop, config.audio_channels, config.decoder_input_channels
        self.conv1 = Conv(self.latent_channels, widths[0], 7, padding=3)
        self.block = nn.ModuleList(DecoderBlock(*sizes, spectral) for sizes in zip(widths, widths[1:], strides))
        self.snake1 = Snake(widths[-1])
        self.conv2 = Conv(widths[-1], self.channels, 7, padding=3, bias=False)
        rows = 3  # of conv2, then backwards: rows a side that a block's first layer and its units have to be given
        self.reach = []
        for stride in strides[::-1]:
            units = rows + UNITS_REACH
            rows = (units + 3 * stride // 2 - 1) // stride
            self.reach.insert(0, (rows, units))
        self.halo = rows + 3

    def levels(self, frames: int) -> list[tuple[int, int]]:
        """Rows and width of the activations of so many frames, before and after each block."""
        levels = [(frames, len(self.conv1.weight))]
        for block in self.block:
            levels.append((levels[-1][0] * block.stride, len(block.conv_t1.bias)))
        return levels

    def forward(self, latents: Tensor, keep: tuple[int, int] | None = None) -> Tensor:
        """Decode latents, of which the frames outside ``keep`` are context only.

        Args:
            latents: [B, T, 64], any floating dtype; beyond their ends lie zeros.
            keep: first frame to decode and the one after the last; None decodes all.
        Returns:
            [B, 2, 1920 * frames kept] fp32, 48 kHz.
        Raises:
            ValueError: the shape is not as above.
        """
        check_shape("Decoder", "latents", latents, (None, None, self.latent_channels), "[B, T, latent channels]")
        B, T, _ = latents.shape
        first, end = keep or (0, T)
        if not 0 <= first < end <= T:
            raise ValueError(f"Decoder: keep must be a range of the {T} frames, got {(first, end)}")
        x = then(self.conv1, latents.to(self.conv1.weight.dtype).contiguous(), self._snakes()[0])
        inner = max(len(self.block) - SPAN_BLOCKS, 0)
        x, start, rate = self._blocks(x, 0, first, end, 0, inner)
        first, end, hop = first * rate, end * rate, self.hop // rate
        audio = x.new_empty(B, self.channels, (end - first) * hop, dtype=torch.float32)
        span = SPAN_ROWS if x.device.type == "cpu" else end - first
        for lo in range(first, end, span):
            hi = min(lo + span, end)
            y, at, _ = self._blocks(x, start, lo, hi, inner, len(self.block))
            y, at = _crop(y, at, lo * hop - 3, hi * hop + 3)
            y, _ = _crop(self.conv2(y), at, lo * hop, hi * hop)
            audio[:, :, (lo - first) * hop : (hi - first) * hop] = y.transpose(1, 2)
        return audio

    def _blocks(self, x: Tensor, start: int, first: int, end: int, i: int, j: int) -> tuple[Tensor, int, int]:
        """Blocks i to j - 1 of rows ``first`` to ``end``, each after its snake and followed by the next one.

        x begins at row ``start``. Rows, their begin and the rate.
        """
        rate, snakes = 1, self._snakes()[i + 1 : j + 1]
        for block, (reach, units_reach), snake in zip(self.block[i:j], self.reach[i:j], snakes):
            x, start = _crop(x, start, first * rate - reach, end * rate + reach)
            x, start, rate = block.conv_t1(x), start * block.stride, rate * block.stride
            x, start = _crop(x, start, first * rate - units_reach, end * rate + units_reach)
            for unit in block.units[:-1]:
                x = unit(x)
            x = then(block.units[-1], x, snake)
        return x, start, rate

    def _snakes(self) -> list[Snake]:
        """Before each block, and before the last convolution."""
        return [layer.snake1 for layer in (*self.block, self)]

    @staticmethod
    def weight_table(config: VAEConfig, spectral: bool = False) -> WeightTable:
        """Our parameters and the checkpoint's tensors they are made of."""
        table = conv_entries("conv1", "decoder.conv1")
        for b, multiple in enumerate((1, *config.channel_multiples)[-2::-1]):
            ours, theirs = f"block.{b}", f"decoder.block.{b}"
            table |= snake_entries(f"{ours}.snake1", f"{theirs}.snake1")
            table |= conv_entries(f"{ours}.conv_t1", f"{theirs}.conv_t1", fold_transposed)
            table |= unit_entries(ours, theirs, unit_kind(config.decoder_channels * multiple, spectral))
        return table | snake_entries("snake1", "decoder.snake1") | conv_entries("conv2", "decoder.conv2", bias=False)


class Encoder(Tiled):
    """Audio to latents; ``halo`` is how many frames' samples around its own a latent frame depends on (7).

    ``spectral`` as of ``Decoder``.
    """

    kind = EncoderTile

    def __init__(self, config: VAEConfig, spectral: bool = False):
        super().__init__()
        widths = [config.encoder_hidden_size * m for m in (1, *config.channel_multiples)]
        strides = config.downsampling_ratios
        self.spectral = spectral
        self.hop, self.channels, self.latent_channels = config.hop, config.audio_channels, config.decoder_input_channels
        self.conv1 = Conv(self.channels, widths[0], 7, padding=3)
        self.block = nn.ModuleList(EncoderBlock(*sizes, spectral) for sizes in zip(widths, widths[1:], strides))
        self.snake1 = Snake(widths[-1])
        self.conv2 = Conv(widths[-1], 2 * self.latent_channels, 3, padding=1)
        self.outer_hop = math.prod(strides[:SPAN_BLOCKS])
        self.outer_reach = _encoder_reach(0, strides[:SPAN_BLOCKS])
        self.halo = -(-_encoder_reach(1, strides) // self.hop)

    def levels(self, frames: int) -> list[tuple[int, int]]:
        """Rows and width of the activations of so many frames, before and after each block."""
        levels = [(frames * self.hop, len(self.conv1.weight))]
        for block in self.block:
            levels.append((levels[-1][0] // block.conv1.stride, len(block.conv1.weight)))
        return levels

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Encode audio.

        Args:
            audio: [B, 2, N], any floating dtype, N of at least one frame (1920); beyond its ends lie zeros.
        Returns:
            Mean and standard deviation of the latents, both [B, N // 1920, 64] fp32.
        Raises:
            ValueError: the shape is not as above, or the audio is too short.
        """
        self.check(audio)
        rows = audio.shape[2] // self.outer_hop
        span = SPAN_ROWS if audio.device.type == "cpu" else rows
        x = torch.cat([self._outer(audio, lo, min(lo + span, rows)) for lo in range(0, rows, span)], dim=1)
        inner = self.block[SPAN_BLOCKS:]
        for block in inner[:-1]:
            x = block(x)
        return self.posterior(self.conv2(then(inner[-1], x, self.snake1) if len(inner) else self.snake1(x)))

    @staticmethod
    def posterior(moments: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [B, T, 64] fp32 each, of what the last convolution says, [B, T, 128]."""
        mean, scale = moments.float().chunk(2, dim=-1)
        return mean.contiguous(), F.softplus(scale) + 1e-4

    def _outer(self, audio: Tensor, lo: int, hi: int) -> Tensor:
        """Rows ``lo`` to ``hi`` after the blocks next to the audio, from the samples that they depend on."""
        hop = self.outer_hop
        start = max(lo - -(-self.outer_reach // hop), 0)  # in rows: the strides have to fall on the song's own grid
        x = audio[:, :, start * hop : hi * hop + self.outer_reach].transpose(1, 2)
        x = self.conv1(x.to(self.conv1.weight.dtype).contiguous())
        for block in self.block[:SPAN_BLOCKS]:
            x = block(x)
        return x[:, lo - start : hi - start]

    def check(self, audio: Tensor) -> None:
        """Raise ValueError unless ``audio`` is [B, 2, N] with N of at least one frame."""
        check_shape("Encoder", "audio", audio, (None, self.channels, None), "[B, channels, N]")
        if audio.shape[2] < self.hop:
            raise ValueError(f"Encoder: audio must have at least one frame, {self.hop} samples, got {audio.shape[2]}")

    @staticmethod
    def weight_table(config: VAEConfig, spectral: bool = False) -> WeightTable:
        """Our parameters and the checkpoint's tensors they are made of."""
        table = conv_entries("conv1", "encoder.conv1")
        for b, multiple in enumerate((1, *config.channel_multiples[:-1])):
            ours, theirs = f"block.{b}", f"encoder.block.{b}"
            table |= unit_entries(ours, theirs, unit_kind(config.encoder_hidden_size * multiple, spectral))
            table |= snake_entries(f"{ours}.snake1", f"{theirs}.snake1")
            table |= conv_entries(f"{ours}.conv1", f"{theirs}.conv1")
        return table | snake_entries("snake1", "encoder.snake1") | conv_entries("conv2", "encoder.conv2")


def _encoder_reach(rows: int, strides: tuple[int, ...]) -> int:
    """Samples a side that blocks of these strides, and the convolution before them, need for ``rows`` more rows."""
    for stride in strides[::-1]:
        rows = rows * stride + stride // 2 + UNITS_REACH
    return rows + 3


def decode_tiles(
    decoder: Decoder,
    latents: Tensor,
    tile_frames: int | None = None,
    keep: tuple[int, int] | None = None,
    *,
    soon: bool = True,
) -> Iterator[tuple[int, Tensor]]:
    """Decode a song tile by tile, from its start to its end.

    Args:
        latents: [B, T, 64].
        tile_frames: latent frames that the network sees at a time, at least 19; None takes 128 (5.1 s), of which the
            first tile decodes 25 only, the second 50, and so on. The same number gives the same bits, whether or not
            the tiles are joined afterwards. On a GPU's kernels None takes up to ``frames_that_fit``, and every number
            gives the same bits.
        keep: first frame to decode and the one after the last; the others are context only. None decodes all.
        soon: on a GPU's kernels, take short tiles first, so that something is heard before a long one is decoded.
    Yields:
        First frame and audio [B, 2, 1920 * frames] fp32 of consecutive pieces, each of memory of its own.
    Raises:
        ValueError: a shape is wrong or a tile is no longer than its overlaps.
    """
    windows = tiles("decode", decoder, len(latents), latents.shape[1], tile_frames, keep, soon=soon)
    if on_kernels(decoder):
        yield from ((window.first, piece) for window, piece in vae_static.decoded(decoder, latents, windows))
        return
    for start, size, first, end in windows:
        yield first, decoder(latents[:, start : start + size], (first - start, end - start))


def decode(decoder: Decoder, latents: Tensor, tile_frames: int | None = None, on_tile: OnTile | None = None) -> Decoded:
    """All of ``decode_tiles`` in one tensor, of memory of its own; ``on_tile`` hears of every tile."""
    B, T, hop = *latents.shape[:2], decoder.hop
    audio, peaks = torch.empty(B, decoder.channels, T * hop, device=latents.device), None
    if on_kernels(decoder):
        windows, peaks = tiles("decode", decoder, B, T, tile_frames), torch.zeros(B, 1, device=latents.device)
        made = ((window.first, piece) for window, piece in vae_static.decoded(decoder, latents, windows, audio, peaks))
    else:
        made = decode_tiles(decoder, latents, tile_frames)
    for first, piece in made:
        if peaks is None:
            audio[:, :, first * hop : first * hop + piece.shape[2]] = piece
        if on_tile:
            on_tile(first + piece.shape[2] // hop, T)
    return Decoded(audio, peaks)


def encode(
    encoder: Encoder, audio: Tensor, tile_frames: int | None = None, on_tile: OnTile | None = None
) -> tuple[Tensor, Tensor]:
    """Encode a song tile by tile.

    Args:
        audio: [B, 2, N], N at least 1920; samples beyond the last whole frame give no frame of their own.
        tile_frames: frames of audio that the network sees at a time, at least 15; None takes 256 (10.2 s), on a GPU's
            kernels up to ``frames_that_fit``.
        on_tile: hears of every tile.
    Returns:
        Mean and standard deviation, both [B, N // 1920, 64] fp32.
    Raises:
        ValueError: a shape is wrong, the audio is too short or a tile is no longer than its overlaps.
    """
    encoder.check(audio)
    T = audio.shape[2] // encoder.hop
    windows = tiles("encode", encoder, len(audio), T, tile_frames)
    made = vae_static.encoded(encoder, audio, windows) if on_kernels(encoder) else _encoded(encoder, audio, windows)
    means, stds = [], []
    for (start, _, first, end), mean, std in made:
        means.append(mean[:, first - start : end - start])
        stds.append(std[:, first - start : end - start])
        if on_tile:
            on_tile(end, T)
    return torch.cat(means, dim=1), torch.cat(stds, dim=1)


def _encoded(encoder: Encoder, audio: Tensor, windows: list[Window]) -> Iterator[tuple[Window, Tensor, Tensor]]:
    """As ``vae_static.encoded``, on the references."""
    hop, T = encoder.hop, audio.shape[2] // encoder.hop
    for window in windows:
        start, size, _, _ = window
        stop = audio.shape[2] if start + size == T else (start + size) * hop
        yield window, *encoder(audio[:, :, start * hop : stop])
