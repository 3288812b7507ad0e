"""Rows between zeros: where they lie, what is taken for them, and what is not."""

from __future__ import annotations

import pytest
import torch

from acefast.guarded import (
    GUARD,
    check_rows,
    clear_guards,
    elements,
    guarded,
    is_guarded,
    lay,
    whole,
    with_guards,
)

OPTIONS = {"dtype": torch.float16, "device": torch.device("cpu")}


@pytest.mark.parametrize("batch, rows, channels", [(1, 1, 1), (2, 5, 16), (3, 100, 2), (1, 0, 4)], ids=str)
def test_new_rows_lie_between_zeros(batch, rows, channels):
    x = guarded(batch, rows, channels, **OPTIONS)
    around = whole(x)
    assert x.shape == (batch, rows, channels) and is_guarded(x) and x.dtype == torch.float16
    assert around.is_contiguous() and around.shape == (batch, GUARD + rows + GUARD, channels)
    assert around.numel() == elements(batch, rows, channels) == around.untyped_storage().nbytes() // 2
    x.fill_(1)
    assert not around[:, :GUARD].any() and not around[:, GUARD + rows :].any()
    assert bool((around[:, GUARD : GUARD + rows] == 1).all())


def test_the_widest_kernel_reads_within_the_guards():
    assert GUARD >= 7 // 2 * 9


def test_memory_of_any_size_is_used_from_its_start_and_left_as_it_is():
    memory = torch.arange(elements(2, 3, 4) + 10).half()
    before = memory.clone()
    x = guarded(2, 3, 4, memory=memory, **OPTIONS)
    assert torch.equal(memory, before) and is_guarded(x)
    assert x[0, 0, 0] == GUARD * 4 and x[1, 0, 0] == (GUARD + 3 + GUARD) * 4 + GUARD * 4
    assert whole(x).data_ptr() == memory.data_ptr()
    other = guarded(1, 3, 8, memory=memory, **OPTIONS)  # rows of another width in the same memory
    assert is_guarded(other) and other[0, 0, 0] == GUARD * 8
    for batch, rows, channels in ((2, 3, 5), (2, 5, 4), (1, 3, 9), (1, 5, 8)):
        with pytest.raises(RuntimeError):
            guarded(batch, rows, channels, memory=memory, **OPTIONS)


def test_guards_are_cleared_and_rows_kept():
    x = guarded(2, 3, 4, memory=torch.full((elements(2, 3, 4) + 8,), torch.nan).half(), **OPTIONS)
    x.copy_(torch.arange(24).view(2, 3, 4))
    assert clear_guards(x) is x
    want = torch.nn.functional.pad(torch.arange(24.0).view(2, 3, 4), (0, 0, GUARD, GUARD)).half()
    assert torch.equal(whole(x), want)
    behind = torch.empty(0, dtype=torch.float16).set_(x.untyped_storage())[elements(2, 3, 4) :]
    assert bool(behind.isnan().all())


def test_a_copy_with_guards_is_a_copy(rng):
    x = torch.randn(2, 6, 4, generator=rng).transpose(0, 1)
    y = with_guards(x)
    assert is_guarded(y) and torch.equal(x, y) and not whole(y)[:, :GUARD].any()
    x.fill_(0)
    assert bool(y.any())


def test_what_is_not_guarded_is_told_apart():
    memory = torch.zeros(elements(2, 3, 4))
    x = memory.view(2, -1, 4)[:, GUARD : GUARD + 3]
    assert is_guarded(x)
    for other in (
        torch.zeros(2, 3, 4),
        memory.view(2, -1, 4)[:, GUARD - 1 : GUARD + 2],  # too near to the front
        memory.view(2, -1, 4)[:, GUARD + 1 : GUARD + 4],  # too near to the end
        memory.view(2, -1, 4)[:, GUARD : GUARD + 3, :2],
        memory.view(2, -1, 4)[:1, GUARD : GUARD + 4],  # its songs lie closer than that
        memory.view(2, -1, 4)[:, GUARD : GUARD + 3].flip(0).transpose(1, 2),
        memory[1:-1].view(-1)[: 69 * 4].view(1, -1, 4)[:, GUARD:][:, :3],
    ):
        assert not is_guarded(other)


def test_layouts_are_checked_by_name():
    check_rows("op", "x", torch.zeros(2, 3, 4), False)
    check_rows("op", "x", with_guards(torch.zeros(2, 3, 4)), True)
    with pytest.raises(ValueError, match=r"op: x must be contiguous"):
        check_rows("op", "x", with_guards(torch.zeros(2, 3, 4)), False)
    want = r"op: x must lie between guards of 32 rows \(acefast.guarded\), got strides \(12, 4, 1\) and offset 0 for "
    with pytest.raises(ValueError, match=want + r"\[2, 3, 4\]"):
        check_rows("op", "x", torch.zeros(2, 3, 4), True)


def test_results_are_laid_where_they_are_wanted(rng):
    y = torch.randn(2, 3, 4, generator=rng)
    assert lay(y, None, False) is y
    assert is_guarded(lay(y, None, True)) and torch.equal(lay(y, None, True), y)
    out = torch.empty(2, 3, 4)
    assert lay(y, out, False) is out and torch.equal(out, y)
    out = guarded(2, 3, 4, dtype=y.dtype, device=y.device, memory=torch.full((elements(2, 3, 4),), torch.nan))
    assert lay(y, out, True) is out and torch.equal(whole(out), whole(with_guards(y)))
