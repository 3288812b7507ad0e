"""The CPU's kernel of acefast.ops.vit_linear_attention, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.vit_linear_attention import vit_linear_attention
from tests.cpu.convolutions import on_threads
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_vit_linear_attention import GATE, exact, relative

extension()

BF16 = torch.bfloat16


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize(
    "B, P, n, D", [(1, 1, 2, 32), (2, 7, 1, 32), (1, 257, 3, 32), (1, 1040, 1, 64), (1, 40, 2, 128)]
)
def test_equals_the_equation_in_fp64(isa, B, P, n, D, rng):
    heads = torch.randn(B, P, n * 3 * D, generator=rng).to(BF16)
    before = heads.clone()
    with at_isa(isa):
        out = vit_linear_attention(heads, head_dim=D, backend="cpu")
    assert out.dtype == BF16 and out.shape == (B, P, n * D) and torch.equal(heads, before)
    assert relative(out, exact(heads, D)) <= GATE[BF16]


def test_a_query_that_agrees_with_nothing_gives_zeros():
    heads = torch.ones(1, 5, 96, dtype=BF16)
    heads[0, 3, :32] = -1.0
    out = vit_linear_attention(heads, backend="cpu")
    assert (out[0, 3] == 0).all() and (out[0, [0, 1, 2, 4]] == 1).all()


def test_images_do_not_meet_rows_may_lie_at_a_distance_and_threads_change_nothing(rng):
    heads = torch.randn(3, 45, 192, generator=rng).to(BF16)
    want = vit_linear_attention(heads, backend="cpu")
    memory, result = (torch.full((3, 47, width), torch.nan, dtype=BF16) for width in (200, 80))
    memory[:, 1:-1, :192] = heads
    memory[0] = torch.nan
    out = result[1:, 1:-1, 8:72]
    for threads in (1, 2, 3):
        with on_threads(threads):
            vit_linear_attention(memory[1:, 1:-1, :192], out=out, backend="cpu")
        assert torch.equal(out, want[1:])
    out.fill_(torch.nan)
    assert result.isnan().all()


def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named():
    for heads, dim in ((torch.ones(1, 4, 48, dtype=BF16), 16), (torch.ones(1, 4, 96), 32)):
        with pytest.raises(BackendUnavailable, match="it has no cpu kernel"):
            vit_linear_attention(heads, head_dim=dim, backend="cpu")
        assert (vit_linear_attention(heads, head_dim=dim) == 1).all()
