"""What is kept of static memory, and what becomes of a graph: without a GPU, captured by ``acefast.sim.replay``."""

from __future__ import annotations

import logging

import pytest
import torch

from acefast import graphs as graphs_module
from acefast.graphs import Graphs
from acefast.sim.replay import Recording


class Entry:
    pass


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(graphs_module, "captured", lambda launch, graphs: Recording(launch))
    made = Graphs(torch.device("cpu"), limit=2)
    made.enabled = True
    return made


def test_the_first_call_launches_and_captures_and_later_ones_replay(graphs):
    x, calls = torch.zeros(3), []
    add = graphs.replayed("add", lambda: (calls.append(1), x.add_(1)))
    for _ in range(4):
        add()
    assert torch.equal(x, torch.full((3,), 4.0)) and len(calls) == 2  # launched, then recorded


@pytest.mark.parametrize("enabled", [None, True, False])
def test_off_a_gpu_or_turned_off_every_call_launches(enabled, monkeypatch):
    monkeypatch.setattr(graphs_module, "captured", lambda *_: pytest.fail("captured"))
    assert not Graphs(torch.device("cpu"), enabled=enabled).enabled
    assert Graphs(torch.device("cuda"), enabled=enabled).enabled == (enabled is not False)
    monkeypatch.setenv("ACEFAST_GRAPHS", "0")
    assert Graphs(torch.device("cuda"), enabled=enabled).enabled == (enabled is True)
    graphs, calls = Graphs(torch.device("cuda"), enabled=False), []
    launch = graphs.replayed("launch", lambda: calls.append(1))
    launch(), launch()
    assert len(calls) == 2 and graphs.failed == []


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted\nwhen stream is capturing"), ValueError("no")])
def test_a_failed_capture_is_one_line_of_the_log_and_every_call_launches(graphs, monkeypatch, caplog, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(graphs_module, "captured", fails)
    calls = []
    launch = graphs.replayed("step", lambda: calls.append(1))
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            launch()
    (record,) = caplog.records
    assert len(calls) == 3 and graphs.failed == ["step"] and record.levelname == "WARNING" and record.name == "acefast"
    start = "step cannot be captured as a CUDA graph and is launched each time: "
    assert record.getMessage() == start + " ".join(str(error).split())


def test_what_a_launch_raises_is_raised(graphs):
    def launch():
        raise ValueError("a shape")

    with pytest.raises(ValueError, match="a shape"):
        graphs.replayed("step", launch)()
    assert graphs.failed == []


def test_the_least_recently_used_entry_of_a_name_is_forgotten(graphs):
    made = {}

    def kept(name, key):
        return graphs.kept(name, key, lambda: made.setdefault((name, key), []).append(1) or Entry())

    a = kept("step", "a")
    kept("step", "b"), kept("tile", "c")
    assert kept("step", "a") is a
    kept("step", "d")  # b goes
    assert kept("step", "a") is a
    kept("step", "b")
    assert {key: len(times) for key, times in made.items()} == {
        ("step", "a"): 1, ("step", "b"): 2, ("tile", "c"): 1, ("step", "d"): 1,
    }  # fmt: skip


def test_pinned_entries_stay(graphs):
    with graphs.pinning():
        pinned = [graphs.kept("step", key, Entry) for key in range(4)]
    assert pinned[0] is graphs.kept("step", 0, Entry)
    loose = [graphs.kept("step", key, Entry) for key in "abc"]
    assert [graphs.kept("step", key, Entry) for key in range(4)] == pinned
    assert loose[2] is graphs.kept("step", "c", Entry) and loose[0] is not graphs.kept("step", "a", Entry)


def test_smaller_entries_have_the_first_bytes_of_the_arena_and_a_larger_one_makes_it_anew(graphs):
    large = graphs.kept("step", "large", lambda: graphs.arena(1000))
    small = graphs.kept("tile", "small", lambda: graphs.arena(10))
    assert large.data_ptr() == small.data_ptr() and (len(large), len(small)) == (1000, 10)
    assert graphs.arena_bytes == 1000 and not large.is_inference()
    larger = graphs.kept("step", "larger", lambda: graphs.arena(1001))
    assert len(larger) == graphs.arena_bytes == 1001
    assert graphs.kept("step", "larger", Entry) is larger
    assert isinstance(graphs.kept("step", "large", Entry), Entry) and isinstance(
        graphs.kept("tile", "small", Entry), Entry
    )


def test_an_entry_is_told_whether_another_has_taken_the_arena(graphs):
    a, b = Entry(), Entry()
    assert [graphs.take(entry) for entry in (a, a, b, b, a)] == [False, True, False, True, False]
    del a
    assert not graphs.take(b)


def test_what_a_caller_does_amid_a_song_has_other_memory(graphs):
    mine = graphs.kept("step", "a", lambda: graphs.arena(100))
    entry = Entry()
    graphs.take(entry)
    with graphs.apart():
        other = graphs.kept("step", "a", lambda: graphs.arena(200))
        assert other is not mine and not graphs.take(Entry())
    assert graphs.kept("step", "a", Entry) is mine and graphs.take(entry) and graphs.arena_bytes == 100


def test_clear_forgets_one_name_or_all(graphs):
    entries = {name: graphs.kept(name, 1, Entry) for name in ("step", "tile")}
    graphs.clear("tile"), graphs.clear("none of this name")
    assert graphs.kept("step", 1, Entry) is entries["step"] and graphs.kept("tile", 1, Entry) is not entries["tile"]
    graphs.clear()
    assert graphs.kept("step", 1, Entry) is not entries["step"]
