"""ReLU linear attention of v1's mel autoencoder, over all positions of an image, without positions of its own.

    out_i = Σ_j v_j (relu(k_j) . relu(q_i)) / (Σ_j relu(k_j) . relu(q_i) + 1e-15)         for each head, j any position

A head's q, k and v are neighbouring channels. acefast.ops.linear_attention, the transformer's, packs all heads' q, then
all k, then all v, and rotates them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acefast.backends import choose_backend
from acefast.checks import check_dtype, check_shape
from acefast.cpu import vit_linear_attention as cpu

OP = "vit_linear_attention"
ORDER = ("triton", "cpu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TINY = 1e-15
SPLITS = 8  # parts of an image that the kernel sums on their own: of the image's size alone, so that sums are its own


def vit_linear_attention_reference(heads: Tensor, *, head_dim: int = 32) -> Tensor:
    """What the op means, in fp32 PyTorch; every kernel is held to it. Its memory is linear in the positions."""
    q, k, v = heads.float().unflatten(-1, (-1, 3, head_dim)).unbind(3)  # [B, P, n, D] each
    out = torch.empty(q.shape, dtype=heads.dtype, device=heads.device)
    for image in range(len(heads)):  # a batch of heads at strides of one image, without copies
        queries, keys, values = q[image].relu().transpose(0, 1), k[image].relu().permute(1, 2, 0), v[image]
        state = torch.cat([keys @ values.transpose(0, 1), keys.sum(2, keepdim=True)], 2)  # [n, D, D + 1]
        sums = queries @ state
        out[image] = (sums[..., :-1] / (sums[..., -1:] + TINY)).transpose(0, 1)
    return out.flatten(2)


def vit_linear_attention(
    heads: Tensor, *, head_dim: int = 32, out: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Each position's mean of all positions' values, weighted by how well its query and their keys agree.

    Args:
        heads: [B, P, n * 3 * head_dim]: of each head its query, its key and its value; fp32, bf16 or fp16. P positions,
            in any order: of a channels-last image [B, H, W, ...] it is ``.flatten(1, 2)``.
        head_dim: channels of a query.
        out: [B, P, n * head_dim] in heads' dtype, written and returned; shares no memory with it. None: new memory.
        backend: "triton" (head_dim 16 or 32, channels neighbours in memory), "cpu" (bf16, head_dim 32, 64, 96 or 128,
            the same) or "reference"; None leaves the choice to acefast.backends.
    Returns:
        [B, P, n * head_dim] in heads' dtype, rounded once; sums are fp32.
    Raises:
        ValueError: a shape or dtype is not as above.
        BackendUnavailable: the backend named cannot take this input.
    Source: SanaMultiscaleAttnProcessor2_0 in huggingface/diffusers attention_processor.py, which at up to 32 positions
        takes the quadratic form of the same, in the activations' dtype.
    """
    B, P, width = heads.shape
    if width % (3 * head_dim):
        raise ValueError(f"{OP}: heads must be [B, P, n * 3 * {head_dim}], got {list(heads.shape)}")
    n = width // (3 * head_dim)
    if out is not None:
        check_shape(OP, "out", out, (B, P, n * head_dim), "[B, P, n * head_dim]")
        check_dtype(OP, "out", out, heads.dtype)
    near = all(t is None or t.stride(-1) == 1 for t in (heads, out))
    fits = {
        "triton": head_dim in (16, 32) and heads.dtype in FLOATS and near and heads.numel() > 0,
        "cpu": cpu.fits(heads, out, head_dim=head_dim),
    }
    if (chosen := choose_backend(OP, backend, heads.device, [name for name in ORDER if fits[name]])) != "reference":
        out = heads.new_empty(B, P, n * head_dim) if out is None else out
        if chosen == "cpu":
            return cpu.vit_linear_attention(heads, head_dim=head_dim, out=out)
        from acefast.kernels.vit_linear_attention import vit_linear_attention as kernel

        sums = heads.new_empty(B, n, SPLITS, head_dim + 1, head_dim, dtype=torch.float32)
        return kernel(heads, head_dim=head_dim, sums=sums, out=out)
    found = vit_linear_attention_reference(heads, head_dim=head_dim)
    return found if out is None else out.copy_(found)
