"""linear_int8 against its equation in fp64, in each of its forms."""

from __future__ import annotations

import pytest
import torch

from acefast.ops.linear import linear
from acefast.ops.linear_int8 import LONGEST, int_product, linear_int8, quantize_weight
from acefast.ops.quantize_rows import quantize_rows
from tests.ops.int8 import FORMS, GATE, exact, given, relative

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (2, 5, 256)], ids=str)
def test_every_form_is_the_equation_in_fp64(shape, form, dtype, rng):
    operands, options = given(rng, shape, 24, form, dtype)
    want = exact(*operands, **options)
    got = linear_int8(*operands, **options, dtype=dtype)
    assert got.dtype == dtype and got.shape == want.shape and relative(got, want) <= GATE[dtype]
    assert ("residual" in options) == (got is options.get("residual"))


def test_a_product_is_as_near_to_the_layer_as_eight_bits_are(rng):
    """1.2e-2 by the specification of the kernel, which measured rows of a normal distribution."""
    x, weight = torch.randn(50, 512, generator=rng), torch.randn(64, 512, generator=rng)
    y = linear_int8(*quantize_rows(x), *quantize_weight(weight), dtype=torch.float32)
    assert 5e-3 < relative(y, linear(x, weight).double()) < 1.5e-2


@pytest.mark.parametrize("R, K, N", [(1, 8, 8), (17, 64, 16), (3, 5, 7), (2, 1, 24), (0, 8, 8)])
def test_sums_are_exact(R, K, N, rng):
    x, weight = (torch.randint(-128, 128, (n, K), generator=rng, dtype=torch.int8) for n in (R, N))
    found = int_product(x, weight)
    assert found.dtype == torch.int32 and torch.equal(found.long(), x.long() @ weight.long().T)


def test_the_gate_comes_first():
    one = torch.ones(1)
    x, weight = torch.tensor([[0, 5]], dtype=torch.int8), torch.eye(2, dtype=torch.int8)
    assert linear_int8(x, one, weight, torch.ones(2), swiglu=True).item() == 0
    x = torch.tensor([[20, 3]], dtype=torch.int8)
    assert linear_int8(x, one, weight, torch.ones(2), swiglu=True).item() == pytest.approx(60)


def test_a_poisoned_row_stays_in_its_row(rng):
    (x, x_scale, *rest), _ = given(rng, (4, 32), 16, "plain", torch.bfloat16)
    clean = linear_int8(x, x_scale, *rest)
    x_scale[2] = torch.nan
    got = linear_int8(x, x_scale, *rest)
    assert got[2].isnan().all() and torch.equal(got[[0, 1, 3]], clean[[0, 1, 3]])


def test_results_go_where_they_are_wanted(rng):
    operands, _ = given(rng, (2, 3, 32), 16, "plain", torch.float16)
    out = torch.empty(2, 3, 16, dtype=torch.float16)
    assert linear_int8(*operands, out=out) is out
    assert torch.equal(out, linear_int8(*operands, dtype=torch.float16))
    half = torch.empty(2, 3, 8)
    assert torch.equal(linear_int8(*operands, swiglu=True, out=half), half)


@pytest.mark.parametrize("swiglu", (False, True))
def test_it_is_one_call_to_the_compiler(swiglu, rng):
    operands, _ = given(rng, (4, 32), 16, "bias", torch.bfloat16)

    def twice(*operands):
        return 2 * linear_int8(*operands, swiglu=swiglu, dtype=torch.float16)

    assert torch.equal(torch.compile(twice, fullgraph=True, backend="aot_eager")(*operands), twice(*operands))
    torch.library.opcheck(torch.ops.acefast.linear_int8.default, operands, {"swiglu": swiglu})


def test_wrong_arguments_are_refused_with_a_sentence(rng):
    (x, x_scale, weight, weight_scale), _ = given(rng, (3, 32), 16, "plain", torch.bfloat16)
    y, gate = torch.zeros(3, 16), torch.zeros(16)
    for arguments, options, words in (
        ((x, x_scale, weight[:, :16].contiguous(), weight_scale), {}, r"weight must be \[N, K\] = \[any, 32\], got"),
        ((x.float(), x_scale, weight, weight_scale), {}, "x must be torch.int8, got torch.float32"),
        ((x, x_scale[:2], weight, weight_scale), {}, r"x_scale must be \[...\] = \[3\], got \[2\]"),
        ((x, x_scale, weight, weight_scale.half()), {}, "weight_scale must be torch.float32, got torch.float16"),
        ((x, x_scale, weight, weight_scale[:3]), {}, r"weight_scale must be \[N\] = \[16\], got \[3\]"),
        ((x, x_scale, weight, weight_scale, gate.half()), {}, "bias must be torch.float32, got torch.float16"),
        ((x.T.contiguous().T, x_scale, weight, weight_scale), {}, "x must be contiguous"),
        ((x, x_scale, weight[:15], weight_scale[:15]), {"swiglu": True}, "swiglu needs an even N and no residual"),
        ((x, x_scale, weight, weight_scale), {"swiglu": True, "residual": y}, "swiglu needs an even N and no residual"),
        ((x, x_scale, weight, weight_scale), {"gate": gate}, "gate needs a residual"),
        ((x, x_scale, weight, weight_scale), {"residual": y, "out": y}, "residual is written itself; it excludes out"),
        ((x, x_scale, weight, weight_scale), {"out": y[:2]}, r"out must be \[..., N\] = \[3, 16\], got \[2, 16\]"),
        ((x, x_scale, weight, weight_scale), {"out": y, "swiglu": True}, r"out must be \[..., N / 2\] = \[3, 8\]"),
        ((x, x_scale, weight, weight_scale), {"out": y, "dtype": torch.half}, "out must be torch.float16, got torch.f"),
        ((x, x_scale, weight, weight_scale), {"residual": y, "gate": gate.half()}, "gate must be torch.float32, got"),
        (
            (x, x_scale, weight, weight_scale),
            {"residual": y, "gate": gate, "step": torch.zeros(1, dtype=torch.int32)},
            r"gate must be \[steps, N\]",
        ),
    ):
        with pytest.raises(ValueError, match=f"linear_int8: {words}"):
            linear_int8(*arguments, **options)
    long = torch.zeros(1, LONGEST, dtype=torch.int8)
    with pytest.raises(ValueError, match="linear_int8: K must be below 131072"):
        linear_int8(long, torch.ones(1), long, torch.ones(1))
