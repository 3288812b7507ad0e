"""The diffusion transformer against diffusers' with the same weights, and the savings against computing everything."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from acefast.models.v15 import layers, names
from acefast.models.v15.dit import DiT
from acefast.models.v15.layers import model_time, time_features
from tests.models.fill import TINY, TINY_XL, diffusers, official_tensors, ours, relative

CONFIGS = {"2B": TINY, "XL": TINY_XL}
GATE = 1e-5  # relative L2 in fp32: two orders of summation
LONG = 621  # frames: 311 tokens, so that the window of 128 hides some, and the last one is half empty
TIME = 0.7


def inputs(config, batch=1, frames=LONG, conditions=37, seed=1):
    g = torch.Generator().manual_seed(seed)
    C, W = config.audio_acoustic_hidden_dim, config.encoder_hidden_size
    shapes = ((batch, frames, C), (batch, frames, 2 * C), (batch, conditions, W))
    return [torch.randn(shape, generator=g) for shape in shapes]


def upstream(model, latents, context, encoder_hidden_states, t=TIME):
    time = torch.full((len(latents),), t)
    return model(latents, time, time, encoder_hidden_states, context, return_dict=False)[0]


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    config = CONFIGS[request.param]
    tensors = official_tensors(config)
    return config, ours(DiT, config, tensors), diffusers("transformer", config, tensors), tensors


@pytest.mark.parametrize("t", (1.0, TIME, 0.125))
@pytest.mark.parametrize("batch, frames", [(1, LONG), (2, 620), (1, 1), (2, 7), (1, 258)])
def test_velocity_equals_diffusers(pair, batch, frames, t):
    config, mine, theirs, _ = pair
    latents, context, states = inputs(config, batch, frames)
    got = mine(latents, t, mine.prepare(states, None, context))
    want = upstream(theirs, latents, context, states, t)
    assert got.shape == want.shape and got.dtype == torch.float32
    assert relative(got, want) <= GATE


def test_every_layer_equals_diffusers(pair):
    config, mine, theirs, _ = pair
    latents, context, states = inputs(config)
    got, want = [], []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: got.append(out[0] + out[1] * out[2])) for layer in mine.layers
    ]
    hooks += [layer.register_forward_hook(lambda _, __, out: want.append(out)) for layer in theirs.layers]
    mine(latents, TIME, mine.prepare(states, None, context))
    upstream(theirs, latents, context, states)
    for hook in hooks:
        hook.remove()
    assert len(got) == len(want) == config.num_hidden_layers
    assert max(relative(a, b) for a, b in zip(got, want)) <= GATE


def test_window_matters_at_the_length_tested(pair):
    config, mine, _, tensors = pair
    latents, context, states = inputs(config)
    wide = ours(DiT, dataclasses.replace(config, sliding_window=1000), tensors)
    a, b = (m(latents, TIME, m.prepare(states, None, context)) for m in (mine, wide))
    assert relative(a, b) > 1e-3


def test_guidance_pair_equals_two_runs_of_diffusers(pair):
    config, mine, theirs, _ = pair
    latents, context, states = inputs(config, batch=2)
    null = torch.randn(1, 1, config.encoder_hidden_size)
    conditions = mine.prepare(states, None, context, null_condition=null)
    conditional, unconditional = mine(latents, TIME, conditions, unconditional=True)
    assert relative(conditional, upstream(theirs, latents, context, states)) <= GATE
    assert relative(unconditional, upstream(theirs, latents, context, null.expand_as(states))) <= GATE
    assert relative(mine(latents, TIME, conditions), conditional) <= 1e-6


def test_unconditional_shortcut_equals_attending_to_the_null_condition(pair):
    config, mine, _, _ = pair
    latents, context, states = inputs(config, frames=64)
    null = torch.randn(1, 1, config.encoder_hidden_size)
    _, shortcut = mine(latents, TIME, mine.prepare(states, None, context, null_condition=null), unconditional=True)
    full = mine(latents, TIME, mine.prepare(null.expand_as(states), None, context))
    assert relative(shortcut, full) <= GATE


def test_unconditional_without_null_condition_is_refused(pair):
    config, mine, _, _ = pair
    latents, context, states = inputs(config, frames=8)
    with pytest.raises(ValueError, match="null_condition"):
        mine(latents, TIME, mine.prepare(states, None, context), unconditional=True)


def test_wrong_shapes_are_refused_with_a_sentence(pair):
    config, mine, _, _ = pair
    latents, context, states = inputs(config, frames=8)
    with pytest.raises(ValueError, match="DiT: context must be"):
        mine.prepare(states, None, context[..., 1:])
    with pytest.raises(ValueError, match="DiT: latents must be"):
        mine(latents[:, 1:], TIME, mine.prepare(states, None, context))


def test_songs_of_a_batch_do_not_depend_on_each_other(pair):
    """Unequal conditions, whose padding is poisoned, and unequal lengths, odd and even, guided and not."""
    config, mine, _, _ = pair
    latents, context, states = inputs(config, batch=3)
    lengths, frames = torch.tensor([37, 12, 1]), torch.tensor([LONG, 400, 333])
    poisoned = states.clone()
    for b, n in enumerate(lengths):
        poisoned[b, n:] = float("nan")
    null = torch.randn(1, 1, config.encoder_hidden_size)
    batch = mine.prepare(poisoned, lengths, context, null_condition=null, frames=frames)
    together = mine(latents, TIME, batch, unconditional=True)
    for b in range(3):
        T, E = frames[b], lengths[b]
        alone = mine.prepare(states[b : b + 1, :E], None, context[b : b + 1, :T], null_condition=null)
        for got, want in zip(together, mine(latents[b : b + 1, :T], TIME, alone, unconditional=True)):
            assert relative(got[b : b + 1, :T], want) <= GATE
            assert not got[b, T:].any()


def test_one_set_of_conditions_serves_several_latents(pair):
    config, mine, _, _ = pair
    latents, _, _ = inputs(config, batch=3, frames=50)
    _, context, states = inputs(config, batch=1, frames=50)
    null = torch.randn(1, 1, config.encoder_hidden_size)
    shared = mine.prepare(states, None, context, null_condition=null)
    copied = mine.prepare(states.expand(3, -1, -1), None, context.expand(3, -1, -1), null_condition=null)
    for got, want in zip(
        mine(latents, 1.0, shared, unconditional=True), mine(latents, 1.0, copied, unconditional=True)
    ):
        assert relative(got, want) <= 1e-6


def test_schedule_prepared_at_once_gives_the_same_modulations(pair):
    config, _, _, tensors = pair
    _, context, states = inputs(config, frames=8)
    schedule = [1.0, 0.9, 0.5, 0.125]
    model = ours(DiT, config, tensors)
    together = model.prepare(states, None, context, schedule).prepared["times"]
    for t in schedule:
        got, want = together[t], model.modulations([t])
        assert relative(got.layers, want.layers[0]) <= 1e-6 and relative(got.out, want.out[0]) <= 1e-6


def test_a_step_computes_time_and_conditions_only_once(pair, monkeypatch):
    config, _, _, tensors = pair
    model = ours(DiT, config, tensors)
    latents, context, states = inputs(config, frames=8)
    conditions = model.prepare(states, None, context, [1.0, 0.5])
    for part in (model.time, model.time_r, model.condition):
        monkeypatch.setattr(part, "forward", lambda *_: pytest.fail("computed again in a step"))
    model(latents, 1.0, conditions)
    model(latents, 0.5, conditions)


def test_a_step_never_synchronises_with_the_host_nor_builds_a_square(pair):
    config, mine, _, _ = pair
    latents, context, states = inputs(config, batch=2)
    conditions = mine.prepare(states, torch.tensor([37, 20]), context, [TIME], frames=torch.tensor([LONG, 500]))
    S = -(-LONG // 2)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func) and "nonzero" not in str(func)
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                assert not isinstance(tensor, torch.Tensor) or list(tensor.shape[-2:]) != [S, S]
            return out

    with Watch():
        mine(latents, TIME, conditions)


@pytest.mark.parametrize(
    "times, features",
    [
        ([1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125], [1000, 876, 752, 624, 500, 376, 250, 125]),
        (
            [1, 14 / 15, 6 / 7, 10 / 13, 2 / 3, 6 / 11, 0.4, 2 / 9],
            [1000, 932, 856, 768, 668, 548, 400, 223],
        ),
        ([1, 21 / 22, 0.9, 5 / 6, 0.75, 9 / 14, 0.5, 0.3], [1000, 952, 900, 832, 752, 644, 500, 300]),
    ],
    ids=["shift1", "shift2", "shift3"],
)
def test_upstream_times_are_rounded_twice(times, features):
    assert [model_time(t, torch.bfloat16, upstream=True) for t in times] == features
    assert model_time(21 / 22, torch.bfloat16) == pytest.approx(954.5454, abs=1e-3)


def test_upstream_time_changes_a_bf16_model_and_not_an_fp32_one():
    tensors = official_tensors(TINY)
    latents, context, states = inputs(TINY, frames=8)
    for dtype, changes in ((torch.bfloat16, True), (torch.float32, False)):
        model = ours(DiT, TINY, tensors, dtype)
        a, b = (
            model(latents, 21 / 22, model.prepare(states, None, context, upstream_time=flag)) for flag in (False, True)
        )
        assert bool((a != b).any()) == changes


def test_timestep_features_are_cosines_then_sines():
    f = time_features(torch.tensor([1000.0, 952.0, 0.0]))
    want = [0.56237906, 0.78962666, 0.43992788, 0.99423164, 0.82687956, 0.61358762, -0.89803308, 0.10725405]
    torch.testing.assert_close(f[0, [0, 1, 2, 127, 128, 129, 130, 255]], torch.tensor(want), rtol=0, atol=1e-6)
    torch.testing.assert_close(f[1, [0, 128]], torch.tensor([-0.99525785, -0.09727191]), rtol=0, atol=1e-6)
    assert f[2].tolist() == [1.0] * 128 + [0.0] * 128


def test_time_embeddings_are_computed_in_fp32_from_a_few_rows_of_a_weight_at_a_time(monkeypatch, rng):
    monkeypatch.setattr(layers, "WIDENED", 48)  # 6 * 32 outputs: four slices; 32: one that is not full
    embedding, times = layers.TimeEmbedding(32).bfloat16(), torch.tensor([0.0, 125.0, 1000.0])
    for parameter in embedding.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng) / parameter.shape[-1] ** 0.5)
    made, widen = [], torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda t: made.append(len(t)) or widen(t))
    hidden, vectors = embedding(times)
    monkeypatch.undo()
    assert max(made) == 48
    want = time_features(times).double()
    for i, layer in enumerate((embedding.linear_1, embedding.linear_2, embedding.project)):
        last, want = want, F.linear(F.silu(want) if i else want, layer.weight.double(), layer.bias.double())
    assert hidden.dtype == vectors.dtype == torch.float32 and vectors.shape == (3, 6, 32)
    assert relative(hidden, last) <= 1e-6 and relative(vectors.flatten(1), want) <= 1e-6


@pytest.mark.parametrize("dtype, gate", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str)
def test_sixteen_bit_models_stay_near_fp32(pair, dtype, gate):
    """All layers together; single ops have the tight gates."""
    config, _, _, tensors = pair
    latents, context, states = inputs(config)
    tensors = {name: t.to(dtype).float() for name, t in tensors.items()}
    exact, half = ours(DiT, config, tensors), ours(DiT, config, tensors, dtype)
    null = torch.randn(1, 1, config.encoder_hidden_size)
    want = exact(latents, TIME, exact.prepare(states, None, context, null_condition=null), unconditional=True)
    got = half(latents, TIME, half.prepare(states, None, context, null_condition=null), unconditional=True)
    for a, b in zip(got, want):
        assert a.dtype == torch.float32 and relative(a, b) <= gate


def test_bf16_is_as_close_to_fp32_as_diffusers(pair):
    config, _, _, tensors = pair
    latents, context, states = (x.bfloat16().float() for x in inputs(config))
    tensors = {name: t.bfloat16().float() for name, t in tensors.items()}
    want = upstream(diffusers("transformer", config, tensors), latents, context, states, 0.5)
    theirs = diffusers("transformer", config, tensors).bfloat16()
    half = torch.full((1,), 0.5, dtype=torch.bfloat16)
    rounded = theirs(*(x.bfloat16() for x in (latents, half, half, states, context)), return_dict=False)[0]
    mine = ours(DiT, config, tensors, torch.bfloat16)
    assert relative(mine(latents, 0.5, mine.prepare(states, None, context)), want) <= 1.1 * relative(rounded, want)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_official_tensor_is_used_exactly_once(config):
    used = [name for source in DiT.weight_table(config).values() for name in source.names]
    assert sorted(used) == sorted(names.transformer_tensors(config))
