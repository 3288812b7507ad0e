"""What a song is conditioned on: the seam between the text side and the diffusion loop, the same for both families."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


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
