"""The CPU's kernel of acefast.ops.paired_rope, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.paired_rope import paired_rope
from tests.cpu.convolutions import on_threads
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_paired_rope import GATE, expected, relative, table_of

extension()

BF16 = torch.bfloat16


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 33, 6, 16), (1, 31, 4, 48), (2, 17, 3, 128)], ids=str)
def test_equals_the_equation_in_fp64(shape, isa, rng):
    x = torch.randn(shape, generator=rng).to(BF16)
    before, table = x.clone(), table_of(shape[1] + 3, shape[3])
    with at_isa(isa):
        got = paired_rope(x, table, backend="cpu")
        assert got.dtype == BF16 and got.is_contiguous() and torch.equal(x, before)
        reference = relative(paired_rope(x, table, backend="reference"), expected(x))
        assert relative(got, expected(x)) <= min(GATE[BF16], 1.1 * reference)


def test_views_in_place_and_any_number_of_threads_give_the_same(rng):
    packed = torch.randn(2, 21, 3, 4, 32, generator=rng).to(BF16)
    x, table, rest = packed[:, :, 1], table_of(21, 32), packed[:, :, ::2].clone()
    want = paired_rope(x.contiguous(), table, backend="cpu")
    for threads in (1, 2, 3):
        with on_threads(threads):
            assert torch.equal(paired_rope(x, table, backend="cpu"), want)
    assert paired_rope(x, table, out=x, backend="cpu") is x
    assert torch.equal(x, want) and torch.equal(packed[:, :, ::2], rest)


@pytest.mark.parametrize("D, dtype", [(24, BF16), (32, torch.float32)])
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(D, dtype, rng):
    x = torch.randn(1, 5, 2, D, generator=rng).to(dtype)
    with pytest.raises(BackendUnavailable, match="it has no cpu kernel"):
        paired_rope(x, table_of(5, D), backend="cpu")
    assert torch.equal(paired_rope(x, table_of(5, D)), paired_rope(x, table_of(5, D), backend="reference"))
