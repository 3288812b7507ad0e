"""paired_rope against its equation in fp64, the Triton kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable, use_backend
from acefast.ops.paired_rope import paired_rope, paired_rope_table

GATE = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # relative L2: one rounding at its worst
# Heads of each class; one and several to a program; rows around a program of 16 or 32.
SHAPES = [(1, 1, 1, 8), (2, 33, 6, 16), (1, 31, 4, 64), (2, 17, 3, 128), (1, 9, 8, 256)]


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "reference":
        yield request.param
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield request.param


def table_of(rows, D, theta=1e4):
    return paired_rope_table(rows, D, theta, torch.device("cpu"))


def expected(x, theta=1e4):
    """Channel by channel, as the specification writes it."""
    _, S, _, D = x.shape
    x, want = x.double(), torch.empty(x.shape, dtype=torch.float64)
    position = torch.arange(S, dtype=torch.float64)[:, None]
    for d in range(D):
        angle = position * theta ** (-2 * (d % (D // 2)) / D)
        other = -x[..., d + 1] if d % 2 == 0 else x[..., d - 1]
        want[..., d] = x[..., d] * angle.cos() + other * angle.sin()
    return want


def relative(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_equation_in_fp64(backend, shape, dtype, rng):
    x = torch.randn(shape, generator=rng).to(dtype)
    before, table = x.clone(), table_of(shape[1] + 3, shape[3])
    got = paired_rope(x, table, backend=backend)
    assert got.dtype == dtype and torch.equal(x, before)
    assert relative(got, expected(x)) <= GATE[dtype]


def test_members_of_a_pair_have_different_angles(backend):
    """Not a rotation: (1, 0) and (0, 1) at position 1 do not keep their norm together with their angle."""
    table = table_of(2, 8)
    x = torch.zeros(1, 2, 2, 8)
    x[0, 1, 0, 0] = x[0, 1, 1, 1] = 1
    got = paired_rope(x, table, backend=backend)[0, 1]
    cos, sin = table[1]
    assert got[0, :2].tolist() == [cos[0], sin[1]] and got[1, :2].tolist() == [-sin[0], cos[1]]
    assert cos[0] != cos[1] and not got[:, 2:].any()


def test_table_holds_every_angle_twice():
    table = table_of(40, 16, 1e6)
    assert table.shape == (40, 2, 16) and torch.equal(table[..., :8], table[..., 8:])
    angle = 39 * 1e6 ** (-2 * 3 / 16)
    want = torch.tensor(angle, dtype=torch.float64)
    torch.testing.assert_close(table[39, :, 3].double(), torch.stack((want.cos(), want.sin())), rtol=0, atol=1e-6)


def test_position_zero_changes_nothing(backend, rng):
    x = torch.randn(2, 1, 2, 16, generator=rng).bfloat16()
    assert torch.equal(paired_rope(x, table_of(1, 16), backend=backend), x)


def test_in_place_and_strided(backend, rng):
    """Keys of a packed projection, among values that are NaN; more rows than are asked for."""
    packed = torch.full((2, 23, 2, 4, 32), torch.nan)
    keys = packed[:, :21, 0]
    keys.copy_(torch.randn(2, 21, 4, 32, generator=rng))
    want = paired_rope(keys, table_of(21, 32), backend=backend)
    assert paired_rope(keys, table_of(21, 32), out=keys, backend=backend) is keys
    assert torch.equal(keys, want)
    keys.fill_(torch.nan)
    assert packed.isnan().all()


def test_rows_of_padding_stay_among_themselves(backend, rng):
    x = torch.randn(1, 20, 2, 16, generator=rng)
    want = paired_rope(x, table_of(20, 16), backend=backend)
    x[:, 13:] = torch.nan
    assert torch.equal(paired_rope(x, table_of(20, 16), backend=backend)[:, :13], want[:, :13])


def test_what_the_kernel_cannot_take_goes_to_the_reference(rng):
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    wide = torch.randn(1, 5, 2, 32, generator=rng)
    with interpreted():
        for x in (wide[..., ::2], wide[..., :12], wide.double()):
            with pytest.raises(BackendUnavailable, match="paired_rope: backend='triton' cannot run"):
                paired_rope(x, table_of(5, x.shape[-1]), backend="triton")
            with use_backend("triton"):
                assert relative(paired_rope(x, table_of(5, x.shape[-1])), expected(x)) <= 1e-6


def test_wrong_arguments_are_refused_with_a_sentence():
    x = torch.zeros(1, 5, 2, 16)
    with pytest.raises(ValueError, match=r"table must be \[S or more, 2, D\] = \[5, 2, 16\], got \[4, 2, 16\]"):
        paired_rope(x, table_of(4, 16))
    with pytest.raises(ValueError, match=r"table must be torch.float32, got torch.bfloat16"):
        paired_rope(x, table_of(5, 16).bfloat16())
    with pytest.raises(ValueError, match=r"channels of a head must be an even number, got 15"):
        paired_rope(x[..., :15], table_of(5, 16))
    with pytest.raises(ValueError, match=r"out must be torch.float32, got torch.float16"):
        paired_rope(x, table_of(5, 16), out=x.half())
