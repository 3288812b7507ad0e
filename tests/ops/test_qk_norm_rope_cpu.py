"""qk_norm_rope on the CPU's kernel, at every level of instructions that is here, against complex rotation in fp64."""

from __future__ import annotations

import pytest
import torch

from acefast.backends import BackendUnavailable
from acefast.cpu import qk_norm_rope as launcher
from acefast.ops.qk_norm_rope import qk_norm_rope, rope_table
from tests.cpu.isas import NAMES, at_isa, extension
from tests.ops.test_qk_norm_rope import CPU, check, expected, inputs, relative

BF16 = torch.bfloat16
GATE = 2.5e-3  # relative L2: one rounding
# One row; a task of 8 rows and part of one; a song of 30 s; the widths; no queries, a key and value projection.
SIZES = [
    (1, 1, 2, 1, 128),
    (2, 13, 4, 2, 64),
    (1, 375, 16, 8, 128),
    (2, 9, 3, 3, 32),
    (1, 5, 6, 2, 96),
    (2, 7, 0, 2, 64),
]

extension()


@pytest.fixture(params=NAMES)
def isa(request):
    with at_isa(request.param):
        yield request.param


@pytest.mark.parametrize("B, S, heads, kv_heads, D", [size for size in SIZES if size[2]])
def test_norms_and_rotates_each_head(isa, B, S, heads, kv_heads, D, rng):
    check(B, S, heads, kv_heads, D, BF16, rng, backend="cpu")


@pytest.mark.parametrize("B, S, heads, kv_heads, D", SIZES)
def test_without_a_table_heads_are_normed_alone(isa, B, S, heads, kv_heads, D, rng):
    qkv, q_weight, k_weight = inputs(B, S, heads, kv_heads, D, BF16, rng)
    q, k, v = qk_norm_rope(qkv, q_weight, k_weight, None, None, heads, kv_heads, backend="cpu")
    raw = qkv.unflatten(-1, (-1, D)).split((heads, kv_heads, kv_heads), 2)
    still = torch.zeros(S)
    assert torch.equal(v, raw[2]) and relative(k, expected(raw[1], k_weight, still)) <= GATE
    assert q.shape == raw[0].shape and (not heads or relative(q, expected(raw[0], q_weight, still)) <= GATE)


def test_eps_is_added_to_the_mean_square(isa, rng):
    qkv, q_weight, k_weight = inputs(1, 3, 2, 1, 32, BF16, rng)
    q, _, _ = qk_norm_rope(qkv, q_weight, k_weight, None, None, 2, 1, eps=3.0, backend="cpu")
    assert relative(q, expected(qkv[..., :64].view(1, 3, 2, 32), q_weight, torch.zeros(3), eps=3.0)) <= GATE


@pytest.mark.parametrize("B, S, heads, kv_heads, D", SIZES)
def test_writes_in_place_what_it_writes_elsewhere_and_nothing_else(isa, B, S, heads, kv_heads, D, rng):
    qkv, *weights = inputs(B, S, heads, kv_heads, D, BF16, rng)
    rope, sizes = rope_table(S, D, 1e6, CPU), (heads, kv_heads)
    want = qk_norm_rope(qkv, *weights, *rope, *sizes, backend="cpu")
    width, start = qkv.shape[-1], (heads + kv_heads) * D
    memory = torch.full((B * S + 3, width + 24), torch.nan).to(BF16)
    out = memory[2:-1, 8:-16].unflatten(0, (B, S))
    q, k, v = qk_norm_rope(qkv, *weights, *rope, *sizes, out=out, backend="cpu")
    assert all(map(torch.equal, (q, k, v), want)) and torch.equal(out[..., :start], torch.cat((q, k), 2).flatten(2))
    assert out[..., start:].isnan().all()  # the values' part
    out.copy_(qkv)
    same = qk_norm_rope(out, *weights, *rope, *sizes, out=out, backend="cpu")
    assert all(map(torch.equal, same, want)) and same[1].data_ptr() == out[..., heads * D :].data_ptr()
    out.fill_(torch.nan)
    assert memory.isnan().all()


def test_a_longer_table_and_a_slice_of_one_serve(isa, rng):
    qkv, *weights = inputs(2, 9, 4, 2, 64, BF16, rng)
    cos, sin = rope_table(9, 64, 1e6, CPU)
    both = torch.cat((cos, sin), 1)
    want = qk_norm_rope(qkv, *weights, cos, sin, 4, 2, backend="cpu")
    got = qk_norm_rope(qkv, *weights, both[:, :32], both[:, 32:], 4, 2, backend="cpu")
    assert all(map(torch.equal, got, want))


def test_is_the_same_on_any_number_of_threads(monkeypatch, rng):
    qkv, *weights = inputs(2, 45, 4, 2, 64, BF16, rng)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(launcher, "threads", lambda threads=threads: threads)
        found.append(torch.cat(qk_norm_rope(qkv, *weights, *rope_table(45, 64, 1e6, CPU), 4, 2, backend="cpu")[:2], 2))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    "D, dtype, table",
    [(64, torch.float32, torch.float32), (48, BF16, torch.float32), (160, BF16, torch.float32), (64, BF16, BF16)],
    ids=["fp32", "D 48", "D 160", "a table in bf16"],
)
def test_what_does_not_fit_goes_to_the_reference_unless_the_kernel_is_named(D, dtype, table, rng):
    qkv, *weights = inputs(1, 5, 2, 1, D, dtype, rng)
    args = (qkv, *weights, *(t.to(table) for t in rope_table(5, D, 1e6, CPU)), 2, 1)
    with pytest.raises(BackendUnavailable, match="qk_norm_rope: backend='cpu' cannot run: it has no cpu kernel"):
        qk_norm_rope(*args, backend="cpu")
    assert all(map(torch.equal, qk_norm_rope(*args), qk_norm_rope(*args, backend="reference")))
