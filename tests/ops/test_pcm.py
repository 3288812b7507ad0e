"""pcm is acefast.waveform.normalise and acefast.audio's 16 bits, bit for bit; the Triton kernels in the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acefast.audio import quantise
from acefast.ops.pcm import PARTS, pcm, pcm_reference
from acefast.waveform import normalise

# Samples a channel: one; odd, so that the next song lies askew; a block of 4096 or 8192 samples, one more and one less.
LENGTHS = (1, 777, 2047, 2048, 2049, 4095, 4096, 4097, 9600)
DBFS = (-1.0, 0.0, -37.5)


def level(dbfs: float) -> float:
    return 10 ** (dbfs / 20)


def levels(*dbfs: float) -> torch.Tensor:
    return torch.tensor([level(d) for d in dbfs], dtype=torch.float64)


def songs(B, N, generator, channels=2):
    """Of peaks far above and far below full scale."""
    sizes = torch.tensor([0.01, 30.0, 1.0])[:B]
    return torch.randn(B, channels, N, generator=generator) * sizes[:, None, None]


def same(a, b) -> bool:
    """Bit for bit, but for what a NaN's bits say."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return (
        a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) and torch.equal(a.isnan(), b.isnan())
    )


@pytest.fixture(params=("reference", "triton"))
def backend(request):
    if request.param == "reference":
        yield request.param
        return
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.sim.interpreter import interpreted

    with interpreted():
        yield request.param


@pytest.mark.parametrize("given", (False, True), ids=("peaks looked for", "peaks given"))
@pytest.mark.parametrize("N", LENGTHS)
def test_songs_are_normalised_bit_for_bit(backend, N, given, rng):
    audio = songs(3, N, rng)
    before, peaks = audio.clone(), torch.zeros(3, 5 + N // 300)
    peaks[:, -2] = audio.abs().amax((1, 2)) if given else torch.nan
    peaks[:, 1] = -peaks[:, -2]  # an absolute value is what counts
    got = pcm(audio, levels(*DBFS), peaks=peaks if given else None, backend=backend)
    assert same(audio, before) and got.is_contiguous()
    for song, y, dbfs in zip(audio, got, DBFS):
        assert same(y, normalise(song.numpy(), dbfs))


@pytest.mark.parametrize("N", (1, 777, 4100))
def test_16_bits_are_those_that_a_file_gets(backend, N, rng):
    audio = songs(3, N, rng)
    got = pcm(audio, levels(*DBFS), dtype=torch.int16, backend=backend)
    for song, y, dbfs in zip(audio, got, DBFS):
        assert same(y, quantise(normalise(song.numpy(), dbfs), "int16"))


def test_halves_of_a_step_go_to_the_even_one_and_full_scale_is_32767(backend):
    steps = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -32766.5, 32766.5, 32767.5, 32768.0, -32768.0])
    audio = (steps / 32768).expand(1, 2, -1).contiguous()
    got = pcm(audio, levels(0.0), dtype=torch.int16, backend=backend)
    assert got[0, 1].tolist() == [0, 2, 2, 0, -2, -32766, 32766, 32767, 32767, -32768]


def test_level_one_is_never_passed(backend):
    peaks = torch.tensor([0.1, 0.3, 0.7, 1.3, 7.7, 1e-3, 3e8])
    audio = torch.stack([peaks, -peaks], 1)[:, :, None].contiguous()
    got = pcm(audio, levels(*[0.0] * 7), backend=backend)
    assert got.abs().max() <= 1 and got.abs().min() > 1 - 1e-6


def test_peaks_that_are_given_are_believed_and_full_scale_is_the_limit(backend):
    audio, peaks = torch.tensor([[[0.5, -0.25, 2.0, -8.0]]]), torch.tensor([[0.0, -1.0, 0.5]])
    assert pcm(audio, levels(0.0), peaks=peaks, backend=backend).tolist() == [[[0.5, -0.25, 1.0, -1.0]]]
    got = pcm(audio, levels(0.0), peaks=peaks, dtype=torch.int16, backend=backend)
    assert got.tolist() == [[[16384, -8192, 32767, -32768]]]


def test_silence_stays_silence_and_what_is_all_but_silent_is_not_raised_beyond(backend):
    audio = torch.zeros(3, 2, 20)
    audio[0, 0, 0], audio[1, 1] = -0.0, torch.linspace(1e-9, -1e-8, 20)
    got = pcm(audio, levels(-1.0, -6.0, -1.0), backend=backend)  # -6: 1e-6 in fp32 would give another factor
    assert same(got[0].numpy(), normalise(audio[0].numpy())) and torch.equal(got[0].signbit(), audio[0].signbit())
    assert same(got[1].numpy(), normalise(audio[1].numpy(), -6.0)) and 0.005 < got[1].abs().max() < 0.0051
    assert not got[2].any()


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")  # infinity by 0
@pytest.mark.parametrize("at, wrong", [(0, torch.nan), (5000, -torch.nan), (-1, torch.inf), (4100, -torch.inf)])
def test_a_song_that_is_not_finite_is_left_as_it_is_and_others_are_not(backend, wrong, at, rng):
    audio = songs(3, 4100, rng)
    audio[1].view(-1)[at] = wrong
    for peaks in (None, torch.stack([audio.abs().amax((1, 2)), torch.zeros(3)], 1)):
        got = pcm(audio, levels(*DBFS), peaks=peaks, backend=backend)
        assert same(got[1], audio[1]) and int(got.isfinite().logical_not().sum()) == 1
        assert all(same(got[i], normalise(audio[i].numpy(), DBFS[i])) for i in (0, 2))
        got = pcm(audio, levels(*DBFS), peaks=peaks, dtype=torch.int16, backend=backend)
        assert not got[1].any() and got[0].any() and got[2].any()


