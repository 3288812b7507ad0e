"""Every case of every kernel on a GPU, at real size: parity, determinism, and the same bits from a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.cases import Arguments, Case, all_cases
from acefast.sim import kernel_times
from acefast.sim.study import errors, largest_error, outputs_of, poison_outputs
from acefast.sim.tensors import copy_of, tensors_of, whole

DEVICE = "cuda"
CASES = [pytest.param(case, id=case.name) for case in all_cases()]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
]


@pytest.fixture(autouse=True)
def fp32_is_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def arguments(case: Case) -> Arguments:
    given = kernel_times.arguments(case, torch.device(DEVICE))
    poison_outputs(case, given)
    return given


def restore(to: Arguments, given: Arguments) -> None:
    """Write the values of ``given`` into the memory of its copy ``to``."""
    for t, source in zip(tensors_of(to), tensors_of(given)):
        whole(t).copy_(whole(source))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def run(case: Case, given: Arguments) -> list[Tensor]:
    case.launch(**given)
    return outputs_of(case, given)


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_reference_in_fp32(case):
    given = arguments(case)
    meant = case.reference(**copy_of(given, torch.float32))
    rounded = (case.plain or case.reference)(**copy_of(given))
    outputs = run(case, given)
    own = errors(case, [r.to(o.dtype) for r, o in zip(rounded, outputs)], meant)
    for error, torchs, output in zip(errors(case, outputs, meant), own, outputs):
        assert error <= largest_error(case, torchs, output.dtype)


@pytest.mark.parametrize("case", CASES)
def test_two_runs_give_the_same_bits(case):
    given = arguments(case)
    once, again = run(case, copy_of(given)), run(case, copy_of(given))
    assert all(map(same_bits, once, again))


@pytest.mark.parametrize("case", CASES)
def test_a_replayed_graph_gives_the_same_bits(case):
    given = arguments(case)
    eager, static = run(case, copy_of(given)), copy_of(given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        case.launch(**static)  # compiled and loaded before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.launch(**static)
    for _ in range(2):
        restore(static, given)
        graph.replay()
        assert all(map(same_bits, outputs_of(case, static), eager))
