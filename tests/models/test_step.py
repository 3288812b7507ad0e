"""Whole steps on static buffers, Triton's kernels interpreted, against the reference's loop on memory of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import NamedTuple

import pytest
import torch

from acefast import repaint, sampling
from acefast.backends import use_backend
from acefast.graphs import Graphs
from acefast.guidance import Guidance, guided
from acefast.models.v15 import step
from acefast.models.v15.buffers import padded_conditions, padded_tokens
from acefast.models.v15.dit import DiT
from acefast.models.v15.step import Step
from acefast.sim.interpreter import interpreted
from acefast.testing import TINY_BASE, TINY_XL
from tests.models.fill import official_tensors, ours, relative

TIMES = [1.0, 0.6]
GATE = 1e-5  # relative L2 in fp32
DTYPES = (torch.float32, torch.bfloat16)


class Song(NamedTuple):
    """A batch's inputs, rounded to bf16."""

    states: torch.Tensor
    lengths: torch.Tensor | None
    context: torch.Tensor
    frames: torch.Tensor | None
    noise: torch.Tensor
    null: torch.Tensor


def batch(config, frames, conditions, seed=0):
    g, C, W = torch.Generator().manual_seed(seed), config.audio_acoustic_hidden_dim, config.encoder_hidden_size
    B, T, E = len(frames), max(frames), max(conditions)
    shapes = ((B, E, W), (B, T, 2 * C), (B, T, C), (1, 1, W))
    states, context, noise, null = (torch.randn(s, generator=g).bfloat16().float() for s in shapes)
    even = len({*frames}) == len({*conditions}) == 1
    return Song(
        states,
        None if even else torch.tensor(conditions),
        context,
        None if even else torch.tensor(frames),
        noise,
        null,
    )


pytestmark = pytest.mark.usefixtures("few_programs")


@pytest.fixture(scope="module")
def models():
    """By configuration and dtype: tiny models with the same weights, rounded to bf16; a layer of each window."""
    made = {}
    for name, config in (("base", TINY_BASE), ("xl", TINY_XL)):
        config = dataclasses.replace(config, num_hidden_layers=2)
        tensors = {n: t.bfloat16().float() for n, t in official_tensors(config).items()}
        for dtype in DTYPES:
            made[name, dtype] = ours(DiT, config, tensors, dtype)
    return made


def run(model, song, guidance, *, static, held=None, later=None, seeds=None, **options):
    """The song's latents; ``static``: by ``Step`` and interpreted kernels, else by the reference's loop."""
    songs = len(song.noise)
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        if static:
            stack.enter_context(interpreted())
        stack.enter_context(use_backend("triton" if static else "reference"))

        def prepare(states):
            rest = (song.lengths, song.context, TIMES)
            return model.prepare(states, *rest, null_condition=song.null, frames=song.frames)

        current = [prepare(song.states)] * len(TIMES)
        if later is not None:
            current[1:] = [prepare(later)]
        if not static:
            if held is not None:
                mask, source, steps = held
                options["after_step"] = lambda x, i, t: (
                    repaint.inject(x, source, song.noise, mask, t) if i < steps else x
                )
            velocity = guided(lambda x, t, i, both: model(x, t, current[i], unconditional=both), guidance)
            return sampling.sample(velocity, song.noise, TIMES, seeds=seeds, **options)
        if held is not None:
            held = held[0], held[1], song.noise, held[2]
        later = None if later is None else current[-1]
        advance = stepping(model, current[0], TIMES, songs, guidance, held=held, later=later, switch=1, seeds=seeds)
        return sampling.sample(None, song.noise, TIMES, seeds=seeds, advance=advance, **options)


def stepping(model, conditions, timesteps, songs, guidance, graphs=None, *, held=None, later=None, seeds=None, **rest):
    """What ``Model.advance`` does, with static memory of its own unless ``graphs`` keeps some."""
    given = dict(sde=seeds is not None, repaint=held is not None, later=later)
    shape = Step.shape_of(model, songs, conditions, len(timesteps), guidance, **given)
    graphs = graphs or Graphs(model.norm.device)
    made = graphs.kept("step", shape, lambda: Step(model, shape, graphs))
    return made.load(conditions, timesteps, guidance, held=held, later=later, seeds=seeds, **rest)


@pytest.mark.parametrize(
    "frames, conditions, scale",
    [
        ([62], [20], 1.0),
        ([1], [1], 5.0),
        ([131], [65], 5.0),  # odd, with more tokens than a window and more conditions than a tile of keys
        ([61, 39], [20, 13], 1.0),
        ([61, 39], [20, 13], 5.0),
    ],
)
def test_song_equals_the_references(models, frames, conditions, scale):
    check_song(models, "base", batch(TINY_BASE, frames, conditions), Guidance(scale))


def test_song_of_an_xl_equals_the_references(models):
    check_song(models, "xl", batch(TINY_XL, [31], [20]), Guidance(5.0))


def check_song(models, kind, song, guidance):
    """fp32 to its gate; in bf16 as near to fp32 as the reference's chain of roundings."""
    exact, rounded = (run(models[kind, dtype], song, guidance, static=False) for dtype in DTYPES)
    precise, got = (run(models[kind, dtype], song, guidance, static=True) for dtype in DTYPES)
    assert got.dtype == torch.float32 and got.shape == exact.shape
    assert relative(precise, exact) <= GATE
    assert relative(got, exact) <= max(1.1 * relative(rounded, exact), 4e-3)  # a frame's few numbers are left to chance


