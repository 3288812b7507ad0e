"""linear_int8's CPU kernel at every level of instructions, against the equation in fp64.

tests/cpu/test_engine8.py holds the integers to their last bit.
"""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.ops.linear_int8 import linear_int8, linear_int8_reference
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.int8 import FORMS, GATE, exact, given, relative

extension()
BF16 = torch.bfloat16
CPU_FORMS = [form for form in FORMS if form != "gated by step"]


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def within(shape):
    """A NaN-filled memory and a view of ``shape`` in the midst of it."""
    memory = torch.full((torch.Size(shape).numel() + 128,), torch.nan, dtype=BF16)
    return memory, memory[64:-64].view(shape)


def untouched(memory):
    return bool(memory[:64].isnan().all() and memory[-64:].isnan().all())


@pytest.mark.parametrize("form", CPU_FORMS)
@pytest.mark.parametrize("shape, N", [((1, 64), 32), ((13, 192), 96), ((3, 5, 2048), 160), ((375, 256), 512)], ids=str)
def test_every_form_is_the_equation_in_fp64(isa, form, shape, N, rng):
    operands, options = given(rng, shape, N, form, BF16)
    want = exact(*operands, **options)
    reference = linear_int8_reference(*operands, **{n: t if t is True else t.clone() for n, t in options.items()})
    memory, view = within(want.shape)
    if "residual" in options:
        options["residual"] = view.copy_(options["residual"])
    got = linear_int8(*operands, **options, **({} if "residual" in options else {"out": view}), backend="cpu")
    assert got.data_ptr() == view.data_ptr() and untouched(memory)
    assert relative(got, want) <= min(GATE[BF16], 1.1 * relative(reference, want))


@pytest.mark.parametrize("form", ("gated", "swiglu"))
def test_threads_change_no_bit(threads, form, rng):
    operands, options = given(rng, (70, 320), 192, form, BF16)
    results = []
    for count in (1, 2, 3):
        threads(count)
        own = {n: t if t is True else t.clone() for n, t in options.items()}
        results.append(linear_int8(*operands, **own, backend="cpu"))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_row_has_the_same_bits_in_any_batch(isa, rng):
    (x, x_scale, *rest), _ = given(rng, (29, 128), 64, "bias", BF16)
    alone = torch.cat([linear_int8(x[i : i + 1], x_scale[i : i + 1], *rest, backend="cpu") for i in range(29)])
    assert torch.equal(linear_int8(x, x_scale, *rest, backend="cpu"), alone)


def test_a_poisoned_row_stays_in_its_row(isa, rng):
    (x, x_scale, *rest), _ = given(rng, (20, 64), 64, "swiglu", BF16)
    clean = linear_int8(x, x_scale, *rest, swiglu=True, backend="cpu")
    x_scale[1] = torch.nan
    got = linear_int8(x, x_scale, *rest, swiglu=True, backend="cpu")
    assert got[1].isnan().all() and torch.equal(got[2:], clean[2:]) and torch.equal(got[0], clean[0])


def test_auto_takes_it_on_a_cpu(monkeypatch, rng):
    from acefast.cpu import linear_int8 as cpu

    calls, launch = [], cpu.linear_int8
    monkeypatch.setattr(cpu, "linear_int8", lambda *a, **o: (calls.append(1), launch(*a, **o)))
    operands, _ = given(rng, (3, 64), 32, "plain", BF16)
    linear_int8(*operands)
    linear_int8(*operands, dtype=torch.float32)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "R, K, N, options",
    [
        (5, 32, 16, {}),
        (5, 64, 24, {}),
        (5, 64, 16, {"swiglu": True}),
        (0, 64, 16, {}),
        (5, 64, 16, {"dtype": torch.float32}),
        (5, 64, 16, {"residual": torch.zeros(5, 16, dtype=torch.half)}),
    ],
    ids=("K 32", "N 24", "halves of 8", "empty", "fp32", "fp16 residual"),
)
def test_what_does_not_fit_is_the_references(R, K, N, options):
    x, weight = torch.zeros(R, K, dtype=torch.int8), torch.zeros(N, K, dtype=torch.int8)
    operands = x, torch.ones(R), weight, torch.ones(N)
    with pytest.raises(BackendUnavailable, match=r"linear_int8: .*it has no cpu kernel for this input"):
        linear_int8(*operands, **options, backend="cpu")
    assert not linear_int8(*operands, **options).any()


def test_a_table_of_gates_is_the_references(rng):
    operands, options = given(rng, (5, 64), 32, "gated by step", BF16)
    with pytest.raises(BackendUnavailable, match="it has no cpu kernel for this input"):
        linear_int8(*operands, **options, backend="cpu")
