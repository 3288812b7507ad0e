"""Random tensors of the right scale for every name in a checkpoint, written to disk piece by piece.

The scale keeps activations of order one through every network and the audio below full scale, at any size: what a test
or a benchmark needs where real weights are too large or not at hand.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from acefast.models.v1.names import SPIECE

SILENCE_FRAMES = 15_000  # 600 s
_BLOCK = 4_194_301  # normal numbers drawn once; a prime, so that no tensor's rows line up with its repeats
_PIECE = 1 << 15  # numbers handled at once: they stay in cache, and torch starts no threads for so few
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8"}

# Two parts of a VAE convolution's name -> norm of its folded rows. Before each of them a snake raises the second moment
# by about a third; a residual unit's last one adds a small share only; a transposed one spreads its rows over its
# stride; the last one of all sets the loudness.
_GAINS = (
    (".res_unit", ".conv2.", 0.3),
    (".conv_t1.", "", 1.4),
    ("decoder.conv2.", "", 0.35),
)
_GAIN = 0.85

# Of v1, by name: the mean of a vector, the norm of a weight-normed convolution's rows, or what a weight's deviation is
# multiplied by. SiLU leaves 0.36 of the second moment; a transposed convolution spreads each row over its stride and
# has twice as many inputs as outputs; branches of a residual block add a small share.
_V1_MEANS = {
    r"vocoder\..*\.gamma": 0.3,
    r"vocoder\.head\.conv_pre\.weight_g": 1.0,
    r"vocoder\.head\.ups\.[01]\.weight_g": 2.3,  # stride 4
    r"vocoder\.head\.ups\.\d\.weight_g": 1.6,
    r"vocoder\.head\..*convs1\.\d\.weight_g": 1.6,
    r"vocoder\.head\..*convs2\.\d\.weight_g": 0.4,
    r"vocoder\.head\.conv_post\.weight_g": 0.3,
    r"dcae\..*_blocks\..*\.(norm|norm_out)\.weight": 0.3,
}
_V1_FACTORS = {
    r"umt5\..*\.relative_attention_bias\.weight": 0.3,
    r"dcae\.encoder\.conv_out\.weight": 4.0,  # latents of the autoencoder are wide
    r"dcae\.decoder\.conv_out\.weight": 0.5,  # mel frames within -1 .. 1
}
_V1_PARTS = ("dit.", "dcae.", "vocoder.", "umt5.")
_V1_EMBEDDINGS = r"dit\.lyric_embs\.weight|umt5\.shared\.weight|umt5\..*\.relative_attention_bias\.weight"


class RandomTensors:
    """The tensors of a random checkpoint: the same seed and name always give the same values."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._normal = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed))

    def normal(self, name: str, count: int) -> Iterator[Tensor]:
        """``count`` standard normal float32 in pieces, from the block at a place that depends on ``name``."""
        place = zlib.crc32(f"{self.seed}/{name}".encode()) % _BLOCK
        while count:
            piece = self._normal[place : place + min(count, _PIECE)]
            yield piece
            count, place = count - len(piece), (place + len(piece)) % _BLOCK

    def pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """The float32 tensor of an official name (see ``names`` of ``acefast.models.v15`` and ``v1``).

        It comes flat and in pieces that fit the processor's cache: a full-size checkpoint is billions of numbers.
        """
        if name == "silence_latent":
            yield self.silence(shape[-1]).flatten()
            return
        mean, deviation = (_v1_moments if name.startswith(_V1_PARTS) else _moments)(name, shape)
        for piece in self.normal(name, math.prod(shape)):
            yield piece * deviation + mean if mean else piece * deviation

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The whole tensor, see ``pieces``."""
        return torch.cat(list(self.pieces(name, shape))).reshape(shape)

    def silence(self, D: int) -> Tensor:
        """[1, 15000, D] float32: constant but for its first frames, like the real one."""
        frame = 0.5 * torch.cat(list(self.normal("silence_latent", D)))
        silence = frame.repeat(1, SILENCE_FRAMES, 1)
        silence[:, :4] += 0.2 * torch.cat(list(self.normal("silence_latent.head", 4 * D))).reshape(4, D)
        return silence


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(mean, standard deviation) of a tensor's values."""
    leaf = name.rpartition(".")[2]
    if leaf == "weight_g":
        gain = conv_gain(name)
        return gain, 0.05 * gain
    if leaf in ("alpha", "beta", "scale_shift_table"):
        return 0.0, 0.1
    if leaf == "bias":
        return 0.0, 0.02
    if len(shape) == 1:  # every other vector is a norm's weight
        return 1.0, 0.1
    if leaf == "weight" and name != "embed_tokens.weight":
        return 0.0, _fan_in(name, shape) ** -0.5
    return 0.0, 1.0  # embeddings, special tokens, and weight_v, whose scale weight norm takes away


