"""Proof of acefast.ops.residual_unit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import acefast.ops.residual_unit
from acefast.backends import BackendUnavailable
from acefast.guarded import GUARD, guarded, is_guarded, whole, with_guards
from acefast.ops.residual_unit import residual_unit
from acefast.ops.snake import snake

GATE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # relative L2
NAMES = ("x", "alpha1", "inv_beta1", "weight1", "bias1", "alpha2", "inv_beta2", "weight2", "bias2")


def inputs(B, L, C, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    wave = [torch.rand(C, generator=g) * 2 + 0.1 for _ in range(4)]
    x, weight1, bias1, weight2, bias2 = (
        torch.randn(s, generator=g).to(dtype) * scale
        for s, scale in (((B, L, C), 1), ((C, 7, C), (7 * C) ** -0.5), ((C,), 0.1), ((C, C), C**-0.5), ((C,), 0.1))
    )
    return [x, wave[0], wave[1], weight1, bias1, wave[2], wave[3], weight2, bias2]


def naive(x, alpha1, inv_beta1, weight1, bias1, alpha2, inv_beta2, weight2, bias2, dilation):
    """The whole tensor through fp64 library calls, channels-first."""
    x = x.double()
    h = x + inv_beta1.double() * (alpha1.double() * x).sin() ** 2
    taps = weight1.double().transpose(1, 2)
    h = F.conv1d(h.transpose(1, 2), taps, bias1.double(), padding=3 * dilation, dilation=dilation).transpose(1, 2)
    h = h + inv_beta2.double() * (alpha2.double() * h).sin() ** 2
    return x + h @ weight2.double().T + bias2.double()


def relative(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("dilation", (1, 3, 9))
@pytest.mark.parametrize("B, L, C", [(1, 1, 1), (2, 7, 3), (1, 61, 16)])  # fewer rows than the kernel reaches; ragged
def test_matches_the_formula_in_double_precision(B, L, C, dilation, dtype):
    arguments = inputs(B, L, C, dtype)
    expected = naive(*arguments, dilation)
    y = residual_unit(*arguments, dilation=dilation)
    assert y.dtype == dtype and y.is_contiguous()
    assert relative(y, expected) <= GATE[dtype]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("L", (16, 17, 33, 47, 100))
def test_cache_blocks_leave_no_seam(monkeypatch, L, dtype):
    monkeypatch.setattr(acefast.ops.residual_unit, "block_elements", lambda device: 1)  # blocks of 4 C = 16 rows
    arguments = inputs(2, L, 4, dtype)
    assert relative(residual_unit(*arguments, dilation=9), naive(*arguments, 9)) <= GATE[dtype]


def test_songs_of_a_batch_do_not_meet_and_no_input_is_modified():
    for dtype in GATE:
        arguments = inputs(3, 40, 8, dtype)
        before = [t.clone() for t in arguments]
        y = residual_unit(*arguments, dilation=3)
        assert all(torch.equal(a, b) for a, b in zip(before, arguments))
        arguments[0][[0, 2]] = torch.nan
        assert torch.equal(residual_unit(*arguments, dilation=3)[1], y[1])


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("keep", (True, False))
def test_next_snake_and_given_activation_are_the_ops_one_after_another(keep, dtype):
    arguments = inputs(2, 40, 8, dtype)
    wave = arguments[1] + 0.3, arguments[2] + 0.1
    activated = snake(*arguments[:3])
    want = residual_unit(*arguments, dilation=9)
    got = residual_unit(*arguments, dilation=9, activated=activated, wave=wave, keep=keep)
    assert torch.equal(got[0], want) if keep else got[0] is None
    assert torch.equal(got[1], snake(want, *wave))
    arguments[1] = arguments[2] = torch.full((8,), torch.nan)
    assert torch.equal(residual_unit(*arguments, dilation=9, activated=activated), want)


def poisoned(x, **options):
    """Rows like x's in memory that is NaN all over, guards included."""
    rows = guarded(*x.shape, dtype=x.dtype, device=x.device, **options)
    whole(rows).fill_(torch.nan)
    return rows


@pytest.mark.parametrize("given", (True, False))
@pytest.mark.parametrize("keep", (True, False))
def test_guarded_rows_come_out_between_zeros(keep, given):
    arguments = inputs(2, 40, 8, torch.bfloat16)
    wave = arguments[1] + 0.3, arguments[2] + 0.1
    plain = residual_unit(*arguments, dilation=3, wave=wave, keep=keep)
    options = {"dilation": 3, "wave": wave, "keep": keep, "guarded": True}
    if given:
        options["activated"] = with_guards(snake(*arguments[:3]))
    arguments[0] = with_guards(arguments[0])
    out = (poisoned(arguments[0]) if keep else None, poisoned(arguments[0]))
    for got in (residual_unit(*arguments, **options), residual_unit(*arguments, **options, out=out), out):
        assert len(got) == 2 and (got[0] is not None) == keep
        for t, want in zip(got, plain):
            if t is not None:
                assert is_guarded(t) and torch.equal(t, want)
                assert not whole(t)[:, :GUARD].any() and not whole(t)[:, -GUARD:].any()


