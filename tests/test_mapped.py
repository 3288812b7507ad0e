"""Memory of weights that are views of a file."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import safe_open, save_file
from torch import nn

from acefast.mapped import joined, only_while_used
from acefast.panels import hold_panels, to_panels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux only")
SIDE = 1024  # a weight of 4 MiB
POPULATE_READ_IS_KNOWN = tuple(map(int, platform.release().split(".")[:2])) >= (5, 14)


def resident(tensor: torch.Tensor) -> int:
    """Bytes of the mapping around ``tensor`` that are in memory."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            first, last = (int(address, 16) for address in words[0].split("-"))
            here = first <= tensor.data_ptr() < last
        elif here and words[0] == "Rss:":
            return 1024 * int(words[1])
    raise AssertionError("it is not mapped")


@pytest.fixture
def layer(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.arange(SIDE * SIDE, dtype=torch.float32).view(SIDE, SIDE) / SIDE**2}, path)
    found = nn.Linear(SIDE, SIDE, bias=False)
    with safe_open(path, "pt") as file:
        found.weight = nn.Parameter(file.get_tensor("weight"), requires_grad=False)
    return found, path


def test_what_a_layer_has_read_is_given_back_and_read_again(layer):
    layer, path = layer
    x = torch.ones(2, SIDE)
    want = layer(x)
    assert resident(layer.weight) > 4_000_000
    only_while_used([layer], [path])
    for _ in range(2):
        assert torch.equal(layer(x), want)
        assert resident(layer.weight) < 200_000


def test_what_now_lies_in_panels_is_given_back_and_nothing_else(layer):
    layer, path = layer
    weight, want, own = layer.weight, to_panels(layer.weight), nn.Linear(SIDE, SIDE)
    kept = own.weight.clone()
    for each in (layer, own):
        each.in_panels = ("weight",)
        hold_panels(each, [path])
    assert torch.equal(layer.weight, want) and torch.equal(own.weight, to_panels(kept))
    assert resident(weight) < 200_000
    assert torch.equal(to_panels(weight), want)  # the file's again


def test_a_layer_has_its_weights_before_it_runs(layer):
    layer, path = layer
    only_while_used([layer], [path])
    found = []
    layer.register_forward_pre_hook(lambda *_: found.append(resident(layer.weight)))
    layer(torch.ones(2, SIDE))
    if POPULATE_READ_IS_KNOWN:
        assert found[0] > 4_000_000


def test_neighbours_are_one_range():
    assert joined([(8, 16), (0, 8), (20, 24), (24, 32)]) == [(0, 16), (20, 32)]
    assert joined([]) == []


def test_what_was_written_is_kept(layer):
    layer, path = layer
    only_while_used([layer], [path])
    layer.weight.zero_()
    layer(torch.ones(2, SIDE))
    assert not layer.weight.any()


def test_what_may_have_been_written_is_kept(layer):
    layer, path = layer
    with torch.inference_mode(), safe_open(path, "pt") as file:
        layer.weight = nn.Parameter(file.get_tensor("weight"), requires_grad=False)
        only_while_used([layer], [path])
        layer.weight.zero_()
        layer(torch.ones(2, SIDE))
    assert not layer.weight.any()


def test_memory_that_is_no_files_is_left_alone(layer):
    _, path = layer
    own = nn.Linear(64, 64)
    want = own.weight.clone()
    only_while_used([own], [path])
    own(torch.ones(1, 64))
    assert torch.equal(own.weight, want) and not own._forward_hooks and not own._forward_pre_hooks
