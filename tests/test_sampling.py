"""Schedules and solvers; what may happen between steps is in test_sampling_hooks.py."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from acefast import sampling
from acefast.ops.philox import philox_normal
from acefast.sampling import sample, schedule

TURBO = {  # the tables of the turbo checkpoints, digit for digit
    1: [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
    2: [
        1.0,
        0.9333333333333333,
        0.8571428571428571,
        0.7692307692307693,
        0.6666666666666666,
        0.5454545454545454,
        0.4,
        0.2222222222222222,
    ],
    3: [1.0, 0.9545454545454546, 0.9, 0.8333333333333334, 0.75, 0.6428571428571429, 0.5, 0.3],
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def flow_to(clean: torch.Tensor):
    """The exact velocity towards one clean song: x_t = t n + (1 - t) clean, so v = (x_t - clean) / t."""
    return lambda x, t, step, corrector: (x - clean.to(x.dtype)) / t


# Schedules


@pytest.mark.parametrize("shift", TURBO)
def test_schedule_gives_the_turbo_tables_digit_for_digit(shift):
    assert schedule(8, shift) == schedule(8, float(shift)) == TURBO[shift]


@pytest.mark.parametrize("shift", [1.0, 3.0, 2.5])
@pytest.mark.parametrize("steps", [1, 8, 27, 50, 200])
def test_schedule_equals_diffusers(steps, shift):
    theirs = AceStepPipeline._get_timestep_schedule(None, steps, shift, "cpu", torch.float32).tolist()
    assert schedule(steps, shift, dtype=torch.float32) == theirs
    assert schedule(steps, shift) == pytest.approx(theirs, abs=2e-7)


def test_bf16_schedule_is_the_official_base_models():
    assert schedule(50, 1.0, dtype=torch.bfloat16)[:4] == [1.0, 0.98046875, 0.9609375, 0.94140625]


@settings(max_examples=100, deadline=None)
@given(steps=st.integers(1, 200), shift=st.floats(0.1, 20))
def test_schedule_falls_from_one_towards_zero(steps, shift):
    t = schedule(steps, shift)
    assert len(t) == steps and t[0] == 1.0
    assert all(a > b > 0 for a, b in itertools.pairwise(t))
    assert t == pytest.approx([shift * u / (1 + (shift - 1) * u) for u in schedule(steps, 1)], rel=1e-12)


@pytest.mark.parametrize("steps, shift", [(0, 1.0), (8, 0.0), (8, -1.0), (8, math.nan), (8, math.inf)])
def test_impossible_schedule_is_refused(steps, shift):
    with pytest.raises(ValueError, match="schedule: "):
        schedule(steps, shift)


def test_user_timesteps_are_read_from_text_and_numbers():
    want = [0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085]
    assert sampling.parse_timesteps("0.97,0.76,0.615,0.5,0.395,0.28,0.18,0.085,0") == want
    assert sampling.parse_timesteps(" 0.97 0.76;0.615, 0.5,\n0.395,0.28,.18,0.085,0.0,0") == want
    assert sampling.parse_timesteps((*want, 0)) == want
    assert sampling.parse_timesteps(torch.tensor([1.0, 0.5, 0.0])) == [1.0, 0.5]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30, unique=True), st.integers(0, 2))
def test_written_timesteps_read_back(values, zeros):
    values = sorted(values, reverse=True)
    assert sampling.parse_timesteps(", ".join(map(repr, values + [0.0] * zeros))) == values


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "at least one"),
        ("0,0", "at least one"),
        ("a,b", "numbers"),
        ([0.5, None], "numbers"),
        ("1.1,0.5", "at most 1"),
        ("0.5,-0.1", "above 0"),
        ("0.5,0,0.2", "above 0"),
        ("nan", "above 0"),
        ("0.5,0.6", "decrease"),
        ("0.5,0.5", "decrease"),
    ],
)
def test_impossible_timesteps_are_refused(text, why):
    with pytest.raises(ValueError, match=f"timesteps: .*{why}"):
        sampling.parse_timesteps(text)


# Solvers


@pytest.mark.parametrize("shape", [(2, 7, 3), (1, 8, 16, 5)])  # v1.5's and v1's axes
@pytest.mark.parametrize("solver", ["euler", "sde"])
@pytest.mark.parametrize("steps", [1, 8])
def test_exact_velocity_recovers_the_clean_song(solver, steps, shape):
    clean, noise = randn(*shape), randn(*shape, seed=1)
    got = sample(flow_to(clean), noise, schedule(steps, 3.0), solver=solver, seeds=range(shape[0]))
    torch.testing.assert_close(got, clean, rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_straight_flow_is_integrated_exactly(solver):
    clean, noise = randn(1, 9, 4), randn(1, 9, 4, seed=1)
    got = sample(lambda x, t, i, c: noise - clean, noise, schedule(5, 2.0), solver=solver)
    torch.testing.assert_close(got, clean, rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_solvers_order(solver, order):
    """dx/dt = a x + sin(3 t), whose solution is known."""
    a, x1 = 0.8, 1.3

    def exact(t):  # from t = 1, where it is x1
        def particular(s):
            return -(a * math.sin(3 * s) + 3 * math.cos(3 * s)) / (a * a + 9)

        return particular(t) + (x1 - particular(1)) * math.exp(a * (t - 1))

    def error(steps):
        x = sample(
            lambda x, t, i, c: a * x + math.sin(3 * t),
            torch.full((1, 1, 1), x1, dtype=torch.float64),
            schedule(steps, 2.0),
            solver=solver,
            state_dtype=torch.float64,
        )
        return abs(x.item() - exact(0))

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.1)


def test_euler_matches_diffusers_scheduler():
    t = schedule(8, 3.0)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    scheduler.set_timesteps(sigmas=t)
    x = noise = randn(2, 5, 4)
    for s in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x) * float(s), s, x, return_dict=False)[0]
    got = sample(lambda x, t, i, c: torch.tanh(x) * t, noise, t)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def test_heun_asks_twice_a_step_also_at_the_end():
    asked = []

    def velocity(x, t, step, corrector):
        asked.append((t, step, corrector))
        return x

    sample(velocity, randn(1, 2, 2), [1.0, 0.4], solver="heun")
    assert asked == [(1.0, 0, False), (0.4, 0, True), (0.4, 1, False), (0.0, 1, True)]


def test_heun_averages_two_velocities():
    x = randn(1, 4, 2)
    got = sample(lambda x, t, i, c: x * x, x, [0.5], solver="heun")
    euler = x - 0.5 * x * x
    torch.testing.assert_close(got, x - 0.25 * (x * x + euler * euler))


def test_sde_noise_is_each_songs_own_stream_of_the_step():
    t, noise, v = [1.0, 0.6, 0.3], randn(2, 5, 4), 0.1
    want = noise
    for step, (t_now, t_next) in enumerate(zip(t, [*t[1:], 0.0])):
        eps = torch.cat([philox_normal([s], (5, 4), stream=1 + step) for s in (11, 12)])
        want = t_next * eps + (1 - t_next) * (want - v * t_now)
    constant = torch.full_like(noise, v)
    got = sample(lambda *_: constant, noise, t, solver="sde", seeds=[11, 12])
    torch.testing.assert_close(got, want)
    alone = sample(lambda *_: constant[1:], noise[1:], t, solver="sde", seeds=[12])
    assert torch.equal(alone, got[1:])


def test_sde_keeps_the_mixture_of_noise_and_clean_song():
    clean, seen = torch.full((1, 1000, 64), 3.0), []
    sample(
        flow_to(clean),
        philox_normal([1], (1000, 64)) + 0.0,
        [1.0, 0.7, 0.2],
        solver="sde",
        seeds=[1],
        on_step=lambda info: seen.append((info.t_next, info.latents)),
    )
    for t, x in seen:
        assert x.mean().item() == pytest.approx(3 * (1 - t), abs=0.02)
        assert x.std().item() == pytest.approx(t, abs=0.01)


def test_sde_noise_can_be_injected_and_the_last_step_draws_none():
    drawn = []

    def zero(step):
        drawn.append(step)
        return torch.zeros(1, 2, 2)

    got = sample(lambda x, *_: x * 0, torch.ones(1, 2, 2), [1.0, 0.5, 0.25], solver="sde", sde_noise=zero)
    assert drawn == [0, 1]
    torch.testing.assert_close(got, torch.full((1, 2, 2), 0.5 * 0.75))


def test_sde_without_seeds_is_refused():
    with pytest.raises(ValueError, match=r"sde.*one seed per song, 2"):
        sample(flow_to(randn(2, 2, 2)), randn(2, 2, 2), [1.0], solver="sde", seeds=[1])


def test_start_runs_the_later_steps_under_their_own_numbers():
    asked = []

    def velocity(x, t, step, corrector):
        asked.append((t, step))
        return x

    sample(velocity, randn(1, 2, 2), [1.0, 0.5, 0.25], start=1)
    assert asked == [(0.5, 1), (0.25, 2)]


@pytest.mark.parametrize("solver", sampling.SOLVERS)
def test_song_does_not_depend_on_its_neighbours(solver):
    noise = randn(3, 6, 4)
    options = dict(solver=solver, timesteps=schedule(6, 3.0))
    together = sample(lambda x, t, i, c: torch.sin(3 * x) + t, noise, seeds=[4, 5, 6], **options)
    alone = sample(lambda x, t, i, c: torch.sin(3 * x) + t, noise[1:2], seeds=[5], **options)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", sampling.SOLVERS)
def test_bf16_state_rounds_times_and_every_operation(solver):
    def b(x):
        return torch.as_tensor(x, dtype=torch.float32).bfloat16()

    def f(x, t):
        return torch.sin(x.float() * 2) + t

    noise, eps, asked = randn(1, 5, 4), randn(4, 1, 5, 4, seed=1), []
    times = [1.0, 0.7, 0.1, 0.033]  # far apart: their differences do not fit bf16

    def velocity(x, t, step, corrector):
        assert x.dtype == torch.bfloat16
        asked.append(t)
        return f(x, t)

    got = sample(velocity, noise, times, solver=solver, sde_noise=eps.__getitem__, state_dtype=torch.bfloat16)
    x, rounded = b(noise), [*map(b, times), b(0.0)]  # 0-dim bf16 tensors: every operation below rounds
    for i, (t, t_next) in enumerate(itertools.pairwise(rounded)):
        v = b(f(x, t.item()))
        if solver == "sde":
            x = x - v * t
            x = b(eps[i]) * t_next + x * (1 - t_next) if t_next > 0 else x
        else:
            step = x - v * (t - t_next)
            if solver == "heun":
                step = x - (v + b(f(step, t_next.item()))) * (0.5 * (t - t_next))
            x = step
    assert torch.equal(got, x) and got.dtype == torch.bfloat16
    assert set(asked) <= {t.item() for t in rounded}


def test_state_is_fp32_whatever_the_model_computes_in():
    got = sample(lambda x, *_: x.bfloat16(), randn(1, 2, 2).bfloat16(), [1.0, 0.5])
    assert got.dtype == torch.float32


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(solver="rk4"), "solver must be one of euler, heun, sde, got 'rk4'"),
        (dict(timesteps=[]), "at least one"),
        (dict(timesteps=[0.5, 0.0]), "above 0"),
        (dict(timesteps=[0.5, 0.6]), "decrease"),
        (dict(start=2), "start must be 0 to 1, got 2"),
        (dict(velocity=lambda x, *_: x[:, :1]), r"velocity must be of shape \[1, 3, 2\], got \[1, 1, 2\]"),
        (dict(after_step=lambda x, *_: x[:, :1]), "after_step must be of shape"),
        (dict(on_step=lambda info: info.latents[:, :1]), "on_step must be of shape"),
    ],
)
def test_impossible_arguments_are_refused(options, why):
    arguments = dict(velocity=lambda x, *_: x, noise=randn(1, 3, 2), timesteps=[1.0, 0.5]) | options
    with pytest.raises(ValueError, match=why):
        sample(**arguments)


def test_sampling_leaves_its_inputs_and_the_global_generator_alone():
    noise, state = randn(1, 3, 2), torch.get_rng_state()
    copy = noise.clone()
    sample(lambda x, *_: x, noise, [1.0, 0.5], solver="sde", seeds=[1])
    assert torch.equal(noise, copy) and torch.equal(torch.get_rng_state(), state)
