"""Kernels that exist twice, Triton beside CUDA C++: the table that ``ORDER`` in acefast/ops follows from.

    python -m acefast.sim.twins > csrc/twins.md

Cases of one name are one piece of work. Where a case of the other family is not the same one, as with a unit that needs
a result less, that shows in its bytes and sectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from acefast.cases import Case, all_cases
from acefast.sim.driver import BLOCK_SHARED_LIMIT, Launch
from acefast.sim.study import compile_case, simulate_case, study

FAMILIES = {"triton": "Triton", "cuda": "CUDA"}
REGISTERS, THREADS = 65536, {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}  # of a multiprocessor
HEAD = """# Kernels that exist twice

Made by `python -m acefast.sim.twins`. Compiled and simulated for sm_80; times are predicted, and alike where tensor
cores bound both. Instructions are of the PTX, run by warps, for each of tensor cores; `loop mix` are those of the
machine code's main loop. Sectors (32 bytes of global memory) and wavefronts (of shared memory) are of a few tiles, per
1000 products of a warp. MB is what must move at real size.

| kernel/config | family | instructions | loop mix | sectors | wavefronts | mma | registers | spills | shared KB \
| blocks | MB | predicted us |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def blocks(launch: Launch, registers: int) -> int:
    """How many blocks of a launch a multiprocessor holds."""
    threads = 32 * launch.num_warps
    of_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    shared = BLOCK_SHARED_LIMIT[launch.sm] + 1024
    return min(of_registers, THREADS[launch.sm] // threads, shared // (launch.shared_bytes + 1024))


def rows(sm: int = 80) -> Iterator[dict[str, Any]]:
    """A row for each case of a kernel in both families, twins side by side."""
    cases = {family: {case.name: case for case in all_cases(family)} for family in FAMILIES}
    kernels = {case.kernel for case in cases["cuda"].values()}
    for name in sorted({name for found in cases.values() for name in found}):
        for family, found in cases.items():
            if name in found and found[name].kernel in kernels and any(name in other for other in cases.values()):
                yield {"family": FAMILIES[family], **row(found[name], sm)}


def row(case: Case, sm: int) -> dict[str, Any]:
    figures, launch = study(case, sm), compile_case(case, sm).launches[0]
    products = figures["simulated_mma"] or 1
    meta = case.real("meta")
    return {
        "name": case.name,
        **figures,
        "instructions": simulate_case(case, sm).counts["instructions"] / products,
        "each": {key: 1000 * figures[key] / products for key in ("sectors", "wavefronts")},
        "blocks": blocks(launch, figures["registers"]),
        "megabytes": case.bytes(meta) / 1e6,
    }


def line(r: dict[str, Any]) -> str:
    mix = f"{r['loop_mix']:.2f}" if r["loop_mix"] else "-"
    counted = f"{r['instructions']:.2f} | {mix} | {r['each']['sectors']:.0f} | {r['each']['wavefronts']:.0f}"
    resources = f"{r['mma']} | {r['registers']} | {r['spill_bytes']} | {r['shared_bytes'] / 1024:.1f} | {r['blocks']}"
    return f"| {r['name']} | {r['family']} | {counted} | {resources} | {r['megabytes']:.0f} | {r['predicted_us']:.0f} |"


if __name__ == "__main__":
    print(HEAD)
    for each in rows():
        print(line(each), flush=True)