def test_in_place_and_into_memory_of_the_callers(backend, rng):
    audio = songs(2, 3001, rng)
    want = pcm(audio, levels(-1.0, -2.0), backend="reference")
    memory, scratch = torch.full((4, 2, 3001), torch.nan), torch.full((2, PARTS), torch.nan)
    out = memory[1:3]
    assert pcm(audio, levels(-1.0, -2.0), out=out, scratch=scratch, backend=backend) is out and same(out, want)
    assert memory[0].isnan().all() and memory[3].isnan().all()
    assert pcm(audio, levels(-1.0, -2.0), out=audio, backend=backend) is audio and same(audio, want)


def test_each_program_of_few_goes_over_several_blocks(monkeypatch):
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.kernel_config import Config
    from acefast.kernels import pcm as kernel
    from acefast.sim.interpreter import interpreted

    monkeypatch.setitem(kernel.CONFIGS, ("peaks", 80), Config({"BLOCK": 16}, num_warps=1))
    monkeypatch.setattr(kernel, "PARTS", 4)
    n = 4 * 16 * 2 + 6  # two blocks for every program, and a part of a third for the first
    with interpreted():
        for at in (0, 63, 64, n - 7, n - 1):
            audio, out, scratch = torch.full((1, 1, n), 0.25), torch.empty(1, 1, n), torch.empty(1, 4)
            audio[0, 0, at] = -8.0
            kernel.pcm(audio, levels(0.0), peaks=None, out=out, scratch=scratch)
            assert out[0, 0, at] == -1 and out.max() == out[0, 0, at - 1] == 0.03125


@pytest.mark.parametrize("dtype", (torch.float32, torch.int16), ids=str)
@pytest.mark.parametrize("N", (64, 4099))
def test_ptx_gives_the_references_bits(dtype, N, rng):
    pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")
    from acefast.kernels.pcm import pcm as kernel
    from tests.ops.simulated import simulated

    audio = songs(3, N, rng)
    audio[1, 1, 5] = torch.nan
    given = {"audio": audio, "levels": levels(0.0, 0.0, -6.0), "peaks": None, "scratch": torch.empty(3, PARTS)}
    given["out"] = torch.full_like(audio, 99, dtype=dtype)
    simulated(kernel, given, registers=True)
    assert same(given["out"], pcm_reference(audio, given["levels"], dtype=dtype))


@pytest.mark.parametrize("channels", (1, 3))
def test_any_number_of_channels(backend, channels, rng):
    audio = songs(2, 100, rng, channels)
    got = pcm(audio, levels(-1.0, -1.0), backend=backend)
    assert all(same(y, normalise(song.numpy())) for y, song in zip(got, audio))


def test_reference_makes_no_fp64_tensor_which_not_every_device_has(rng):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **kwargs or {})
            assert not torch.is_tensor(made) or made.dtype != torch.float64
            return made

    audio, given = songs(2, 100, rng), levels(-1.0, 0.0)
    with Watch():
        pcm(audio, given, backend="reference")


def test_reference_computes_at_the_precision_of_its_input(rng):
    audio = songs(1, 100, rng).double()
    want = audio * level(-1.0) / audio.abs().max()
    torch.testing.assert_close(pcm_reference(audio, levels(-1.0)), want, rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(audio=torch.zeros(2, 5)), r"audio must be \[B, channels, N\]"),
        (dict(audio=torch.zeros(2, 2, 5).half()), "audio must be torch.float32, got torch.float16"),
        (dict(audio=torch.zeros(2, 5, 2).mT), "audio must be contiguous"),
        (dict(audio=torch.zeros(2, 2, 0)), "audio and peaks must not be empty"),
        (dict(levels=torch.ones(3).double()), r"levels must be \[B\] = \[2\], got \[3\]"),
        (dict(levels=torch.ones(2)), "levels must be torch.float64, got torch.float32"),
        (dict(peaks=torch.zeros(2)), r"peaks must be \[B, n\]"),
        (dict(peaks=torch.zeros(2, 0)), "audio and peaks must not be empty"),
        (dict(peaks=torch.zeros(3, 2).mT), "peaks must be contiguous"),
        (dict(dtype=torch.float16), "dtype must be torch.float32 or torch.int16, got torch.float16"),
        (dict(out=torch.zeros(2, 2, 6)), "out must be audio's shape"),
        (dict(out=torch.zeros(2, 2, 5), dtype=torch.int16), "out must be torch.int16, got torch.float32"),
        (dict(out=torch.zeros(2, 5, 2).mT), "out must be contiguous"),
        (dict(scratch=torch.zeros(2, 5)), r"scratch must be \[B, PARTS\] = \[2, 512\]"),
        (dict(scratch=torch.zeros(2, PARTS).double()), "scratch must be torch.float32"),
    ],
)
def test_other_arguments_are_refused_with_a_sentence(change, why):
    with pytest.raises(ValueError, match=f"^pcm: {why}"):
        pcm(**{"audio": torch.zeros(2, 2, 5), "levels": torch.ones(2).double(), **change})


def test_numpy_of_an_array_and_of_a_batch_agree(rng):
    """The level is a double: fp32 ones would give other bits."""
    audio = songs(3, 9600, rng)
    wrong = [normalise(x.numpy(), 20 * np.log10(np.float32(level(-1.0)))) for x in audio]
    assert any(not same(a, normalise(x.numpy())) for a, x in zip(wrong, audio))