def test_a_larger_bucket_changes_no_bit(models, monkeypatch):
    model, song = models["base", torch.bfloat16], batch(TINY_BASE, [61, 39], [20, 13])
    own = run(model, song, Guidance(5.0), static=True)
    monkeypatch.setattr(step, "padded_tokens", padded_tokens)
    assert torch.equal(run(model, song, Guidance(5.0), static=True), own)


@pytest.mark.slow
def test_a_song_of_1500_tokens_is_the_same_bits_in_1536_rows_and_in_2048(monkeypatch):
    config = dataclasses.replace(TINY_BASE, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    model = ours(DiT, config, official_tensors(config), torch.bfloat16)
    song, found = batch(config, [3000], [20]), []
    with torch.inference_mode(), interpreted(checks=False), use_backend("triton"):
        conditions = model.prepare(song.states, None, song.context, null_condition=song.null)
        for rows in (1536, 2048):
            monkeypatch.setattr(step, "padded_tokens", lambda _, rows=rows: rows)
            advance = stepping(model, conditions, [0.5], 1, Guidance(5.0))
            found.append(sampling.sample(None, song.noise, [0.5], advance=advance))
            assert advance.shape.tokens == rows
    assert torch.equal(*found)


def test_a_song_of_a_batch_is_the_song_alone(models):
    model, song = models["base", torch.float32], batch(TINY_BASE, [61, 39], [20, 13])
    together = run(model, song, Guidance(5.0), static=True)
    for b, (T, E) in enumerate(((61, 20), (39, 13))):
        alone = Song(
            song.states[b : b + 1, :E], None, song.context[b : b + 1, :T], None, song.noise[b : b + 1, :T], song.null
        )
        assert relative(together[b : b + 1, :T], run(model, alone, Guidance(5.0), static=True)) <= GATE
        assert torch.equal(together[b, T:], song.noise[b, T:])


@pytest.mark.parametrize(
    "guidance, seeds",
    [
        (Guidance(5.0, "cfg"), None),
        (Guidance(5.0, interval=(0.8, 1.0)), None),
        (Guidance(5.0, interval=(0.0, 0.8), eta=0.5), [3, 2**64 - 1]),
    ],
    ids=["cfg", "first step", "last step, sde"],
)
def test_variants_intervals_and_solvers(models, guidance, seeds):
    model, song = models["base", torch.float32], batch(TINY_BASE, [31, 31], [20, 20])
    solver = "euler" if seeds is None else "sde"
    want, got = (run(model, song, guidance, static=s, seeds=seeds, solver=solver) for s in (False, True))
    assert relative(got, want) <= GATE


def test_repaint_and_a_switch_of_conditions(models):
    model, song, g = (
        models["base", torch.float32],
        batch(TINY_BASE, [31, 31], [20, 20]),
        torch.Generator().manual_seed(1),
    )
    held = (torch.arange(31) > 12, torch.randn(song.noise.shape, generator=g), 1)
    later = torch.randn(2, 7, TINY_BASE.encoder_hidden_size, generator=g)
    want, got = (run(model, song, Guidance(5.0), static=s, held=held, later=later) for s in (False, True))
    assert relative(got, want) <= GATE


@pytest.mark.parametrize("scale", (1.0, 5.0), ids=["plain", "guided"])
def test_hooks_see_and_replace_what_they_would_in_the_references_loop(models, scale):
    model, song = models["base", torch.float32], batch(TINY_BASE, [31, 19], [20, 13])
    seen = {False: [], True: []}

    def hook(static):
        def on_step(info):
            seen[static].append((info.step, info.t, info.latents.clone(), info.denoised))
            return info.latents * 0.5 if info.step == 0 and scale > 1 else None

        return on_step

    want, got = (run(model, song, Guidance(scale), static=s, on_step=hook(s)) for s in (False, True))
    assert relative(got, want) <= GATE
    for (i, t, *theirs), (j, u, *mine) in zip(seen[False], seen[True], strict=True):
        assert (i, t) == (j, u) and all(relative(a, b) <= GATE for a, b in zip(mine, theirs))


def test_sampling_may_begin_at_a_later_step(models):
    model, song = models["base", torch.float32], batch(TINY_BASE, [31], [20])
    want, got = (run(model, song, Guidance(1.0), static=s, start=1) for s in (False, True))
    assert relative(got, want) <= GATE


def test_steps_of_one_song_leave_nothing_to_the_next(models):
    model, song = models["base", torch.bfloat16], batch(TINY_BASE, [31], [20])
    graphs = Graphs(model.norm.device)
    with torch.inference_mode(), interpreted(), use_backend("triton"):
        conditions = model.prepare(song.states, None, song.context, TIMES, null_condition=song.null)
        steps = (stepping(model, conditions, TIMES, 1, Guidance(5.0), graphs) for _ in range(2))
        first, second = (sampling.sample(None, song.noise, TIMES, advance=step) for step in steps)
    assert torch.equal(first, second)


def test_velocity_on_static_buffers_is_a_tensor_of_its_own(models):
    model, song = models["base", torch.float32], batch(TINY_BASE, [31], [20])
    with torch.inference_mode():
        plain = model(song.noise, 0.3, model.prepare(song.states, None, song.context))
        with interpreted(), use_backend("triton"):
            conditions = model.prepare(song.states, None, song.context)
            got = model(song.noise, 0.3, conditions)
            model(song.noise * 2, 0.3, conditions)
    assert relative(got, plain) <= GATE


def test_rows_are_padded_to_tiles():
    assert [padded_tokens(n) for n in (1, 128, 129, 1500, 2048, 2049, 3000)] == [128, 128, 256, 1536, 2048, 2304, 3072]
    assert [padded_conditions(n) for n in (1, 64, 65, 512, 513)] == [64, 64, 128, 512, 768]
