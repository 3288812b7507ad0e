"""Proof of acefast.ops.audio_conv1d."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.guarded import with_guards
from acefast.ops.audio_conv1d import SLOT_ROWS, audio_conv1d, peak_slots

GATE = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}  # relative L2: sums and result are fp32
# Of 600 rows in 700 samples: all; a song's end, its start; one; none; fewer than none; rows and samples there are not.
PLACES = [
    *((0, 600, 0), (10, 600, 110), (0, 490, 210), (3, 4, 699)),
    *((5, 5, 7), (9, 5, 7), (-4, 900, 3), (20, 600, -7), (5, 600, 300)),
]
BAD = (torch.nan, torch.inf, -torch.inf)
SHAPES = [(1, 1, 1, 1), (2, 3, 16, 2), (3, 250, 16, 2), (1, 251, 16, 3), (1, 777, 128, 2)]  # B, L, C, channels


def inputs(B, L, C, channels=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(B, L, C, generator=g), torch.randn(channels, 7, C, generator=g) / (7 * C) ** 0.5
    return x.to(dtype), weight.to(dtype)


def naive(x, weight):
    """The sum over taps in fp64, [B, channels, L]."""
    x, weight = x.double(), weight.double()
    L = x.shape[1]
    y = torch.zeros(len(x), len(weight), L, dtype=torch.float64)
    for k in range(7):
        for t in range(max(0, 3 - k), min(L, L + 3 - k)):
            y[:, :, t] += x[:, t + k - 3] @ weight[:, k].T
    return y


def relative(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def largest(y, L):
    """The peaks of y [B, channels, L]."""
    return torch.stack([y[:, :, i : i + SLOT_ROWS].abs().amax((1, 2)) for i in range(0, L, SLOT_ROWS)], 1)


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("B, L, C, channels", SHAPES)
def test_matches_the_formula_in_double_precision(B, L, C, channels, dtype):
    x, weight = inputs(B, L, C, channels, dtype)
    peaks = torch.zeros(B, peak_slots(L))
    y = audio_conv1d(x, weight, peaks=peaks)
    assert y.dtype == torch.float32 and y.is_contiguous() and y.shape == (B, channels, L)
    assert relative(y, naive(x, weight)) <= GATE[dtype]
    assert torch.equal(peaks, largest(y, L))
    assert torch.equal(audio_conv1d(with_guards(x), weight, guarded=True), y)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_kept_rows_go_to_their_place_and_only_they_count(place):
    x, weight = inputs(2, 600, 16)
    y, song, peaks = audio_conv1d(x, weight), torch.full((2, 2, 700), torch.nan), torch.full((2, 3), 0.7)
    assert audio_conv1d(x, weight, place=torch.tensor(place).int(), out=song, peaks=peaks) is song
    first, end, sample = place
    want, kept = torch.full((2, 2, 700), torch.nan), torch.zeros_like(y)
    for row in range(max(first, 0), min(end, 600)):
        if 0 <= row - first + sample < 700:
            want[:, :, row - first + sample] = kept[:, :, row] = y[:, :, row]
    torch.testing.assert_close(song, want, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(peaks, largest(kept, 600).clamp_min(0.7))


def test_tiles_laid_side_by_side_are_the_song():
    x, weight = inputs(1, 900, 16)
    want, song, peaks = audio_conv1d(x, weight), torch.empty(1, 2, 900), torch.zeros(1, peak_slots(400))
    for start, first, end in ((0, 0, 380), (300, 380, 640), (500, 640, 900)):  # each knows 3 rows around what it keeps
        place = torch.tensor([first - start, end - start, first], dtype=torch.int32)
        audio_conv1d(x[:, start : start + 400].contiguous(), weight, place=place, out=song, peaks=peaks)
    assert relative(song, want) <= 1e-6 and peaks.max() == song.abs().max()


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_sample_is_seen_in_the_peaks_and_stays_there(bad):
    x, weight = inputs(2, 600, 16)
    clean, peaks = x.clone(), torch.zeros(2, 3)
    x[1, 300, 4] = bad
    audio_conv1d(x, weight, peaks=peaks)
    seen = peaks.isfinite().tolist()
    assert seen == [[True, True, True], [True, False, True]]
    audio_conv1d(clean, weight, peaks=peaks)
    assert peaks.isfinite().tolist() == seen


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=torch.ones(3, 8)), r"audio_conv1d: x must be \[B, L, C\]"),
        (dict(x=torch.ones(1, 8, 3).transpose(1, 2)), r"audio_conv1d: x must be contiguous"),
        (dict(guarded=True), r"audio_conv1d: x must lie between guards"),
        (dict(weight=torch.ones(2, 5, 8)), r"weight must be \[channels, 7, C\] = \[any, 7, 8\], got \[2, 5, 8\]"),
        (dict(weight=torch.ones(2, 8, 7).mT), r"audio_conv1d: weight must be contiguous"),
        (dict(weight=torch.ones(2, 7, 8).half()), r"audio_conv1d: weight must be torch.float32, got torch.float16"),
        (dict(place=torch.zeros(3).int()), r"audio_conv1d: place needs out"),
        (dict(place=torch.zeros(2).int()), r"audio_conv1d: place must be \[3\]"),
        (dict(place=torch.zeros(3)), r"audio_conv1d: place must be torch.int32, got torch.float32"),
        (dict(out=torch.ones(1, 2, 4)), r"out must be \[B, channels, N\] = \[1, 2, 3\], got \[1, 2, 4\]"),
        (dict(out=torch.ones(1, 2, 3).half()), r"audio_conv1d: out must be torch.float32, got torch.float16"),
        (dict(out=torch.ones(1, 3, 2).mT), r"audio_conv1d: out must have its samples side by side"),
        (dict(peaks=torch.ones(1, 2)), r"audio_conv1d: peaks must be \[B, peak_slots\(L\)\] = \[1, 1\]"),
        (dict(peaks=torch.ones(1, 1).half()), r"audio_conv1d: peaks must be torch.float32"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(x=torch.ones(1, 3, 8), weight=torch.ones(2, 7, 8)) | change
    with pytest.raises(ValueError, match=message):
        audio_conv1d(**arguments)


def test_a_backend_without_a_kernel_is_refused():
    with pytest.raises(BackendUnavailable, match="audio_conv1d: backend='triton' cannot run"):
        audio_conv1d(torch.ones(1, 3, 8), torch.ones(2, 7, 8), backend="triton")
