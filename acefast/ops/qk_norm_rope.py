"""RMSNorm of every query and key head, then rotary position embedding."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import qk_norm_rope as cpu
from acefast.cuda import qk_norm_rope as cuda
from acefast.operators import operator

OP = "qk_norm_rope"
ORDER = ("triton", "cuda", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@functools.lru_cache(maxsize=32)
def rope_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin) of ``p * theta**(-2i / head_dim)``, each [length, head_dim / 2] fp32, for positions from 0."""
    with torch.inference_mode(False):  # the table outlives the caller's mode
        i = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
        angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / theta ** (i / head_dim))
        return angle.cos(), angle.sin()


def qk_norm_rope_reference(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    *,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the op means, in fp32 PyTorch; every kernel is held to it."""
    D, rows = k_weight.shape[0], heads + kv_heads
    qk, v = qkv[..., : rows * D].unflatten(-1, (rows, D)), qkv[..., rows * D :].unflatten(-1, (kv_heads, D))
    x32 = qk.float()
    mean_square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(D)
    u = x32 * mean_square.add_(eps).rsqrt_()
    u.mul_(torch.cat((q_weight.float().expand(heads, D), k_weight.float().expand(kv_heads, D))))
    if out is not None:
        out = out[..., : rows * D].unflatten(-1, (rows, D))
    if cos is None:
        out = u.to(qkv.dtype) if out is None else out.copy_(u)
    else:
        cos, sin = cos[:, None], sin[:, None]  # [S, 1, D / 2]
        a, b = u.chunk(2, dim=-1)
        if out is None:
            out = torch.empty(qk.shape, dtype=qkv.dtype, device=qkv.device)
        out[..., : D // 2] = (a * cos).addcmul_(b, sin, value=-1)
        out[..., D // 2 :] = (b * cos).addcmul_(a, sin)
    return out[:, :, :heads], out[:, :, heads:], v


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    *,
    eps: float = 1e-6,
    out: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per head ``u = x * rsqrt(mean(x**2) + eps) * weight``; of its halves ``cat(u1*cos - u2*sin, u2*cos + u1*sin)``.

    Args:
        qkv: packed projection, [B, S, (heads + 2 * kv_heads) * D]: query heads, key heads, value heads.
        q_weight, k_weight: [D], shared by all heads of a kind.
        cos, sin: [S, D / 2] fp32, see ``rope_table``; None for both leaves the rotation out (cross-attention).
        heads: query heads; 0 for a packed key and value projection.
        kv_heads: key heads, as many as value heads.
        out: where q and k are written, a tensor packed like ``qkv``; may be ``qkv`` itself, which is then rotated in
            place. Its values' part is not touched.
        backend: "triton", "cuda" (D 128, heads and kv_heads multiples of 4, bf16 or fp16 with weights of that dtype,
            rows at multiples of 4 elements), "cpu" (bf16, D 32, 64, 96 or 128, rows at one distance) or "reference";
            None leaves the choice to acefast.backends.
    Returns:
        q [B, S, heads, D] and k [B, S, kv_heads, D] in qkv's dtype, rounded once, views of ``out`` where it is given;
        v [B, S, kv_heads, D], a view of ``qkv``.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: AceStepAttnProcessor2_0 in huggingface/diffusers, which rounds cos and sin to the activations' dtype.
    """
    B, S, _ = qkv.shape
    D = k_weight.shape[0]
    check_shape(OP, "qkv", qkv, (B, S, (heads + 2 * kv_heads) * D), "[B, S, (heads + 2 * kv_heads) * D]")
    check_shape(OP, "q_weight", q_weight, (D,), "[D]")
    if (cos is None) != (sin is None):
        raise ValueError(f"{OP}: cos and sin must be given together, got one of them")
    if cos is not None:
        check_shape(OP, "cos", cos, (S, D // 2), "[S, D / 2]")
        check_shape(OP, "sin", sin, (S, D // 2), "[S, D / 2]")
    if out is not None:
        check_shape(OP, "out", out, qkv.shape, "[B, S, (heads + 2 * kv_heads) * D]")
        check_dtype(OP, "out", out, qkv.dtype)
    if out is not None:
        return _run(backend, qkv, q_weight, k_weight, cos, sin, heads, kv_heads, eps=eps, out=out)
    out = _qk_norm_rope(qkv, q_weight, k_weight, cos, sin, heads, kv_heads, eps=eps, backend=backend)
    q, k = out.unflatten(-1, (heads + kv_heads, D)).split((heads, kv_heads), 2)
    return q, k, qkv[..., (heads + kv_heads) * D :].unflatten(-1, (kv_heads, D))


def _new(qkv: Tensor, k_weight: Tensor, rows: int) -> Tensor:
    return torch.empty(*qkv.shape[:2], rows * k_weight.shape[0], dtype=qkv.dtype, device=qkv.device)


@operator(
    "(Tensor qkv, Tensor q_weight, Tensor k_weight, Tensor? cos, Tensor? sin, int heads, int kv_heads, *, "
    "float eps=1e-6, str? backend=None) -> Tensor",
    fake=lambda qkv, _, k_weight, cos, sin, heads, kv_heads, **__: _new(qkv, k_weight, heads + kv_heads),
)
def _qk_norm_rope(qkv: Tensor, q_weight: Tensor, k_weight: Tensor, *rest: Any, **options: Any) -> Tensor:
    """``qk_norm_rope`` to new memory, queries and keys packed; values stay where they are."""
    out = _new(qkv, k_weight, sum(rest[2:]))  # heads and kv_heads
    _run(options.pop("backend", None), qkv, q_weight, k_weight, *rest, **options, out=out)
    return out


def _run(
    backend: str | None,
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    heads: int,
    kv_heads: int,
    *,
    eps: float = 1e-6,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """``qk_norm_rope`` by the backend chosen; ``out`` is written."""
    D = k_weight.shape[0]
    takes = {
        "triton": D >= 2 and D & (D - 1) == 0 and _kernel_fits(qkv, q_weight, k_weight, cos, sin, out),
        "cuda": cuda.fits(qkv, q_weight, k_weight, cos, sin, heads, kv_heads, out),
        "cpu": cpu.fits(qkv, (q_weight, k_weight), (cos, sin), out),
    }
    chosen = choose_backend(OP, backend, qkv.device, [name for name in ORDER if takes[name]])
    if chosen == "reference":
        kernel = qk_norm_rope_reference
    elif chosen == "cuda":
        kernel = cuda.qk_norm_rope
    elif chosen == "cpu":
        kernel = cpu.qk_norm_rope
    else:
        from acefast.kernels.qk_norm_rope import qk_norm_rope as kernel
    return kernel(qkv, q_weight, k_weight, cos, sin, heads, kv_heads, eps=eps, out=out)


def _kernel_fits(*tensors: Tensor | None) -> bool:
    return all(t.dtype in FLOATS and t.stride(-1) == 1 for t in tensors if t is not None)
