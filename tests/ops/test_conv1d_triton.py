"""The kernel of conv1d in the interpreter, against its equation in fp64; once as PTX."""

from __future__ import annotations

import itertools

import pytest
import torch

from acefast.backends import BackendUnavailable, use_backend
from acefast.guarded import elements, guarded, whole, with_guards
from acefast.ops.conv1d import conv1d
from tests.ops.test_conv1d import inputs, naive, padded_with_zeros, poisoned, relative, snaked, waves

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.kernels.conv1d import CONFIGS, shape_class
from acefast.kernels.conv1d import conv1d as kernel
from acefast.sim.driver import BLOCK_SHARED_LIMIT, dry_run
from acefast.sim.interpreter import check_written, interpreted
from acefast.sim.resources import read_kernel
from tests.ops.simulated import simulated

GATE = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4}  # relative L2: one rounding
# Cin, Cout, K, stride, padding, dilation
LAYERS = {
    "narrow": (16, 48, 7, 1, 9, 3),
    "wide": (64, 256, 7, 1, 27, 9),
    "half": (128, 128, 1, 1, 0, 1),
    "small": (64, 64, 4, 2, 1, 1),
    "stereo": (2, 128, 8, 1, 3, 1),
    "c32": (32, 32, 13, 1, 30, 5),
    "c16": (16, 16, 11, 1, 15, 3),
    "short": (128, 128, 3, 1, 1, 1),
}


def run(x, weight, bias, **options):
    with interpreted():
        got = conv1d(x, weight, bias, **options, backend="triton")
        for name, t in zip(("y", "activated"), got if isinstance(got, tuple) else (got,)):
            if t is not None:
                check_written(name, t)
    return got


def around(B, L, C, dtype, rng, rows=None):
    """Guarded rows in the middle of memory that is NaN, and that memory."""
    memory = torch.full((elements(B, L, C) + 160,), torch.nan, dtype=dtype)
    x = guarded(B, L, C, dtype=dtype, device=memory.device, memory=memory[80:])
    whole(x).zero_()
    x.copy_(torch.randn(B, L, C, generator=rng) if rows is None else rows)
    return x, memory


def test_layers_are_of_the_classes_that_they_are_named_after():
    for name, (cin, cout, taps, *_, dilation) in LAYERS.items():
        assert shape_class(cin, cout, taps, dilation) == name
    published = {
        "wide": [(1024, 1024, 7, 9), (512, 512, 7, 1), (128, 256, 8, 1), (512, 1024, 12, 1)],
        "half": [(1024, 1024, 1, 1), (512, 512, 1, 1), (128, 128, 4, 1)],
        "frames": [(64, 2048, 7, 1), (1024, 2048, 20, 1), (2112, 128, 3, 1)],  # 256 does not divide 3 * 2112
        "last": [(2048, 128, 3, 1)],
        "stereo": [(2, 128, 8, 1)],
        # the vocoder's; what is 8 wide is padded to 16
        "wide-silu": [
            (512, 1024, 13, 1, True),
            *((C, C, k, d, True) for C in (256, 512) for k in (3, 13) for d in (1, 5)),
        ],
        "half-silu": [(128, 128, k, d, True) for k in (7, 11, 13) for d in (1, 3, 5)],
        "short": [(128, 128, 3, d, silu) for d in (1, 5) for silu in (False, True)],
        "small": [(64, 64, k, d, True) for k in (3, 7, 11, 13) for d in (1, 3, 5)],
        "c32": [(32, 32, k, d, True) for k in (3, 7, 11, 13) for d in (1, 3, 5)],
        "c16": [(16, 16, k, d, True) for k in (3, 7, 11, 13) for d in (1, 3, 5)],
    }
    for name, layers in published.items():
        assert {shape_class(*layer) for layer in layers} == {name}


