"""Every kernel at the size of a real song, interpreted: 30 s of the 2B model, 375 tokens in a buffer of 384.

What lies behind the song is NaN. Smaller and ragged sizes, batches and strides are in tests/ops.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.ops.apg import apg
from acefast.ops.audio_conv1d import audio_conv1d, peak_slots
from acefast.ops.conv1d import conv1d
from acefast.ops.conv_transpose1d import conv_transpose1d
from acefast.ops.cross_attention import cross_attention
from acefast.ops.linear_swiglu import linear_swiglu
from acefast.ops.pcm import pcm
from acefast.ops.philox import philox_normal
from acefast.ops.qk_norm_rope import qk_norm_rope, rope_table
from acefast.ops.residual_norm import residual_norm
from acefast.ops.residual_unit import residual_unit
from acefast.ops.sampler_step import clock, sampler_step, step_table
from acefast.ops.self_attention import self_attention
from acefast.ops.snake import snake
from acefast.ops.swiglu import swiglu
from acefast.sim.interpreter import interpreted

TOKENS, ROWS, FRAMES, H, HEADS, KV_HEADS, D, I = 375, 384, 750, 2048, 16, 8, 128, 6144  # noqa: E741
GATE = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 4e-3}  # relative L2 against the reference in fp32
SLOW = pytest.mark.slow
DTYPES = [torch.bfloat16, pytest.param(torch.float16, marks=SLOW), pytest.param(torch.float32, marks=SLOW)]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def normal(dtype, rng):
    """Standard normal numbers in the dtype, with ``valid`` of dimension 1 and NaN behind them."""

    def make(*shape, valid=None):
        made = torch.randn(shape, generator=rng).to(dtype)
        if valid is not None:
            made[:, valid:] = torch.nan
        return made

    return make


def check(op, *given, dtype, valid=None, dim=1, **options):
    """Outputs of the kernel are those of the reference in fp32, as far as the song goes."""
    wide = [t.float() if torch.is_tensor(t) and t.is_floating_point() else t for t in given]
    with interpreted():
        got = op(*given, **options, backend="triton")
    want = op(*wide, **options, backend="reference")
    for a, b in zip(*((t,) if torch.is_tensor(t) else t for t in (got, want))):
        a, b = (t if valid is None else t.narrow(dim, 0, valid) for t in (a, b))
        assert a.dtype == dtype and float((a.double() - b).norm() / b.double().norm()) <= GATE[dtype]


def test_residual_norm(normal, dtype):
    gate, scale, shift = (normal(H).float() for _ in range(3))
    x, y = (normal(1, ROWS, H, valid=TOKENS) for _ in range(2))
    check(residual_norm, x, normal(H), y, gate, scale, shift, dtype=dtype, valid=TOKENS)


def test_qk_norm_rope(normal, dtype):
    table = rope_table(ROWS, D, 1e6, torch.device("cpu"))
    qkv, *weights = normal(1, ROWS, (HEADS + 2 * KV_HEADS) * D, valid=TOKENS), normal(D), normal(D)
    check(qk_norm_rope, qkv, *weights, *table, HEADS, KV_HEADS, dtype=dtype, valid=TOKENS)


def test_self_attention(normal, dtype):
    heads = normal(1, ROWS, HEADS + 2 * KV_HEADS, D, valid=TOKENS).split((HEADS, KV_HEADS, KV_HEADS), 2)
    check(self_attention, *heads, 128, torch.tensor([TOKENS]), dtype=dtype)


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
def test_cross_attention(normal, dtype):
    k, v = normal(1, KV_HEADS, 512, 2, D).unbind(3)
    k[:, :, 501:] = v[:, :, 501:] = torch.nan
    q = normal(1, ROWS, HEADS * D, valid=TOKENS)
    check(cross_attention, q, normal(D), k, v, torch.tensor([501]), dtype=dtype, valid=TOKENS)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
def test_swiglu(normal, dtype):
    check(swiglu, normal(1, ROWS, 2 * I, valid=TOKENS), dtype=dtype, valid=TOKENS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2")
def test_linear_swiglu(normal, dtype):
    if dtype != torch.bfloat16:
        pytest.skip("the kernel takes 16 bits, of either kind by the same code: tests/ops has both")
    rows, tokens = ROWS // 3, TOKENS // 3  # one tile of rows, which is like the others
    check(linear_swiglu, normal(1, rows, H, valid=tokens), normal(2 * I, H) / H**0.5, dtype=dtype, valid=tokens)


@pytest.mark.parametrize("rows, Cin, Cout, stride", [pytest.param(8, 2048, 1024, 10, marks=SLOW), (150, 256, 128, 4)])
def test_conv_transpose1d(normal, dtype, rows, Cin, Cout, stride, rng):
    if dtype == torch.float32 or (dtype == torch.float16 and Cin == 2048):
        pytest.skip("the kernel takes 16 bits, of either kind by the same code: the narrow one has both")
    weight, wave = (
        normal(2 * Cin, stride * Cout) / (2 * Cin) ** 0.5,
        (torch.rand(2, Cout, generator=rng) + 0.5).unbind(),
    )
    check(conv_transpose1d, normal(1, rows, Cin), weight, normal(Cout), stride=stride, wave=wave, dtype=dtype)


def test_audio_conv1d(normal, dtype):
    if dtype == torch.float32:
        pytest.skip("the kernel takes 16 bits")
    x, weight, song = normal(1, 1920, 128), normal(2, 7, 128) / 30, torch.zeros(2, 1, 2, 4000)  # a latent frame
    options = [{"out": out, "peaks": torch.zeros(1, peak_slots(1920))} for out in song]
    place = torch.tensor([40, 1900, 2100], dtype=torch.int32)
    with interpreted():
        audio_conv1d(x, weight, place=place, **options[0], backend="triton")
    audio_conv1d(x, weight, place=place, **options[1], backend="reference")
    for got, want in zip(options[0].values(), options[1].values()):
        assert float((got.double() - want).norm() / want.double().norm()) <= GATE[torch.float32]


def test_sampler_step(normal, dtype, rng):
    x, v = torch.randn(1, FRAMES, 64, generator=rng), normal(1, 2 * ROWS, 64, valid=FRAMES)[:, :FRAMES]
    table, copies = step_table([1.0, 0.5]), [torch.zeros(1, 2 * ROWS, 64, dtype=dtype) for _ in range(2)]
    seeds, clocks = torch.tensor([7]), [clock(x.shape) for _ in range(2)]
    with interpreted():
        got = sampler_step(x, v, table, clocks[0], seeds=seeds, model_latents=copies[0], backend="triton")
    want = sampler_step(x, v, table, clocks[1], seeds=seeds, model_latents=copies[1], backend="reference")
    assert torch.equal(got, want) and torch.equal(*copies) and torch.equal(*clocks)


def test_apg(normal, dtype):
    cond, uncond = normal(2, 2 * ROWS, 64, valid=FRAMES)[:, :FRAMES].split(1)
    with interpreted():
        got, running = apg(cond, uncond, None, 7.0, backend="triton")
    want, after = apg(cond.float(), uncond.float(), None, 7.0, backend="reference")
    assert got.dtype == dtype and float((got.double() - want).norm() / want.double().norm()) <= GATE[dtype]
    assert torch.equal(running, after)


def test_philox():
    with interpreted():
        got = philox_normal([7], (FRAMES, 64), backend="triton")
    assert torch.equal(got, philox_normal([7], (FRAMES, 64), backend="reference"))


@pytest.mark.parametrize("peaks", (True, False), ids=("peaks given", "peaks looked for"))
def test_pcm(rng, peaks):
    audio = 3 * torch.randn(1, 2, FRAMES * 1920, generator=rng)
    levels, found = torch.tensor([10 ** (-1 / 20)], dtype=torch.float64), audio.abs().view(1, 480, -1).amax(2)
    with interpreted():
        got = pcm(audio, levels, peaks=found if peaks else None, backend="triton")
    assert torch.equal(got, pcm(audio, levels, backend="reference"))


@pytest.mark.parametrize("C", (128, 256))
def test_residual_unit(normal, dtype, C):
    """A slice of the decoder's rows: two tiles and a part of one."""
    if dtype == torch.float32:
        pytest.skip("the kernel takes 16 bits")
    waves = [normal(C).float().abs() for _ in range(6)]
    weight1, weight2 = normal(C, 7, C) / (7 * C) ** 0.5, normal(C, C) / C**0.5
    given = *waves[:2], weight1, normal(C), *waves[2:4], weight2, normal(C)
    check(residual_unit, normal(1, 300, C), *given, dilation=9, wave=tuple(waves[4:]), dtype=dtype)


def test_snake(normal, dtype):
    """A second of the decoder's third level."""
    wave = normal(512).float().exp(), normal(512).float().exp()
    check(snake, normal(1, 1500, 512), *wave, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("taps, dilation", [(7, 9), (1, 1)])
def test_conv1d(normal, dtype, taps, dilation):
    """Half a second of the decoder's second level, as the first and the second half of a residual unit."""
    if dtype == torch.float32:
        pytest.skip("the kernel takes 16 bits")
    C, L = 1024, 125
    x, weight, bias = normal(1, L, C), normal(C, taps, C) / (taps * C) ** 0.5, normal(C)
    options = {
        "padding": taps // 2 * dilation,
        "dilation": dilation,
        "residual": normal(1, L, C) if taps == 1 else None,
    }
    wave = normal(C).float().exp(), normal(C).float().exp()
    with interpreted():
        got = conv1d(x, weight, bias, **options, wave=wave, backend="triton")
    if options["residual"] is not None:
        options["residual"] = options["residual"].float()
    want = conv1d(x.float(), weight.float(), bias.float(), **options, wave=wave, backend="reference")
    for a, b in zip(got, want):
        assert a.dtype == dtype and float((a.double() - b).norm() / b.double().norm()) <= GATE[dtype]
