"""qk_norm_rope's CUDA kernel: what is launched, and its PTX in the simulator against rotation in fp64.

Its warps neither meet nor wait. tests/kernels has its costs, tests/gpu/test_cuda_rows_gpu.py all of it on a GPU.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.9", reason="triton 3.9 is not installed")

from acefast.backends import BackendUnavailable
from acefast.cuda import toolkit
from acefast.cuda.qk_norm_rope import NAMES
from acefast.cuda.qk_norm_rope import qk_norm_rope as kernel
from acefast.ops.qk_norm_rope import qk_norm_rope, rope_table
from acefast.sim.driver import dry_run
from tests.ops.simulated import simulated
from tests.ops.test_qk_norm_rope import CPU, GATE, expected, inputs, relative

pytestmark = pytest.mark.skipif(toolkit.find_nvcc() is None, reason="no nvcc here")
ARGUMENTS = ("qkv", "q_weight", "k_weight", "cos", "sin", "heads", "kv_heads")


def run(*arguments, in_place=False, **options):
    """What is written to memory that was NaN before, or in place."""
    qkv = arguments[0]
    out = qkv if in_place else torch.full_like(qkv, torch.nan)
    simulated(kernel, {**dict(zip(ARGUMENTS, arguments)), **options, "out": out})
    return out


def parts(packed, heads, kv_heads):
    return packed.unflatten(-1, (-1, 128)).split((heads, kv_heads, kv_heads), 2)


@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("S, heads, kv_heads", [(1, 16, 8), (7, 8, 4), (8, 0, 8), (9, 4, 12)])
def test_any_number_of_rows_is_rotated_as_in_fp64(S, heads, kv_heads, dtype, rng):
    qkv, *weights = inputs(2, S, heads, kv_heads, 128, dtype, rng)
    out = run(qkv, *weights, *rope_table(S, 128, 1e6, CPU), heads, kv_heads)
    *found, untouched = parts(out, heads, kv_heads)
    for got, raw, weight in zip(found, parts(qkv, heads, kv_heads), weights):
        if raw.numel():
            assert relative(got, expected(raw, weight, torch.arange(S))) <= GATE[dtype]
    assert untouched.isnan().all()


def test_without_a_table_and_in_place_the_bits_are_the_same(rng):
    for table in ((None, None), rope_table(9, 128, 1e6, CPU)):
        qkv, *weights = inputs(1, 9, 8, 8, 128, torch.bfloat16, rng)
        before = qkv.clone()
        out = run(qkv, *weights, *table, 8, 8)
        run(qkv, *weights, *table, 8, 8, in_place=True)
        assert torch.equal(qkv[..., :2048], out[..., :2048]) and torch.equal(qkv[..., 2048:], before[..., 2048:])
        if table[0] is None:
            _, keys, _ = parts(out, 8, 8)
            assert relative(keys, expected(parts(before, 8, 8)[1], weights[1], torch.zeros(9))) <= 2.5e-3


def test_rows_apart_and_neighbours_that_are_nan_stay_apart(rng):
    """Also the tables' rows; a song's last rows are NaN, and so is all between."""
    qkv, *weights = inputs(2, 9, 0, 8, 128, torch.float16, rng)
    cos, sin = rope_table(9, 128, 1e6, CPU)
    want = run(qkv, *weights, cos, sin, 0, 8)
    wide, tables = torch.full((2, 11, 2056), torch.nan).half(), torch.stack((cos, sin), 1)
    inner = wide[:, :9, 4:2052]
    inner.copy_(qkv)
    inner[0, 5:] = torch.nan
    run(inner, *weights, tables[:, 0], tables[:, 1], 0, 8, in_place=True)
    assert torch.equal(inner[0, :5, :1024], want[0, :5, :1024]) and torch.equal(inner[1, :, :1024], want[1, :, :1024])
    inner.fill_(torch.nan)
    assert wide.isnan().all()


def test_silence_is_kept_finite_by_eps(rng):
    qkv, *weights = inputs(1, 3, 0, 8, 128, torch.float16, rng)
    _, keys, _ = parts(run(qkv * 1e-3, *weights, None, None, 0, 8, eps=1e-4), 0, 8)
    want = expected(parts(qkv * 1e-3, 0, 8)[1], weights[1], torch.zeros(3), eps=1e-4)
    assert relative(keys, want) <= GATE[torch.float16]
    assert not parts(run(qkv * 0, *weights, None, None, 0, 8), 0, 8)[1].any()


def launches(*arguments, **options):
    with dry_run(80) as found:
        qk_norm_rope(*arguments, **options)
    return [(one.name, one.grid) for one in found]


def test_what_it_cannot_take_is_tritons_or_refused(rng):
    qkv, *weights = inputs(2, 9, 16, 8, 128, torch.bfloat16, rng)
    found = launches(qkv, *weights, *rope_table(9, 128, 1e6, CPU), 16, 8, backend="cuda")
    assert found == [("qk_norm_rope_h4_bf16", (2, 6, 2))]
    wide = torch.zeros(2, 9, 4098).bfloat16()
    for case in (
        (qkv.float(), *(w.float() for w in weights), None, None, 16, 8),
        (qkv, *(w.float() for w in weights), None, None, 16, 8),
        (wide[..., 2:], *weights, None, None, 16, 8),
        (qkv, *(w[:64] for w in weights), None, None, 32, 16),
        (qkv, *weights, None, None, 28, 2),
    ):
        with pytest.raises(BackendUnavailable, match="it has no cuda kernel for this input"):
            launches(*case, backend="cuda")
        assert [name for name, _ in launches(*case, backend="triton")] == ["_qk_norm_rope"]


def test_what_is_compiled_has_one_call(rng):
    qkv, *weights = inputs(1, 4, 8, 8, 128, torch.bfloat16, rng)
    given = (qkv, *weights, *rope_table(4, 128, 1e6, CPU), 8, 8)
    seen = []

    def backend(module, example):
        seen.extend(str(node.target) for node in module.graph.nodes if "acefast" in str(node.target))
        return module.forward

    compiled = torch.compile(lambda *a: qk_norm_rope(*a, backend="reference"), fullgraph=True, backend=backend)
    assert all(map(torch.equal, compiled(*given), qk_norm_rope(*given, backend="reference")))
    torch.library.opcheck(torch.ops.acefast._qk_norm_rope.default, given)
    assert seen == ["acefast._qk_norm_rope.default"]
