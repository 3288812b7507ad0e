"""fsq against the published vectors and by exhaustion."""

from __future__ import annotations

import math

import pytest
import torch

from acefast.ops.fsq import fsq, fsq_values

LEVELS = (8, 8, 8, 5, 5, 5)
STEPS = torch.tensor([-2, -1, -0.5, -0.1, 0, 0.1, 0.5, 1, 2.0])


@pytest.mark.parametrize("levels, want", [(8, [0, 1, 2, 3, 4, 4, 5, 6, 7]), (5, [0, 0, 1, 2, 2, 2, 3, 4, 4])])
def test_scalars_fall_into_the_published_steps(levels, want):
    values, codes = fsq(STEPS[:, None], (levels,))
    assert codes.tolist() == want
    torch.testing.assert_close(values[:, 0], 2 * torch.tensor(want) / (levels - 1) - 1)


@pytest.mark.parametrize(
    "code, values",
    [
        (0, [-1] * 6),
        (63999, [1] * 6),
        (35847, [1, -1, -1, -1, 1, 0]),
        (12345, [2 * n / (L - 1) - 1 for n, L in zip([1, 7, 0, 4, 4, 0], LEVELS)]),
    ],
)
def test_codes_have_the_published_values(code, values):
    torch.testing.assert_close(fsq_values(torch.tensor([code]), LEVELS), torch.tensor([values], dtype=torch.float32))


def test_every_code_survives_the_way_to_values_and_back():
    """The value of a step lies inside the step that the bounded input falls into."""
    codes = torch.arange(math.prod(LEVELS))
    values = fsq_values(codes, LEVELS)
    soft = 1 + 1 / (torch.tensor(LEVELS).double() - 1)
    z = soft * torch.atanh(values.double() / soft)  # what the bound maps to these values
    got_values, got = fsq(z.float(), LEVELS)
    assert torch.equal(got, codes)
    torch.testing.assert_close(got_values, values)


def test_bf16_input_is_quantised_in_fp32(rng):
    z = torch.randn(1000, 6, generator=rng).bfloat16()
    values, codes = fsq(z, LEVELS)
    assert values.dtype == torch.float32
    assert torch.equal(codes, fsq(z.float(), LEVELS)[1])


def test_codes_out_of_range_are_clamped():
    assert torch.equal(fsq_values(torch.tensor([-5, 70000]), LEVELS), fsq_values(torch.tensor([0, 63999]), LEVELS))


def test_wrong_width_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"fsq: z must be \[..., 6\], got \[2, 5\]"):
        fsq(torch.zeros(2, 5), LEVELS)
