"""Proof of acefast.ops.philox; its Triton kernel is in test_philox_triton.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acefast.ops.philox import philox_bits, philox_normal, philox_normal_reference

UINT64 = st.integers(0, 2**64 - 1)
# Random123's known answers: counter words, key words, the first two output words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB)),
]


def bits(seed: int, stream: int, element: int) -> tuple[int, int]:
    """Philox in Python's unbounded integers, written down from the paper."""
    c = [stream % 2**32, stream >> 32, element % 2**32, element >> 32]
    k = [seed % 2**32, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[0], c[1]


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_rounds_give_the_published_answers(counter, key, words):
    element = counter[2] + (counter[3] << 32)
    index = torch.tensor([element - (element >> 63 << 64)])  # the same 64 bits in a signed integer
    c0, c1 = philox_bits(key[0] + (key[1] << 32), counter[0] + (counter[1] << 32), index)
    assert (c0.item(), c1.item()) == words


@settings(max_examples=50, deadline=None)
@given(seed=UINT64, stream=UINT64, elements=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
def test_rounds_match_unbounded_integers(seed, stream, elements):
    lanes = torch.stack(philox_bits(seed, stream, torch.tensor(elements)), dim=-1)
    assert [tuple(lane) for lane in lanes.tolist()] == [bits(seed, stream, e) for e in elements]


def test_seed_42_gives_the_gpu_generators_noise():
    got = philox_normal([42], (6,))[0]
    want = torch.tensor([0.194018871, 2.16137409, -0.17205061, 0.84906006, -1.9243991, 0.65298551])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    half = torch.tensor([0.19433594, 2.15625, -0.171875, 0.84765625, -1.921875, 0.65234375]).bfloat16()
    assert torch.equal(got.bfloat16(), half)


def test_values_are_the_correctly_rounded_box_muller_transform():
    seed, n = 2**63 + 12345, 4096
    c0, c1 = torch.tensor([bits(seed, 3, e) for e in range(n)], dtype=torch.float64).float().T  # fp32's 24 bits
    u, w = (c.double() * a + a / 2 for c, a in ((c0, 2.0**-32), (c1, torch.tensor(2 * math.pi * 2.0**-32).item())))
    want = (-2 * u.float().double().log()).sqrt() * w.float().double().sin()
    torch.testing.assert_close(philox_normal([seed], (n,), stream=3)[0], want.float(), rtol=6e-8, atol=0)


def test_first_values_are_these_bits_on_every_machine():
    got = philox_normal([0, 1, 2**64 - 1], (2,), stream=7).view(torch.int32).tolist()
    assert got == [[1047989145, 1057915203], [1048286478, -1068963508], [-1079628488, 1055606424]]


def test_element_does_not_depend_on_length_batch_or_neighbours():
    seeds = [5, 2**40 + 1, 0]
    long = philox_normal(seeds, (1100, 64))  # several blocks of the reference, the last one ragged
    assert torch.equal(philox_normal(seeds[1:2], (701, 64))[0], long[1, :701])
    assert torch.equal(philox_normal(seeds[::-1], (1100, 64)), long.flip(0))


def test_shape_is_row_major_over_one_song():
    assert torch.equal(philox_normal([9], (8, 16, 5)).flatten(), philox_normal([9], (640,))[0])
    assert philox_normal([9, 8], (0, 64)).shape == (2, 0, 64)


def test_seeds_and_streams_are_independent():
    draws = torch.cat([philox_normal([1, 2, 2**32 + 1], (20000,), stream=s) for s in (0, 1, 2**32)])
    correlation = torch.corrcoef(draws) - torch.eye(9)
    assert correlation.abs().max() < 5 / math.sqrt(20000)


def test_noise_is_standard_normal():
    x = philox_normal([7], (500_000,)).double()
    n = x.numel()
    assert x.abs().max() < 6.8
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # spread: variance of x**power
        assert abs(x.pow(power).mean().item() - moment) < 5 * math.sqrt(spread / n)
    for limit in (0.1, 1.0, 2.0, 3.0):
        share = math.erf(limit / math.sqrt(2))
        assert abs((x.abs() < limit).double().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / n)


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    philox_normal([3], (10,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match=f"philox: seeds must be 0 to 2\\*\\*64 - 1, got {seed}"):
        philox_normal([seed], (1,))
    with pytest.raises(ValueError, match="philox: stream"):
        philox_normal([0], (1,), stream=seed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
def test_gpu_gives_the_same_bits():
    on_gpu = philox_normal_reference([42, 2**63], (3000, 64), stream=1, device="cuda")
    assert torch.equal(on_gpu.cpu(), philox_normal_reference([42, 2**63], (3000, 64), stream=1))
