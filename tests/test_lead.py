"""The queue between a thread that makes and one that takes: bounded, in order, stopped at any time."""

from __future__ import annotations

import threading
import time

import pytest

from acefast.lead import Lead, Stopped


def started(lead: Lead, work) -> threading.Thread:
    thread = threading.Thread(target=lead.run, args=(work,), daemon=True)
    thread.start()
    return thread


def until(true, seconds: float = 20.0) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize(("ahead", "ready"), [(0, 1), (2, 2), (2.5, 3), (100, 10)])
def test_work_goes_on_until_so_many_seconds_are_ready(ahead, ready):
    lead, made = Lead(ahead), []

    def work() -> None:
        for i in range(10):
            lead.put(i, 1.0)
            made.append(i)

    thread = started(lead, work)
    for taken in range(10):
        until(lambda taken=taken: len(made) == min(taken + ready, 10))
        time.sleep(0.01)
        assert len(made) == min(taken + ready, 10)
        assert lead.get() == taken
    assert lead.get() is None and lead.get() is None
    thread.join(20)
    assert not thread.is_alive()


def test_a_failure_comes_after_what_was_made_before_it_and_once():
    lead = Lead(10)

    def work() -> None:
        lead.put("made", 1.0)
        raise KeyError("lost")

    started(lead, work)
    assert lead.get() == "made"
    with pytest.raises(KeyError, match="lost"):
        lead.get()
    assert lead.get() is None


def test_stop_ends_a_thread_that_waits_for_room_and_one_that_asks():
    for step in ("put", "check"):
        lead, entered, ended = Lead(0), threading.Event(), []

        def work(lead=lead, step=step, entered=entered, ended=ended) -> None:
            try:
                while True:
                    entered.set()
                    lead.put(0, 1.0) if step == "put" else lead.check()
            except Stopped:
                ended.append(True)
                raise

        thread = started(lead, work)
        assert entered.wait(20)
        lead.stop()
        thread.join(20)
        assert ended and not thread.is_alive() and lead.get() is None
