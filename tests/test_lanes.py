"""Lanes: one thread at a time, in the order they came; what a GPU has to be done with before the next one."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from acefast.lanes import Lane
from tests.songs import song

CPU = torch.device("cpu")


def started(lane: Lane, work) -> threading.Thread:
    """A thread that is in line for the lane before this returns, or has it."""
    thread = threading.Thread(target=work)
    before = len(lane._line)
    thread.start()
    while len(lane._line) == before and lane._owner is not None and thread.is_alive():
        time.sleep(0.001)
    return thread


def test_one_thread_at_a_time_in_the_order_in_which_they_came():
    lane, order = Lane(CPU), []

    def work(name: str) -> None:
        with lane.work():
            order.append(name)
            time.sleep(0.02)
            order.append(name)

    with lane.work():
        threads = [started(lane, lambda name=name: work(name)) for name in "abc"]
    work("main")  # came last, though it left only now
    for thread in threads:
        thread.join()
    assert order == [*"aabbcc", "main", "main"]


def test_a_thread_may_enter_again_and_leaves_with_the_outermost_block():
    lane, entered = Lane(CPU), threading.Event()

    def work() -> None:
        with lane.work():
            entered.set()

    with lane.work():
        with lane.work(), lane.held():
            pass
        thread = started(lane, work)
        assert not entered.wait(0.05)
    thread.join(10)
    assert entered.is_set()


def test_giving_way_lets_those_in_line_go_first_and_comes_back():
    lane, order = Lane(CPU), []

    def work() -> None:
        with lane.work():
            order.append("other")

    with lane.work():
        lane.give_way()  # nobody waits
        thread = started(lane, work)
        order.append("before")
        lane.give_way()
        order.append("after")
        with lane.work():
            lane.give_way()  # not out of a block within a block
        assert lane._owner == threading.get_ident()
    thread.join(10)
    assert order == ["before", "other", "after"] and lane._owner is None
    lane.give_way()  # of who is not in it: nothing
    assert lane._owner is None


def test_a_lane_that_is_left_within_any_blocks_is_free_and_comes_back_as_it_was():
    lane, order = Lane(CPU), []

    def work() -> None:
        with lane.work():
            order.append("other")

    with lane.work(), lane.work():
        thread = started(lane, work)
        with lane.left():
            thread.join(10)
            with lane.left():  # of who is not in it: nothing
                assert order == ["other"] and lane._owner is None
        assert (lane._owner, lane._depth) == (threading.get_ident(), 2)
        with pytest.raises(ZeroDivisionError), lane.left():
            raise ZeroDivisionError
        assert (lane._owner, lane._depth) == (threading.get_ident(), 2)
    assert lane._owner is None


def test_who_gives_up_waiting_is_out_of_the_line():
    lane, told = Lane(CPU), []

    def give_up() -> None:
        raise InterruptedError

    def work() -> None:
        try:
            with lane.work(give_up):
                told.append("never")
        except InterruptedError:
            told.append("gave up")

    with lane.work():
        thread = started(lane, work)
        thread.join(10)
        assert told == ["gave up"] and not lane._line
    with lane.work():
        pass


def test_who_is_interrupted_while_giving_way_has_left(monkeypatch):
    lane = Lane(CPU)

    def interrupted(waiting) -> None:
        raise KeyboardInterrupt

    other = None
    with pytest.raises(KeyboardInterrupt), lane.work():
        hold = threading.Event()

        def work() -> None:
            with lane.work():
                hold.wait(10)

        other = started(lane, work)
        monkeypatch.setattr(lane, "_enter", interrupted)
        lane.give_way()
    monkeypatch.undo()
    hold.set()
    other.join(10)
    assert lane._owner is None and lane._depth == 0


def test_on_a_gpu_who_leaves_has_waited_for_its_own_stream_and_no_other(monkeypatch):
    """A lane beside others has a stream; the other's launches, on the stream around it, are not waited for."""
    done, gpu = [], torch.device("cuda", 0)
    current = [SimpleNamespace(name="outer", synchronize=lambda: done.append("outer"))]

    class Stream:
        def __init__(self, device) -> None:
            assert device == gpu

        def synchronize(self) -> None:
            done.append("own")

    class Within:
        def __init__(self, stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current.append(self.stream)

        def __exit__(self, *_) -> None:
            current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", Within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    beside = Lane(gpu, beside=True)
    with beside.work():
        assert current[-1] is beside.stream and not done
    assert done == ["own"] and len(current) == 1
    with pytest.raises(ZeroDivisionError), beside.work():
        raise ZeroDivisionError  # what was launched before it may still write
    assert done == ["own", "own"]
    done.clear()
    with beside.held():
        pass
    with Lane(gpu).work():
        pass
    assert done == ["outer", "outer"]


def test_a_songs_stages_wait_for_what_they_launched_and_the_last_one_for_nothing(tiny_pipe, offline, monkeypatch):
    """By then the lane is left, and whatever is on the stream is another thread's."""
    now, waited = [], []
    stream = SimpleNamespace(synchronize=lambda: waited.append(now[-1]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    song(tiny_pipe, steps=1, progress=lambda name, *_: now.append(name))
    assert waited == ["text", "diffusion", "decode"] and now[-1] == "finish"
