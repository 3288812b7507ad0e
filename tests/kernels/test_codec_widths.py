"""The kernels of v1's codec compile without a spill for fp32 and for narrow models too, which no case has."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.kernels.depthwise2d import depthwise2d
from acefast.kernels.depthwise_norm import depthwise_norm
from acefast.kernels.rms_residual import rms_residual
from acefast.kernels.vit_linear_attention import vit_linear_attention
from acefast.ops.vit_linear_attention import SPLITS
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.resources import read_kernel


@pytest.mark.slow
@pytest.mark.parametrize("sm", (80, 90, 120))
def test_every_configuration_compiles_without_a_spill(sm):
    def new(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    with dry_run(sm) as launches:
        for D, dtype in ((16, torch.float16), (32, torch.float16), (32, torch.float32)):
            sums = new(1, 64, SPLITS, D + 1, D)
            heads, out = new(1, 5168, 192 * D, dtype=dtype), new(1, 5168, 64 * D, dtype=dtype)
            vit_linear_attention(heads, head_dim=D, sums=sums, out=out)
        for C in (96, 8192):
            options = {"silu_input": True, "gate": True, "out": new(1, 16, 20, C // 2)}
            depthwise2d(new(1, 16, 20, C), new(3, 3, C), new(C), **options)
        depthwise2d(new(1, 16, 20, 3072), new(5, 5, 3072), None, out=new(1, 16, 20, 3072))
        for C in (256, 2048):
            rms_residual(new(99, C), new(C), new(C), new(99, C), out=new(99, C))
        for C in (256, 1024):
            depthwise_norm(new(1, 99, C), new(7, C), new(C), new(C), new(C), out=new(1, 99, C))
    for one in launches:
        found = read_kernel(one.kernel)
        assert not found.spill_bytes and not found.local, (one.name, one.constexprs)
        assert found.shared_bytes <= BLOCK_SHARED_LIMIT[sm]
