"""Grouped-query self-attention, over everything, over a window around each row or over what came before it."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from acefast.backends import choose_backend, named_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import self_attention as cpu
from acefast.cuda import self_attention as cuda
from acefast.operators import operator

OP = "self_attention"
ORDER = ("triton", "cuda")  # of a window; without one PyTorch's FlashAttention is faster than a GPU's kernel of our own
FLASH_IN_PLACE = getattr(torch.ops.aten, "_flash_attention_forward_no_dropout_inplace", None)  # torch 2.13 has it
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BLOCK = 128  # query rows that share one band of keys; with window 128 the band is 384 keys


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype attention multiplies in: x's on a GPU, whose library accumulates in fp32; fp32 on a CPU, which was measured
    faster as well on one without AMX (1.3 to 1.7 times, two cores with AVX-512)."""
    return torch.float32 if x.device.type == "cpu" else x.dtype


def fold_groups(q: Tensor, kv_heads: int) -> Tensor:
    """[B, S, heads, D] -> [B, kv_heads, group * S, D]: the queries that share a key head become more rows of it."""
    B, S, heads, D = q.shape
    return q.view(B, S, kv_heads, heads // kv_heads, D).permute(0, 2, 3, 1, 4).reshape(B, kv_heads, -1, D)


def unfold_groups(out: Tensor, rows: int, into: Tensor) -> None:
    """Write [B, kv_heads, group * rows, D] to ``into`` [B, rows, heads * D]: the inverse of ``fold_groups``."""
    B, kv_heads, _, D = out.shape
    out = out.view(B, kv_heads, -1, rows, D)
    into.view(B, rows, kv_heads, -1, D).copy_(out.permute(0, 3, 1, 2, 4))


def reach(rows: int, window: int | None, causal: bool) -> tuple[int, int]:
    """How many rows before and after itself a row sees, of so many."""
    far = rows - 1 if window is None else min(window, rows - 1)
    return far, 0 if causal else far


@functools.lru_cache(maxsize=64)
def band(
    rows: int, keys: int, offset: int, before: int, after: int, group: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Additive mask [group * rows, keys]: 0 where ``-before <= j - (i + offset) <= after``, else the most negative
    number."""
    with torch.inference_mode(False):  # the mask outlives the caller's mode
        i, j = torch.arange(rows, device=device)[:, None] + offset, torch.arange(keys, device=device)
        mask = torch.zeros(rows, keys, dtype=dtype, device=device)
        return mask.masked_fill_((j < i - before) | (j > i + after), torch.finfo(dtype).min).repeat(group, 1)


def self_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    lengths: Tensor | None = None,
    *,
    causal: bool = False,
    pad_rows: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """What the op means; every kernel is held to it. It computes only the band, block by block."""
    B, S, heads, D = q.shape
    kv_heads = k.shape[2]
    dtype = compute_dtype(q)
    rows = torch.arange(S, device=q.device)
    bias = padded = None
    if lengths is not None:
        padded = rows >= lengths[:, None]  # [B, S]
        bias = torch.zeros(B, 1, 1, S, dtype=dtype, device=q.device)
        bias = bias.masked_fill_(padded[:, None, None], torch.finfo(dtype).min)
        if not pad_rows:  # whatever lies in the padding, NaN included, must not be multiplied by a zero weight
            q, k, v = (t.masked_fill(padded[:, :, None, None], 0) for t in (q, k, v))
    before, after = reach(S, window, causal)
    whole = after == S - 1
    k, v = (t.to(dtype).transpose(1, 2) for t in (k, v))  # [B, kv_heads, S, D]
    if out is None:
        out = torch.empty(B, S, heads * D, dtype=q.dtype, device=q.device)
    step = S if whole else BLOCK
    for start in range(0, S, step):
        stop = min(start + step, S)
        first, last = max(0, start - before), min(S, stop + after)
        mask = None if bias is None else bias[..., first:last]
        if not whole:
            inside = band(stop - start, last - first, start - first, before, after, heads // kv_heads, dtype, q.device)
            mask = inside if mask is None else torch.minimum(inside, mask)
        block = F.scaled_dot_product_attention(
            fold_groups(q[:, start:stop].to(dtype), kv_heads), k[:, :, first:last], v[:, :, first:last], attn_mask=mask
        )
        unfold_groups(block, stop - start, out[:, start:stop])
    if padded is not None and not pad_rows:
        out.masked_fill_(padded[..., None], 0)
    elif padded is not None and not whole:  # a row that sees no valid key weighs all S rows alike
        blind = rows - before >= lengths[:, None]
        mean = v.mean(2).repeat_interleave(heads // kv_heads, 1).view(B, 1, heads * D)
        out.copy_(torch.where(blind[..., None], mean.to(out.dtype), out))
    return out


def library_fits(q: Tensor, out: Tensor | None) -> bool:
    """Whether PyTorch's FlashAttention takes this input: 16 bits, on a GPU that has it or "meta" in its place."""
    wide = q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    fits = q.dtype in FLOATS[1:] and wide and (out is None or out.is_contiguous())
    return fits and (q.device.type == "meta" or (q.device.type == "cuda" and _has_flash(q.device)))


@functools.lru_cache
def _has_flash(device: torch.device) -> bool:
    """Whether PyTorch was built with FlashAttention and this GPU is one it runs on: sm_80 or later."""
    if not (torch.backends.cuda.is_flash_attention_available() and torch.cuda.is_available()):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


@functools.lru_cache(maxsize=64)
def row_starts(batch: int, rows: int, device: torch.device) -> Tensor:
    """Where each item of a batch begins among the rows of all, and where the last ends: int32 [batch + 1]."""
    with torch.inference_mode(False):
        return torch.arange(batch + 1, dtype=torch.int32, device=device) * rows


def library_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, out: Tensor | None) -> Tensor:
    """Attention to everything by PyTorch's FlashAttention: one launch. It takes no mask, but lengths on the device."""
    B, S, heads, D = q.shape
    if lengths is None and out is None:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != k.shape[1]).transpose(1, 2).flatten(2)
    if out is None:
        out = torch.empty(B, S, heads * D, dtype=q.dtype, device=q.device)
    starts = row_starts(B, S, q.device)
    given = (*(t.flatten(0, 1) for t in (q, k, v)), starts, starts, S, S, 0.0, False, False)
    used = None if lengths is None else lengths.int()
    if FLASH_IN_PLACE is not None:
        FLASH_IN_PLACE(out.view(B * S, heads, D), *given, seqused_k=used)
    else:
        out.view(B * S, heads, D).copy_(torch.ops.aten._flash_attention_forward(*given, seqused_k=used)[0])
    return out


