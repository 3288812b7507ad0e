"""Kernels that exist twice, Triton beside CUDA C++: the table that ``ORDER`` in acefast/ops follows from.

    python -m acefast.sim.twins > csrc/twins.md

Cases of one name are one piece of work of one size; one that needs an input or a result less shows it in its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from acefast.cases import Case, all_cases
from acefast.sim.study import compile_case, simulate_case, study

FAMILIES = {"triton": "Triton", "cuda": "CUDA"}
HEAD = """# Kernels that exist twice

Made by `python -m acefast.sim.twins`. Compiled and simulated for sm_80; times are predicted, and alike where tensor
cores bound both. Instructions of the PTX, sectors (32 bytes of global memory), wavefronts (of shared memory) and mma's
are those of a few tiles; `loop mix` is of the machine code: other instructions per mma of the main loop. `blocks` are
those on a multiprocessor, MB what must move at real size.

| kernel/config | family | instructions | sectors | wavefronts | mma | loop mix | registers | spills | shared KB \
| blocks | MB | predicted us |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def rows(sm: int = 80) -> Iterator[dict[str, Any]]:
    """A row for each case that both families have, twins side by side."""
    cases = {family: {case.name: case for case in all_cases(family)} for family in FAMILIES}
    for name in (name for name in cases["cuda"] if name in cases["triton"]):
        for family, found in cases.items():
            yield {"family": FAMILIES[family], **row(found[name], sm)}


def row(case: Case, sm: int) -> dict[str, Any]:
    figures = study(case, sm)
    return {
        "name": case.name,
        **figures,
        "instructions": simulate_case(case, sm).counts["instructions"],
        "blocks": compile_case(case, sm).blocks_per_sm,
        "megabytes": case.bytes(case.real(torch.device("meta"))) / 1e6,
    }


def line(r: dict[str, Any]) -> str:
    counted = " | ".join(str(r[key]) for key in ("instructions", "sectors", "wavefronts", "simulated_mma"))
    mix = f"{r['loop_mix']:.2f}" if r["loop_mix"] else "-"
    resources = f"{mix} | {r['registers']} | {r['spill_bytes']} | {r['shared_bytes'] / 1024:.1f} | {r['blocks']}"
    return f"| {r['name']} | {r['family']} | {counted} | {resources} | {r['megabytes']:.0f} | {r['predicted_us']:.0f} |"


if __name__ == "__main__":
    print(HEAD)
    for each in rows():
        print(line(each), flush=True)
