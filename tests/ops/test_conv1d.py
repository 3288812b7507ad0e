"""Proof of acefast.ops.conv1d."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from acefast.backends import BackendUnavailable
from acefast.guarded import GUARD, elements, guarded, is_guarded, whole, with_guards
from acefast.ops.conv1d import conv1d

GATE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # relative L2
# (B, L, Cin, Cout, K, stride, padding, dilation)
SHAPES = {
    "decoder's first": (1, 9, 4, 32, 7, 1, 3, 1),
    "shorter than its kernel": (1, 1, 4, 32, 7, 1, 3, 1),
    "dilated, ragged": (2, 61, 8, 8, 7, 1, 27, 9),
    "no padding": (1, 61, 8, 8, 7, 1, 0, 9),
    "pointwise": (2, 13, 8, 8, 1, 1, 0, 1),
    "strided": (2, 43, 8, 16, 12, 6, 3, 1),
    "stereo in": (2, 100, 2, 8, 7, 1, 3, 1),
    "stereo out": (2, 100, 8, 2, 7, 1, 3, 1),
    "stereo out, very short": (2, 2, 8, 2, 7, 1, 3, 1),
    "stereo out, much padding": (1, 3, 8, 2, 3, 1, 9, 1),
    "mono out of one channel": (1, 5, 1, 1, 3, 1, 1, 1),
    "one number": (1, 1, 1, 1, 1, 1, 0, 1),
    "many rows": (1, 2000, 16, 16, 7, 1, 9, 3),
}


def inputs(B, L, Cin, Cout, K, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g) for s in ((B, L, Cin), (Cout, K, Cin), (Cout,)))
    return x.to(dtype), (weight / (K * Cin) ** 0.5).to(dtype), bias.to(dtype)


def naive(x, weight, bias, stride, padding, dilation, residual=None):
    """Tap by tap in fp64."""
    x, weight = x.double(), weight.double()
    B, L, _ = x.shape
    K = weight.shape[1]
    rows = (L + 2 * padding - dilation * (K - 1) - 1) // stride + 1
    padded = torch.cat([x.new_zeros(B, padding, x.shape[2]), x, x.new_zeros(B, padding, x.shape[2])], dim=1)
    y = x.new_zeros(B, rows, len(weight))
    for t in range(rows):
        for k in range(K):
            y[:, t] += padded[:, t * stride + k * dilation] @ weight[:, k].T
    y = y if bias is None else y + bias.double()
    return y if residual is None else y + residual.double()


def relative(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_formula_in_double_precision(shape, dtype):
    *sizes, stride, padding, dilation = shape
    x, weight, bias = inputs(*sizes, dtype)
    before = bias.clone()
    for b in (bias, None):
        expected = naive(x, weight, b, stride, padding, dilation)
        y = conv1d(x, weight, b, stride=stride, padding=padding, dilation=dilation)
        assert y.dtype == dtype and y.is_contiguous()
        assert relative(y, expected) <= GATE[dtype]
    assert torch.equal(bias, before)


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("Cout", (8, 2))
def test_residual_is_added_and_no_input_modified(Cout, dtype):
    x, weight, bias = inputs(2, 31, 8, Cout, 7, dtype)
    residual = torch.randn(2, 31, Cout, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = [t.clone() for t in (x, weight, bias, residual)]
    y = conv1d(x, weight, bias, padding=3, residual=residual)
    assert relative(y, naive(x, weight, bias, 1, 3, 1, residual)) <= GATE[dtype]
    assert all(torch.equal(a, b) for a, b in zip(before, (x, weight, bias, residual)))


def test_songs_of_a_batch_do_not_meet():
    x, weight, bias = inputs(3, 40, 8, 8, 7)
    y = conv1d(x, weight, bias, padding=9, dilation=3)
    x[[0, 2]] = torch.nan
    torch.testing.assert_close(conv1d(x, weight, bias, padding=9, dilation=3)[1], y[1], rtol=1e-6, atol=1e-6)


def snaked(y, alpha, inv_beta):
    return y + inv_beta.double() * (alpha.double() * y).sin() ** 2


def waves(C):
    g = torch.Generator().manual_seed(2)
    return torch.rand(C, generator=g) * 4 + 0.1, torch.rand(C, generator=g) * 2


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("guards", (False, True), ids=("plain", "guarded"))
def test_the_next_snake_is_a_second_result_or_the_only_one(guards, dtype):
    x, weight, bias = inputs(2, 31, 8, 16, 7, dtype)
    wave, options = waves(16), {"padding": 9, "dilation": 3, "guarded": guards}
    want = naive(x, weight, bias, 1, 9, 3)
    x = with_guards(x) if guards else x
    y = conv1d(x, weight, bias, **options)
    kept, activated = conv1d(x, weight, bias, **options, wave=wave)
    none, alone = conv1d(x, weight, bias, **options, wave=wave, keep=False)
    assert torch.equal(y, kept) and none is None and torch.equal(activated, alone)
    assert relative(y, want) <= GATE[dtype] and relative(activated, snaked(want, *wave)) <= 2 * GATE[dtype]
    for t in (y, kept, activated, alone):
        assert t.dtype == dtype and (is_guarded(t) and padded_with_zeros(t) if guards else t.is_contiguous())


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("guards", (False, True), ids=("plain", "guarded"))
def test_silu_stands_in_the_snakes_place(guards, dtype):
    x, weight, bias = inputs(2, 31, 8, 16, 13, dtype)
    options = {"padding": 30, "dilation": 5, "guarded": guards}
    want = naive(x, weight, bias, 1, 30, 5)
    x = with_guards(x) if guards else x
    kept, activated = conv1d(x, weight, bias, **options, wave="silu")
    none, alone = conv1d(x, weight, bias, **options, wave="silu", keep=False)
    assert none is None and torch.equal(activated, alone)
    assert relative(kept, want) <= GATE[dtype] and relative(activated, want * want.sigmoid()) <= 2 * GATE[dtype]
    assert all(is_guarded(t) and padded_with_zeros(t) if guards else t.is_contiguous() for t in (kept, activated))


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("guards", (False, True), ids=("plain", "guarded"))
def test_shares_of_a_mean_are_added_up(guards, dtype, rng):
    """The mean of four branches, written over each other, whose SiLU is all that is wanted at the end."""
    x, _, bias = inputs(2, 31, 8, 8, 3, dtype)
    weights = [(torch.randn(8, 3, 8, generator=rng) / 5).to(dtype) for _ in range(4)]
    residuals = torch.randn(4, 2, 31, 8, generator=rng).to(dtype)
    want = sum(naive(x, w, bias, 1, 1, 1, r) for w, r in zip(weights, residuals)) / 4
    lie = with_guards if guards else torch.clone
    options, total = {"padding": 1, "share": 0.25, "guarded": guards}, None
    for w, r in zip(weights[:3], residuals):
        total = conv1d(lie(x), w, bias, **options, residual=lie(r), total=total, out=total)
    last = {"residual": lie(residuals[3]), "total": total}
    none, activated = conv1d(lie(x), weights[3], bias, **options, **last, wave="silu", keep=False)
    mean = conv1d(lie(x), weights[3], bias, **options, **last, out=total)
    assert none is None and mean is total
    assert relative(mean, want) <= 2 * GATE[dtype] and relative(activated, F.silu(want)) <= 3 * GATE[dtype]


def padded_with_zeros(x):
    return not whole(x)[:, :GUARD].any() and not whole(x)[:, GUARD + x.shape[1] :].any()


def poisoned(B, L, C, dtype):
    memory = torch.full((elements(B, L, C) + 64,), torch.nan, dtype=dtype)
    return guarded(B, L, C, dtype=dtype, device=memory.device, memory=memory)


def test_results_are_written_where_they_are_wanted_also_over_the_residual():
    x, weight, bias = inputs(2, 31, 8, 16, 1)
    residual = torch.randn(2, 31, 16, generator=torch.Generator().manual_seed(1))
    wave = waves(16)
    want = naive(x, weight, bias, 1, 0, 1, residual)
    out = torch.empty(2, 31, 16)
    assert conv1d(x, weight, bias, residual=residual, out=out) is out and relative(out, want) <= 1e-6
    for guards in (False, True):
        x_in, both = (with_guards(x), poisoned(2, 31, 16, x.dtype)) if guards else (x, torch.empty(2, 31, 16))
        stream = with_guards(residual) if guards else residual.clone()
        got = conv1d(x_in, weight, bias, residual=stream, wave=wave, guarded=guards, out=(stream, both))
        assert got[0] is stream and got[1] is both
        assert relative(stream, want) <= 1e-6 and relative(both, snaked(want, *wave)) <= 1e-6
        assert not guards or (padded_with_zeros(stream) and padded_with_zeros(both))
        none, alone = conv1d(x_in, weight, bias, wave=wave, keep=False, guarded=guards, out=(None, both))
        assert none is None and alone is both


@pytest.mark.parametrize("guards", (False, True), ids=("plain", "guarded"))
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(keep=False), r"conv1d: keep=False needs a wave"),
        (dict(wave=(torch.ones(5), torch.ones(4))), r"conv1d: wave\[1\] must be \[C\] = \[5\], got \[4\]"),
        (
            dict(wave=(torch.ones(5).half(), torch.ones(5))),
            r"conv1d: wave\[0\] must be torch.float32, got torch.float16",
        ),
        (dict(wave="tanh"), r"conv1d: wave must be alpha and inv_beta of a snake, or 'silu', got 'tanh'"),
        (dict(wave="waves", out="rows"), r"conv1d: with a wave, out must be a pair, of which the first is None unless"),
        (dict(wave="waves", out=(None, "rows")), r"with a wave, out must be a pair"),
        (dict(wave="waves", keep=False, out=("rows", "rows")), r"with a wave, out must be a pair"),
        (dict(out=("rows", "rows")), r"conv1d: out must be a tensor, got tuple"),
        (dict(out=torch.ones(1, 2, 4)), r"conv1d: out must be \[B, Lout, Cout\] = \[1, 2, 5\], got \[1, 2, 4\]"),
        (dict(wave="waves", out=("rows", torch.ones(1, 2, 5).half())), r"conv1d: out\[1\] must have x's dtype"),
        (dict(out=torch.ones(1, 5, 2).transpose(1, 2)), r"conv1d: out must (be contiguous|lie between guards)"),
    ],
)
def test_wrong_results_are_named(guards, change, message):
    lie = with_guards if guards else torch.clone
    stand_ins = {"waves": (torch.ones(5), torch.ones(5)), "rows": lie(torch.ones(1, 2, 5))}
    change = {
        name: tuple(stand_ins.get(v, v) if isinstance(v, str) else v for v in value)
        if isinstance(value, tuple)
        else stand_ins.get(value, value)
        if isinstance(value, str)
        else value
        for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        conv1d(lie(torch.ones(1, 4, 8)), torch.ones(5, 3, 8), torch.ones(5), guarded=guards, **change)


def test_guarded_arguments_must_lie_between_guards():
    x, weight, bias = inputs(1, 9, 4, 32, 7)
    with pytest.raises(ValueError, match="conv1d: x must lie between guards of 32 rows"):
        conv1d(x, weight, bias, padding=3, guarded=True)
    for name in ("residual", "total"):
        with pytest.raises(ValueError, match=f"conv1d: {name} must lie between guards of 32 rows"):
            conv1d(with_guards(x), weight, bias, padding=3, guarded=True, **{name: torch.ones(1, 9, 32)})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(4, 8)), r"conv1d: x must be \[B, L, Cin\]"),
        (dict(x=torch.ones(1, 8, 4).transpose(1, 2)), r"conv1d: x must be contiguous"),
        (
            dict(weight=torch.ones(5, 8, 3)),
            r"weight must be \[Cout, K, Cin\] = \[any, any, 8\], got \[5, 8, 3\]",
        ),
        (dict(weight=torch.ones(5, 8, 3).transpose(1, 2)), r"conv1d: weight must be contiguous"),
        (dict(weight=torch.ones(5, 3, 8).bfloat16()), r"conv1d: weight must have x's dtype, torch.float32, got"),
        (dict(bias=torch.ones(8)), r"conv1d: bias must be \[Cout\] = \[5\], got \[8\]"),
        (dict(bias=torch.ones(5).bfloat16()), r"conv1d: bias must have x's dtype"),
        (dict(residual=torch.ones(1, 4, 5)), r"conv1d: residual must be \[B, Lout, Cout\] = \[1, 2, 5\]"),
        (dict(residual=torch.ones(1, 2, 5).bfloat16()), r"conv1d: residual must have x's dtype"),
        (dict(total=torch.ones(1, 4, 5)), r"conv1d: total must be \[B, Lout, Cout\] = \[1, 2, 5\]"),
        (dict(total=torch.ones(1, 2, 5).bfloat16()), r"conv1d: total must have x's dtype"),
        (dict(stride=0), r"conv1d: stride and dilation must be at least 1"),
        (dict(padding=-1), r"padding at least 0, got stride=1, dilation=1, padding=-1"),
        (dict(dilation=2), r"conv1d: x must have at least 5 rows, got L = 4"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(x=torch.ones(1, 4, 8), weight=torch.ones(5, 3, 8), bias=torch.ones(5)) | change
    with pytest.raises(ValueError, match=message):
        conv1d(**arguments)


def test_a_backend_without_a_kernel_is_refused():
    with pytest.raises(BackendUnavailable, match="conv1d: backend='triton' cannot run"):
        conv1d(torch.ones(1, 4, 8), torch.ones(5, 3, 8), None, backend="triton")
