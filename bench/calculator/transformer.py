"""Work of the transformer and of the conditions it is given: the fused plan's launches, and plain PyTorch's.

A step is 12 launches a layer and 4 around them, one more with guidance. Unconditional rows cross-attend to one
embedding, which makes a constant of it: they take part in everything but the cross attention.
"""

from __future__ import annotations

import math

from acefast.models.v15.config import Config
from bench.calculator.work import (
    FP32,
    HALF,
    TUNING,
    Kernel,
    attention,
    eager_rmsnorm,
    eager_rope,
    elementwise,
    matmul,
    window_pairs,
)

NORM, ROPE, CROSS = "norm+mod+residual", "qk-norm+rope", "cross-attn"
WINDOW, FULL, QKV, CROSS_QO, MLP = "self-attn window", "self-attn full", "gemm qkv+o", "gemm cross q+o", "gemm mlp"
TEXT = {"layers": 28, "hidden": 1024, "inner": 3072, "heads": 16, "kv_heads": 8, "dim": 128}  # Qwen3-Embedding-0.6B


def tokens(c: Config, frames: int) -> int:
    return math.ceil(frames / c.patch_size)


def widths(c: Config) -> tuple[int, int]:
    """Of q, and of k or v."""
    return c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim


def layer_parameters(c: Config) -> int:
    q, kv = widths(c)
    return 2 * c.hidden_size * (2 * q + 2 * kv) + 3 * c.hidden_size * c.intermediate_size


def fused(c: Config, rows: int, songs: int, conditions: int, guided: bool) -> list[Kernel]:
    """A step: ``rows`` tokens a song, and as many unconditional ones if it is ``guided``."""
    batch = songs * (1 + guided)
    r, rc, h, (q, kv) = batch * rows, songs * rows, c.hidden_size, widths(c)
    patch = c.patch_size * c.audio_acoustic_hidden_dim
    heads = _heads(c, rows)

    def norm(name: str, passes: int, vectors: int) -> Kernel:
        return elementwise(NORM, name, r * h * passes * HALF, weights=vectors * h * FP32)

    kernels = [matmul("patch", "patch in, latents' part", r, h, patch, more=r * h * HALF)]
    for i in range(c.num_hidden_layers):
        windowed = i % 2 == 0
        pairs = window_pairs(rows, c.sliding_window) if windowed else rows * rows
        topic = WINDOW if windowed else FULL
        kernels += [
            norm("residual, gate, norm, modulation", 4 if i else 2, 3),
            matmul(QKV, "qkv", r, q + 2 * kv, h),
            elementwise(ROPE, "norm and rotation of q and k", r * (q + kv) * 2 * HALF),
            attention(topic, "attention", batch=batch, pairs=pairs, keys=rows, **heads),
            matmul(QKV, "o", r, h, q),
            norm("gate, residual, norm", 4, 2),
            matmul(CROSS_QO, "cross q", rc, q, h),
            attention(CROSS, "cross attention", batch=songs, pairs=rows * conditions, keys=conditions, **heads),
            matmul(CROSS_QO, "cross o + residual", rc, h, q, more=rc * h * HALF),
            norm("norm, modulation", 2, 2),
            matmul(MLP, "gate|up + SwiGLU", r, 2 * c.intermediate_size, h, out=c.intermediate_size),
            matmul(MLP, "down", r, h, c.intermediate_size),
        ]
    latents = songs * rows * patch
    return [
        *kernels,
        elementwise(NORM, "residual, gate, last norm", r * h * 3 * HALF),
        matmul("patch", "patch out", r, patch, h),
        elementwise("sampler", "guidance and step", latents * (16 if guided else 8), launches=1 + guided),
    ]


