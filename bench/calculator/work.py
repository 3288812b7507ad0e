"""One kernel's work, and the time it takes: at the peaks, at what is judged to be reached of them, and eagerly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from acefast.sim.roofline import JUDGED
from bench.calculator.gpus import Device

HALF, FP32 = 2, 4  # bytes of a value


@dataclass(frozen=True)
class Tuning:
    """Judged fractions of the peaks and fixed costs, beyond those of acefast.sim.roofline.JUDGED."""

    # library GEMM: tile, and the fraction of a multiprocessor's peak that it sustains
    tiles: tuple = (
        *((128, 256, 0.86), (256, 128, 0.86), (128, 128, 0.78)),
        *((64, 128, 0.64), (128, 64, 0.64), (64, 64, 0.46)),
    )
    attention: tuple = ((128, JUDGED.attention), (64, 0.52))  # query rows per block, fraction of the peak
    convolution: float = 0.50  # of the peak: own implicit GEMM with snake
    product_memory: float = 0.80  # of the bandwidth, beside a matrix product

    host_us: float = 12.0  # eager: Python, dispatcher and launch, per kernel
    eager_matmul: float = 0.95  # of the library's best: separate projections, default heuristics
    eager_memory: float = 0.78
    eager_convolution: float = 0.30  # conv1d on channels-first rows
    eager_attention: float = 0.60  # FlashAttention
    eager_masked: float = 0.34  # the memory-efficient kernel with a dense mask


TUNING = Tuning()


@dataclass
class Kernel:
    topic: str
    name: str
    kind: str  # "matmul", "attention", "convolution" or "elementwise"
    flops: float = 0.0
    act: float = 0.0  # bytes of activations read and written
    weights: float = 0.0  # bytes of weights and tables
    mnk: tuple[int, int, int] | None = None
    heads: int = 0  # of all songs, and query rows of each
    rows: int = 0
    share: float | None = None  # eager: another fraction of the peak
    fp32: bool = False  # without tensor cores
    launches: int = 1  # identical ones

    @property
    def bytes(self) -> float:
        return self.act + self.weights

    def floor(self, device: Device) -> float:
        """Seconds of all launches, as below."""
        moved = self.weights + (0 if in_l2(self.act, device) else self.act)
        return self.launches * max(self.flops / device.flops(self.fp32), moved / device.bandwidth)

    def target(self, device: Device) -> float:
        if self.kind == "elementwise":
            busy = self.flops / (device.flops(fp32=True) * JUDGED.fp32)
            memory = memory_seconds(self.act, self.weights, device, JUDGED.memory)
            return self.launches * (max(busy, memory) + JUDGED.launch_us * 1e-6)
        memory = memory_seconds(self.act, self.weights, device, TUNING.product_memory)
        return self.launches * (max(self._products(device), memory) + JUDGED.matmul_launch_us * 1e-6)

    def _products(self, device: Device) -> float:
        if self.fp32:
            return self.flops / (device.flops(fp32=True) * JUDGED.fp32)
        if self.kind == "matmul":
            return matmul_seconds(*self.mnk, device)
        if self.kind == "attention":
            return attention_seconds(self.flops, self.heads, self.rows, device)
        return self.flops / (device.flops() * TUNING.convolution)

    def eager(self, device: Device) -> float:
        """On the GPU; its host time is ``launches`` times TUNING.host_us."""
        memory = memory_seconds(self.act, self.weights, device, TUNING.eager_memory)
        if self.kind == "elementwise":
            return self.launches * (memory + JUDGED.launch_us * 1e-6)
        if self.fp32:
            busy = self.flops / (device.flops(fp32=True) * JUDGED.fp32)
        elif self.kind == "matmul":
            busy = matmul_seconds(*self.mnk, device) / TUNING.eager_matmul
        else:
            usual = TUNING.eager_attention if self.kind == "attention" else TUNING.eager_convolution
            busy = self.flops / (device.flops() * (self.share or usual))
        return self.launches * (max(busy, memory) + JUDGED.matmul_launch_us * 1e-6)


def in_l2(act: float, device: Device) -> bool:
    return act <= device.gpu.l2 * 1e6 * JUDGED.l2_share


def memory_seconds(act: float, weights: float, device: Device, share: float) -> float:
    """Activations that L2 holds come from there; weights, of which each layer has its own, from memory."""
    rate = JUDGED.l2_gain if in_l2(act, device) else share
    return act / (device.bandwidth * rate) + weights / (device.bandwidth * share)


def matmul_seconds(m: int, n: int, k: int, device: Device) -> float:
    """The library's best tile and split of K, in whole waves; one tile at a time on a multiprocessor."""
    rate, best = device.flops() / device.multiprocessors, math.inf
    for high, wide, share in TUNING.tiles:
        tiles = math.ceil(m / high) * math.ceil(n / wide)
        for split in (1, 2, 3, 4):
            if split > 1 and (k // split < 512 or tiles >= device.multiprocessors):
                continue
            waves = math.ceil(tiles * split / device.multiprocessors)
            seconds = waves * 2.0 * high * wide * (k / split) / (rate * share)
            if split > 1:  # fp32 partial sums, written and read once, through L2
                seconds += 2.0 * split * m * n * FP32 / (device.bandwidth * JUDGED.l2_gain) + 1e-6
            best = min(best, seconds)
    return best


def attention_seconds(flops: float, heads: int, rows: int, device: Device) -> float:
    """FlashAttention: blocks of query rows in waves, of which the last may be half full."""
    best = math.inf
    for high, share in TUNING.attention:
        blocks = heads * math.ceil(rows / high)
        waves = max(1.0, math.ceil(2 * blocks / device.multiprocessors) / 2)
        best = min(best, waves * flops / blocks / (device.flops() / device.multiprocessors * share))
    return best


def total(kernels: Iterable[Kernel], of: Callable[[Kernel], float]) -> float:
    return sum(of(kernel) for kernel in kernels)


# -- builders: sizes to work -------------------------------------------------------------------------------------------


def matmul(topic: str, name: str, m: int, n: int, k: int, *, more: float = 0.0, out: float | None = None) -> Kernel:
    """``out``: columns that are stored, where the epilogue leaves fewer; ``more``: bytes that it reads."""
    act = (m * k + m * (n if out is None else out)) * HALF + more
    return Kernel(topic, name, "matmul", 2.0 * m * n * k, act, n * k * HALF, (m, n, k))


def elementwise(topic: str, name: str, act: float, *, weights: float = 0.0, launches: int = 1) -> Kernel:
    """``act``: bytes of all launches."""
    return Kernel(topic, name, "elementwise", 0.0, act / launches, weights, fp32=True, launches=launches)


def attention(
    *given: str, batch: int, heads: int, kv_heads: int, dim: int, rows: int, pairs: int, keys: int, share=None
) -> Kernel:
    """``pairs``: of a query and a key it sees, per song and head."""
    act = batch * dim * HALF * (2 * heads * rows + 2 * kv_heads * keys)
    flops = 4.0 * batch * heads * dim * pairs
    return Kernel(*given, "attention", flops, act, heads=batch * heads, rows=rows, share=share)


def window_pairs(rows: int, window: int) -> int:
    """Of ``rows`` that see ``window`` keys on either side."""
    reach = min(window, rows - 1)
    return rows * (2 * reach + 1) - reach * (reach + 1)


def eager_rmsnorm(topic: str, elements: float) -> list[Kernel]:
    """Upcast, square, mean, root, scale, downcast and weight, a kernel each."""
    parts = [elementwise(topic, "rmsnorm part", elements * bytes) for bytes in (6, 8, 4, 6, 6, 4)]
    return [*parts, elementwise(topic, "rmsnorm scalar", elements * 0.01, launches=2)]


def eager_rope(topic: str, elements: float) -> list[Kernel]:
    return [elementwise(topic, "rope part", elements * bytes) for bytes in (2, 4, 6, 8, 6, 8, 12, 6)]
