"""Grouped-query cross-attention on keys and values that were prepared once per song."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import cross_attention as cpu
from acefast.cuda import cross_attention as cuda
from acefast.operators import operator
from acefast.ops.self_attention import FLOATS, compute_dtype, fold_groups, unfold_groups

OP = "cross_attention"
ORDER = ("triton", "cuda", "cpu")


def cross_attention_reference(
    q: Tensor,
    q_weight: Tensor | None,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> Tensor:
    """What the op means; every kernel is held to it."""
    B, S, _ = q.shape
    kv_heads, E, D = k.shape[1:]
    dtype = compute_dtype(q)
    u = q.unflatten(-1, (-1, D))  # [B, S, heads, D]
    if q_weight is not None:
        x32 = u.float()
        mean_square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(D)
        u = (x32 * mean_square.add_(eps).rsqrt_()).mul_(q_weight.float())
    u = u.to(dtype)
    k, v = k.to(dtype), v.to(dtype)
    mask = None
    if lengths is not None:
        padded = torch.arange(E, device=q.device) >= lengths[:, None, None, None]  # [B or 1, 1, 1, E]
        # whatever lies in the padding, NaN included, must not be multiplied by a zero weight
        k, v = (t.masked_fill(padded.transpose(-1, -2), 0) for t in (k, v))
        mask = torch.zeros(padded.shape, dtype=dtype, device=q.device).masked_fill_(padded, torch.finfo(dtype).min)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k, v = k.expand(B, -1, -1, -1), v.expand(B, -1, -1, -1)
    unfold_groups(F.scaled_dot_product_attention(fold_groups(u, kv_heads), k, v, attn_mask=mask), S, out)
    return out


@operator(
    "(Tensor q, Tensor? q_weight, Tensor k, Tensor v, Tensor? lengths=None, *, float eps=1e-6, str? backend=None) "
    "-> Tensor",
    fake=lambda q, *_, **__: torch.empty_like(q, memory_format=torch.contiguous_format),
)
def cross_attention(
    q: Tensor,
    q_weight: Tensor | None,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    eps: float = 1e-6,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``softmax(norm(q) @ k.T / sqrt(D)) @ v`` per head, ``norm(q) = q * rsqrt(mean(q**2) + eps) * q_weight``, or q.

    Args:
        q: the query projection as it is, [B, S, heads * D].
        q_weight: [D], the query norm's weight, shared by all heads; None: queries have no norm, which "triton" and
            "cuda" do not take.
        k: normed keys, [B, kv_heads, E, D]; B may be 1, then all rows share them. On a GPU best a view of
            [B, kv_heads, E, 2, D], with ``v`` the other half.
        v: [B, kv_heads, E, D], likewise.
        lengths: int64 or int32 of k's batch; keys from ``lengths[b]`` on are padding, seen by nobody. None: no padding.
        out: [B, S, heads * D] of q's dtype, written and returned; shares no memory with the inputs. None: new memory.
        backend: "triton", "cuda" (heads of 128 channels, 16 bits, q_weight of q's dtype, rows that begin at multiples
            of 16 bytes), "cpu" (bf16, heads of 32, 64, 96 or 128 channels) or "reference"; None leaves the choice to
            acefast.backends.
    Returns:
        [B, S, heads * D] in q's dtype.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: AceStepAttnProcessor2_0 in huggingface/diffusers ace_step_transformer.py, which projects k and v anew in
        every step and passes no mask.
    """
    B, width = q.shape[0], q.shape[-1]
    kv_heads, D = k.shape[1], k.shape[3]
    if k.shape[0] not in (1, B):
        raise ValueError(f"{OP}: k must have batch B = {B} or 1, got {k.shape[0]}")
    check_shape(OP, "v", v, tuple(k.shape), "[B, kv_heads, E, D]")
    if q_weight is not None:
        check_shape(OP, "q_weight", q_weight, (D,), "[D]")
    if width % (kv_heads * D):
        raise ValueError(f"{OP}: q must be [B, S, heads * D] with heads a multiple of {kv_heads}, got {list(q.shape)}")
    if lengths is not None:
        check_shape(OP, "lengths", lengths, (k.shape[0],), "[B]")
    if out is not None:
        check_shape(OP, "out", out, q.shape, "[B, S, heads * D]")
        check_dtype(OP, "out", out, q.dtype)
    order = _order(q, q_weight, k, v, out)
    if (chosen := choose_backend(OP, backend, q.device, order)) != "reference":
        if out is None:
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        if chosen == "cpu":
            return cpu.cross_attention(q, q_weight, k, v, lengths, eps=eps, out=out)
        if chosen == "cuda":
            return cuda.cross_attention(q, q_weight, k, v, lengths, eps=eps, out=out)
        from acefast.kernels.cross_attention import cross_attention as kernel

        return kernel(q, q_weight, k, v, lengths, eps=eps, out=out)
    return cross_attention_reference(q, q_weight, k, v, lengths, eps=eps, out=out)


def _order(q: Tensor, q_weight: Tensor | None, k: Tensor, v: Tensor, out: Tensor | None) -> list[str]:
    """The kernels that take such heads."""
    kv_heads, _, D = k.shape[1:]
    group = q.shape[-1] // (kv_heads * D)
    given = [t for t in (q, q_weight, k, v, out) if t is not None]
    if q_weight is None:
        return ["cpu"] if cpu.fits(*given, head_dim=D) else []
    takes = {
        "cuda": cuda.fits(*given, head_dim=D, group=group),
        "cpu": cpu.fits(*given, head_dim=D),
        "triton": all(t.dtype == q.dtype and t.stride(-1) == 1 for t in (q, k, v))
        and q.dtype in FLOATS
        and q_weight.stride(0) == 1
        and group in (1, 2, 4, 8)
        and D in (16, 32, 64, 128)
        and (out is None or out.stride(-1) == 1),
    }
    return [name for name in ORDER if takes[name]]
