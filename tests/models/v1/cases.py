"""Inputs of the golden numbers of v1's transformer: all from seeds."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.models.v1.fill import TINY, normal

TIME = 0.75
TIMES = (1.0, 0.75, 0.0625, 0.00892857)  # the last one ends every schedule of upstream
FRAMES = (1, 2, 5, 33)
SEED = 5
SECONDS = 0.9  # nine latent frames
PROMPT = [7, 33, 12, 50, 3, 1]
TARGET_PROMPT = [7, 21, 1]
LYRICS = [26, 5, 9, 31, 2, 44, 5, 2]
TARGET_LYRICS = [26, 5, 9, 17, 30, 11, 2, 44, 5, 2, 13]


def latents(songs: int, frames: int) -> Tensor:
    """[songs, frames, 128]."""
    return normal(11, songs, frames, TINY.frame_size)


def states(songs: int, tokens: int) -> Tensor:
    """Condition sequences [songs, tokens, H]."""
    return normal(12, songs, tokens, TINY.hidden_size)


def heads() -> Tensor:
    """Queries [2, 19, heads, D]."""
    return normal(13, 2, 19, TINY.num_attention_heads, TINY.attention_head_dim)


def padded_lyrics() -> tuple[Tensor, Tensor]:
    """Ids [3, 11] and their mask: a row that is full, a shorter one and one of no lyrics at all."""
    ids = (normal(14, 3, 11).abs() * 1000).long() % TINY.lyric_encoder_vocab_size
    mask = (torch.arange(11) < torch.tensor([11, 6, 0])[:, None]).long()
    return ids * mask, mask


def padded_text() -> tuple[Tensor, Tensor]:
    """States of a text encoder [3, 5, 24] and their mask."""
    return normal(15, 3, 5, TINY.text_embedding_dim), torch.ones(3, 5)
