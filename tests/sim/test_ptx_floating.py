"""Floating arithmetic, rounding and conversions against numpy in fp64."""

from __future__ import annotations

import numpy as np
import pytest

from acefast.sim import bf16_to_f32, f32_to_bf16
from acefast.sim.bits import f64_to_bf16
from acefast.sim.floating import APPROXIMATION
from tests.sim.snippets import compute, run

RNG = np.random.default_rng(1)
EDGES = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0**-126, 2.0**-140, -(2.0**-149), 3.4e38, 65504.0, 65520.0]


def numbers(n: int = 300) -> np.ndarray:
    spread = RNG.standard_normal(n) * 2.0 ** RNG.integers(-20, 20, n)
    return np.concatenate([EDGES, spread]).astype(np.float32)


def same(actual, expected) -> None:
    np.testing.assert_array_equal(actual, np.asarray(expected, actual.dtype))


BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("type_, dtype", [("f32", np.float32), ("f64", np.float64)])
def test_arithmetic_rounds_to_nearest(op, type_, dtype):
    x, y = numbers().astype(dtype), RNG.permutation(numbers()).astype(dtype)
    (out,) = compute(f"{op}.rn.{type_} %o0, %i0, %i1;", [x, y], [dtype])
    with np.errstate(all="ignore"):
        same(out, BINARY[op](x, y))


@pytest.mark.parametrize("op", ("add", "sub", "mul"))
@pytest.mark.parametrize("mode", ("rz", "rm", "rp"))
def test_directed_rounding_bounds_the_exact_result(op, mode):
    x, y = (np.abs(RNG.standard_normal(500)).astype(np.float32) - np.float32(0.5) for _ in range(2))
    (out,) = compute(f"{op}.{mode}.f32 %o0, %i0, %i1;", [x, y], [np.float32])
    exact = BINARY[op](x.astype(np.float64), y.astype(np.float64))
    wide = out.astype(np.float64)
    assert (wide <= exact if mode == "rm" else wide >= exact if mode == "rp" else np.abs(wide) <= np.abs(exact)).all()
    assert (np.abs(wide - exact) < np.spacing(np.abs(out))).all()


def test_fma_rounds_once():
    x, y, z = (RNG.standard_normal(400).astype(np.float32) for _ in range(3))
    z = (-x * y).astype(np.float32)  # what is left is the product's rounding error, which two roundings lose
    (out,) = compute("fma.rn.f32 %o0, %i0, %i1, %i2;", [x, y, z], [np.float32])
    same(out, x.astype(np.float64) * y + z)
    assert (out != 0).mean() > 0.5


@pytest.mark.parametrize("kind", ("bf16", "f16"))
@pytest.mark.parametrize("op", ("add", "sub", "mul", "min", "max"))
@pytest.mark.parametrize("packed", (False, True))
def test_half_arithmetic_rounds_once(kind, op, packed):
    to, back = (f32_to_bf16, bf16_to_f32) if kind == "bf16" else (_to_half, _from_half)
    x, y = (to(RNG.standard_normal(400).astype(np.float32)) for _ in range(2))
    inputs = [v.view(np.uint32) for v in (x, y)] if packed else [x, y]
    name = op if op in ("min", "max") else f"{op}.rn"
    (out,) = compute(f"{name}.{kind}{'x2' if packed else ''} %o0, %i0, %i1;", inputs, [inputs[0].dtype])
    function = {**BINARY, "min": np.minimum, "max": np.maximum}[op]
    same(back(out.view(np.uint16)), back(to(function(back(x).astype(np.float64), back(y)).astype(np.float32))))


def _to_half(x):
    return np.asarray(x).astype(np.float16).view(np.uint16)


def _from_half(x):
    return x.view(np.float16).astype(np.float32)


def test_bf16_fma_rounds_once_where_fp32_would_round_twice():
    x, y, z = (f32_to_bf16(v) for v in (np.float32([1.0078125] * 2), np.float32([1.0] * 2), np.float32([2**-30, 0])))
    exact = bf16_to_f32(x).astype(np.float64) * bf16_to_f32(y) + bf16_to_f32(z)
    (out,) = compute("fma.rn.bf16 %o0, %i0, %i1, %i2;", [x, y, z], [np.uint16])
    same(out, f64_to_bf16(exact))
    tie = 1 + 2**-8 + 2**-40  # just above a tie; through fp32 it would land on it and go to even
    assert f64_to_bf16(np.array([tie])) == 0x3F81 and f32_to_bf16(np.float32([tie])) == 0x3F80


