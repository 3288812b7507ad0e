"""What csrc/cpu/vector.h says of its functions, at every level of instructions that an op is compiled for."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import torch

from acefast.cpu.toolkit import LEVELS
from tests.cpu.programs import build, needs

LIMIT = 60_000  # numbers of each range


@pytest.fixture(scope="module", params=LEVELS)
def vector(request, tmp_path_factory):
    """Calls a function of vector.h on fp32 numbers."""
    needs(request.param)
    program = build(tmp_path_factory.mktemp("vector") / request.param, "vectors.cpp", request.param)

    def call(name: str, x: np.ndarray) -> np.ndarray:
        filled = np.pad(np.asarray(x, np.float32), (0, -len(x) % 16))
        out = subprocess.run([program, name], input=filled.tobytes(), capture_output=True, check=True).stdout
        return np.frombuffer(out, np.float32)[: len(x)]

    call.level = request.param
    return call


def between(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, LIMIT).astype(np.float32)


def test_powers_of_two_are_right_to_two_units_in_the_last_place(vector):
    x = np.concatenate([between(-126, 128), between(-1, 1), np.arange(-126, 128)]).astype(np.float32)
    want = np.exp2(x.astype(np.float64))
    unit = np.exp2(np.floor(np.log2(want)) - 23)
    assert np.max(np.abs(vector("exp2", x) - want) / unit) <= 2
    ends = vector("exp2", [np.nan, np.inf, -np.inf, -126, -126.0001, 127.5, 128, 1e30, -1e30, 0.0])
    want = [np.nan, np.inf, 0, 2.0**-126, 0, np.float32(2.0**127.5), np.inf, np.inf, 0, 1]
    np.testing.assert_allclose(ends, want, rtol=1e-6)


def test_exponentials_are_right_to_what_rounding_their_argument_leaves(vector):
    x = np.concatenate([between(-87, 88), between(-1, 1)])
    want = np.exp(x.astype(np.float64))
    assert np.max(np.abs(vector("exp", x) / want - 1) / (3 + 1.3 * np.abs(x))) <= 2**-24


def test_silu_is_right_to_what_it_says(vector):
    x = np.concatenate([between(-87, 87), between(-4, 4)])
    want = x / (1 + np.exp(-x.astype(np.float64)))
    found = vector("silu", x)
    assert np.max(np.abs(found / want - 1)) <= 4e-6
    assert np.max(np.abs(found - want) / np.maximum(1, np.abs(x))) <= 2**-23
    assert vector("silu", np.array([-1e30, -100, 1e30])).tolist() == [0, 0, np.float32(1e30)]


def test_gelu_is_right_to_what_it_says(vector):
    x = np.concatenate([between(-6, 6), between(-1, 1), between(6, 1e3), [0, 1e-30, -1e-30]])
    want = x * torch.special.log_ndtr(torch.tensor(x, dtype=torch.float64)).exp().numpy()
    assert np.max(np.abs(vector("gelu", x) - want) / np.maximum(np.abs(want), 1e-30)) <= 8e-6
    below = vector("gelu", np.concatenate([between(-20, -6), between(-1e3, -20), [-1e30]]))
    assert np.max(np.abs(below)) <= 1e-8 and np.max(below) <= 0
    assert vector("gelu", np.array([1e30])) == np.float32(1e30)
    assert np.isnan(vector("gelu", np.array([np.nan, -np.nan, np.inf, -np.inf]))).all()


def test_squares_of_sines_are_right_to_4e_7(vector):
    x = np.concatenate([between(-1e4, 1e4), between(-10, 10), np.arange(-50, 51) * np.pi / 2]).astype(np.float32)
    assert np.max(np.abs(vector("sine_squared", x) - np.sin(x.astype(np.float64)) ** 2)) <= 4e-7
    assert np.isnan(vector("sine_squared", np.array([np.nan, np.inf]))).all()


def test_whole_numbers_are_the_nearest(vector):
    x = np.concatenate([between(-(2**22), 2**22), np.arange(-100, 100) / 2])
    assert np.array_equal(vector("nearest", x), np.round(x))  # ties to even


def test_rounding_to_bf16_is_torchs_at_every_tie(vector):
    high = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    x = (high | low).ravel().view(np.float32)  # every number of bf16, and around the ties above it
    found = torch.tensor(vector("bf16", x))
    if vector.level == "bf16":  # whose instruction takes numbers below the smallest normal one for zeros
        x = np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)
    want = torch.tensor(x).bfloat16().float()
    assert torch.equal(found.isnan(), want.isnan())
    assert torch.equal(found[~want.isnan()].view(torch.int32), want[~want.isnan()].view(torch.int32))


def test_sums_have_one_order_and_the_largest_is_found(vector):
    x = np.random.default_rng(1).normal(size=1600).astype(np.float32)
    want = x.reshape(-1, 16)
    while want.shape[1] > 1:
        half = want.shape[1] // 2
        want = want[:, :half] + want[:, half:]
    assert np.array_equal(vector("sum", x)[::16], want[:, 0])
    assert np.array_equal(vector("most", x)[::16], x.reshape(-1, 16).max(1))
