"""csrc/residual_unit.cu on a GPU: every tile it is compiled for, beside the equation in fp64 and beside Triton's."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("triton", "3.2", reason="triton is not installed")

from acefast.backends import use_backend, why_unavailable
from acefast.cases import all_cases
from acefast.cuda import loader
from acefast.cuda.residual_unit import KERNELS, TAPS
from acefast.cuda.residual_unit import residual_unit as kernel
from acefast.guarded import with_guards
from acefast.models.v15 import vae
from acefast.models.v15.config import VAEConfig
from acefast.ops.residual_unit import from_x_alone, residual_unit
from acefast.ops.snake import snake
from acefast.orders import FIRST
from acefast.sim.driver import BLOCK_SHARED_LIMIT
from acefast.sim.kernel_times import time_case
from tests.models.test_vae_tile import latents, made
from tests.ops.units import GATE, check_guards, exact, poisoned, relative, weights

DEVICE = "cuda"
TILES = {tile.entry: tile for tile in KERNELS.values()}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU"),
    pytest.mark.skipif(bool(why_unavailable("cuda")), reason=f"no CUDA kernels: {why_unavailable('cuda')}"),
]


@pytest.fixture(params=TILES)
def tile(request):
    found = TILES[request.param]
    C = width(found)
    shared = (found["STAGES"] * found["KB"] + found["ROWS"] + (TAPS - 1) * 10) * C * 2
    if shared > BLOCK_SHARED_LIMIT.get(loader.current_sm(), 99 << 10):
        pytest.skip(f"{found.entry} needs {shared} bytes of shared memory")
    return found


def width(tile) -> int:
    return int(tile.entry.split("_c")[1].split("_")[0])


def given(C, dtype, seed=0):
    """The first snake, all else that a unit takes, and the snake after it, on the GPU."""
    rng = torch.Generator().manual_seed(seed)
    rest, wave = weights(rng, C, dtype)
    first = torch.rand(2, C, generator=rng) + 0.2
    return tuple(t.to(DEVICE) for t in first), tuple(t.to(DEVICE) for t in rest), tuple(t.to(DEVICE) for t in wave)


def rows(B, L, C, dtype):
    return with_guards(torch.randn(B, L, C, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype))


def meant(x, first, rest, dilation, wave):
    x64, (alpha, inv_beta) = x.double(), (t.double() for t in first)
    activated = (x64 + inv_beta * (alpha * x64).sin() ** 2).to(x.dtype)
    return exact(x, activated, *rest, dilation, wave)


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("dilation", (1, 3, 9))
@pytest.mark.parametrize("B, L", [(1, 1), (3, 127), (2, 256), (1, 5000)])
def test_every_tile_is_the_equation_in_fp64(tile, B, L, dilation, dtype):
    first, rest, wave = given(width(tile), dtype)
    x = rows(B, L, width(tile), dtype)
    out = poisoned(x), poisoned(x)
    kernel(x, *first, *rest, dilation=dilation, wave=wave, out=out, kernel=tile)
    for got, want in zip(out, meant(x, first, rest, dilation, wave)):
        assert relative(got, want) <= GATE[dtype]
    check_guards(*out)
    only = poisoned(x), poisoned(x)
    kernel(x, *first, *rest, dilation=dilation, wave=None, out=(only[0], None), kernel=tile)
    kernel(x, *first, *rest, dilation=dilation, wave=wave, out=(None, only[1]), kernel=tile)
    assert all(map(torch.equal, only, out))
    check_guards(*only)


@pytest.mark.parametrize("C", (128, 256))
def test_a_row_has_the_same_bits_in_any_tile(C):
    first, rest, _ = given(C, torch.float16)
    x = rows(1, 1000, C, torch.float16)
    long = poisoned(x)
    kernel(x, *first, *rest, dilation=9, wave=None, out=(long, None))
    piece = with_guards(x[:, 111:700].contiguous())
    short = poisoned(piece)
    kernel(piece, *first, *rest, dilation=9, wave=None, out=(short, None))
    assert torch.equal(long[:, 111 + 27 : 700 - 27], short[:, 27:-27])


@pytest.mark.parametrize("dtype", GATE, ids=str)
@pytest.mark.parametrize("C", (128, 256))
def test_op_is_as_near_to_the_equation_as_with_triton(C, dtype):
    first, rest, wave = given(C, dtype)
    x = rows(2, 3000, C, dtype)
    activated = snake(x, *first, guarded=True, backend="triton")
    want = meant(x, first, rest, 9, wave)
    options = {"dilation": 9, "wave": wave, "guarded": True, "activated": activated}
    ours = residual_unit(x, *first, *rest, **options, backend="cuda")
    theirs = residual_unit(x, *first, *rest, **options, backend="triton")
    for got, other, right in zip(ours, theirs, want):
        assert relative(got, right) <= 1.02 * relative(other, right)


def test_a_decoders_song_is_as_near_to_fp32_as_the_references(monkeypatch):
    """Its units, of 256 and of 128 channels, are given x alone; all else is the fastest."""
    for C in (128, 256):
        monkeypatch.setitem(FIRST, f"residual_unit/c{C}", {80: "cuda"})
    assert from_x_alone(128, torch.float16, torch.device(DEVICE)) and from_x_alone(
        256, torch.float16, torch.device(DEVICE)
    )
    decoder, z = made(vae.Decoder, VAEConfig(64, (2, 2, 2), (1, 2, 4), 128, 8), torch.float16), latents(2, 90, 8)
    with torch.inference_mode(), use_backend("reference"):
        want, rounded = copy.deepcopy(decoder).float()(z), decoder(z)
    with torch.inference_mode():
        got = vae.decode(decoder.to(DEVICE), z.to(DEVICE), 90).audio.cpu()
    assert relative(got, want) <= 1.1 * relative(rounded, want)


@pytest.mark.skipif(
    torch.cuda.is_available() and loader.current_sm() not in BLOCK_SHARED_LIMIT, reason="an unknown GPU"
)
def test_a_case_is_timed_beside_tritons(capsys):
    """And prints microseconds of both."""
    ours = {case.config: case for case in all_cases("cuda") if case.kernel == "residual_unit"}
    theirs = {case.config: case for case in all_cases() if case.kernel == "residual_unit"}
    sm = loader.current_sm()
    for name, case in ours.items():
        timed = {"CUDA": case, "Triton": theirs[name]}
        with torch.inference_mode():
            times = {who: time_case(each, torch.device(DEVICE), sm)["measured_us"] for who, each in timed.items()}
        with capsys.disabled():
            print(f"\nresidual_unit/{name}:", ", ".join(f"{who} {us:.1f} us" for who, us in times.items()))
        assert min(times.values()) > 0