def test_min_and_max_take_the_number_and_order_zeros():
    x, y = np.float32([np.nan, 1, -0.0, 0.0, np.nan]), np.float32([2, np.nan, 0.0, -0.0, np.nan])
    low, high, nan = compute(
        "min.f32 %o0, %i0, %i1; max.f32 %o1, %i0, %i1; max.NaN.f32 %o2, %i0, %i1;", [x, y], [np.float32] * 3
    )
    same(low, [2, 1, 0, 0, np.nan])
    same(np.signbit(low[2:4]), [True, True])
    same(np.signbit(high[2:4]), [False, False])
    same(nan, [np.nan, np.nan, 0, 0, np.nan])


def test_flushing_subnormals():
    x = np.float32([2.0**-130, -(2.0**-130), 2.0**-126, 1.0])
    kept, flushed = compute("add.f32 %o0, %i0, 0f00000000; add.ftz.f32 %o1, %i0, 0f00000000;", [x], [np.float32] * 2)
    same(kept, x)
    same(flushed, [0, 0, 2.0**-126, 1])


FUNCTIONS = {
    "ex2.approx.ftz": np.exp2, "lg2.approx": np.log2, "rcp.approx": lambda x: 1 / x, "rsqrt.approx": lambda x: x**-0.5,
    "sqrt.approx": np.sqrt, "sin.approx": np.sin, "cos.approx": np.cos, "tanh.approx": np.tanh,
}  # fmt: skip


@pytest.mark.parametrize("approx", ("value", "low", "high", "random"))
@pytest.mark.parametrize("op", FUNCTIONS)
def test_approximate_functions_stay_within_their_documented_error(op, approx):
    x = RNG.uniform(0.1, 3.1, 500).astype(np.float32)
    (out,) = compute(f"{op}.f32 %o0, %i0;", [x], [np.float32], approx=approx)
    exact = FUNCTIONS[op](x.astype(np.float64))
    kind, bound = APPROXIMATION[op.split(".")[0]]
    allowed = bound * (np.abs(exact) if kind == "relative" else 1)
    rounding = np.abs(exact) * 2.0 ** (-22 if approx == "value" else -24)  # numpy's own functions: up to 2 ulp
    error = out - exact
    assert (np.abs(error) <= np.maximum(allowed, 0) * (approx != "value") + 1.01 * rounding).all()
    if approx in ("low", "high"):
        assert ((error < 0) == (approx == "low")).mean() > 0.9


