"""Kernels of the autoencoder and the sizes of songs: far rows are found, and no length of a song compiles another one.

Far means the tenth song in tiles of 1024 frames, which begins beyond 2**31 elements: 32 bits do not hold its offset.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

import triton.runtime.interpreter as ti

from acefast.guarded import GUARD, elements, guarded, whole
from acefast.ops.audio_conv1d import audio_conv1d, peak_slots
from acefast.ops.conv1d import conv1d
from acefast.ops.conv_transpose1d import conv_transpose1d
from acefast.ops.residual_unit import residual_unit
from acefast.ops.snake import snake
from acefast.sim.driver import dry_run
from acefast.sim.interpreter import interpreted

SONGS, ROWS, C = 10, 1024 * 1920, 128
assert (SONGS - 1) * ROWS * C > 2**31
NEAR = 2600  # rows at the end that hold numbers; of results, those that the last programs make
MADE = {"snake": 512, "residual_unit": 2048, "conv1d": 2048, "conv_transpose1d": 2048}
PROGRAMS = 16


@contextlib.contextmanager
def last_programs():
    """Of each launch only the last song's last programs are interpreted."""
    stock, dim, idx = ti.GridExecutor.__init__, ti.interpreter_builder.set_grid_dim, ti.interpreter_builder.set_grid_idx
    grids = []

    def init(self, fn, names, grid, *rest):
        grids[:] = [(*grid, 1, 1)[:3]]
        stock(self, fn, names, (min(grid[0], PROGRAMS), 1, 1), *rest)

    def shifted(x, y, z):
        a, b, c = grids[0]
        idx(a - min(a, PROGRAMS) + x, b - 1, c - 1)

    with contextlib.ExitStack() as undo:
        undo.enter_context(interpreted(races=False))
        for target, name, value in (
            (ti.GridExecutor, "__init__", init),
            (ti.GridExecutor, "_restore_args_dev", lambda *args: None),  # which copies memory to itself
            (ti.interpreter_builder, "set_grid_dim", lambda *small: dim(*grids[0])),
            (ti.interpreter_builder, "set_grid_idx", shifted),
        ):
            undo.enter_context(mock.patch.object(target, name, value))
        yield


def far(rows, near=None):
    """Guarded rows of the songs, 5 GB of which only the last song's last rows are ever touched."""
    memory = torch.empty(elements(SONGS, rows, C), dtype=torch.float16)
    x = guarded(SONGS, rows, C, dtype=memory.dtype, device=memory.device, memory=memory)
    if near is not None:
        x[-1, -near.shape[1] :] = near[0]
    whole(x)[-1, -GUARD:] = 0 if near is not None else torch.nan
    return x


@pytest.fixture
def weights(rng):
    """Rows, a wave, and a weight of so many taps (of a transposed convolution: columns)."""
    near, wave = torch.randn(1, NEAR, C, generator=rng).half(), tuple(torch.rand(2, C, generator=rng) + 0.2)
    return near, wave, lambda *shape: (torch.randn(shape, generator=rng) / 30).half()


def check(op, got, want):
    for a, b in zip(got, want):
        a, b = a[-1, -MADE[op] :].double(), b[-1, -MADE[op] :].double()
        assert (a - b).norm() <= 1e-3 * b.norm()
    assert not any(whole(t)[-1, -GUARD:].any() for t in got)


def test_the_last_rows_of_many_songs_are_found(weights):
    near, wave, weight = weights
    x, results = far(ROWS, near), [far(ROWS) for _ in range(2)]
    options = {"guarded": True, "backend": "triton"}
    with last_programs():
        snake(x, *wave, **options, out=results[0])
    check("snake", results[:1], [snake(near, *wave)])

    first, second, bias = weight(C, 7, C), weight(C, C), weight(C)
    given = (*wave, first, bias, *wave, second, bias)
    with last_programs():
        residual_unit(x, *given, dilation=9, activated=x, wave=wave, **options, out=tuple(results))
    check("residual_unit", results, residual_unit(near, *given, dilation=9, activated=near, wave=wave))

    more = {"padding": 27, "dilation": 9, "wave": wave}
    with last_programs():
        conv1d(x, first, bias, residual=x, **more, **options, out=tuple(results))
    check("conv1d", results, conv1d(near, first, bias, residual=near.clone(), **more))

    audio, peaks = torch.zeros(SONGS, 2, ROWS), torch.zeros(SONGS, peak_slots(ROWS))
    with last_programs():
        audio_conv1d(x, weight(2, 7, C).copy_(first[:2]), out=audio, peaks=peaks, **options)
    want = audio_conv1d(near, first[:2].contiguous())[-1, :, -2000:]
    torch.testing.assert_close(audio[-1, :, -2000:], want, rtol=0, atol=1e-5)

    x, columns = far(ROWS // 2, near), weight(2 * C, 2 * C)
    with last_programs():
        conv_transpose1d(x, columns, bias, stride=2, wave=wave, **options, out=tuple(results))
    check("conv_transpose1d", results, conv_transpose1d(near, columns, bias, stride=2, wave=wave))


def test_songs_of_any_length_and_number_run_the_same_kernels():
    """Triton would make another kernel of a length that 16 divides, or that is 1, in the middle of a request."""

    def rows(songs, length):
        return guarded(songs, length, 16, dtype=torch.float16, device=torch.device("meta"))

    weight, bias, wave = (torch.empty(s, device="meta").half() for s in ((16, 7, 16), (16,), (16,)))
    wave, place = (wave.float(),) * 2, torch.empty(3, dtype=torch.int32, device="meta")
    kernels = []
    for songs, length in ((1, 160), (1, 161), (2, 1000)):
        x, options = rows(songs, length), {"guarded": True, "backend": "triton"}
        with dry_run(80) as launches:
            snake(x, *wave, **options)
            conv1d(x, weight, bias, padding=3, **options)
            residual_unit(x, *wave, weight, bias, *wave, weight[:, 0].contiguous(), bias, dilation=1, **options)
            conv_transpose1d(x, weight.view(-1)[:1024].view(32, 32), bias, stride=2, wave=wave, **options)
            audio = torch.empty(songs, 2, 16 * length, device="meta")
            peaks = torch.empty(songs, peak_slots(length), device="meta")
            audio_conv1d(x, weight[:2], place=place, out=audio, peaks=peaks, **options)
        kernels.append([one.kernel.hash for one in launches])
    assert len(kernels[0]) == 6 and kernels[0] == kernels[1] == kernels[2]
