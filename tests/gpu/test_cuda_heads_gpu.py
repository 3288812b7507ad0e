"""csrc/qk_norm_rope.cu on a GPU, beside fp64 and beside Triton's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.backends import why_unavailable
from acefast.cases import all_cases
from acefast.cuda import loader
from acefast.cuda import qk_norm_rope as heads
from acefast.ops.qk_norm_rope import qk_norm_rope, rope_table
from acefast.sim.driver import BLOCK_SHARED_LIMIT
from acefast.sim.kernel_times import time_case
from tests.ops import test_qk_norm_rope as of_heads

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    pytest.mark.skipif(bool(why_unavailable("cuda")), reason=f"no CUDA kernels: {why_unavailable('cuda')}"),
]


def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", heads.NAMES, ids=str)
@pytest.mark.parametrize("B, S, q, kv", [(1, 1, 16, 8), (2, 1501, 32, 8), (3, 77, 0, 8)])
def test_every_head_is_rotated_as_in_fp64(B, S, q, kv, dtype):
    qkv, *weights = (t.to(DEVICE) for t in of_heads.inputs(B, S, q, kv, 128, dtype, rng()))
    table, out = rope_table(S, 128, 1e6, torch.device(DEVICE)), torch.full_like(qkv, torch.nan)
    found = heads.qk_norm_rope(qkv, *weights, *table, q, kv, out=out)
    raw = qkv.unflatten(-1, (-1, 128)).split((q, kv, kv), 2)
    for got, of, weight in list(zip(found, raw, weights))[not q :]:
        want = of_heads.expected(of.cpu(), weight.cpu(), torch.arange(S))
        assert of_heads.relative(got.cpu(), want) <= of_heads.GATE[dtype]
    assert out[..., (q + kv) * 128 :].isnan().all()


def test_op_is_as_near_to_the_equation_as_with_triton():
    qkv, *weights = (t.to(DEVICE) for t in of_heads.inputs(2, 1500, 16, 8, 128, torch.bfloat16, rng()))
    given = (qkv, *weights, *rope_table(1500, 128, 1e6, torch.device(DEVICE)), 16, 8)
    ours, theirs = (qk_norm_rope(*given, backend=name) for name in ("cuda", "triton"))
    for got, other, raw, weight in zip(ours, theirs, qkv.unflatten(-1, (-1, 128)).split((16, 8, 8), 2), weights):
        want = of_heads.expected(raw.cpu(), weight.cpu(), torch.arange(1500))
        assert of_heads.relative(got.cpu(), want) <= 1.02 * of_heads.relative(other.cpu(), want)


@pytest.mark.skipif(
    torch.cuda.is_available() and loader.current_sm() not in BLOCK_SHARED_LIMIT, reason="an unknown GPU"
)
@pytest.mark.parametrize("S", (384, 1536, 3072))
def test_a_case_is_timed_beside_tritons(S, capsys):
    """Prints microseconds of both, at 30, 120 and 240 s of song."""
    case = next(case for case in all_cases() if case.name == "qk_norm_rope/2b-self")
    case = replace(case, real=partial(case.real, S=S))
    timed = {"Triton": case, "CUDA": replace(case, launch=heads.qk_norm_rope)}
    with torch.inference_mode():
        times = {
            who: time_case(each, torch.device(DEVICE), loader.current_sm())["measured_us"]
            for who, each in timed.items()
        }
    with capsys.disabled():
        print(f"\n{case.name} of {S} rows:", ", ".join(f"{who} {us:.2f} us" for who, us in times.items()))
    assert min(times.values()) > 0
