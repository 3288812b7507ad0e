"""Proof of the Triton kernel of acefast.ops.philox: the reference's bits, interpreted and as PTX."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

import triton
import triton.language as tl

from acefast.kernels.philox import normal, philox
from acefast.ops.philox import _box_muller, philox_bits, philox_normal
from acefast.sim.interpreter import interpreted
from tests.ops.simulated import exact, simulated


@pytest.mark.parametrize("elements", [1, 511, 512, 513, 1300])
def test_interpreted_kernel_gives_the_references_bits(elements):
    seeds, stream = [0, 2**63 + 12345, 2**64 - 1], 2**64 - 3
    with interpreted():
        got = philox_normal(seeds, (elements,), stream=stream, backend="triton")
    assert torch.equal(got.view(torch.int32), philox_normal(seeds, (elements,), stream=stream).view(torch.int32))


def test_ptx_gives_the_references_bits_and_rounds_each_fp64_operation():
    seeds, n = [42, 2**63 + 12345], 3 * 512 + 5
    words = torch.tensor([42, 2**63 + 12345 - 2**64])
    given = {"seeds": words, "stream": torch.tensor([7]), "out": torch.full((2, n), torch.nan)}
    simulated(philox, given, exact, registers=True)
    want = philox_normal(seeds, (n,), stream=7)
    assert torch.equal(given["out"].view(torch.int32), want.view(torch.int32))


@triton.jit
def _late_elements(out_ptr, first, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, normal(tl.full((), 42, tl.int64), tl.full((), 7, tl.int64), first + i))


def test_kernel_counts_elements_in_64_bits():
    def launch(out: torch.Tensor) -> None:
        _late_elements[(1,)](out, first, BLOCK=64, enable_fp_fusion=False)

    first = 5 * 2**32 - 20
    square, sine = _box_muller(*philox_bits(42, 7, torch.arange(first, first + 64)))
    given, read = {"out": torch.full((64,), torch.nan)}, torch.empty(64)
    simulated(launch, given)
    with interpreted():
        launch(read)
    assert torch.equal(given["out"], (square.sqrt() * sine).float()) and torch.equal(read, given["out"])


def test_kernel_draws_nothing_for_an_empty_song():
    with interpreted():
        assert philox_normal([1, 2], (0, 64), backend="triton").shape == (2, 0, 64)
