"""What tests of the residual unit's kernels share: inputs, the equation in fp64, memory that is NaN."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from acefast.guarded import GUARD, guarded, is_guarded, whole, with_guards

GATE = {torch.bfloat16: 3e-3, torch.float16: 4e-4}  # relative L2: roundings of h and of the result


def weights(rng, C, dtype):
    """Two waves, two weights that keep the size of what they multiply, two biases: the kernel's order."""
    waves = [torch.rand(2, C, generator=rng) + 0.2 for _ in range(2)]
    weight1 = (torch.randn(C, 7, C, generator=rng) / (7 * C) ** 0.5).to(dtype)
    weight2 = (torch.randn(C, C, generator=rng) / C**0.5).to(dtype)
    bias1, bias2 = (torch.randn(2, C, generator=rng) / 10).to(dtype)
    return (weight1, bias1, *waves[0], weight2, bias2), tuple(waves[1])


def exact(x, activated, weight1, bias1, alpha2, inv_beta2, weight2, bias2, dilation, wave):
    """y and snake_next(y) in fp64, of h in fp64 too."""
    x, activated, weight1, bias1, weight2, bias2 = (t.double() for t in (x, activated, weight1, bias1, weight2, bias2))
    h = F.conv1d(activated.mT, weight1.mT, bias1, padding=3 * dilation, dilation=dilation).mT
    h = h + inv_beta2 * (alpha2 * h).sin() ** 2
    y = x + h @ weight2.T + bias2
    return y, y + wave[1] * (wave[0] * y).sin() ** 2


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


def rows(rng, B, L, C, dtype):
    return with_guards(torch.randn(B, L, C, generator=rng).to(dtype))


def poisoned(x):
    """Rows like x's in memory that is NaN all over, guards included."""
    made = guarded(*x.shape, dtype=x.dtype, device=x.device)
    whole(made).fill_(torch.nan)
    return made


def check_guards(*results):
    for t in results:
        assert is_guarded(t) and not whole(t)[:, :GUARD].any() and not whole(t)[:, -GUARD:].any()
