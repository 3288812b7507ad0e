"""What the encoders made is kept by content, within bounds; tensors alone."""

from __future__ import annotations

import pytest
import torch

from acefast.conditions import ConditionCache


def states(rows, value=0.0):
    return torch.full((rows, 4), value)


def test_the_same_content_is_made_once_and_is_the_same_tensor():
    cache, made = ConditionCache(), []

    def make():
        made.append(1)
        return states(2)

    first, again, other = (cache.get(key, make) for key in (("a", 1), ("a", 1), ("a", 2)))
    assert first is again and first.states is not other.states and len(made) == 2
    assert first.serial != other.serial


def test_what_was_not_used_for_longest_is_forgotten_first():
    cache = ConditionCache(limit=3 * states(2).nbytes)
    a, _, c = (cache.get(key, lambda: states(2)) for key in "abc")
    assert cache.get("a", lambda: states(2)) is a
    cache.get("d", lambda: states(2))
    assert cache.bytes == cache.limit
    assert cache.get("a", lambda: states(2)) is a and cache.get("c", lambda: states(2)) is c
    assert cache.get("b", lambda: states(2)).serial > c.serial


def test_what_is_larger_than_all_is_made_each_time():
    cache = ConditionCache(limit=states(1).nbytes)
    first, again = (cache.get("a", lambda: states(2)) for _ in range(2))
    assert first.serial != again.serial and cache.bytes == 0


def test_what_is_made_anew_has_another_serial():
    cache = ConditionCache()
    first = cache.get("a", lambda: states(2))
    cache.clear()
    assert cache.bytes == 0 and cache.get("a", lambda: states(2)).serial != first.serial


def test_a_failure_leaves_nothing_behind():
    cache = ConditionCache()
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert cache.bytes == 0 and float(cache.get("a", lambda: states(1, 2.0)).states[0, 0]) == 2.0
