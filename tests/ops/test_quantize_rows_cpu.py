"""quantize_rows' CPU kernel at every level of instructions, against the reference, bit for bit."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.quantize_rows import LEAST, quantize_rows, quantize_rows_reference
from tests.cpu.isas import NAMES, at_isa, extension

extension()
BF16 = torch.bfloat16


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


def ran(x):
    """q and scale by the kernel, in memory that was not zero; what lies next to it stays as it was."""
    q, scale = torch.full((x.numel() + 64,), 99, dtype=torch.int8), torch.full((x.numel() // x.shape[-1] + 8,), 7.0)
    out = q[32:-32].view(x.shape), scale[4:-4].view(x.shape[:-1])
    assert quantize_rows(x, out=out, backend="cpu")[0] is out[0]
    assert (q[:32] == 99).all() and (q[-32:] == 99).all() and (scale[:4] == 7).all() and (scale[-4:] == 7).all()
    return out


@pytest.mark.parametrize("shape", [(1, 16), (13, 48), (2, 5, 2048), (375, 96)], ids=str)
def test_kernel_has_the_references_bits(isa, shape, rng):
    for deviation in (1e-30, 1.0, 1e30):
        x = (torch.randn(shape, generator=rng) * deviation).to(BF16)
        assert all(map(torch.equal, ran(x), quantize_rows_reference(x)))


def test_every_bf16_among_others_has_the_references_bits(isa):
    """All finite magnitudes as the second number of a row, beside largest ones of three scales."""
    every = torch.arange(0x7F80, dtype=torch.int16).view(BF16)
    for largest in (1.0, 1.171875, 3.0e38):
        x = torch.full((len(every), 16), -largest, dtype=BF16)
        x[:, 1] = every
        x[:, 2:9] = torch.rand(len(every), 7, generator=torch.Generator().manual_seed(1)) * largest
        assert all(map(torch.equal, ran(x), quantize_rows_reference(x)))


def test_ties_go_to_the_even_integer_and_zeros_have_a_scale(isa):
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]).repeat(2, 2).to(BF16)
    x[1] = 0
    q, scale = ran(x)
    assert q[0].tolist() == 2 * [127, 0, 2, 2, 0, -2, -2, -127] and not q[1].any() and scale[1] == LEAST / 127


@pytest.mark.parametrize("poison", (torch.nan, -torch.nan, torch.inf, -torch.inf))
def test_poison_is_in_its_rows_scale_and_no_other(isa, poison, rng):
    x = torch.randn(4, 64, generator=rng).to(BF16)
    clean = quantize_rows_reference(x)
    x[1, 3] = poison
    q, scale = ran(x)
    assert not scale[1].isfinite() and bool(scale[1].isnan()) == (poison != poison)
    for row in (0, 2, 3):
        assert torch.equal(q[row], clean[0][row]) and scale[row] == clean[1][row]


def test_threads_change_no_bit(rng):
    before, x = torch.get_num_threads(), torch.randn(70, 128, generator=rng).to(BF16)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(map(torch.equal, ran(x), quantize_rows_reference(x)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("x", [torch.zeros(2, 8, dtype=BF16), torch.zeros(2, 16)], ids=("K 8", "fp32"))
def test_other_rows_are_the_references(x):
    with pytest.raises(BackendUnavailable, match=r"quantize_rows: .*it has no cpu kernel for this input"):
        quantize_rows(x, backend="cpu")
    assert not quantize_rows(x)[0].any()


def test_no_rows_are_no_work():
    assert quantize_rows(torch.zeros(0, 16, dtype=BF16), backend="cpu")[0].shape == (0, 16)
