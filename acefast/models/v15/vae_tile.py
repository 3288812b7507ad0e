"""A tile of the audio autoencoder on a GPU's static memory: the same launches on the same addresses, tile after tile.

An arena of three pieces of memory holds all activations, as guarded rows (acefast.guarded) of whatever level is at
work: ``x``, what the next residual adds to; ``activated``, the snake of it that the next convolution reads; and a
``free`` one, where the next snake goes. Every launch stores what its readers need, so no snake has a launch of its own:

    decoder  first convolution; five times a transposed one and three residual units; last convolution
    encoder  first convolution; five times three residual units and a strided convolution; last convolution

Units whose kernel makes its own snake of x (acefast.ops.residual_unit.from_x_alone) go from one piece to another, and
only the last of a block leaves a snake behind.

A unit is one launch up to 256 channels and two beyond, which makes 28 for the published decoder, 28 for its encoder.
What differs from tile to tile lies on the device: latents or samples, and which rows of a tile's audio are kept. What
goes in and what comes out lies in the arena too, which tiles of all sizes share: a tile is loaded, launched and copied
from before another one is loaded.

A tile sees zeros beyond its ends, as a song does. Widths are filled up to multiples of 16 by channels whose weights,
biases and snakes are zero; a published checkpoint has none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from acefast.backends import named_backend
from acefast.graphs import Graphs
from acefast.guarded import elements, guarded, whole
from acefast.models.v15.vae_layers import Conv, ResidualUnit, Snake
from acefast.ops.audio_conv1d import audio_conv1d, peak_slots
from acefast.ops.conv1d import conv1d
from acefast.ops.conv_transpose1d import conv_transpose1d
from acefast.ops.pcm import PARTS, pcm
from acefast.ops.residual_unit import TAPS, from_x_alone, fused, residual_unit

if TYPE_CHECKING:
    from acefast.models.v15.vae import Decoder, Encoder

WIDTH = 16  # of which a width is a multiple: the smallest tile of a matrix product

Wave = tuple[Tensor, Tensor]  # a snake's alpha and inv_beta


class Unit(NamedTuple):
    """A residual unit as its op takes it."""

    wave1: Wave
    weight1: Tensor
    bias1: Tensor
    wave2: Wave
    weight2: Tensor
    bias2: Tensor
    dilation: int


class Tile:
    """What a decoder's and an encoder's tile have in common: the arena, and the list of launches made of the layers."""

    def __init__(self, levels: list[tuple[int, int]], batch: int, like: Tensor, graphs: Graphs) -> None:
        """
        Args:
            levels: rows and width of the activations between a change of either, and of what goes in or comes out.
            like: a weight: its dtype and device are the activations'.
            graphs: have the arena.
        """
        self.batch, self.like = batch, like
        piece = max(elements(batch, rows, padded(width)) for rows, width in levels)
        self.memory = graphs.arena(3 * piece * like.dtype.itemsize).view(like.dtype)
        self._pieces = list(self.memory.split(piece))  # x, activated, free
        self.launches: list[partial] = []
        self.replay = graphs.replayed("tile", self.launch)

    @property
    def static(self) -> list[Tensor]:
        """All tensors of the launches, which a graph may count on."""
        values = [v for launch in self.launches for v in (*launch.args, *launch.keywords.values())]
        values = [t for v in values for t in (v if isinstance(v, tuple) else (v,))]
        return [self.memory, *(t for t in values if isinstance(t, Tensor))]

    def launch(self) -> None:
        """The tile's launches and nothing else."""
        for launch in self.launches:
            launch()

    def _add(self, op: Callable, *args: Tensor | None, **options: object) -> None:
        self.launches.append(partial(op, *args, **options, guarded=True))

    def _rows(self, rows: int, width: int) -> list[Tensor]:
        """x, activated and free memory, [B, rows, width] each."""
        options = dict(dtype=self.like.dtype, device=self.like.device)
        return [guarded(self.batch, rows, width, memory=piece, **options) for piece in self._pieces]

    def _input(self, rows: int, width: int) -> Tensor:
        """Where the first launch reads [B, rows, width]: memory that it does not write."""
        return guarded(self.batch, rows, width, dtype=self.like.dtype, device=self.like.device, memory=self._pieces[2])

    def _turn(self) -> None:
        """What was written last to the free piece is what is read next."""
        x, activated, free = self._pieces
        self._pieces = [x, free, activated]

    def _alone(self, units: list[Unit]) -> bool:
        """Whether a block's units read x only."""
        return from_x_alone(len(units[0].bias1), self.like.dtype, self.like.device)

    def _units(self, units: list[Unit], rows: int, after: Wave) -> None:
        """A block's units: from x and its first snake, leave the snake ``after`` of the last as what is activated."""
        alone = self._alone(units)
        for unit, wave in zip(units, [*(u.wave1 for u in units[1:]), after]):
            keep = unit is not units[-1]  # only a snake reads the last one's result
            x, activated, free = self._rows(rows, len(unit.bias1))
            if alone:
                self._add(
                    *(residual_unit, x, *unit.wave1, unit.weight1, unit.bias1, *unit.wave2, unit.weight2, unit.bias2),
                    **dict(dilation=unit.dilation, wave=None if keep else wave, keep=keep),
                    out=free if keep else (None, free),
                )
                if keep:
                    self._pieces.reverse()  # what was written to the free piece is the next one's x
                else:
                    self._turn()
                continue
            if fused(len(unit.bias1)):
                self._add(
                    *(residual_unit, x, *unit.wave1, unit.weight1, unit.bias1, *unit.wave2, unit.weight2, unit.bias2),
                    **dict(dilation=unit.dilation, activated=activated, wave=wave, keep=keep),
                    out=(x if keep else None, free),
                )
                self._turn()
                continue
            reach = TAPS // 2 * unit.dilation
            self._add(
                *(conv1d, activated, unit.weight1, unit.bias1),
                **dict(padding=reach, dilation=unit.dilation, wave=unit.wave2, keep=False, out=(None, free)),
            )
            self._add(
                *(conv1d, free, unit.weight2[:, None], unit.bias2),
                **dict(residual=x, wave=wave, keep=keep, out=(x if keep else None, activated)),
            )