def eager(c: Config, rows: int, songs: int, conditions: int, guided: bool, cached: bool = False) -> list[Kernel]:
    """Plain PyTorch: dense masks, separate projections; ``cached``: cross attention's keys and values once a song."""
    batch = songs * (1 + guided)
    r, h, inner, (q, kv) = batch * rows, c.hidden_size, c.intermediate_size, widths(c)
    D = c.audio_acoustic_hidden_dim
    time, patch, frames = "time embedding", "patch", r * c.patch_size
    kernels = []
    for _ in range(2):  # of t, and of t - r
        kernels.append(elementwise(time, "sinusoids", batch * 256 * 8, launches=10))
        kernels += [matmul(time, "time", batch, n, k) for n, k in ((h, 256), (h, h), (6 * h, h))]
    kernels += [
        elementwise(time, "sums", batch * h * 30, launches=3),
        elementwise(patch, "cat, transposes", frames * 3 * D * HALF * 6, launches=3),
        matmul(patch, "patch in", r, h, 3 * D * c.patch_size),
        elementwise(patch, "transpose, bias", r * h * HALF * 4, launches=2),
        matmul(CROSS_QO, "condition embedder", batch * conditions, h, c.encoder_hidden_size),
        elementwise(ROPE, "tables", rows * c.head_dim * 40, launches=12),
        elementwise(WINDOW, "dense mask", rows * rows * 14.0, launches=8),
    ]
    heads = {**_heads(c, rows), "kv_heads": c.num_attention_heads, "share": TUNING.eager_masked}
    for i in range(c.num_hidden_layers):
        topic = WINDOW if i % 2 == 0 else FULL
        masked = attention(topic, "memory-efficient", batch=batch, pairs=rows * rows, keys=rows, **heads)
        masked.act += rows * rows * HALF  # the mask
        modulated = [elementwise(NORM, "modulate", r * h * 8, launches=2), elementwise(NORM, "1+scale", batch * h * 4)]
        gated = elementwise(NORM, "gate, residual", r * h * 10, launches=2)
        kernels += [elementwise(NORM, "table", batch * 6 * h * 8), *eager_rmsnorm(NORM, r * h), *modulated]
        kernels += [matmul(QKV, "q, k, v", r, n, h) for n in (q, kv, kv)]
        kernels += [k for n in (q, kv) for k in (*eager_rmsnorm(ROPE, r * n), *eager_rope(ROPE, r * n))]
        kernels += [elementwise(topic, "repeat kv", r * q * 3 * HALF, launches=2), masked]
        kernels += [matmul(QKV, "o", r, h, q), gated, *eager_rmsnorm(NORM, r * h)]
        kernels += [matmul(CROSS_QO, "cross q", r, q, h), *eager_rmsnorm(CROSS, r * q)]
        if not cached:
            kernels += [matmul(CROSS, "cross k, v", batch * conditions, kv, h) for _ in range(2)]
            kernels += eager_rmsnorm(CROSS, batch * conditions * kv)
        across = {**_heads(c, rows), "share": TUNING.eager_masked}
        kernels += [
            elementwise(CROSS, "repeat kv", batch * conditions * q * 3 * HALF, launches=2),
            attention(CROSS, "attention", batch=batch, pairs=rows * conditions, keys=conditions, **across),
            matmul(CROSS_QO, "cross o", r, h, q),
            elementwise(NORM, "residual", r * h * 6),
            *(*eager_rmsnorm(NORM, r * h), *modulated),
            *(matmul(MLP, "gate, up", r, inner, h) for _ in range(2)),
            elementwise("swiglu", "silu, mul", r * inner * 10, launches=2),
            *(matmul(MLP, "down", r, h, inner), gated),
        ]
    bytes = 260 if guided else 20  # a value of the latents: APG in fp64 and Euler, or Euler
    return [
        *(*kernels, *eager_rmsnorm(NORM, r * h), elementwise(NORM, "last modulate", r * h * 8, launches=4)),
        *(elementwise(patch, "transposes", r * h * HALF * 2), matmul(patch, "patch out", r, c.patch_size * D, h)),
        elementwise(patch, "bias, transpose, slice", frames * D * 8, launches=3),
        elementwise(
            "sampler", "guidance and step", songs * rows * c.patch_size * D * bytes, launches=34 if guided else 6
        ),
    ]


