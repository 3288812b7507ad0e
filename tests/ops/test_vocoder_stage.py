"""A stage of v1's vocoder made of conv_transpose1d and conv1d: a higher rate, then the mean of four stacks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acefast.guarded import with_guards
from acefast.ops.conv1d import conv1d
from acefast.ops.conv_transpose1d import conv_transpose1d, conv_transpose_weight

KERNELS, DILATIONS = (3, 7, 11, 13), (1, 3, 5)
GATE = {torch.float32: 2e-6, torch.float16: 1.5e-3}  # relative L2: fp16 rounds each of 27 results on the way


def weights(rng, inner, outer, stride):
    """Of the transposed convolution, then of each stack's six: torch's shapes, fp32."""
    up = torch.randn(inner, outer, 2 * stride, generator=rng) / (2 * inner) ** 0.5, torch.randn(outer, generator=rng)
    pairs = {}
    for K in KERNELS:
        for d in DILATIONS:
            made = torch.randn(2, outer, outer, K, generator=rng) / (outer * K) ** 0.5
            pairs[K, d] = list(zip(made, torch.randn(2, outer, generator=rng)))
    return up, pairs


def plain(x, up, pairs, stride):
    """As upstream has it, channels-first: silu(mean of the stacks), which the next stage reads."""
    up, pairs = [t.double() for t in up], {k: [[t.double() for t in one] for one in p] for k, p in pairs.items()}
    x = F.conv_transpose1d(F.silu(x.double()).mT, *up, stride=stride, padding=stride // 2)
    stacks = []
    for K in KERNELS:
        y = x
        for d in DILATIONS:
            first, second = pairs[K, d]
            h = F.conv1d(F.silu(y), *first, padding=d * (K - 1) // 2, dilation=d)
            y = y + F.conv1d(F.silu(h), *second, padding=(K - 1) // 2)
        stacks.append(y)
    return F.silu(sum(stacks) / 4).mT


def stage(activated, up, pairs, stride, **options):
    """The same by the ops, on rows that the stage before has activated; 25 launches."""
    dtype = activated.dtype
    weight = conv_transpose_weight(up[0]).to(dtype)
    x, x_silu = conv_transpose1d(activated, weight, up[1].to(dtype), stride=stride, wave="silu", **options)
    total = None
    for K in KERNELS:
        y, y_silu = x, x_silu
        for d in DILATIONS:
            (w1, b1), (w2, b2) = ((w.mT.contiguous().to(dtype), b.to(dtype)) for w, b in pairs[K, d])
            first = {"padding": d * (K - 1) // 2, "dilation": d, "wave": "silu", "keep": False}
            _, h = conv1d(y_silu, w1, b1, **first, **options)
            second = {"padding": (K - 1) // 2, "residual": y, **options}
            if d != DILATIONS[-1]:
                y, y_silu = conv1d(h, w2, b2, wave="silu", **second)
            elif K in KERNELS[:-1]:
                total = conv1d(h, w2, b2, share=0.25, total=total, **second)
            else:
                return conv1d(h, w2, b2, share=0.25, total=total, wave="silu", keep=False, **second)[1]


@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_a_stage_is_upstreams(dtype, rng):
    up, pairs = weights(rng, 16, 8, 2)
    x = torch.randn(2, 40, 16, generator=rng)
    got = stage(F.silu(x).to(dtype), up, pairs, 2)
    want = plain(x, up, pairs, 2)
    assert got.shape == (2, 80, 8) and float((got.double() - want).norm() / want.norm()) <= GATE[dtype]


def test_a_stage_of_kernels_on_channels_padded_with_zeros_is_upstreams(rng):
    """The last stage has 8 channels and the kernels want 16: those that are added stay zero."""
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    up, pairs = weights(rng, 16, 8, 2)
    x = torch.randn(1, 70, 16, generator=rng)
    wide_up = F.pad(up[0], (0, 0, 0, 8)), F.pad(up[1], (0, 8))
    wide = {k: [(F.pad(w, (0, 0, 0, 8, 0, 8)), F.pad(b, (0, 8))) for w, b in pair] for k, pair in pairs.items()}
    with interpreted():
        got = stage(with_guards(F.silu(x).half()), wide_up, wide, 2, guarded=True, backend="triton")
    want = plain(x, up, pairs, 2)
    assert not got[..., 8:].any()
    assert float((got[..., :8].double() - want).norm() / want.norm()) <= GATE[torch.float16]