@pytest.mark.parametrize("dtype", GATE, ids=str)
def test_results_may_be_written_over_x(monkeypatch, dtype):
    monkeypatch.setattr(acefast.ops.residual_unit, "block_elements", lambda device: 1)  # blocks of 4 C = 16 rows
    arguments = inputs(2, 40, 4, dtype)
    wave = arguments[1] + 0.3, arguments[2] + 0.1
    y, waved = residual_unit(*arguments, dilation=3, wave=wave)
    x = arguments[0].clone()
    for options in ({}, {"activated": snake(*arguments[:3])}):
        assert residual_unit(*arguments, dilation=3, out=arguments[0], **options) is arguments[0]
        assert torch.equal(arguments[0], y)
        arguments[0].copy_(x)
        residual_unit(*arguments, dilation=3, wave=wave, keep=False, out=(None, arguments[0]), **options)
        assert torch.equal(arguments[0], waved)
        arguments[0].copy_(x)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("x", torch.ones(4, 8), r"residual_unit: x must be \[B, L, C\]"),
        ("x", torch.ones(1, 8, 4).transpose(1, 2), r"residual_unit: x must be contiguous"),
        ("alpha1", torch.ones(1, 8, 1), r"residual_unit: alpha1 must be \[C\] = \[8\], got \[1, 8, 1\]"),
        ("inv_beta2", torch.ones(8).double(), r"residual_unit: inv_beta2 must be torch.float32"),
        ("weight1", torch.ones(8, 8, 7), r"residual_unit: weight1 must be \[C, 7, C\] = \[8, 7, 8\], got \[8, 8, 7\]"),
        ("weight1", torch.ones(8, 8, 7).transpose(1, 2), r"residual_unit: weight1 must be contiguous"),
        ("weight2", torch.ones(8, 1, 8), r"residual_unit: weight2 must be \[C, C\] = \[8, 8\], got \[8, 1, 8\]"),
        ("weight2", torch.ones(8, 8).bfloat16(), r"residual_unit: weight2 must have x's dtype"),
        ("bias1", torch.ones(7), r"residual_unit: bias1 must be \[C\] = \[8\], got \[7\]"),
        ("bias2", torch.ones(8).bfloat16(), r"residual_unit: bias2 must have x's dtype"),
        ("dilation", 0, r"residual_unit: dilation must be at least 1, got 0"),
        ("activated", torch.ones(1, 5, 8), r"residual_unit: activated must be \[B, L, C\] = \[1, 4, 8\]"),
        ("wave", (torch.ones(7), torch.ones(8)), r"residual_unit: wave\[0\] must be \[C\] = \[8\], got \[7\]"),
        ("wave", (torch.ones(8), torch.ones(8).half()), r"residual_unit: wave\[1\] must be torch.float32"),
        ("wave", "silu", r"residual_unit: wave must be alpha and inv_beta of a snake, got 'silu'"),
        ("keep", False, r"residual_unit: keep=False needs a wave"),
        ("guarded", True, r"residual_unit: x must lie between guards"),
        ("out", torch.ones(1, 4, 9), r"residual_unit: out must be \[B, L, C\] = \[1, 4, 8\], got \[1, 4, 9\]"),
        ("out", torch.ones(1, 4, 8).half(), r"residual_unit: out must have x's dtype"),
        ("out", (None, torch.ones(1, 4, 8)), r"residual_unit: out must be a tensor, got tuple"),
    ],
)
def test_wrong_arguments_are_named(name, value, message):
    arguments = dict(zip(NAMES, inputs(1, 4, 8)), dilation=1) | {name: value}
    with pytest.raises(ValueError, match=message):
        residual_unit(**arguments)


def test_out_that_does_not_match_what_is_asked_for_is_refused():
    arguments = inputs(1, 4, 8)
    wave, y = (torch.ones(8), torch.ones(8)), torch.empty(1, 4, 8)
    for keep, out in ((True, y), (True, (None, y)), (False, (y, y)), (False, (None, None)), (True, (y,))):
        with pytest.raises(ValueError, match="residual_unit: with a wave, out must be a pair"):
            residual_unit(*arguments, dilation=1, wave=wave, keep=keep, out=out)
    with pytest.raises(ValueError, match="residual_unit: out must not be activated"):
        residual_unit(*arguments, dilation=1, activated=y, wave=wave, out=(torch.empty(1, 4, 8), y))


def test_a_backend_without_a_kernel_is_refused():
    with pytest.raises(BackendUnavailable, match="residual_unit: backend='triton' cannot run"):
        residual_unit(*inputs(1, 4, 8), dilation=1, backend="triton")


def test_torch_sees_one_call_where_it_exports():
    class Unit(torch.nn.Module):
        def forward(self, *arguments):
            return residual_unit(*arguments, dilation=3)

    arguments = tuple(inputs(1, 7, 4))
    exported = torch.export.export(Unit(), arguments)
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert calls == ["acefast.residual_unit.default"]
    assert torch.equal(exported.module()(*arguments), residual_unit(*arguments, dilation=3))
