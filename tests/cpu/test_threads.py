"""Threads of the CPU's kernels: torch's OpenMP and no other, as many as torch is told, asleep between calls."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from acefast.cpu.extension import threads
from acefast.ops.linear import linear
from tests.cpu.isas import NAMES, at_isa, called, extension, openmp_libraries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the extension is built on Linux")


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def inputs(rows: int = 200, K: int = 256, N: int = 416) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, K, generator=generator).bfloat16() for n in (rows, N))


ONE = """
import torch
from pathlib import Path
from acefast.ops.linear import linear
ones = torch.ones(200, 256, dtype=torch.bfloat16)
linear(ones, ones, backend="cpu")
print(*{path for line in Path("/proc/self/maps").open() if "omp" in Path(path := line.split()[-1]).name})
"""


def test_there_is_one_openmp_in_the_process_and_it_is_torchs():
    cpu = extension()
    done = called(ONE)
    (found,) = done.stdout.split()
    assert found in openmp_libraries(), done.stderr
    assert b"omp.so" not in Path(cpu.__file__).read_bytes()  # it names none, so that it never brings its own


@pytest.mark.parametrize("isa", NAMES)
def test_any_number_of_threads_gives_the_same_bits(isa):
    x, weight = inputs()
    with at_isa(isa):
        found = []
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append(linear(x, weight, backend="cpu"))
    assert all(torch.equal(one, found[0]) for one in found[1:])


ALIVE = """
import os, time, torch
def alive():
    return len(os.listdir("/proc/self/task"))
before = alive()
from acefast.ops.linear import linear
x, weight = torch.ones(200, 256, dtype=torch.bfloat16), torch.ones(416, 256, dtype=torch.bfloat16)
for count in (None, 1, 3, 2):
    if count:
        torch.set_num_threads(count)
    linear(x, weight, backend="cpu")
    ends = time.monotonic() + 1  # one that ends takes a moment to be gone
    while alive() - before > (count or 1) - 1 and time.monotonic() < ends:
        time.sleep(0.01)
    print(alive() - before, end=" ")
"""


@pytest.mark.parametrize("environment, alive", [("1", "0 0 2 1"), ("2", "1 1 2 1")])
def test_threads_are_as_many_as_torch_and_the_environment_say(environment, alive):
    """Threads beside the first: a call with one leaves those that are there asleep, one with fewer ends the rest."""
    extension()
    done = called(ALIVE, OMP_NUM_THREADS=environment)
    assert done.stdout.split() == alive.split(), done.stderr


def test_threads_are_torchs():
    torch.set_num_threads(3)
    assert threads() == 3


def test_nothing_spins_after_a_call():
    x, weight = inputs()
    torch.set_num_threads(3)
    linear(x, weight, backend="cpu")
    used, begun = time.process_time(), time.monotonic()
    time.sleep(0.3)
    assert (time.process_time() - used) / (time.monotonic() - begun) < 0.1


def test_a_forked_child_computes_on_one_thread():
    """gcc's OpenMP has no threads in a fork of a process that had some: torch's ops wait for them for ever, and so
    do ours; with one thread both work."""
    x, weight = inputs()
    torch.set_num_threads(2)
    want = linear(x, weight, backend="cpu")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os._exit(0 if torch.equal(linear(x, weight, backend="cpu"), want) else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")
