"""ReLU linear attention of ACE-Step v1, its position embedding included."""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import linear_attention as cpu
from acefast.ops.paired_rope import check_pairs, mix_pairs

OP = "linear_attention"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TINY = 1e-15  # added to the sum of a row's weights
CHUNK = 256  # rows whose sums one program of the Triton kernels makes


def linear_attention_reference(
    qkv: Tensor, table: Tensor, heads: int, lengths: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it. Its memory is linear in S."""
    B, S, width = qkv.shape
    D = width // (3 * heads)
    if out is None:
        out = torch.empty(B, S, heads * D, dtype=qkv.dtype, device=qkv.device)
    qkv = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).unflatten(-1, (3, heads, D))
    qk = mix_pairs(qkv[:, :, :2].flatten(2, 3), table[:S]).relu_()
    q, k, v = *qk.split(heads, 2), qkv[:, :, 2]  # [B, S, heads, D] each
    padded = None
    if lengths is not None:
        padded = (torch.arange(S, device=qkv.device) >= lengths[:, None])[..., None]  # [B, S, 1]
        k, v = (t.masked_fill(padded[..., None], 0) for t in (k, v))  # NaN there, too
    for song in range(B):  # a batch of heads at strides of one song, without copies
        keys = k[song].permute(1, 2, 0)  # [heads, D, S]
        state = torch.cat((keys @ v[song].transpose(0, 1), keys.sum(2, keepdim=True)), 2)  # [heads, D, D + 1]
        sums = q[song].transpose(0, 1) @ state
        out[song].unflatten(-1, (heads, D)).copy_((sums[..., :D] / (sums[..., D:] + TINY)).transpose(0, 1))
    return out if padded is None else out.masked_fill_(padded, 0)


def scratch_memory(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """What the Triton kernels hand over: sums of each chunk, fp32, and their means over all, in two of qkv's dtype."""
    B, S, width = qkv.shape
    D = width // (3 * heads)
    parts = torch.empty(B, heads, -(-S // CHUNK), D + 1, D, dtype=torch.float32, device=qkv.device)
    return parts, torch.empty(B, heads, 2, D + 1, D, dtype=qkv.dtype, device=qkv.device)


def linear_attention(
    qkv: Tensor,
    table: Tensor,
    heads: int,
    lengths: Tensor | None = None,
    *,
    scratch: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``out_i = sum_j w_ij v_j / (sum_j w_ij + 1e-15)`` per head, ``w_ij = relu(r(q_i)) . relu(r(k_j))``.

    r is ``paired_rope``. No softmax, no scale: a positive factor of q cancels, but for the 1e-15.

    Args:
        qkv: packed projection, [B, S, 3 * heads * D]: all queries, all keys, all values; head h is channels h * D on.
        table: cosines and sines of each position, [S or more, 2, D] fp32, whose columns d and d + D / 2 are equal, see
            ``paired_rope_table``.
        heads: of queries, as many as of keys and of values.
        lengths: [B] int64 or int32, on qkv's device; rows from ``lengths[b]`` on are padding: no sum has them, whatever
            they hold, and they come out as zeros. None: no padding.
        scratch: ``scratch_memory(qkv, heads)``, which the Triton kernels write; None: new memory.
        out: [B, S, heads * D] of qkv's dtype, written and returned; shares no memory with qkv. None: new memory.
        backend: "triton" (heads of 16, 32, 64 or 128 channels), "cpu" (bf16, heads of 32, 64, 96 or 128 channels; it
            rounds q and k to bf16 once they are mixed) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, S, heads * D] in qkv's dtype, rounded once; each value a mean of v with weights that are not negative.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: CustomLiteLAProcessor2_0 in ace-step/ACE-Step customer_attention_processor.py, which rounds q and k after
        the position embedding; its clamp follows the output projection.
    """
    B, S, width = qkv.shape
    if width % (3 * heads):
        raise ValueError(f"{OP}: qkv must be [B, S, 3 * heads * D] with heads = {heads}, got {list(qkv.shape)}")
    D = width // (3 * heads)
    check_pairs(OP, table, S, D)
    if lengths is not None:
        check_shape(OP, "lengths", lengths, (B,), "[B]")
    if out is not None:
        check_shape(OP, "out", out, (B, S, heads * D), "[B, S, heads * D]")
        check_dtype(OP, "out", out, qkv.dtype)
    fits = {"triton": _kernel_fits(qkv, table, D, lengths, out), "cpu": cpu.fits(qkv, table, D, out)}
    if (chosen := choose_backend(OP, backend, qkv.device, [name for name in ORDER if fits[name]])) != "reference":
        if out is None:
            out = torch.empty(B, S, heads * D, dtype=qkv.dtype, device=qkv.device)
        if chosen == "cpu":
            return cpu.linear_attention(qkv, table, heads, lengths, out=out)
        from acefast.kernels.linear_attention import linear_attention as kernel

        return kernel(qkv, table, heads, lengths, scratch=scratch or scratch_memory(qkv, heads), out=out)
    return linear_attention_reference(qkv, table, heads, lengths, out=out)


def _kernel_fits(qkv: Tensor, table: Tensor, head_dim: int, lengths: Tensor | None, out: Tensor | None) -> bool:
    packed = table.is_contiguous() and (lengths is None or lengths.is_contiguous())
    rows = all(t is None or t.stride(-1) == 1 for t in (qkv, out))
    return head_dim in (16, 32, 64, 128) and qkv.dtype in FLOATS and packed and rows
