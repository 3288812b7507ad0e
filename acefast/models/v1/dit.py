"""The diffusion transformer of ACE-Step v1: the velocity of noisy latents under prepared conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acefast.backends import choose_backend, named_backend
from acefast.checks import check_shape
from acefast.conditions import Conditions
from acefast.graphs import Graphs
from acefast.models.v1.config import NULL_SCALE, Config
from acefast.models.v1.dit_layer import Evaluation, Layer, LayerCondition
from acefast.models.v1.replay import Pass, PassShape
from acefast.models.v15.layers import Linear, TimeEmbedding, linear_table, parameter, residual_dtype
from acefast.ops.linear import linear
from acefast.ops.paired_rope import paired_rope_table
from acefast.ops.residual_norm import residual_norm
from acefast.ops.self_attention import compute_dtype
from acefast.weights import Source, WeightTable

OP = "DiT"
GROUPS = 32  # of the patch embedding's norm
WEAK_BLOCKS = range(15, 20)  # where entropy-rectified guidance (ERG) scales the null branch's queries by NULL_SCALE


class PatchEmbedding(nn.Module):
    """Latents to the residual stream: linear, GroupNorm, linear. The norm's statistics are of all frames of a song."""

    def __init__(self, c: Config):
        super().__init__()
        self.frame = Linear(c.frame_size, c.patch_hidden_size)
        self.norm_weight, self.norm_bias = parameter(c.patch_hidden_size), parameter(c.patch_hidden_size)
        self.out = Linear(c.patch_hidden_size, c.hidden_size)

    @staticmethod
    def weight_table(ours: str, official: str) -> WeightTable:
        def frame(w: Tensor) -> Tensor:  # [O, channels, rows, 1] -> [O, rows * channels]
            return w[..., 0].transpose(1, 2).flatten(1)

        return {
            f"{ours}.frame.weight": Source((f"{official}.0.weight",), frame),
            f"{ours}.frame.bias": Source((f"{official}.0.bias",)),
            f"{ours}.norm_weight": Source((f"{official}.1.weight",)),
            f"{ours}.norm_bias": Source((f"{official}.1.bias",)),
            f"{ours}.out.weight": Source((f"{official}.2.weight",), lambda w: w[..., 0, 0]),
            f"{ours}.out.bias": Source((f"{official}.2.bias",)),
        }

    def forward(self, latents: Tensor) -> Tensor:
        """[B, T, 128] -> [B, T, H] in the weights' dtype; the norm is fp32."""
        x = self.frame(latents.to(self.frame.weight.dtype))
        grouped = x.float().unflatten(2, (GROUPS, -1))
        variance, mean = torch.var_mean(grouped, dim=(1, 3), correction=0, keepdim=True)
        normed = ((grouped - mean) * (variance + 1e-6).rsqrt()).flatten(2)
        normed = torch.addcmul(self.norm_bias.float(), normed, self.norm_weight.float())
        return self.out(normed.to(x.dtype))


