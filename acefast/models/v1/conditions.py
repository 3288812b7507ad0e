"""The condition encoder of ACE-Step v1: prompt and lyrics become the sequence that cross-attention reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acefast.models.v1.config import Config
from acefast.models.v1.lyric_encoder import LyricEncoder
from acefast.models.v15.layers import Linear, linear_table
from acefast.weights import WeightTable


class ConditionEncoder(nn.Module):
    """Projections of the speaker, the prompt ("genre") and the lyrics, and the lyric encoder.

    The singer encoder was never released and the released model is told of no speaker: its vector is zero, always.
    """

    def __init__(self, config: Config):
        super().__init__()
        c, H = config, config.hidden_size
        self.speaker = Linear(c.speaker_embedding_dim, H)
        self.genre = Linear(c.text_embedding_dim, H)
        self.lyric_encoder = LyricEncoder(c)
        self.lyric = Linear(c.lyric_hidden_size, H)

    @staticmethod
    def weight_table(config: Config) -> WeightTable:
        return {
            **linear_table("speaker", "dit.speaker_embedder"),
            **linear_table("genre", "dit.genre_embedder"),
            **LyricEncoder.weight_table("lyric_encoder", config),
            **linear_table("lyric", "dit.lyric_proj"),
        }

    def text_encode(self, hidden_states: Tensor) -> Tensor:
        """Last states of the text encoder [B, Lt, 768] to [B, Lt, H], row by row."""
        return self.genre(hidden_states.to(self.genre.weight.dtype))

    def lyric_encode(self, ids: Tensor, lengths: Tensor | None = None, *, weak: bool = False) -> Tensor:
        """Lyric ids [B, Ll] to [B, Ll, H]; see ``LyricEncoder.forward``."""
        return self.lyric(self.lyric_encoder(ids, lengths, weak=weak))

    def sequence(self, text: Tensor | int, lyrics: Tensor | None = None) -> Tensor:
        """One song's sequence: the speaker, the prompt, the lyrics.

        Args:
            text: [Lt, H] of ``text_encode``; a number stands for so many tokens of no text, which upstream makes of
                zeros in place of the text encoder's states.
            lyrics: [Ll, H] of ``lyric_encode``; None: none, as where upstream masks them.
        Returns:
            [1 + Lt + Ll, H].
        """
        if isinstance(text, int):
            text = self.genre.bias.expand(text, -1)
        speaker = self.speaker(text.new_zeros(1, self.speaker.weight.shape[1]))
        return torch.cat((speaker, text) if lyrics is None else (speaker, text, lyrics))
