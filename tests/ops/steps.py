"""Arguments of a sampler's step, for the tests of its meaning and of its kernel."""

from __future__ import annotations

import torch

from acefast.ops.sampler_step import Repaint, clock, step_table

TIMESTEPS = [1.0, 0.9, 0.7, 0.25]
SEEDS = [5, 2**63 + 9, 2**64 - 1]


def arguments(
    B: int = 2,
    T: int = 300,
    D: int = 64,
    *,
    dtype: torch.dtype = torch.bfloat16,
    sde: str = "",
    omega: float | None = None,
    repaint: bool = False,
    lengths: bool = False,
    step: int = 1,
    rows: int = 40,
) -> dict:
    """A step on views of buffers with ``rows`` more rows a song, NaN in those, and in what a short song leaves over."""
    g = torch.Generator().manual_seed(T)

    def tensor(dtype: torch.dtype = torch.float32, extra: int = 0) -> torch.Tensor:
        x = torch.full((B, T + extra, D), torch.nan, dtype=dtype)
        return x[:, :T].copy_(torch.randn(B, T, D, generator=g))

    valid = torch.tensor([T, (T + 1) // 2, max(1, T - 3)][:B])
    velocity = tensor(dtype, rows)
    if lengths:
        for song, length in zip(velocity, valid):
            song[length:] = torch.nan
    held = torch.tensor([2], dtype=torch.int32)
    noise = tensor() if sde == "given" else None
    if noise is not None and step == len(TIMESTEPS) - 1:
        noise.fill_(torch.nan)  # the last step has none
    return {
        "latents": tensor(extra=rows),
        "velocity": velocity,
        "times": step_table(TIMESTEPS),
        "step": clock((B, T, D), step=step),
        "model_latents": torch.zeros(B, T + rows, D, dtype=torch.bfloat16),
        "noise": noise,
        "omega": omega,
        "seeds": torch.tensor([s - (s >> 63 << 64) for s in SEEDS[:B]]) if sde == "drawn" else None,
        "repaint": Repaint(torch.rand(B, T, generator=g) < 0.5, tensor(), tensor(), held) if repaint else None,
        "lengths": valid if lengths else None,
    }


OUTPUTS = ("out", "model_latents", "step")


def results(given: dict, out: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return out, given["model_latents"], given["step"]


def assert_same(got, want) -> None:
    for name, a, b in zip(OUTPUTS, got, want):
        assert torch.equal(a, b), f"{name}: {(a != b).sum()} of {a.numel()} differ"