@pytest.mark.parametrize("layer", LAYERS)
def test_kernel_equals_the_equation_around_a_row_tile(layer, rng):
    """Both results, guarded: nothing but x and its guards is read, nothing but the results and their guards written."""
    cin, cout, taps, stride, padding, dilation = LAYERS[layer]
    tile = CONFIGS[layer, 80]["BLOCK_M"]
    sizes = [(1, 1), (2, tile - 1), (1, tile), (3, tile + 1)]
    for (B, rows), dtype in zip(sizes, itertools.cycle(GATE)):
        L = max((rows - 1) * stride + dilation * (taps - 1) + 1 - 2 * padding, 1)
        _, weight, bias = inputs(B, L, cin, cout, taps, dtype)
        x, _ = around(B, L, cin, dtype, rng)
        geometry, wave = dict(stride=stride, padding=padding, dilation=dilation), waves(cout)
        want = naive(x, weight, bias, stride, padding, dilation)
        R = want.shape[1]
        (y, memory), (activated, other) = (around(B, R, cout, dtype, rng, torch.nan) for _ in range(2))
        whole(y)[:], whole(activated)[:] = torch.nan, torch.nan
        got = run(x, weight, bias, **geometry, wave=wave, guarded=True, out=(y, activated))
        assert got[0] is y and got[1] is activated
        assert relative(y, want) <= GATE[dtype], (B, rows)
        assert relative(activated, snaked(want, *wave)) <= GATE[dtype], (B, rows)
        assert padded_with_zeros(y) and padded_with_zeros(activated)
        for t, around_it in ((y, memory), (activated, other)):
            whole(t)[:] = torch.nan
            assert around_it.isnan().all()


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("keep, waved", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("layer", ("narrow", "half"))
def test_residual_is_added_in_fp32_also_in_place(layer, keep, waved, dtype, rng):
    cin, cout, taps, stride, padding, dilation = LAYERS[layer]
    L = 131 if layer == "half" else 67
    x, weight, bias = inputs(2, L, cin, cout, taps, dtype)
    residual, wave = with_guards(torch.randn(2, L, cout, generator=rng).to(dtype)), waves(cout)
    want = naive(x, weight, bias, stride, padding, dilation, residual)
    options = dict(stride=stride, padding=padding, dilation=dilation, residual=residual, guarded=True)
    if not waved:
        y, activated = run(with_guards(x), weight, bias, **options, out=residual), None
    else:
        out = residual if keep else None, poisoned(2, L, cout, dtype)
        y, activated = run(with_guards(x), weight, bias, **options, wave=wave, keep=keep, out=out)
    assert (y is residual) == keep
    for got, meant in ((y, want), (activated, snaked(want, *wave))):
        assert got is None or (relative(got, meant) <= GATE[dtype] and padded_with_zeros(got))


# Cin, Cout, K, dilation: the class that the vocoder's layers of 512 channels have, of 128, and narrower ones
PAIRS = {"wide": (64, 256, 13, 5), "half": (128, 128, 7, 3), "c64": (64, 64, 3, 1), "c16": (16, 16, 13, 5)}


@pytest.mark.parametrize("pair, dtype", list(zip(PAIRS, 2 * list(GATE))))
def test_silu_and_shares_of_a_mean(pair, dtype, rng):
    """A share is added in fp32, also in place, and what is activated is not rounded before."""
    cin, cout, taps, dilation = PAIRS[pair]
    L, padding = 133, (taps - 1) // 2 * dilation
    x, weight, bias = inputs(2, L, cin, cout, taps, dtype)
    residual, total = (with_guards(torch.randn(2, L, cout, generator=rng).to(dtype)) for _ in range(2))
    want = naive(x, weight, bias, 1, padding, dilation, residual)
    options = dict(padding=padding, dilation=dilation, residual=residual, guarded=True)
    x = with_guards(x)
    y, activated = run(x, weight, bias, **options, wave="silu", out=tuple(poisoned(2, L, cout, dtype) for _ in "ya"))
    shared = want / 4 + total.double()
    _, last = run(x, weight, bias, **options, share=0.25, total=total, wave="silu", keep=False)
    mean = run(x, weight, bias, **options, share=0.25, total=total, out=total)
    assert mean is total
    meant = (y, want), (activated, want * want.sigmoid()), (last, shared * shared.sigmoid()), (mean, shared)
    for got, right in meant:
        assert relative(got, right) <= GATE[dtype] and padded_with_zeros(got)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
def test_silu_of_numbers_far_from_zero_is_they_or_nothing(rng):
    bias = torch.tensor([-6e4, -200.0, -88.0, 88.0, 200.0, 6e4] + 10 * [0.0]).half()
    x, weight = torch.zeros(1, 3, 16).half(), torch.zeros(16, 1, 16).half()
    _, got = run(x, weight, bias, wave="silu")
    assert torch.equal(got, torch.where(bias > 0, bias, 0).expand(1, 3, 16))


def test_kernel_covers_more_row_and_column_tiles_than_a_group_has(rng):
    x, weight, _ = inputs(1, 17 * 64 + 5, 16, 48, 1, torch.float16)  # 18 row tiles: two groups of 8, one of 2
    got = run(x, weight, None)
    assert relative(got, naive(x, weight, None, 1, 0, 1)) <= GATE[torch.float16]


@pytest.mark.parametrize("cin, cout, taps", [(64, 2048, 1), (2048, 128, 1)], ids=("frames", "last"))
def test_layers_of_a_row_a_frame(cin, cout, taps, rng):
    assert shape_class(cin, cout, taps, 1) == ("frames" if cout == 2048 else "last")
    x, weight, bias = inputs(1, 66, cin, cout, taps, torch.bfloat16)
    assert relative(run(x, weight, bias), naive(x, weight, bias, 1, 0, 1)) <= GATE[torch.bfloat16]


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("waved", (False, True))
def test_plain_rows_are_worked_on_between_guards(waved, dtype, rng):
    x, weight, bias = inputs(2, 70, 16, 48, 7, dtype)
    residual, wave = torch.randn(2, 70, 48, generator=rng).to(dtype), waves(48)
    before = [t.clone() for t in (x, weight, bias, residual)]
    want = naive(x, weight, bias, 1, 9, 3, residual)
    options = dict(padding=9, dilation=3, residual=residual)
    if waved:
        y, activated = run(x, weight, bias, **options, wave=wave)
        assert relative(activated, snaked(want, *wave)) <= GATE[dtype] and activated.is_contiguous()
        none, alone = run(x, weight, bias, **options, wave=wave, keep=False)
        assert none is None and torch.equal(alone, activated)
    else:
        y = run(x, weight, bias, **options)
    assert relative(y, want) <= GATE[dtype] and y.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(before, (x, weight, bias, residual)))
    if waved:
        pair = residual, torch.empty_like(residual)
        assert run(x, weight, bias, **options, wave=wave, out=pair) == pair
        assert torch.equal(pair[0], y) and torch.equal(pair[1], activated)
    else:
        assert run(x, weight, bias, **options, out=residual) is residual and torch.equal(residual, y)


