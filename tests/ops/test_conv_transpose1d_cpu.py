"""The CPU's kernel of acefast.ops.conv_transpose1d, at every level of instructions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import acefast.ops.conv_transpose1d as module
from acefast.backends import BackendUnavailable
from acefast.guarded import with_guards
from acefast.ops.conv_transpose1d import conv_transpose1d, conv_transpose1d_reference, conv_transpose_weight
from tests.cpu.convolutions import accurate, between_sentinels, on_threads, relative, snaked, untouched, waves
from tests.cpu.isas import NAMES, at_isa, extension

extension()

# (B, L, Cin, Cout, stride)
SHAPES = {
    "one row": (1, 1, 32, 16, 2),
    "half a block of columns a row": (2, 13, 64, 16, 6),
    "blocks that begin within a row": (1, 13, 32, 48, 10),
    "as wide as it comes": (1, 375, 128, 128, 2),
    "two rows as columns": (2, 61, 16, 8, 2),
    "eight rows as columns, several blocks": (1, 4500, 8, 2, 2),
    "one narrow row": (1, 1, 5, 4, 4),
    "windows of rows": (2, 300, 1024, 32, 4),
}


def inputs(B, L, Cin, Cout, stride, rng):
    """Rows, torch's own weight [Cin, Cout, 2 * stride], bias."""
    x, weight = torch.randn(B, L, Cin, generator=rng), torch.randn(Cin, Cout, 2 * stride, generator=rng)
    bias = torch.randn(Cout, generator=rng)
    return x.bfloat16(), (weight / (2 * Cin) ** 0.5).bfloat16(), bias.bfloat16()


def exact(x, weight, bias, stride):
    """In fp64, by the library's transposed convolution."""
    options = {"stride": stride, "padding": stride // 2}
    return F.conv_transpose1d(x.double().mT, weight.double(), bias.double(), **options).mT


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_matches_the_library_in_double_precision(sizes, isa, rng):
    x, weight, bias = inputs(*sizes, rng)
    stride, folded, wave = sizes[-1], conv_transpose_weight(weight), waves(sizes[3], rng)
    want = exact(x, weight, bias, stride)
    with at_isa(isa):
        y = conv_transpose1d(x, folded, bias, stride=stride, backend="cpu")
        assert y.shape == want.shape and y.dtype == torch.bfloat16 and y.is_contiguous()
        assert accurate(y, want, conv_transpose1d_reference(x, folded, bias, stride=stride))
        for activation, activated in ((wave, snaked(want, *wave)), ("silu", want * want.sigmoid())):
            options = {"stride": stride, "wave": activation, "backend": "cpu"}
            kept, second = conv_transpose1d(x, folded, bias, **options)
            none, alone = conv_transpose1d(x, folded, bias, **options, keep=False)
            assert torch.equal(kept, y) and none is None and torch.equal(second, alone)
            assert relative(second, activated) <= 2e-3


@pytest.mark.parametrize("Cout, stride", [(48, 10), (4, 4)])
def test_results_are_written_where_they_are_told_and_nowhere_else(Cout, stride, rng):
    x, weight, bias = inputs(2, 13, 64, Cout, stride, rng)
    weight, wave = conv_transpose_weight(weight), waves(Cout, rng)
    given = [t.clone() for t in (x, weight, bias, *wave)]
    options = {"stride": stride, "wave": wave, "backend": "cpu"}
    want = conv_transpose1d(x, weight, bias, **options)
    (y, around), (waved, around_waved) = (between_sentinels(2, 13 * stride, Cout) for _ in range(2))
    got = conv_transpose1d(x, weight, bias, **options, out=(y, waved))
    assert got[0] is y and got[1] is waved and untouched(around) and untouched(around_waved)
    assert torch.equal(y, want[0]) and torch.equal(waved, want[1])
    assert all(map(torch.equal, given, (x, weight, bias, *wave)))


def test_songs_of_a_batch_do_not_meet(rng):
    x, weight, bias = inputs(3, 20, 32, 32, 4, rng)
    weight = conv_transpose_weight(weight)
    y = conv_transpose1d(x, weight, bias, stride=4, backend="cpu")
    x[[0, 2]] = torch.nan
    assert torch.equal(conv_transpose1d(x, weight, bias, stride=4, backend="cpu")[1], y[1])


@pytest.mark.parametrize("L, Cout, stride", [(20, 64, 4), (1100, 64, 4), (2000, 8, 2)])  # by columns, by rows
def test_threads_give_the_same_bits(L, Cout, stride, rng):
    x, weight, bias = inputs(1, L, 64, Cout, stride, rng)
    weight = conv_transpose_weight(weight)
    want = conv_transpose1d(x, weight, bias, stride=stride, backend="cpu")
    for count in (2, 3):
        with on_threads(count):
            assert torch.equal(conv_transpose1d(x, weight, bias, stride=stride, backend="cpu"), want)


def test_it_is_what_runs_on_a_cpu_and_what_it_does_not_take_runs_on_the_reference(rng, monkeypatch):
    x, weight, bias = inputs(1, 20, 64, 32, 2, rng)
    narrow = inputs(1, 20, 48, 32, 2, rng), inputs(1, 20, 64, 24, 2, rng)
    for (rows, weights, biases), options in (
        ((x.float(), weight.float(), bias.float()), {}),
        ((x.half(), weight.half(), bias.half()), {}),
        *((sizes, {}) for sizes in narrow),
        ((with_guards(x), weight, bias), {"guarded": True}),
    ):
        arguments, options = (rows, conv_transpose_weight(weights), biases), options | {"stride": 2}
        with pytest.raises(BackendUnavailable, match="conv_transpose1d: backend='cpu' cannot run: it has no cpu"):
            conv_transpose1d(*arguments, **options, backend="cpu")
        assert torch.equal(conv_transpose1d(*arguments, **options), conv_transpose1d_reference(*arguments, **options))
    monkeypatch.setattr(module, "conv_transpose1d_reference", None)
    conv_transpose1d(x, conv_transpose_weight(weight), bias, stride=2)
