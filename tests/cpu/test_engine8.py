"""Engines of 8-bit products at every level of instructions: sums of integers, to the last bit, through linear_int8."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.linear_int8 import linear_int8
from tests.cpu.isas import NAMES, at_isa, extension

ENGINES = {"portable": "int16", "avx2": "int16", "avx512": "int16", "bf16": "vnni", "amx": "amx"}
extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


def of(x, weight, bias=None):
    return linear_int8(x, torch.ones(len(x)), weight, torch.ones(len(weight)), bias, backend="cpu")


def test_each_level_has_its_engine(isa):
    assert extension().engine8() == ENGINES[isa]


@pytest.mark.parametrize("R, K, N", [(1, 64, 16), (7, 128, 48), (13, 576, 32), (33, 1024, 80)], ids=str)
def test_sums_are_exact(isa, R, K, N, rng):
    """A bias that is a row's sums turned around leaves zeros of it: fp32 holds them, none is above 2**24."""
    x, weight = (torch.randint(-128, 128, (n, K), generator=rng, dtype=torch.int8) for n in (R, N))
    x[0], weight[0], weight[1] = -128, -128, 127
    sums = (x.double() @ weight.double().T).float()
    for r in range(R):
        assert not of(x, weight, -sums[r])[r].any()
        assert (of(x, weight, 1 - sums[r])[r] == 1).all()


def test_a_sum_beyond_2_to_the_24_keeps_its_last_one(isa):
    """1151 products of 127 by 127 pass 2**24; as many of 127 by -127 leave the 1 that came first."""
    x, weight = torch.full((2, 2304), 127, dtype=torch.int8), torch.zeros(32, 2304, dtype=torch.int8)
    x[:, 0] = weight[0, 0] = 1
    weight[0, 1:1152], weight[0, 1153:] = 127, -127
    got = of(x, weight)
    assert (got[:, 0] == 1).all() and not got[:, 1:].any()


def test_the_longest_row_of_extremes_passes_no_32_bits(isa):
    """With 128 added to one factor sums pass 2**31 on the way."""
    K = 131008  # the last multiple of 64 that the op takes
    x, weight = torch.full((3, K), -128, dtype=torch.int8), torch.full((16, K), -128, dtype=torch.int8)
    x[1, : K // 2], x[2] = 127, 127
    weight[1] = 127
    assert torch.equal(of(x, weight), (x.double() @ weight.double().T).float().bfloat16())
