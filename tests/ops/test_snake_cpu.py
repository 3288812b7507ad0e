"""The CPU's kernel of acefast.ops.snake, at every level of instructions."""

from __future__ import annotations

import pytest
import torch

import acefast.ops.snake as module
from acefast.backends import BackendUnavailable
from acefast.guarded import with_guards
from acefast.ops.snake import snake, snake_reference
from tests.cpu.convolutions import accurate, between_sentinels, on_threads, snaked, untouched, waves
from tests.cpu.isas import NAMES, at_isa, extension

extension()


@pytest.mark.parametrize("isa", NAMES)
@pytest.mark.parametrize("B, L, C", [(1, 1, 16), (2, 13, 48), (1, 375, 128), (3, 40, 2048)])
def test_matches_the_formula_in_double_precision(B, L, C, isa, rng):
    x, wave = torch.randn(B, L, C, generator=rng).bfloat16(), waves(C, rng)
    with at_isa(isa):
        y = snake(x, *wave, backend="cpu")
    assert y.dtype == torch.bfloat16 and y.is_contiguous()
    assert accurate(y, snaked(x, *wave), snake_reference(x, *wave))


@pytest.mark.parametrize("isa", NAMES)
def test_squared_sine_is_right_to_a_millionth_up_to_ten_thousand(isa, rng):
    """Of x = -1 and a height of 1 / sin(alpha)**2 the result is the sine's relative error, which bf16 shows well."""
    ends = 10.0 ** torch.arange(-2, 5)
    alpha = ((2 * torch.rand(len(ends), 4096, generator=rng) - 1) * ends[:, None]).flatten()
    want = alpha.double().sin() ** 2
    x = torch.full((1, 1, len(alpha)), -1.0).bfloat16()
    with at_isa(isa):
        y = snake(x, alpha, (1 / want).float(), backend="cpu")
    assert (y[0, 0].double() * want).abs().max() < 1e-6


def test_what_is_not_finite_stays_so(rng):
    x, wave = torch.randn(1, 3, 32, generator=rng).bfloat16(), waves(32, rng)
    x[0, 1, :2] = torch.tensor([torch.nan, torch.inf])
    wave[0][31] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a NaN that rounds to -0 as a number
    y = snake(x, *wave, backend="cpu")
    assert y[0, 1, 0].isnan() and not y[0, 1, 1].isfinite() and y[0, :, 31].isnan().all()
    assert y.isfinite().sum() == y.numel() - 2 - 3


def test_result_is_written_where_it_is_told_and_nowhere_else(rng):
    x, wave = torch.randn(2, 13, 48, generator=rng).bfloat16(), waves(48, rng)
    want, given = snake(x, *wave, backend="cpu"), x.clone()
    out, memory = between_sentinels(2, 13, 48)
    assert snake(x, *wave, out=out, backend="cpu") is out and torch.equal(out, want) and untouched(memory)
    assert torch.equal(x, given)
    assert snake(x, *wave, out=x, backend="cpu") is x and torch.equal(x, want)  # in place


def test_threads_give_the_same_bits(rng):
    x, wave = torch.randn(1, 3000, 64, generator=rng).bfloat16(), waves(64, rng)
    want = snake(x, *wave, backend="cpu")
    for count in (2, 3):
        with on_threads(count):
            assert torch.equal(snake(x, *wave, backend="cpu"), want)


def test_it_is_what_runs_on_a_cpu_and_what_it_does_not_take_runs_on_the_reference(rng, monkeypatch):
    x, wave = torch.randn(1, 5, 32, generator=rng).bfloat16(), waves(32, rng)
    guarded, narrow = with_guards(x), x[:, :, :8].contiguous()
    for rows, options in ((x.float(), {}), (x.half(), {}), (narrow, {}), (guarded, {"guarded": True}), (x[:, :0], {})):
        own = [w[: rows.shape[2]].contiguous() for w in wave]
        with pytest.raises(BackendUnavailable, match="snake: backend='cpu' cannot run: it has no cpu kernel"):
            snake(rows, *own, **options, backend="cpu")
        assert torch.equal(snake(rows, *own, **options), snake_reference(rows, *own, **options))
    apart = torch.rand(32, 2, generator=rng).unbind(1)
    with pytest.raises(BackendUnavailable, match="snake: backend='cpu' cannot run: it has no cpu kernel"):
        snake(x, *apart, backend="cpu")
    assert torch.equal(snake(x, *apart), snake_reference(x, *apart))
    monkeypatch.setattr(module, "snake_reference", None)
    snake(x, *wave)
