"""How long a kernel ought to take: counted flops and bytes over a GPU's peaks. All of it is predicted.

Peaks are the makers' figures for dense bf16 with fp32 sums, for fp32 without tensor cores and for memory. ``JUDGED``
holds what fraction of them a good kernel reaches and what a launch costs inside a CUDA graph: judged by hand, after
published figures of FlashAttention-2, cuBLAS and streaming kernels on A100; measurements replace it
(acefast/sim/calibrate.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    name: str
    bf16: float  # TFLOP/s on tensor cores
    fp32: float  # TFLOP/s
    bandwidth: float  # of memory, GB/s
    l2: float  # MB


GPUS = {
    80: Gpu("A100 SXM 40GB", 312, 19.5, 1555, 40),
    86: Gpu("RTX 3090", 71, 35.6, 936, 6),
    89: Gpu("RTX 4090", 165.2, 82.6, 1008, 72),
    90: Gpu("H100 SXM 80GB", 989, 67, 3350, 50),
    100: Gpu("B200", 2250, 80, 8000, 126),
    120: Gpu("RTX 5090", 209.5, 104.8, 1792, 96),
}


@dataclass(frozen=True)
class Judged:
    attention: float = 0.65  # of the tensor cores' peak
    matmul: float = 0.80
    fp32: float = 0.75
    memory: float = 0.85  # of the bandwidth, streaming
    l2_gain: float = 2.5  # bandwidth of data that lie in L2, over that of memory
    l2_share: float = 0.5  # how much of L2 data may fill and be found there again
    launch_us: float = 2.0  # ramp, tail and gap between two nodes of a graph
    matmul_launch_us: float = 3.0


JUDGED = Judged()


def floor_us(flops: float, bytes: float, sm: int, *, dots: bool) -> float:
    """At the peaks: nothing is lost and a launch is free."""
    gpu = GPUS[sm]
    return max(flops / ((gpu.bf16 if dots else gpu.fp32) * 1e6), bytes / (_bandwidth(bytes, gpu) * 1e3))


def predicted_us(
    flops: float,
    bytes: float,
    sm: int,
    *,
    dots: bool,
    attention: bool = False,
    launches: int = 1,
    judged: Judged = JUDGED,
) -> float:
    """At the judged fractions of the peaks, launches included."""
    gpu, j = GPUS[sm], judged
    peak = gpu.bf16 * (j.attention if attention else j.matmul) if dots else gpu.fp32 * j.fp32
    resident = bytes <= gpu.l2 * j.l2_share * 1e6
    bandwidth = gpu.bandwidth * (j.l2_gain if resident else j.memory)
    each = j.matmul_launch_us if dots else j.launch_us
    return max(flops / (peak * 1e6), bytes / (bandwidth * 1e3)) + launches * each


def _bandwidth(bytes: float, gpu: Gpu) -> float:
    """GB/s: what the kernel before has just written is found in L2, where it fits."""
    return gpu.bandwidth * (JUDGED.l2_gain if bytes <= gpu.l2 * JUDGED.l2_share * 1e6 else 1.0)
