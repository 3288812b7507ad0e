"""The kernel of audio_conv1d: in the interpreter against fp64, and what it computes wherever a row lies."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable, use_backend
from acefast.guarded import elements, guarded, with_guards
from acefast.ops.audio_conv1d import SLOT_ROWS, audio_conv1d, audio_conv1d_reference, peak_slots
from tests.ops.test_audio_conv1d import BAD, PLACES, inputs, largest, naive, relative

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.kernels.audio_conv1d import audio_conv1d as kernel
from acefast.sim.interpreter import check_written, interpreted
from tests.ops.simulated import simulated

HALVES = (torch.float16, torch.bfloat16)
GATE = 1e-6  # relative L2 against fp64: sums and result are fp32
# B, L, C, channels: one row; fewer than the taps; a program's rows and their neighbours; two programs and a part.
SIZES = [
    *((1, 1, 16, 2), (2, 5, 16, 2), (3, SLOT_ROWS - 1, 16, 2), (1, SLOT_ROWS, 32, 1), (2, SLOT_ROWS + 1, 48, 3)),
    *((1, 2 * SLOT_ROWS + 77, 128, 2), (1, 40, 64, 4)),
]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("B, L, C, channels", SIZES)
def test_equals_the_equation_in_fp64_and_keeps_to_its_samples(B, L, C, channels, dtype):
    x, weight = inputs(B, L, C, channels, dtype)
    memory = torch.full((elements(B, L, C) + 96 * C,), torch.nan).to(dtype)
    inner = memory[48 * C : -48 * C].zero_()  # guards of zeros, NaN beyond them
    x_in = guarded(B, L, C, dtype=dtype, device=x.device, memory=inner).copy_(x)
    song, peaks = torch.full((B, channels, L + 9), torch.nan), torch.zeros(B, peak_slots(L))
    with interpreted():
        got = audio_conv1d(x_in, weight, out=song[:, :, 5:-4], peaks=peaks, guarded=True, backend="triton")
        other = audio_conv1d(x, weight, backend="triton")
        check_written("out", other)
    assert got.shape == (B, channels, L) and relative(got, naive(x, weight)) <= GATE and torch.equal(got, other)
    assert torch.equal(peaks, largest(got, L))
    assert song[:, :, :5].isnan().all() and song[:, :, -4:].isnan().all()


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_kept_rows_go_to_their_place_and_only_they_count(place):
    x, weight = inputs(2, 600, 16, 2, torch.bfloat16)
    song, want = (torch.full((2, 2, 700), torch.nan) for _ in range(2))
    peaks, peaks_wanted = (torch.full((2, 3), 0.7) for _ in range(2))
    there = torch.tensor(place).int()
    audio_conv1d_reference(x, weight, place=there, out=want, peaks=peaks_wanted)
    with interpreted():
        assert audio_conv1d(x, weight, place=there, out=song, peaks=peaks, backend="triton") is song
    torch.testing.assert_close(song, want, rtol=0, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(peaks, peaks_wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_sample_is_seen_in_the_peaks_and_stays_there(bad):
    x, weight = inputs(2, 600, 16, 2, torch.float16)
    clean, peaks = x.clone(), torch.zeros(2, 3)
    x[1, 300, 4] = bad
    with interpreted():
        audio_conv1d(x, weight, peaks=peaks, backend="triton")
        first = peaks.clone()
        audio_conv1d(clean, weight, peaks=peaks, backend="triton")
    for found in (first, peaks):
        assert found.isfinite().tolist() == [[True, True, True], [True, False, True]]


def test_compiled_ptx_shows_one_nan_among_the_peaks_and_keeps_it():
    """A maximum of floats would drop it: so does the GPU's max.f32, which the simulator has."""
    x, weight = inputs(1, 20, 16, 2, torch.float16)
    x[0, 11] = torch.nan
    out, peaks = torch.zeros(1, 2, 20), torch.zeros(1, 1)
    arguments = dict(x=with_guards(x), weight=weight, place=None, out=out, peaks=peaks)
    simulated(kernel, arguments, registers=True)
    assert peaks.isnan().all() and out.isnan().any(1).nonzero()[:, 1].tolist() == list(range(8, 15))
    arguments["x"][:] = 1
    for before, still in ((torch.nan, True), (-torch.nan, True), (0.0, False)):
        peaks.fill_(before)
        simulated(kernel, arguments, registers=True)
        assert out.isfinite().all() and (peaks.isnan().all() if still else peaks.item() == out.abs().max())


def test_a_row_has_the_same_bits_wherever_it_lies():
    """In another song of the batch, in another program and place of it, with another length."""
    x, weight = inputs(2, 600, 48, 2, torch.bfloat16)
    with interpreted():
        song = audio_conv1d(x, weight, backend="triton")
        tile = audio_conv1d(x[:, 117:431].contiguous(), weight, backend="triton")
    assert torch.equal(song[:, :, 120:428], tile[:, :, 3:-3])


def test_compiled_ptx_reads_rows_once_and_gives_each_the_same_bits_wherever_it_lies():
    x, weight = inputs(1, 600, 128, 2, torch.float16)

    def run(rows):
        out, peaks = torch.zeros(1, 2, rows.shape[1]), torch.zeros(1, peak_slots(rows.shape[1]))
        (report,) = simulated(kernel, dict(x=with_guards(rows), weight=weight, place=None, out=out, peaks=peaks))
        return out, report.counters.totals()["sectors"]

    (song, sectors), (tile, _) = run(x[:, : 2 * SLOT_ROWS]), run(x[:, 37:250])
    assert torch.equal(song[:, :, 40:247], tile[:, :, 3:210])
    once = (2 * SLOT_ROWS * (128 * 2 + 2 * 4) + weight.nbytes) / 32  # x, the samples, the weight
    assert sectors <= 1.08 * once  # the rows between programs and the weight twice


def test_what_does_not_fit_the_kernel_goes_to_the_reference_unless_it_is_named():
    for x, channels in ((torch.ones(1, 3, 16), 2), (torch.ones(1, 3, 8).half(), 2), (torch.ones(1, 3, 16).half(), 5)):
        weight = torch.ones(channels, 7, x.shape[2]).to(x.dtype)
        with interpreted():
            with pytest.raises(BackendUnavailable, match="audio_conv1d: backend='triton' cannot run: it has no triton"):
                audio_conv1d(x, weight, backend="triton")
            with use_backend("triton"):
                assert audio_conv1d(x, weight).shape == (1, channels, 3)