def conditions_work(
    c: Config, rows: int, songs: int, text: int, lyrics: int, steps: int, *, plain: bool, reference: bool = False
) -> list[Kernel]:
    """What comes before the steps; ``plain``: in PyTorch. ``reference``: a recording for the timbre is given."""
    h, both = c.encoder_hidden_size, songs * (text + lyrics + 1)
    layer = {"hidden": h, "inner": c.encoder_intermediate_size, "heads": c.encoder_num_attention_heads}
    layer |= {"kv_heads": c.encoder_num_key_value_heads, "dim": c.head_dim, "window": c.sliding_window, "plain": plain}
    kernels = _encoder("text encoder", text, songs, **TEXT, plain=plain)
    kernels += _encoder("lyric encoder", lyrics, songs, c.num_lyric_encoder_hidden_layers, **layer)
    if plain or reference:
        kernels += _encoder("timbre encoder", c.timbre_fix_frame, songs, c.num_timbre_encoder_hidden_layers, **layer)
    kernels += [matmul("conditions", "projections", both, h, c.text_hidden_dim) for _ in range(2)]
    if plain:
        return [*kernels, elementwise("conditions", "pack", both * h * 16, launches=16)]
    cached, wide, D = widths(c)[1] * c.num_hidden_layers, c.hidden_size, c.audio_acoustic_hidden_dim
    return [
        *kernels,
        matmul("conditions", "condition embedder", both, wide, h),
        matmul("cross cache", "keys and values of all layers", both, 2 * cached, wide),
        elementwise("cross cache", "norm of the keys", both * cached * 4),
        matmul("patch", "patch in, context's part", songs * rows, wide, 2 * D * c.patch_size),
        *(matmul("time tables", "time", steps, n, k) for n, k in ((wide, 256), (wide, wide), (6 * wide, wide))),
        elementwise("time tables", "tables", steps * c.num_hidden_layers * 6 * wide * FP32),
    ]


def _heads(c: Config, rows: int) -> dict[str, int]:
    return {"heads": c.num_attention_heads, "kv_heads": c.num_key_value_heads, "dim": c.head_dim, "rows": rows}


def _encoder(
    topic: str,
    rows: int,
    songs: int,
    layers: int,
    hidden: int,
    inner: int,
    heads: int,
    kv_heads: int,
    dim: int,
    plain: bool,
    window: int = 0,
) -> list[Kernel]:
    r, q, kv = rows * songs, heads * dim, kv_heads * dim
    sizes = {"batch": songs, "heads": heads, "kv_heads": kv_heads, "dim": dim, "rows": rows, "keys": rows}
    kernels = []
    for i in range(layers):
        if not plain:
            pairs = window_pairs(rows, window) if window and i % 2 == 0 else rows * rows
            kernels += [elementwise(topic, "norm", r * hidden * 8), matmul(topic, "qkv", r, q + 2 * kv, hidden)]
            kernels += [elementwise(topic, "norm and rotation of q and k", r * (q + kv) * 4)]
            kernels += [attention(topic, "attention", pairs=pairs, **sizes), matmul(topic, "o", r, hidden, q)]
            kernels += [elementwise(topic, "norm", r * hidden * 8)]
            kernels += [
                matmul(topic, "gate|up", r, 2 * inner, hidden, out=inner),
                matmul(topic, "down", r, hidden, inner),
            ]
            continue
        kernels += [*eager_rmsnorm(topic, r * hidden), *eager_rmsnorm(topic, r * hidden)]
        kernels += [matmul(topic, "q, k, v", r, n, hidden) for n in (q, kv, kv)]
        kernels += [k for n in (q, kv) for k in (*eager_rmsnorm(topic, r * n), *eager_rope(topic, r * n))]
        kernels.append(attention(topic, "attention", pairs=rows * rows, share=TUNING.eager_masked, **sizes))
        kernels += [matmul(topic, "o", r, hidden, q), elementwise(topic, "residuals", r * hidden * 12, launches=2)]
        kernels += [matmul(topic, "mlp", r, n, k) for n, k in ((inner, hidden), (inner, hidden), (hidden, inner))]
        kernels.append(elementwise(topic, "silu, mul", r * inner * 10, launches=2))
    return kernels