def test_a_nan_stays_with_the_rows_that_see_it():
    x, weight, bias = inputs(2, 100, 16, 48, 7, torch.bfloat16)
    clean = run(x, weight, bias, padding=9, dilation=3)
    x[0, 40] = torch.nan
    got = run_with_nan(x, weight, bias, padding=9, dilation=3)
    touched = torch.zeros(2, 100, dtype=torch.bool)
    touched[0, [40 + 3 * j for j in range(-3, 4)]] = True
    assert torch.equal(got.isnan().all(2), touched) and torch.equal(got[~touched], clean[~touched])


def run_with_nan(*args, **options):
    with interpreted():
        return conv1d(*args, **options, backend="triton")


def pieces(layer, dtype, rng):
    """A song of 200 rows, and rows 71 to 170 of it as one of its own that begins and ends with 30 real neighbours."""
    cin, cout, taps, _, padding, dilation = layer
    x, weight, bias = inputs(1, 200, cin, cout, taps, dtype)
    options = dict(stride=1, padding=padding, dilation=dilation, wave=waves(cout))
    return x, x[:, 41:200], weight, bias, options


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("layer", ("narrow", "half"))
def test_a_row_has_the_same_bits_in_any_piece(layer, dtype, rng):
    song, piece, weight, bias, options = pieces(LAYERS[layer], dtype, rng)
    whole_song, part = (run(with_guards(t), weight, bias, **options, guarded=True) for t in (song, piece))
    for a, b in zip(whole_song, part):
        assert torch.equal(a[:, 71:170], b[:, 30:129])


