"""What the velocity model is conditioned on, prepared once per song and then read by every step."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

CACHE_BYTES = 64 << 20  # of encodings that a model keeps: some thirty songs of 2B in bf16

_serials = itertools.count()


@dataclass
class Conditions:
    """Inputs of the velocity model that do not change while a batch is sampled.

    ``prepared`` holds what the model derives from them once per song (cross-attention keys and values, the context
    half of its patch projection); only the model that wrote it reads it.
    """

    encoder_hidden_states: Tensor  # [B, E, W]; valid tokens first, padding behind
    lengths: Tensor  # [B] int64: valid tokens of each row
    context: Tensor  # [B, T, C]: what the model sees beside the noisy latents, frame by frame
    prepared: dict[str, Any] = field(default_factory=dict)
    key: Hashable = None  # of the content of states and lengths: the same key, the same content; None: not known

    @property
    def batch(self) -> int:
        """Rows, one per song."""
        return self.encoder_hidden_states.shape[0]


class Encoded(NamedTuple):
    """What an encoder made of a prompt, of lyrics or of reference audio; nobody may write to it."""

    states: Tensor  # [n, W]; [B, E, W] of a batch with its padding
    serial: int  # no other one of this process has it

    @classmethod
    def of(cls, states: Tensor) -> Encoded:
        return cls(states, next(_serials))


class ConditionCache:
    """Encodings by their content; those not used for longest are forgotten where all take more than ``limit`` bytes."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[Hashable, Encoded] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Encoded:
        """What ``make`` made for ``key`` before, else what it makes now, in memory of its own."""
        found = self._kept.get(key)
        if found is None:
            found = self._kept[key] = Encoded.of(make())
            self.bytes += found.states.nbytes
        self._kept.move_to_end(key)
        while self.bytes > self.limit:
            self.bytes -= self._kept.popitem(last=False)[1].states.nbytes
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0
