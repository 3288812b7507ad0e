"""The GPUs, after their makers' figures; those that the kernels are compiled for are acefast.sim.roofline's."""

from __future__ import annotations

from dataclasses import dataclass, replace

from acefast.sim.roofline import GPUS, Gpu


@dataclass(frozen=True)
class Device:
    gpu: Gpu
    sm: int  # what kernels are compiled for
    multiprocessors: int
    memory: int  # GB
    mma_cycles: int | None  # of one m16n8k16 with fp32 sums on a quarter of a multiprocessor; None: other instructions

    @property
    def name(self) -> str:
        return self.gpu.name

    def flops(self, fp32: bool = False) -> float:
        """A second, at the peak."""
        return (self.gpu.fp32 if fp32 else self.gpu.bf16) * 1e12

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.gpu.bandwidth * 1e9


_A100 = Device(GPUS[80], 80, 108, 40, mma_cycles=8)

DEVICES = {
    "a100-40": _A100,
    "a100-80": replace(_A100, gpu=replace(GPUS[80], name="A100 SXM 80GB", bandwidth=2039), memory=80),
    "h100": Device(GPUS[90], 90, 132, 80, mma_cycles=None),
    "4090": Device(GPUS[89], 89, 128, 24, mma_cycles=32),
    "3090": Device(GPUS[86], 86, 82, 24, mma_cycles=32),
    "l4": Device(Gpu("L4", 121, 30.3, 300, 48), 89, 58, 24, mma_cycles=16),
}
ANCHORS = {  # only to hold the calculator against published measurements
    "pro6000": Device(Gpu("RTX PRO 6000 Blackwell", 503.8, 126, 1792, 128), 120, 188, 96, mma_cycles=16),
    "5090": Device(GPUS[120], 120, 170, 32, mma_cycles=32),
}
