"""The condition encoder: prompt, lyrics and timbre references become one packed sequence for cross-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acefast.checks import check_shape
from acefast.models.v15.config import Config
from acefast.models.v15.layers import Encoder, Linear, linear_table, parameter
from acefast.weights import Source, WeightTable


class ConditionEncoder(nn.Module):
    """Text projector, lyric encoder, timbre encoder, and the embedding that stands for "no condition"."""

    def __init__(self, config: Config):
        super().__init__()
        c = self.config = config
        W = c.encoder_hidden_size
        self.text = Linear(c.text_hidden_dim, W, bias=False)
        self.lyric_embed = Linear(c.text_hidden_dim, W)
        self.lyric = Encoder(c, c.num_lyric_encoder_hidden_layers)
        self.timbre_embed = Linear(c.audio_acoustic_hidden_dim, W)
        self.timbre_token = parameter(1, 1, W)  # in every checkpoint, used in XL's alone
        self.timbre = Encoder(c, c.num_timbre_encoder_hidden_layers)
        self.null_condition_emb = parameter(1, 1, W)

    @staticmethod
    def weight_table(config: Config) -> WeightTable:
        return {
            "null_condition_emb": Source(("null_condition_emb",)),
            "timbre_token": Source(("encoder.timbre_encoder.special_token",)),
            **linear_table("text", "encoder.text_projector", bias=False),
            **linear_table("lyric_embed", "encoder.lyric_encoder.embed_tokens"),
            **Encoder.weight_table("lyric", "encoder.lyric_encoder", config.num_lyric_encoder_hidden_layers),
            **linear_table("timbre_embed", "encoder.timbre_encoder.embed_tokens"),
            **Encoder.weight_table("timbre", "encoder.timbre_encoder", config.num_timbre_encoder_hidden_layers),
        }

    def text_encode(self, hidden_states: Tensor) -> Tensor:
        """Last states of the text encoder [B, Lt, 1024] to [B, Lt, W], row by row."""
        return self.text(hidden_states.to(self.null_condition_emb.dtype))

    def lyric_encode(self, embeddings: Tensor, lengths: Tensor | None = None, *, pad_rows: bool = False) -> Tensor:
        """Input embeddings of the lyric tokens [B, Ll, 1024] to [B, Ll, W].

        ``lengths``: [B], valid tokens of each row; None: all. ``pad_rows``: see ``Encoder.forward``.
        """
        embedded = self.lyric_embed(embeddings.to(self.null_condition_emb.dtype))
        return self.lyric(embedded, lengths, pad_rows=pad_rows)

    def timbre_encode(self, references: Tensor, *, semantics: str = "official") -> Tensor:
        """One vector per reference.

        Args:
            references: latents of reference audio, or of silence, [N, F, 64]; F is 750 upstream, and the result
                depends on F.
            semantics: "official" puts XL's learned token in front of the frames, "diffusers" leaves it out; the 2B
                models have no use for it either way.
        Returns:
            [N, W]. Of silence it is a constant of the checkpoint: encode it once.
        """
        x = self.timbre_embed(references.to(self.null_condition_emb.dtype))
        if self.config.timbre_token and semantics == "official":
            x = torch.cat((self.timbre_token.expand(x.shape[0], -1, -1), x), dim=1)
        return self.timbre(x, first_row=True)[:, 0]

    def forward(
        self,
        text_hidden_states: Tensor,
        text_lengths: Tensor,
        lyric_embeddings: Tensor,
        lyric_lengths: Tensor,
        timbre: Tensor | None = None,
        timbre_index: Tensor | None = None,
        timbre_vector: Tensor | None = None,
        *,
        semantics: str = "official",
        pad_mode: str = "exact",
    ) -> tuple[Tensor, Tensor]:
        """Encode and pack the conditions of B songs; looks at the lengths, so a GPU is waited for.

        Args:
            text_hidden_states: last states of the text encoder, [B, Lt, 1024], padded on the right.
            text_lengths: [B] int64, valid tokens.
            lyric_embeddings: input embeddings of the lyric tokens, [B, Ll, 1024], padded on the right.
            lyric_lengths: [B] int64, valid tokens.
            timbre: reference latents [N, F, 64], several per song if wanted; None: no song has one.
            timbre_index: [N] int64, the song of each reference.
            timbre_vector: [1, W] or [B, W], a ``timbre_encode`` made before, as that of silence, for the songs without
                a reference here; None leaves those songs without a timbre token.
            semantics: see ``timbre_encode``.
            pad_mode: "exact", or "upstream", which also fills the padding with the values that upstream attends to.
        Returns:
            encoder_hidden_states [B, Ll + R + Lt, W], R the most references of a song: valid lyrics, timbre and text of
            each song, then all padding; and lengths [B] int64, the valid ones.
        Raises:
            ValueError: a shape is not as above.
        """
        B, Lt, _ = text_hidden_states.shape
        Ll, width = lyric_embeddings.shape[1], self.config.text_hidden_dim
        check_shape("conditions", "text_hidden_states", text_hidden_states, (B, Lt, width), "[B, Lt, 1024]")
        check_shape("conditions", "lyric_embeddings", lyric_embeddings, (B, Ll, width), "[B, Ll, 1024]")
        check_shape("conditions", "text_lengths", text_lengths, (B,), "[B]")
        check_shape("conditions", "lyric_lengths", lyric_lengths, (B,), "[B]")
        text = self.text_encode(text_hidden_states)
        lengths = None if bool((lyric_lengths == Ll).all()) else lyric_lengths
        lyrics = self.lyric_encode(lyric_embeddings, lengths, pad_rows=pad_mode == "upstream")
        vectors, counts = self._timbre_slots(B, timbre, timbre_index, timbre_vector, semantics, lyrics)
        valid = torch.cat(
            [
                torch.arange(size, device=text.device) < n.to(text.device)[:, None]
                for size, n in ((Ll, lyric_lengths), (vectors.shape[1], counts), (Lt, text_lengths))
            ],
            dim=1,
        )
        return pack(torch.cat((lyrics, vectors, text), dim=1), valid)

    def _timbre_slots(
        self,
        B: int,
        timbre: Tensor | None,
        index: Tensor | None,
        silence: Tensor | None,
        semantics: str,
        like: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The timbre vectors song by song, [B, R, W], and how many each song has, [B]."""
        songs: list[list[Tensor]] = [[] for _ in range(B)]
        if timbre is not None:
            if index is None:
                raise ValueError("conditions: timbre_index must be [N] with timbre, got None")
            check_shape("conditions", "timbre_index", index, (timbre.shape[0],), "[N]")
            for song, vector in zip(index.tolist(), self.timbre_encode(timbre, semantics=semantics)):
                songs[song].append(vector)
        if silence is not None:
            check_shape("conditions", "timbre_vector", silence[:1], (1, like.shape[-1]), "[1, W] or [B, W]")
            songs = [vectors or [vector] for vectors, vector in zip(songs, silence.to(like).expand(B, -1))]
        slots = max(len(vectors) for vectors in songs)
        out = like.new_zeros(B, slots, like.shape[-1])
        for b, vectors in enumerate(songs):
            for r, vector in enumerate(vectors):
                out[b, r] = vector
        return out, torch.tensor([len(vectors) for vectors in songs])


def pack(x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Move the valid rows of each item to the front, order kept on both sides.

    Args:
        x: [B, E, W].
        valid: [B, E] bool.
    Returns:
        the packed [B, E, W] and the number of valid rows [B] int64.
    """
    order = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
    return x.gather(1, order[..., None].expand_as(x)), valid.sum(1)
