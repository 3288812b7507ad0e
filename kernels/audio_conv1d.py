"""Triton kernel of acefast.ops.audio_conv1d (K12): the decoder's last convolution, its place in the song, its peaks.

Math    y[o, t] = Σ_k parts[t + k - 3, (k, o)],  parts[t, (k, o)] = Σ_c x[t, c] * weight[o, k, c], in fp32
Tiling  one program per SLOT_ROWS rows and the 6 around them: one product of x with all taps side by side, 14 columns
        in 16, then sums over shifted rows. So x goes through shared memory once, not once a tap
Bytes   B * L * C * itemsize + 4 * B * channels * L: x in, samples out; the weight and 6 rows in 256 come from L2
Bound   memory: 16 flops per byte with the columns of padding
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.guarded import GUARD, guarded, whole
from acefast.kernel_config import Config, pick
from acefast.ops.audio_conv1d import SLOT_ROWS, TAPS, peak_slots

CONFIGS = {
    ("wide", 80): Config({"BLOCK_K": 64}, num_warps=4, num_stages=3),  # 68 KB: two blocks, 128 KB on their way
    **{("wide", sm): Config({"BLOCK_K": 32}, num_warps=4, num_stages=3) for sm in (86, 89, 120)},  # 34 KB: two blocks
    ("narrow", 80): Config({"BLOCK_K": 16}, num_warps=4, num_stages=3),
}


@triton.jit(do_not_specialize=["L", "N"])
def _audio_conv1d(
    x_ptr,
    weight_ptr,
    place_ptr,  # None: every row, to sample 0
    out_ptr,
    out_song,
    out_channel,
    peaks_ptr,  # None: not wanted
    L,
    N,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    LANES: tl.constexpr,  # channels, up to a power of two
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    GUARD: tl.constexpr,
    BLOCK_M: tl.constexpr,  # ROWS and TAPS - 1 more
    BLOCK_K: tl.constexpr,
):
    slot, song = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, j, k = tl.arange(0, BLOCK_M), tl.arange(0, 8 * LANES), tl.arange(0, BLOCK_K)
    tap, channel = j // LANES, j % LANES
    t = slot * ROWS + i
    source = tl.minimum(t, L + TAPS - 2) + (GUARD - TAPS // 2)
    x_ptrs = x_ptr + song * (L + 2 * GUARD) * C + source.to(tl.int64)[:, None] * C + k[None, :]  # [BLOCK_M, BLOCK_K]
    weight_row = tl.minimum(channel, CHANNELS - 1) * TAPS + tl.minimum(tap, TAPS - 1)  # those too many are not summed
    weight_ptrs = weight_ptr + weight_row[None, :] * C + k[:, None]  # [BLOCK_K, 8 * LANES]

    if peaks_ptr is not None:
        peak_ptr = peaks_ptr + song * tl.num_programs(0) + slot
        before = tl.load(peak_ptr)  # here, for all warps have read it when one writes

    parts = tl.zeros([BLOCK_M, 8 * LANES], tl.float32)
    for c in range(0, C, BLOCK_K):
        parts = tl.dot(tl.load(x_ptrs + c), tl.load(weight_ptrs + c), parts, input_precision="ieee")

    shifted = tl.gather(parts, tl.minimum(i[:, None] + tap[None, :], BLOCK_M - 1), 0)
    shifted = tl.where((tap < TAPS)[None, :], shifted, 0.0).reshape(BLOCK_M, 8, LANES)
    y = tl.sum(shifted, 1)  # [BLOCK_M, LANES]

    first, end, shift = 0, L, 0
    if place_ptr is not None:
        first, end = tl.load(place_ptr), tl.minimum(tl.load(place_ptr + 1), L)
        shift = tl.load(place_ptr + 2) - first
    stored = (i < ROWS) & (t >= first) & (t < end) & (t + shift >= 0) & (t + shift < N)
    lane = tl.arange(0, LANES)
    live = stored[:, None] & (lane < CHANNELS)[None, :]
    tl.store(out_ptr + song * out_song + lane[None, :] * out_channel + (t + shift)[:, None], y, mask=live)
    if peaks_ptr is not None:
        # Of floats without a sign the bits are in order, NaN above all else; a maximum of floats would drop it.
        bits = tl.where(live, y.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0)
        peak = tl.max(tl.max(bits, 1), 0).to(tl.float32, bitcast=True)
        tl.store(peak_ptr, tl.where((before > peak) | (before != before), before, peak))


def audio_conv1d(x: Tensor, weight: Tensor, *, place: Tensor | None, out: Tensor, peaks: Tensor | None) -> None:
    """Launches the kernel on guarded rows; the op has checked the inputs."""
    (B, L, C), channels = x.shape, len(weight)
    config = pick(CONFIGS, "narrow" if C % 64 else "wide")
    _audio_conv1d[(peak_slots(L), B)](
        *(whole(x), weight, place, out, *out.stride()[:2], peaks, L, out.shape[2]),
        C=C,
        CHANNELS=channels,
        LANES=triton.next_power_of_2(channels),
        TAPS=TAPS,
        ROWS=SLOT_ROWS,
        GUARD=GUARD,
        BLOCK_M=SLOT_ROWS + TAPS - 1,
        **config.options,
    )


def _reference(x: Tensor, weight: Tensor, *, place, out: Tensor, peaks: Tensor | None) -> tuple[Tensor, ...]:
    """With what x's guards hold as its neighbours."""
    L, reach = x.shape[1], TAPS // 2
    around = whole(x)[:, GUARD - reach : GUARD + L + reach]
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = F.conv1d(around.to(exact).mT, weight.to(exact).mT)
    first, end, sample = (0, L, 0) if place is None else place.tolist()
    out[:, :, sample : sample + end - first] = y[:, :, first:end]
    if peaks is None:
        return (out,)
    y[:, :, :first] = y[:, :, end:] = 0
    found = F.pad(y.abs().amax(1), (0, peaks.shape[1] * SLOT_ROWS - L)).unflatten(1, (-1, SLOT_ROWS)).amax(2)
    return out, torch.maximum(peaks, found)


