"""What the models of both families have in common: networks on one device, and whatever is kept beside them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from acefast.backends import cpu_kernels_take
from acefast.conditions import ConditionCache
from acefast.graphs import Graphs
from acefast.lanes import Lane
from acefast.ops.pcm import pcm
from acefast.panels import hold_panels
from acefast.residence import Residence
from acefast.weights import load

TILE_SIZES = 32  # whose graphs are kept; they share their memory


class Model:
    """A checkpoint's networks, each an ``acefast.residence.Part``; ``early`` ones are loaded unless memory is low."""

    sample_rate = 48_000
    early: tuple[str, ...]
    continues = False  # whether a song can go on from the latents of another: streams in segments

    def __init__(
        self,
        checkpoint: Any,
        device: torch.device,
        dtype: torch.dtype,
        graphs: bool | None = None,
        memory: str = "fast",
        quantization: str | None = None,
    ) -> None:
        """
        Args:
            graphs: whether CUDA graphs are captured, see ``Graphs``; where memory is low none are, as weights move.
            memory: "fast": the networks stay on the device; "low": see ``acefast.residence``.
            quantization: "int8" or None, see ``acefast.load``.
        """
        self.checkpoint, self.device, self.dtype, self.memory = checkpoint, device, dtype, memory
        self.config, self.traits, self.quantization = checkpoint.config, checkpoint.traits, quantization
        graphs = False if memory == "low" else graphs
        self.graphs = Graphs(device, enabled=graphs)  # of conditions and steps
        # of audio, which may be made beside another song's steps
        self.tile_graphs = Graphs(device, enabled=graphs, limit=TILE_SIZES)
        # Static memory, and what was captured on it, goes with the networks that it was made for. No reference back to
        # the model, which so is gone at once when it is dropped.
        self.residence = Residence(device, memory, partial(_forget, self.graphs, self.tile_graphs))
        self.encodings = ConditionCache()
        # work of the audio autoencoder, whose memory is its own; where networks take turns, so do all threads
        self.coding = Lane(device, beside=memory != "low")
        self.tokenizer = checkpoint.tokenizer()
        for name in self.early if memory != "low" else ():
            getattr(self, name)

    def _load(self, kind: type[nn.Module], *configs: object, dtype: torch.dtype | None = None) -> nn.Module:
        with torch.device("meta"):
            module = kind(*configs)
        load(module, kind.weight_table(*configs), self.checkpoint, self.device, dtype or self.dtype)
        if cpu_kernels_take(dtype or self.dtype, self.device):
            hold_panels(module, module.origin.stamps)
        return module.eval()

    def forget(self) -> None:
        """Forget what was computed with the weights that the networks had: encodings, and what steps hold of them."""
        self.encodings.clear()
        self.graphs.spoil()


def levelled(audio: Tensor, level: float, peaks: Tensor | None = None) -> Tensor:
    """Songs [B, 2, N] fp32, in place, with their peaks at ``level`` dBFS; ``peaks`` [B, 1] where they are known."""
    levels = torch.full((len(audio),), 10 ** (level / 20), dtype=torch.float64)  # on the CPU: mps has no fp64
    return pcm(audio, levels, peaks=peaks, out=audio)


def _forget(*graphs: Graphs) -> None:
    for each in graphs:
        each.clear()