def _v1_moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """``_moments`` of the first ACE-Step."""
    mean = next((mean for pattern, mean in _V1_MEANS.items() if re.fullmatch(pattern, name)), 1.0)
    factor = next((factor for pattern, factor in _V1_FACTORS.items() if re.fullmatch(pattern, name)), 1.0)
    leaf = name.rpartition(".")[2]
    if leaf in ("weight_g", "gamma") or (leaf == "weight" and len(shape) == 1):
        return mean, 0.1 * mean
    if leaf == "bias":
        return 0.0, 0.02
    if leaf in ("scale_shift_table", "pos_bias_u", "pos_bias_v"):
        return 0.0, 0.1
    if leaf in ("weight_v", "window", "fb") or re.fullmatch(_V1_EMBEDDINGS, name):
        return 0.0, factor
    fan_in = math.prod(shape[1:])
    if name.endswith("SelfAttention.q.weight"):  # nothing divides UMT5's scores by the root of the head size
        fan_in *= 64
    return 0.0, factor * fan_in**-0.5


def conv_gain(name: str) -> float:
    """Norm of a weight-normed convolution's rows that keeps its output at its input's scale."""
    for part, inner, gain in _GAINS:
        if part in name and inner in name:
            return gain
    return _GAIN


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    if (
        name == "decoder.proj_out.1.weight"
    ):  # a transposed convolution: [in, out, kernel], and one tap meets each output
        return shape[0]
    return math.prod(shape[1:])


Item = tuple[str, tuple[int, ...], Callable[[], Iterable[Tensor]]]  # name in the file, shape, its values in pieces


def write_safetensors(
    path: Path, items: Iterable[Item], dtype: torch.dtype, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file piece by piece; memory holds one piece, however large the file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    items, end = list(items), 0
    kinds = [torch.uint8 if name == SPIECE else dtype for name, _, _ in items]
    for (name, shape, _), kind in zip(items, kinds):
        start, end = end, end + kind.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[kind], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (_, _, values), kind in zip(items, kinds):
            for piece in values():
                file.write(piece.to(kind).view(torch.uint8).numpy().data)


def write_sharded(
    folder: Path, stem: str, items: Iterable[Item], dtype: torch.dtype, shard_bytes: int | None = None
) -> None:
    """``folder/stem.safetensors``, or numbered shards of at most ``shard_bytes`` and their index."""
    shards: list[list[Item]] = [[]]
    room = math.inf if shard_bytes is None else shard_bytes
    for item in items:
        size = dtype.itemsize * math.prod(item[1])
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(item)
        room -= size
    if len(shards) == 1:
        return write_safetensors(folder / f"{stem}.safetensors", shards[0], dtype)
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards):
        write_safetensors(folder / name, shard, dtype)
    total = sum(dtype.itemsize * math.prod(shape) for shard in shards for _, shape, _ in shard)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {item[0]: name for name, shard in zip(names, shards) for item in shard},
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))