class DecoderTile(Tile):
    """``frames`` latent frames of ``batch`` songs to audio: ``load``, then ``launch`` or ``replay``.

    Attributes:
        audio: [B, 2, 1920 * frames] fp32, of which the first samples are those of the rows kept.
        peaks: [B, peak_slots(1920 * frames)] fp32, whose largest is a song's largest |sample| of those.
    """

    def __init__(self, decoder: Decoder, graphs: Graphs, batch: int, frames: int) -> None:
        like, (weight, bias) = decoder.conv1.weight, conv_of(decoder.conv1)
        super().__init__([(frames, weight.shape[2]), *decoder.levels(frames)], batch, like, graphs)
        self.latents = self._input(frames, weight.shape[2])
        self.place = torch.zeros(3, dtype=torch.int32, device=like.device)
        blocks = list(decoder.block)
        waves = [wave_of(layer.snake1) for layer in (*blocks, decoder)]  # each reads what lies before it
        rows, (_, activated, _) = frames, self._rows(frames, len(bias))
        self._add(conv1d, self.latents, weight, bias, padding=3, wave=waves[0], keep=False, out=(None, activated))
        for block, after in zip(blocks, waves[1:]):
            units = [unit_of(unit) for unit in block.units]
            weight, bias = transposed_of(block.conv_t1.weight, block.conv_t1.bias, block.stride)
            _, source, _ = self._rows(rows, len(weight) // 2)
            rows *= block.stride
            x, _, free = self._rows(rows, len(bias))
            self._add(
                *(conv_transpose1d, source, weight, bias),
                **dict(stride=block.stride, wave=None if self._alone(units) else units[0].wave1),
                out=x if self._alone(units) else (x, free),
            )
            if not self._alone(units):
                self._turn()
            self._units(units, rows, after)
        weight, _ = conv_of(decoder.conv2, outputs=False)
        self.audio = planes(self._pieces[2], batch, decoder.channels, rows)
        self.peaks = torch.zeros(batch, peak_slots(rows), device=like.device)
        self._add(
            *(audio_conv1d, self._rows(rows, weight.shape[2])[1], weight),
            **dict(place=self.place, peaks=self.peaks, out=self.audio),
        )

    def load(self, latents: Tensor, place: Tensor) -> None:
        """Put latents [B, frames, 64] where they are read.

        Args:
            place: int32 [3] on their device: the first row of the tile's audio that is kept, the one after the last, 0.
        """
        whole(self.latents).zero_()  # the guards, and channels beyond the model's
        self.latents[..., : latents.shape[2]].copy_(latents)
        self.place.copy_(place)
        self.peaks.zero_()


class EncoderTile(Tile):
    """``frames`` frames of ``batch`` songs' audio to ``moments`` [B, frames, 128]: ``load``, ``launch`` or ``replay``.

    A song may end within a frame; the samples there, ``extra``, are heard by the frames before, so its last tile has
    them.
    """

    def __init__(self, encoder: Encoder, graphs: Graphs, batch: int, frames: int, extra: int = 0) -> None:
        like, rows = encoder.conv1.weight, frames * encoder.hop + extra
        moments, moments_bias = conv_of(encoder.conv2)
        most = encoder.levels(frames + (extra > 0))  # whatever is extra, so that the arena grows once at most
        super().__init__([*most, (frames, len(moments))], batch, like, graphs)
        self.rows = rows
        weight, bias = conv_of(encoder.conv1, inputs=False)
        taps = -(-weight.shape[1] * weight.shape[2] // WIDTH) * WIDTH // weight.shape[2]  # 8, the last one zero
        beyond = taps - weight.shape[1]
        weight = filled(weight, len(weight), taps, weight.shape[2])
        self.audio = self._input(rows + beyond, weight.shape[2])  # the tap more takes a row from what comes out
        blocks = list(encoder.block)
        units = [[unit_of(unit) for unit in block.units] for block in blocks]
        x, activated, _ = self._rows(rows, len(bias))
        self._add(conv1d, self.audio, weight, bias, padding=3, wave=units[0][0].wave1, out=(x, activated))
        for i, block in enumerate(blocks):
            last = i == len(blocks) - 1
            self._units(units[i], rows, wave_of(block.snake1))
            weight, bias = conv_of(block.conv1)
            stride = block.conv1.stride
            _, source, _ = self._rows(rows, weight.shape[2])
            rows //= stride
            x, _, free = self._rows(rows, len(bias))
            self._add(
                *(conv1d, source, weight, bias),
                **dict(stride=stride, padding=block.conv1.padding, keep=not last),
                wave=wave_of(encoder.snake1) if last else units[i + 1][0].wave1,
                out=(None if last else x, free),
            )
            self._turn()
        self.moments = self._rows(rows, len(moments))[2]
        source = self._rows(rows, moments.shape[2])[1]
        self._add(conv1d, source, moments, moments_bias, padding=1, out=self.moments)

    def load(self, audio: Tensor) -> None:
        """Put a tile's audio [B, 2, rows] where it is read."""
        whole(self.audio).zero_()  # the guards and the row beyond
        self.audio[:, : self.rows].copy_(audio.transpose(1, 2))


class FinishTile:
    """A piece of ``batch`` songs that are decoded, brought to their level: ``load``, then ``launch`` or ``replay``.

    Attributes:
        audio: [B, channels, samples] fp32, in the arena.
    """

    def __init__(self, graphs: Graphs, batch: int, channels: int, samples: int) -> None:
        self.audio = planes(graphs.arena(4 * batch * channels * samples), batch, channels, samples)
        self.peaks = torch.zeros(batch, 1, device=graphs.device)
        self.levels = torch.zeros(batch, dtype=torch.float64, device=graphs.device)
        self.scratch = torch.zeros(batch, PARTS, device=graphs.device)
        self.replay = graphs.replayed("finish", self.launch)

    @property
    def static(self) -> list[Tensor]:
        """All tensors of the launches, which a graph may count on."""
        return [self.audio, self.peaks, self.levels, self.scratch]

    def load(self, audio: Tensor, peaks: Tensor, level: float) -> None:
        """Put up to ``samples`` samples of songs [B, channels, n], their peaks [B, 1] and level where they are read."""
        self.audio[:, :, : audio.shape[2]].copy_(audio)  # what lies behind is nobody's
        self.peaks.copy_(peaks)
        self.levels.fill_(level)

    def launch(self) -> None:
        """The launches and nothing else."""
        pcm(self.audio, self.levels, peaks=self.peaks, out=self.audio, scratch=self.scratch)


class Tiled(nn.Module):
    """What a decoder and an encoder have in common: their tiles."""

    kind: type[Tile]

    def __init__(self) -> None:
        super().__init__()
        self._graphs: Graphs | None = None

    @property
    def graphs(self) -> Graphs:
        """Where tiles are kept: what was given, or some of their own."""
        if self._graphs is None or self._graphs.device != self.conv1.weight.device:
            self._graphs = Graphs(self.conv1.weight.device)
        return self._graphs

    @graphs.setter
    def graphs(self, graphs: Graphs) -> None:
        self._graphs = graphs

    def tile(self, batch: int, *size: int) -> Tile:
        """Static memory and launches for tiles of one size (see ``kind``), of which the last few are kept."""
        key = (self.kind, batch, *size, self.conv1.weight.dtype, named_backend())
        return self.graphs.kept("tile", key, lambda: self.kind(self, self.graphs, batch, *size))

    def _apply(self, *args, **kwargs) -> Tiled:
        """Weights may move: nothing that points to them is kept."""
        if self._graphs is not None:
            self._graphs.clear("tile")
        return super()._apply(*args, **kwargs)


def planes(memory: Tensor, batch: int, channels: int, samples: int) -> Tensor:
    """[B, channels, samples] fp32 at the beginning of ``memory``."""
    return memory.view(torch.float32)[: batch * channels * samples].view(batch, channels, samples)


def padded(width: int) -> int:
    """Channels that activations of so many take in a tile."""
    return -(-width // WIDTH) * WIDTH


def filled(t: Tensor, *sizes: int) -> Tensor:
    """``t`` in the corner of a tensor of zeros; itself if it has these sizes."""
    if t.shape == sizes:
        return t
    out = t.new_zeros(sizes)
    out[tuple(map(slice, t.shape))] = t
    return out


def wave_of(snake: Snake) -> Wave:
    width = padded(len(snake.alpha))
    return filled(snake.alpha, width), filled(snake.inv_beta, width)


def conv_of(conv: Conv, inputs: bool = True, outputs: bool = True) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, with as many input and output channels as a tile's activations have."""
    Cout, K, Cin = conv.weight.shape
    Cin, Cout = padded(Cin) if inputs else Cin, padded(Cout) if outputs else Cout
    return filled(conv.weight, Cout, K, Cin), None if conv.bias is None else filled(conv.bias, Cout)


def transposed_of(weight: Tensor, bias: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The same of a transposed convolution, [2 * Cin, stride * Cout]."""
    halves = weight.view(2, len(weight) // 2, stride, len(bias))
    Cin, Cout = padded(halves.shape[1]), padded(len(bias))
    return filled(halves, 2, Cin, stride, Cout).view(2 * Cin, stride * Cout), filled(bias, Cout)


def unit_of(unit: ResidualUnit) -> Unit:
    width = padded(len(unit.conv1.bias))
    second = filled(unit.conv2.weight, width, width), filled(unit.conv2.bias, width)
    return Unit(wave_of(unit.snake1), *conv_of(unit.conv1), wave_of(unit.snake2), *second, unit.dilation)
