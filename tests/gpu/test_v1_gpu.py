"""Songs of ACE-Step v1 on a GPU: against the references on a CPU, the same bits again and from graphs, adapters."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

import acefast
from acefast.backends import use_backend
from acefast.ops.philox import philox_normal
from acefast.testing_v1 import TINY_V1
from tests.loras import write
from tests.songs import distance, same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    pytest.mark.usefixtures("offline"),
]
SONG = dict(prompt="boom bap", lyrics="[verse]\nhello night", language="en", duration=5.0, steps=2, seed=1)
OPTIONS = {
    "apg": dict(guidance_interval=1.0),
    "guided at last": dict(guidance_interval=0.5),
    "two songs, cfg, heun": dict(prompt=["drill", "lo-fi, slow and warm"], seed=[7, 8], guidance="cfg", solver="heun"),
    "pingpong": dict(solver="pingpong", guidance_scale=1.0),
}


@pytest.fixture(scope="module", params=(True, False), ids=("graphs", "launched"))
def pipe(request, tiny_v1):
    return acefast.load(tiny_v1, device="cuda", dtype="bfloat16", graphs=request.param)


def each(songs):
    return songs if isinstance(songs, list) else [songs]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_songs_are_as_near_to_fp32_as_the_references_and_the_same_again(pipe, tiny_v1, v1_pipe, options):
    exact = each(v1_pipe.generate(**SONG | options))
    with use_backend("reference"):
        rounded = each(acefast.load(tiny_v1, device="cpu", dtype="bfloat16").generate(**SONG | options))
    got, again = (each(pipe.generate(**SONG | options)) for _ in range(2))
    for a, b, e, r in zip(got, again, exact, rounded):
        assert distance(a, e) <= max(1.2 * distance(r, e), 5e-3)
        assert same(a, b) and abs(a.audio).max() > 1e-3


def test_graphs_replay_what_is_launched_from_one_length_to_the_next(tiny_v1):
    launched, replayed = (acefast.load(tiny_v1, device="cuda", dtype="bfloat16", graphs=g) for g in (False, True))
    for options in (dict(), dict(duration=7.0), dict(seed=3), dict(prompt="lo-fi")):
        assert same(replayed.generate(**SONG | options), launched.generate(**SONG | options))
    assert replayed.model.graphs.failed == [] and replayed.model.tile_graphs.failed == []


def test_a_lora_comes_and_goes_between_replays(tiny_v1, tmp_path):
    pipe = acefast.load(tiny_v1, device="cuda", dtype="bfloat16")
    plain = pipe.generate(**SONG)
    width, tensors = TINY_V1.hidden_size, {}
    for i, name in enumerate(("to_q", "to_v", "to_out.0")):
        module = f"transformer_blocks.{i % 2}.attn.{name}"
        tensors[f"{module}.lora_A.weight"], up = philox_normal([i, 9], (2, width))
        tensors[f"{module}.lora_B.weight"] = up.T.contiguous() / width**0.5
    pipe.set_lora(write(tmp_path / "rap.safetensors", tensors))
    adapted = pipe.generate(**SONG)
    pipe.set_lora(None)
    assert distance(adapted, plain) > 1e-3 and same(pipe.generate(**SONG), plain)