def test_a_row_has_the_same_bits_in_any_piece_as_ptx(rng):
    song, piece, weight, bias, options = pieces(LAYERS["narrow"], torch.float16, rng)
    results = []
    for rows in (song, piece):
        out = tuple(poisoned(1, rows.shape[1], 48, torch.float16) for _ in range(2))
        given = {"x": with_guards(rows), "weight": weight, "bias": bias, **options, "out": out}
        reports = simulated(kernel, given)
        assert len(reports) == 1
        results.append(out)
        assert all(padded_with_zeros(t) for t in out)
    want = naive(song, weight, bias, 1, options["padding"], options["dilation"])
    assert relative(results[0][0], want) <= GATE[torch.float16]
    for a, b in zip(*results):
        assert torch.equal(a[:, 71:170], b[:, 30:129])


@pytest.mark.parametrize(
    "change",
    [
        dict(x=torch.zeros(1, 4, 16), weight=torch.zeros(16, 3, 16)),  # fp32: the library's
        dict(weight=torch.zeros(24, 3, 16).half()),
        dict(x=torch.zeros(1, 9, 24).half(), weight=torch.zeros(16, 3, 24).half()),
        dict(x=torch.zeros(1, 9, 8).half(), weight=torch.zeros(16, 2, 8).half(), dilation=2),
        dict(padding=33),
    ],
    ids=["fp32", "Cout 24", "K Cin 72", "Cin 8 dilated", "padding 33"],
)
def test_what_does_not_fit_the_kernel_goes_to_the_library_unless_it_is_named(change):
    given = dict(x=torch.zeros(1, 4, 16).half(), weight=torch.zeros(16, 3, 16).half(), bias=None) | change
    with interpreted():
        with pytest.raises(BackendUnavailable, match="conv1d: backend='triton' cannot run: it has no triton kernel"):
            conv1d(**given, backend="triton")
        with use_backend("triton"):
            assert not conv1d(**given).any()


def test_no_rows_are_no_launch_and_a_song_of_padding_is_one():
    weight = torch.zeros(16, 1, 16).half()
    with dry_run(80) as launches:
        assert conv1d(torch.zeros(0, 5, 16).half(), weight, None, backend="triton").shape == (0, 5, 16)
    assert not launches
    bias = torch.arange(16).half()
    assert torch.equal(run(torch.zeros(1, 0, 16).half(), weight, bias, padding=1), bias.expand(1, 2, 16))


@pytest.mark.slow
@pytest.mark.parametrize("sm", (80, 86, 89, 90, 100, 120))
@pytest.mark.parametrize("name", sorted({name for name, _ in CONFIGS}))
def test_every_configuration_compiles_without_a_spill(name, sm):
    """With both results and a residual, which need the most registers, at published widths where a class has them."""
    wide = {"wide": (512, 512, 7, 1, 27, 9), "half": (512, 512, 1, 1, 0, 1), "frames": (64, 2048, 7, 1, 3, 1)}
    silu = {"wide-silu": (512, 512, 13, 1, 30, 5), "half-silu": (128, 128, 13, 1, 6, 1)}
    layer = {**LAYERS, **wide, **silu, "last": (2048, 128, 3, 1, 1, 1)}[name]
    cin, cout, taps, stride, padding, dilation = layer
    device = torch.device("meta")
    L = 1000 if stride == 1 else 1001
    R = (L + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    x = guarded(1, L, cin, dtype=torch.bfloat16, device=device)
    y, activated = (guarded(1, R, cout, dtype=torch.bfloat16, device=device) for _ in range(2))
    weight, bias = (torch.empty(s, dtype=torch.bfloat16, device=device) for s in ((cout, taps, cin), (cout,)))
    wave = "silu" if name in silu else tuple(torch.empty(cout, device=device) for _ in range(2))
    geometry = dict(stride=stride, padding=padding, dilation=dilation)
    with dry_run(sm) as launches:
        kernel(x, weight, bias, **geometry, residual=y, wave=wave, out=(y, activated))
    found = read_kernel(launches[0].kernel)
    assert not found.spill_bytes and not found.local and found.shared_bytes <= BLOCK_SHARED_LIMIT[sm]
