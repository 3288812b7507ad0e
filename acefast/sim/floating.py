"""Floating arithmetic: half types in fp32 (fma in fp64), rounded once; approximate functions take numpy's value.

fma of fp32 is a product and a sum in fp64, then one rounding: it can differ from the true fma in about one of 2**29
results, by one ulp.
"""

from __future__ import annotations

import numpy as np

from acefast.sim.bits import DTYPE, TINY, flush, narrow, round_directed, widen

# Error bound of each approximation on fp32, ("relative" or "absolute", bound), after the PTX ISA but not compared with
# its present table. The value computed here is numpy's; approx="low", "high" or "random" moves it to the edge of, or
# anywhere within, the bound.
APPROXIMATION = {
    "ex2": ("relative", 2**-22.5), "lg2": ("absolute", 2**-22.6), "rcp": ("relative", 2**-23.0),
    "rsqrt": ("relative", 2**-22.4), "sqrt": ("relative", 2**-23.0), "div": ("relative", 2**-22.0),  # 2 ulp
    "sin": ("absolute", 2**-20.5), "cos": ("absolute", 2**-20.5), "tanh": ("relative", 2**-11.0),
}  # fmt: skip
HALF_APPROXIMATION = {"ex2": ("relative", 2**-9.9), "tanh": ("absolute", 2**-10.987)}
ROUNDINGS = ("rz", "rm", "rp")


def smaller(x, y):
    """minNum: the number if one is NaN; -0 below +0."""
    return np.where(x == y, np.where(np.signbit(x), x, y), np.fmin(x, y))


def larger(x, y):
    return np.where(x == y, np.where(np.signbit(x), y, x), np.fmax(x, y))


def _multiply_add(x, y, z):
    return np.multiply(x, y, dtype=np.float64) + z


FUNCTIONS = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": smaller, "max": larger,
    "fma": _multiply_add, "mad": _multiply_add, "neg": np.negative, "abs": np.abs,
    "copysign": lambda x, y: np.copysign(y, x),
    "rcp": lambda x: x.dtype.type(1) / x, "sqrt": np.sqrt, "rsqrt": lambda x: x.dtype.type(1) / np.sqrt(x),
    "ex2": np.exp2, "lg2": np.log2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
}  # fmt: skip


def perturbation(m, instr):
    """What moves an exact fp64 result within the error bound, as the launch asks; None where nothing does."""
    if m.options.approx == "value" or not instr.has("approx", "full") or instr.op not in APPROXIMATION:
        return None
    half = instr.type not in ("f32", "f64") and instr.op in HALF_APPROXIMATION
    kind, bound = (HALF_APPROXIMATION if half else APPROXIMATION)[instr.op]
    side = {"low": -1.0, "high": 1.0}.get(m.options.approx)

    def move(y: np.ndarray) -> np.ndarray:
        by = m.random.uniform(-1, 1, y.shape) if side is None else side
        moved = y + by * bound * (np.abs(y) if kind == "relative" else 1.0)
        return np.where(np.isfinite(y), moved, y)

    return move


def arithmetic(m, index, instr):
    """Any opcode of FUNCTIONS on any float type, with .ftz, .sat, .relu, .NaN and directed rounding."""
    t, out = instr.type, m.target(instr.operands[0])
    values = [m.value(o, t) for o in instr.operands[1:]]
    function, dtype = FUNCTIONS[instr.op], DTYPE[t]
    rounding, ftz = instr.first(ROUNDINGS), instr.has("ftz") and t == "f32"
    move = perturbation(m, instr)
    exact = t == "f32" and rounding and instr.op not in ("min", "max")

    def run(active) -> None:
        xs = [widen(v(), t) for v in values]
        if ftz:
            xs = [flush(x) for x in xs]
        if move:
            y = move(np.asarray(function(*(x.astype(np.float64) for x in xs)))).astype(
                dtype if t == "f32" else np.float64
            )
        elif exact:
            y = round_directed(function(*(x.astype(np.float64) for x in xs)), dtype, rounding)
        else:
            y = np.asarray(function(*xs))
        if t in ("f32", "f64"):
            y = y.astype(dtype)
        if ftz:
            y = flush(y)
        if instr.has("NaN"):
            y = np.where(np.isnan(xs[0]) | np.isnan(xs[1]), y.dtype.type(np.nan), y)
        if instr.has("relu"):
            y = np.where(y > 0, y, np.where(np.isnan(y), y, 0)).astype(y.dtype)
        if instr.has("sat"):
            y = np.where(np.isnan(y), 0, np.clip(y, 0, 1)).astype(y.dtype)
        out.put(narrow(y, t), active)

    return run


def _test(m, index, instr):
    """testp: a property of a number."""
    out, x = m.target(instr.operands[0]), m.value(instr.operands[1], instr.type)
    tests = {
        "finite": np.isfinite, "infinite": np.isinf, "number": lambda v: ~np.isnan(v), "notanumber": np.isnan,
        "normal": lambda v: np.isfinite(v) & (np.abs(v) >= TINY),
        "subnormal": lambda v: (v != 0) & (np.abs(v) < TINY),
    }  # fmt: skip
    test = tests[instr.mods[0]]
    return lambda active: out.put(test(x()), active)


ONLY_FLOAT = ("fma", "copysign", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
DECODERS = {**dict.fromkeys(ONLY_FLOAT, arithmetic), "testp": _test}