def kernel_fits(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, out: Tensor | None) -> bool:
    """Whether a kernel takes these heads: of 16 to 128 channels that lie together, a power of two to a key."""
    D, group = q.shape[-1], q.shape[2] // k.shape[2]
    heads = all(t.dtype == q.dtype and t.stride()[2:] == (D, 1) for t in (q, k, v))
    return (
        heads
        and D in (16, 32, 64, 128)
        and group in (1, 2, 4, 8)
        and q.dtype in FLOATS
        and (lengths is None or lengths.is_contiguous())
        and (out is None or out.stride(-1) == 1)
    )


def _order(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, out: Tensor | None) -> list[str]:
    """The kernels that take such heads."""
    D, group = q.shape[-1], q.shape[2] // k.shape[2]
    given = (q, k, v) if out is None else (q, k, v, out)
    takes = {"cuda": cuda.fits(*given, head_dim=D, group=group), "triton": True}
    return [name for name in ORDER if takes[name]] if kernel_fits(q, k, v, lengths, out) else []


@operator(
    "(Tensor q, Tensor k, Tensor v, int? window=None, Tensor? lengths=None, *, bool causal=False, "
    "bool pad_rows=False, str? backend=None) -> Tensor",
    fake=lambda q, *_, **__: q.new_empty(*q.shape[:2], q.shape[2] * q.shape[3]),
)
def self_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    lengths: Tensor | None = None,
    *,
    causal: bool = False,
    pad_rows: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``softmax(q @ k.T / sqrt(D)) @ v`` per head, query head j on key head ``j // (heads / kv_heads)``.

    Args:
        q: [B, S, heads, D], normed and rotated.
        k, v: [B, S, kv_heads, D].
        window: row i sees the keys with ``|i - j| <= window``, both ends included; None: all of them.
        lengths: [B] int64 or int32; keys from ``lengths[b]`` on are padding, seen by nobody. None: no padding.
        causal: no row sees a key behind itself. "cpu" and "reference" alone know it.
        pad_rows: what becomes of the padding's own rows. False: zeros, but where a GPU attends to everything: there
            they look at the valid keys, and nobody may read them. True: they look at the valid keys of their
            window, or at all S rows evenly where it holds none, as a dense additive mask would have it (parity only).
        out: [B, S, heads * D] of q's dtype, written and returned; shares no memory with q, k or v. None: new memory.
        backend: "triton" (with a window), "cuda" (of those, heads of 128 channels, 16 bits, rows that begin at
            multiples of 16 bytes), "cpu" (bf16, heads of 32, 64, 96 or 128 channels) or "reference"; None leaves the
            choice to acefast.backends. Without a window a GPU runs PyTorch's FlashAttention, unless "reference" is
            named or it is causal.
    Returns:
        [B, S, heads * D] in q's dtype.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: AceStepAttnProcessor2_0 and _create_4d_mask in huggingface/diffusers ace_step_transformer.py.
    """
    B, S, heads, D = q.shape
    kv_heads = k.shape[2]
    check_shape(OP, "k", k, (B, S, None, D), "[B, S, kv_heads, D]")
    check_shape(OP, "v", v, (B, S, kv_heads, D), "[B, S, kv_heads, D]")
    if heads % kv_heads:
        raise ValueError(f"{OP}: heads must be a multiple of kv_heads = {kv_heads}, got {heads}")
    if lengths is not None:
        check_shape(OP, "lengths", lengths, (B,), "[B]")
    if out is not None:
        check_shape(OP, "out", out, (B, S, heads * D), "[B, S, heads * D]")
        check_dtype(OP, "out", out, q.dtype)
    bounded = window is not None and window < 1 << 28 and not (pad_rows or causal)
    order = _order(q, k, v, lengths, out) if bounded else []
    if cpu.fits(q, k, v, out, head_dim=D) and (window is None or window >= 0):
        order.append("cpu")
    if (chosen := choose_backend(OP, backend, q.device, order)) != "reference":
        if out is None:
            out = torch.empty(B, S, heads * D, dtype=q.dtype, device=q.device)
        if chosen == "cpu":
            return cpu.self_attention(q, k, v, reach(S, window, causal), lengths, pad_rows=pad_rows, out=out)
        if chosen == "cuda":
            return cuda.self_attention(q, k, v, window, lengths, out=out)
        from acefast.kernels.self_attention import self_attention as kernel

        return kernel(q, k, v, window, lengths, out=out)
    if window is None and not (pad_rows or causal) and named_backend(backend) != "reference" and library_fits(q, out):
        return library_attention(q, k, v, lengths, out)
    return self_attention_reference(q, k, v, window, lengths, causal=causal, pad_rows=pad_rows, out=out)
