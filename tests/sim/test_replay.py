"""The recorder: what is replayed equals what ran, on the buffers it was recorded with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from acefast.sim.replay import Recording


class Block(torch.nn.Module):
    """A pre-norm transformer layer whose step counter lives on the device."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.qkv, self.o, self.up, self.down = (
            torch.nn.Parameter(torch.randn(o, i, generator=g) / i**0.5, requires_grad=False)
            for o, i in ((96, 32), (32, 32), (64, 32), (32, 64))
        )
        self.times, self.step = torch.linspace(1, 0, 9), torch.zeros(1, dtype=torch.int64)

    def forward(self, x):
        h = F.rms_norm(x, x.shape[-1:]) * self.times.index_select(0, self.step)
        q, k, v = F.linear(h, self.qkv).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + F.linear(h, self.o)
        x = x + F.linear(F.silu(F.linear(F.rms_norm(x, x.shape[-1:]), self.up)), self.down)
        self.step += 1
        return x, {"mean": x.mean(1)}


@pytest.fixture
def recorded(rng):
    block, x = Block(), torch.randn(2, 5, 32, generator=rng)
    return block, x, Recording(lambda: block(x))


def test_replay_equals_eager(recorded, rng):
    block, x, recording = recorded
    eager = Block()
    for _ in range(4):  # the counter goes on, and so do the inputs
        got, want = recording.replay(), eager(x)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1]["mean"], want[1]["mean"])
        x.copy_(torch.randn(x.shape, generator=rng))
    assert block.step.item() == 4


def test_recording_runs_nothing(recorded):
    block, _, recording = recorded
    assert block.step.item() == 0
    assert recording.outputs[0].isnan().all()


def test_view_of_an_output_changes_under_the_next_replay_and_a_clone_does_not(recorded):
    _, x, recording = recorded
    view = recording.replay()[0][:, 0]
    clone, before = view.clone(), view.tolist()
    x.mul_(-1)
    recording.replay()
    assert view.tolist() != before
    assert clone.tolist() == before


def test_replay_keeps_what_was_bound_when_it_was_recorded():
    holder = SimpleNamespace(x=torch.ones(3), factor=2.0)
    old = holder.x
    recording = Recording(lambda: holder.x * holder.factor)
    holder.x, holder.factor = torch.full((3,), 5.0), 3.0
    assert recording.replay().tolist() == [2.0] * 3
    old.fill_(4)
    assert recording.replay().tolist() == [8.0] * 3


def test_recording_takes_shape_changes_in_place_and_writes_to_views():
    x, out = torch.arange(6.0), torch.zeros(2, 3)

    def step():
        y = x * 2
        y.unsqueeze_(0)
        out[1:] = y[:, :3]
        out[out > 8] = -1
        return torch.cat((y, y))

    recording = Recording(step)
    assert out.tolist() == [[0] * 3] * 2
    x.add_(2)
    got = recording.replay()
    assert out.tolist() == [[0, 0, 0], [4, 6, 8]] and got.shape == (2, 6) and got[1].tolist() == (x * 2).tolist()


def test_table_cached_while_recording_is_garbage_until_replay():
    x, cache = torch.ones(3), {}
    recording = Recording(lambda: cache.setdefault("table", x * 2) + x)
    assert cache["table"].isnan().all()
    assert recording.replay().tolist() == [3.0] * 3