def _case(
    config: str,
    real: tuple[int, int, int, tuple[int, int, int] | None],
    small: tuple[int, int, int, tuple[int, int, int] | None],
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    """Sizes as B, L, C, and a place in a song of L + 300 samples; None: a song of L samples and no peaks."""

    def arguments(B: int, L: int, C: int, place, device=None, generator=None) -> Arguments:
        def made(*shape: int) -> Tensor:
            return torch.empty(shape, device=device) if generator is None else torch.randn(shape, generator=generator)

        device = made(0).device
        return {
            "x": guarded(B, L, C, dtype=dtype, device=device).copy_(made(B, L, C)),
            "weight": (made(2, TAPS, C) / (TAPS * C) ** 0.5).to(dtype),
            "place": None if place is None else torch.tensor(place, dtype=torch.int32, device=device),
            "out": torch.zeros(B, 2, L if place is None else L + 300, device=device),
            "peaks": None if place is None else torch.zeros(B, peak_slots(L), device=device),
        }

    return Case(
        kernel="audio_conv1d",
        config=config,
        launch=audio_conv1d,
        reference=_reference,
        real=lambda device: arguments(*real, device=device),
        small=lambda generator: arguments(*small, generator=generator),
        outputs=("out", "peaks"),
        flops=lambda a: 2 * a["x"].shape[0] * a["x"].shape[1] * a["weight"].numel(),
        bytes=lambda a: a["x"].numel() * a["x"].itemsize + a["weight"].nbytes + 8 * a["x"].shape[0] * a["x"].shape[1],
        dots=True,
        tolerance=1e-6,
    )


# A tile of 512 frames, of which the overlap of 9 a side is not kept. Small: two programs.
TILE = (1, 983040, 128, (17280, 965760, 17280))
CASES = (
    _case("128", TILE, (1, 499, 128, (30, 490, 170))),
    _case("128-fp16", TILE, (1, 499, 128, (0, 490, 0)), torch.float16),
    _case("tiny", (2, 960, 32, None), (2, 250, 32, None)),
)