class DiT(nn.Module):
    """Velocity ``noise - data`` of noisy latents."""

    def __init__(self, config: Config):
        super().__init__()
        c, H = config, config.hidden_size
        self.config = config
        self.graphs: Graphs | None = None  # of passes on static memory; None: its own, made when they are needed
        self.patch = PatchEmbedding(c)
        self.time = TimeEmbedding(H)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_layers))
        self.tables = parameter(c.num_layers, 6, H)  # of all blocks, added to a timestep's six vectors
        self.out_table = parameter(2, H)
        self.out = Linear(H, c.frame_size)

    @staticmethod
    def weight_table(config: Config) -> WeightTable:
        def tables(*blocks: Tensor) -> Tensor:
            return torch.stack(blocks)

        official = [f"dit.transformer_blocks.{i}" for i in range(config.num_layers)]
        table = {
            **PatchEmbedding.weight_table("patch", "dit.proj_in.early_conv_layers"),
            **linear_table("time.linear_1", "dit.timestep_embedder.linear_1"),
            **linear_table("time.linear_2", "dit.timestep_embedder.linear_2"),
            **linear_table("time.project", "dit.t_block.1"),
            "tables": Source(tuple(f"{o}.scale_shift_table" for o in official), tables, torch.float32),
            "out_table": Source(("dit.final_layer.scale_shift_table",), dtype=torch.float32),
            **linear_table("out", "dit.final_layer.linear"),
        }
        for i, block in enumerate(official):
            table |= Layer.weight_table(f"layers.{i}", block)
        return table

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations; the residual stream is fp32 where this is fp16."""
        return self.out.weight.dtype

    def prepare(
        self,
        conditional: Sequence[Tensor],
        frames: int,
        timesteps: Sequence[float] = (),
        *,
        null: Sequence[Tensor] = (),
        text_only: Sequence[Tensor] = (),
        weak_null: bool = True,
    ) -> Conditions:
        """Conditions of songs of one length, with what no step changes computed once.

        A branch is one sequence [E, H] per song, of ``ConditionEncoder.sequence``, or one alone that all songs share.
        Sequences may differ in length: a song's positions begin at 0, and it sees no padding.

        Args:
            conditional: of the songs as they are asked for.
            frames: latent frames of each song.
            timesteps: the schedule; its embeddings are computed here, together. ``velocity`` computes any other where
                it meets it.
            null, text_only: what guidance compares with; empty: ``velocity`` cannot be asked for it.
            weak_null: ERG: the null branch's cross-attention in ``WEAK_BLOCKS`` has its queries scaled by
                ``NULL_SCALE``. Here its keys are. Upstream scales self-attention's queries too, which changes nothing.
        Raises:
            ValueError: a branch has not as many songs as the others, or a sequence is not of the model's width.
        """
        H, device = self.config.hidden_size, self.out.weight.device
        branches = [list(b) for b in (conditional, null, text_only) if len(b)]
        songs = len(branches[0])
        if any(len(b) != songs for b in branches):
            raise ValueError(f"{OP}: branches must be of {songs} songs each, got {[len(b) for b in branches]}")
        sequences = [sequence for branch in branches for sequence in branch]
        for sequence in sequences:
            check_shape(OP, "sequence", sequence, (None, H), "[E, H]")
        sizes = [len(sequence) for sequence in sequences]
        states = torch.zeros(len(sizes), max(sizes), H, dtype=self.dtype, device=device)
        for row, sequence in zip(states, sequences):
            row[: len(sequence)] = sequence
        lengths = torch.tensor(sizes).to(device, non_blocking=True)
        weak = NULL_SCALE if weak_null and null else 1.0
        factors = torch.tensor([1.0, weak, 1.0][: len(branches)]).repeat_interleave(songs)
        prepared = {
            "branches": len(branches),
            "layers": self.keys_values(states, factors.to(device, non_blocking=True)),
            "mask": None if min(sizes) == max(sizes) else self.mask(lengths, max(sizes)),
            "lengths": None if min(sizes) == max(sizes) else lengths,
            "times": dict(zip(timesteps, zip(*self.embeddings(timesteps)))) if timesteps else {},
        }
        context = torch.zeros(songs, frames, 0, device=device)
        return Conditions(states[:songs], lengths[:songs], context, prepared, key=object())  # no others are the same

    def keys_values(self, states: Tensor, scale: Tensor) -> list[LayerCondition]:
        """Each block's keys and values of the sequences [rows, E, H]; ``scale`` [rows] of queries in WEAK_BLOCKS."""
        rope = self.rope(states.shape[1])
        return [
            layer.cross_attention.keys_values(states, rope, scale if i in WEAK_BLOCKS else None)
            for i, layer in enumerate(self.layers)
        ]

    def mask(self, lengths: Tensor, width: int) -> Tensor:
        """[rows, 1, 1, E] to add to scores: 0 where a row has a condition, the most negative number behind."""
        dtype = compute_dtype(self.out.weight)
        padded = torch.arange(width, device=lengths.device) >= lengths[:, None, None, None]
        return torch.zeros(padded.shape, dtype=dtype, device=lengths.device).masked_fill_(
            padded, torch.finfo(dtype).min
        )

    def embeddings(self, timesteps: Sequence[float]) -> tuple[Tensor, Tensor]:
        """What each timestep tells the blocks [steps, 6, H] and the last norm [steps, H], fp32."""
        times = torch.tensor(list(timesteps), dtype=torch.float32) * 1000  # the scheduler's, whose fp32 product it is
        out, blocks = self.time(times.to(self.out.weight.device, non_blocking=True))
        return blocks, out

    def rope(self, length: int) -> Tensor:
        """The table of ``paired_rope`` for so many positions."""
        c = self.config
        return paired_rope_table(length, c.attention_head_dim, c.rope_theta, self.out.weight.device)

    def velocity(
        self, latents: Tensor, t: float, conditions: Conditions, *, unconditional: bool = False
    ) -> Tensor | tuple[Tensor, ...]:
        """Velocity at noise level ``t``.

        Args:
            latents: [B, T, 128], any float dtype.
            t: 0 (data) to 1 (noise), the same for all songs.
            conditions: of ``prepare``, of B songs or of one that all share.
            unconditional: also return the velocity of the other branches.
        Returns:
            [B, T, 128] fp32; with ``unconditional`` a tuple of those: conditional, null and, where ``prepare`` was
            given it, text-only.
        Raises:
            ValueError: a shape is not as above, or ``unconditional`` without a null branch.
        """
        prepared, (B, T, _) = conditions.prepared, latents.shape
        songs, frames = conditions.context.shape[:2]
        check_shape(OP, "latents", latents, (B if songs == 1 else songs, frames, self.config.frame_size), "[B, T, 128]")
        branches = prepared["branches"] if unconditional else 1
        if unconditional and branches < 2:
            raise ValueError(f"{OP}: unconditional=True needs prepare(..., null=...), got none there")
        if t not in prepared["times"]:
            prepared["times"][t] = tuple(found[0] for found in self.embeddings([t]))
        if self.static:
            return self._replayed(latents, t, conditions, branches)
        rows = songs * branches
        mask, lengths = (None if t is None else t[:rows] for t in (prepared["mask"], prepared["lengths"]))
        layers = [LayerCondition(*(kept[:rows] for kept in both)) for both in prepared["layers"]]
        e = Evaluation(B * branches, self.rope(T), mask, lengths)
        out = self.evaluate(latents, *prepared["times"][t], layers, e).float()
        return tuple(out.split(B)) if unconditional else out

    @property
    def static(self) -> bool:
        """Whether passes run on static memory, see ``Pass``: where Triton's kernels are in force."""
        return choose_backend(OP, None, self.out.weight.device, ("triton",)) == "triton"

    def _replayed(
        self, latents: Tensor, t: float, conditions: Conditions, branches: int
    ) -> Tensor | tuple[Tensor, ...]:
        if self.graphs is None:
            self.graphs = Graphs(self.out.weight.device)
        shape = PassShape.of(conditions, len(latents), branches)
        key = shape, self.dtype, named_backend()
        found = self.graphs.kept("pass", key, lambda: Pass(self, shape, self.graphs))
        out = found(conditions, latents, conditions.prepared["times"][t])
        return out if branches == 1 else tuple(out.split(len(latents)))

    def evaluate(
        self, latents: Tensor, blocks: Tensor, out: Tensor, layers: list[LayerCondition], e: Evaluation
    ) -> Tensor:
        """Velocities [rows, T, 128] in the model's dtype of latents [B, T, 128]; nothing in it waits for a GPU.

        ``blocks`` [6, H] and ``out`` [H] are a timestep's ``embeddings``.
        """
        x = self.patch(latents).to(residual_dtype(self.dtype))
        y = gate = None
        for layer, condition, modulation in zip(self.layers, layers, self.tables + blocks):
            x, y, gate = layer(x, y, gate, modulation, condition, e)
        shift, scale = self.out_table + out
        _, h = residual_norm(x, None, y, gate, scale, shift, dtype=self.dtype)
        return linear(h, self.out.weight, self.out.bias)