@pytest.mark.parametrize("mode, function", [("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)])
@pytest.mark.parametrize("target", ("s32", "u32", "s64", "u64", "s16", "u8"))
def test_float_to_integer_clamps(mode, function, target):
    x = np.concatenate([numbers(), np.float32([0.5, 1.5, 2.5, -0.5, 1e10, -1e10, 2**31, 2**63, 2**64, 1e30])])
    to = np.dtype(f"{'i' if target[0] == 's' else 'u'}{int(target[1:]) // 8}")
    register = np.dtype(f"{to.kind}{max(2, to.itemsize)}")
    (out,) = compute(f"cvt.{mode}.{target}.f32 %o0, %i0;", [x], [register])
    info = np.iinfo(to)
    nan = (1 << 63) if to.itemsize == 8 else 0
    for value, got in zip(x, out):
        if np.isnan(value):
            assert int(got) % 2**64 == nan
        elif np.isinf(value):
            assert got == (info.max if value > 0 else info.min)
        else:
            assert int(got) == min(max(int(function(np.float64(value))), info.min), info.max)


@pytest.mark.parametrize("source", ("s32", "u32", "s64", "u64"))
def test_integer_to_float_rounds_once(source):
    dtype = np.dtype(f"{'i' if source[0] == 's' else 'u'}{int(source[1:]) // 8}")
    x = np.frombuffer(RNG.bytes(300 * dtype.itemsize), dtype)
    single, double, half = compute(
        f"cvt.rn.f32.{source} %o0, %i0; cvt.rn.f64.{source} %o1, %i0; cvt.rn.f16.{source} %o2, %i0;",
        [x], [np.float32, np.float64, np.float16],
    )  # fmt: skip
    same(double, [float(int(v)) for v in x])
    same(single, x.astype(np.float32))
    with np.errstate(over="ignore"):
        same(half, x.astype(np.float64).astype(np.float16))


def test_conversions_between_floats():
    x = numbers()
    body = "cvt.rn.bf16.f32 %o0, %i0; cvt.rn.f16.f32 %o1, %i0; cvt.rn.bf16x2.f32 %o2, %i0, %i1; cvt.f64.f32 %o3, %i0;"
    body += (
        "cvt.rn.f16x2.f32 %o4, %i0, %i1; cvt.rz.bf16.f32 %o5, %i0; cvt.rna.tf32.f32 %o6, %i0; cvt.sat.f32.f32 %o7, %i0;"
    )
    y = RNG.permutation(x)
    types = [np.uint16, np.float16, np.uint32, np.float64, np.uint32, np.uint16, np.float32, np.float32]
    bf16, half, pair, double, halves, cut, tf32, clamped = compute(body, [x, y], types)
    import torch

    reference = lambda v: torch.from_numpy(v).bfloat16().float().numpy()  # noqa: E731
    same(bf16_to_f32(bf16), reference(x))
    with np.errstate(over="ignore"):
        same(half, x.astype(np.float16))
        same(halves.view(np.float16).reshape(-1, 2)[:, 0], y.astype(np.float16))
    same(bf16_to_f32(pair.view(np.uint16).reshape(-1, 2)), np.stack([reference(y), reference(x)], 1))
    same(double, x)
    finite = np.isfinite(x)
    same(cut[finite], (x.view(np.uint32) >> 16)[finite])
    normal = np.isfinite(x) & (np.abs(x) > 1e-30) & (np.abs(x) < 1e38)
    assert (np.abs(tf32[normal] - x[normal]) <= np.abs(x[normal]) * 2.0**-11).all() and not (
        tf32.view(np.uint32) & 0x1FFF
    )[normal].any()
    same(clamped, np.where(np.isnan(x), 0, np.clip(x, 0, 1)))


def test_narrowing_from_double_rounds_once():
    x = np.array([1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 2**-8 - 2**-40, -1 - 2**-8 - 2**-40])
    (out,) = compute("cvt.rn.bf16.f64 %o0, %i0;", [x], [np.uint16])
    same(out, [0x3F81, 0x3F80, 0x3F80, 0xBF81])


@pytest.mark.parametrize("test", ("lt", "ltu", "eq", "equ", "ne", "neu", "ge", "geu", "num", "nan"))
def test_comparisons_with_nan(test):
    x, y = np.float32([1, 2, np.nan, 3, np.nan]), np.float32([2, 1, 1, 3, np.nan])
    (out,) = compute(f"setp.{test}.f32 %p1, %i0, %i1; selp.u32 %o0, 1, 0, %p1;", [x, y], [np.uint32])
    nan = np.isnan(x) | np.isnan(y)
    plain = {"lt": x < y, "eq": x == y, "ne": x != y, "ge": x >= y}
    expected = {"num": ~nan, "nan": nan}.get(test)
    if expected is None:
        expected = plain[test[:2]] | nan if test.endswith("u") else plain[test] & ~nan
    same(out, expected)


@pytest.mark.parametrize("type_", ("f32", "bf16x2", "f16x2", "f64"))
def test_float_atomics_and_reductions(type_):
    """64 lanes onto 8 cells."""
    size = 8 if type_ == "f64" else 4
    dtype = {"f32": np.float32, "f64": np.float64}.get(type_, np.uint32)
    small = RNG.integers(0, 4, (64, 2)).astype(np.float32)  # sums are exact in every type
    pack = {"bf16x2": f32_to_bf16, "f16x2": _to_half}.get(type_)
    x = np.ascontiguousarray(pack(small)).view(np.uint32)[:, 0] if pack else small[:, 0].astype(dtype)
    total = np.zeros(8, dtype)
    register = {"f32": "%f1", "f64": "%g1"}.get(type_, "%r5")
    body = f"mad.wide.u32 %d5, %r0, {size}, %d0; ld.global.{'b32' if pack else type_} {register}, [%d5];"
    body += f"and.b32 %r3, %r0, 7; mad.wide.u32 %d6, %r3, {size}, %d1;"
    run(body + f"red.global.add{'.noftz' if pack else ''}.{type_} [%d6], {register};", [x, total])
    back = {"bf16x2": bf16_to_f32, "f16x2": _from_half}.get(type_)
    got = back(total.view(np.uint16)).reshape(8, 2) if back else total
    same(got, (small if back else small[:, 0]).reshape(8, 8, -1).sum(0).reshape(got.shape))


def test_compare_and_swap_spins_until_its_turn():
    """Every lane adds 1 by compare-and-swap, as bf16 atomics are written for GPUs that lack them."""
    total = np.zeros(1, np.uint32)
    body = """ld.relaxed.gpu.global.u32 %r5, [%d0]; $again: add.u32 %r6, %r5, 1;
atom.global.cas.b32 %r7, [%d0], %r5, %r6;
    setp.ne.u32 %p1, %r7, %r5; mov.u32 %r5, %r7; @%p1 bra $again;"""
    run(body, [total], grid=3)
    assert total[0] == 192
