"""GPU kernels without a GPU: the PTX that Triton and nvcc emit for sm_80, run in numpy, checked and counted.

``launch`` runs a kernel on numpy arrays. A fault of the kernel (out of bounds, misaligned, a race, a missing barrier or
wait, uninitialised shared memory, divergence at a barrier) is a ``Finding`` with kernel, source line, block, warp and
lane. See README.md beside this file.
"""

from acefast.sim.bits import bf16_to_f32, f32_to_bf16
from acefast.sim.errors import Finding, SimError, Unsupported
from acefast.sim.launch import Pointer, Report, launch, poisoned
from acefast.sim.ptx import parse

__all__ = [
    "Finding", "Pointer", "Report", "SimError", "Unsupported",
    "bf16_to_f32", "f32_to_bf16", "launch", "parse", "poisoned",
]  # fmt: skip
