"""Kernels that exist twice, Triton beside CUDA C++: the table that acefast/orders.py follows from.

    python -m acefast.sim.twins --write                        # csrc/twins.md, its measurements as they are
    python -m acefast.sim.twins --write --measured times.json  # with those of acefast bench --calibrate --json
    python -m acefast.sim.twins --orders                       # what the committed table says of each op

Run it in the repository's root, whose csrc/twins.md it reads and writes: an installed package has no such table.

Cases of one name are one piece of work of one size; one that needs an input or a result less shows it in its bytes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from acefast.cases import Case, all_cases
from acefast.files import write_together
from acefast.sim.roofline import GPUS, JUDGED
from acefast.sim.study import compile_case, simulate_case

TABLE = Path("csrc/twins.md")
FAMILIES = {"triton": "Triton", "cuda": "CUDA"}
MEASURED_SM = 90  # of the GPU that the table's measurements are of
HEAD = """# Kernels that exist twice

Made by `python -m acefast.sim.twins --write`. Compiled and simulated for sm_80, whose times are predicted: what each
unit of a multiprocessor has to do, at its full rate, scaled from a few tiles to real size. Instructions of the PTX,
sectors (32 bytes of global memory), wavefronts (of shared memory) and mma's are those of a few tiles; `loop mix` is of
the machine code: other instructions per mma of the main loop. `blocks` are those on a multiprocessor, MB what must move
at real size. `H100 us` is measured on one, alone, at real size, by `acefast bench --calibrate`; `-` where it was not.

| kernel/config | family | instructions | sectors | wavefronts | mma | loop mix | registers | spills | shared KB \
| blocks | MB | predicted us | H100 us |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""
BY_CLASS = ("residual_unit",)  # ops whose order is a class's, which begins its configurations' names
SMS, CLOCK = 108, 1410.0  # multiprocessors and MHz of an A100
L2_BYTES = 47.0  # a cycle and multiprocessor, of what the sectors move
MMA_FLOPS, MMA_CYCLES = 4096, 2  # of m16n8k16, and of a multiprocessor for one
OVERLAP = 6  # power of the mean that stands in for the slowest unit: one that is nearly as busy costs a little more


def rows(sm: int = 80) -> Iterator[dict[str, Any]]:
    """A row for each case that both families have, twins side by side."""
    cases = {family: {case.name: case for case in all_cases(family)} for family in FAMILIES}
    for name in cases["cuda"]:
        if name in cases["triton"]:
            for family, found in cases.items():
                yield {"family": FAMILIES[family], **row(found[name], sm)}


def row(case: Case, sm: int) -> dict[str, Any]:
    compiled, simulated = compile_case(case, sm), simulate_case(case, sm)
    found = {
        "name": case.name,
        **compiled.row(),
        **simulated.row(),
        "instructions": simulated.counts["instructions"],
        "blocks": compiled.blocks_per_sm,
        "megabytes": case.bytes(case.real(torch.device("meta"))) / 1e6,
    }
    return {**found, "predicted_us": predicted_us(case, found, sm)}


def predicted_us(case: Case, counted: dict[str, Any], sm: int) -> float:
    """From what was counted at a few tiles: the units' times at real size, and a launch's.

    What goes with each byte there, or with each mma of a GEMM, goes with it at real size, without the tiles' empty
    parts; attention's, whose tiles hold what no row sees, with each flop. The units overlap, but the one that has most
    to do seldom waits for none of the others.
    """
    real, small = case.real(torch.device("meta")), case.small(torch.Generator().manual_seed(0))
    if not case.dots:
        times = case.bytes(real) / case.bytes(small)
    elif "attention" in case.kernel:
        times = case.flops(real) / case.flops(small)
    else:
        times = case.flops(real) / MMA_FLOPS / counted["simulated_mma"]
    cycles = times / SMS
    units = (
        MMA_CYCLES * counted["simulated_mma"] * cycles,
        counted["wavefronts"] * cycles,
        counted["instructions"] / 4 * cycles,
        counted["sectors"] * 32 / L2_BYTES * cycles,
    )
    moved = case.bytes(real)
    resident = moved <= GPUS[sm].l2 * JUDGED.l2_share * 1e6
    memory = moved / (GPUS[sm].bandwidth * 1e3 * (JUDGED.l2_gain if resident else JUDGED.memory))
    times = [*(unit / CLOCK for unit in units), memory]
    slowest = max(times)
    launch = (JUDGED.matmul_launch_us if case.dots else JUDGED.launch_us) * (counted["launches"] or 1)
    return slowest * sum((t / slowest) ** OVERLAP for t in times) ** (1 / OVERLAP) + launch


def line(r: dict[str, Any], measured: dict[tuple[str, str], str]) -> str:
    counted = " | ".join(str(r[key]) for key in ("instructions", "sectors", "wavefronts", "simulated_mma"))
    mix = f"{r['loop_mix']:.2f}" if r["loop_mix"] else "-"
    resources = f"{mix} | {r['registers']} | {r['spill_bytes']} | {r['shared_bytes'] / 1024:.1f} | {r['blocks']}"
    times = f"{r['predicted_us']:.1f} | {measured.get((r['name'], r['family']), '-')}"
    return f"| {r['name']} | {r['family']} | {counted} | {resources} | {r['megabytes']:.0f} | {times} |"


def read(text: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Predicted and measured times of a table's rows, by name and family."""
    cells = [[cell.strip() for cell in one.strip("| ").split("|")] for one in text.removeprefix(HEAD).splitlines()]
    return {(one[0], one[1]): (one[-2], one[-1]) for one in cells if len(one) > 2}


def measured_of(path: Path) -> dict[tuple[str, str], str]:
    """Times of a file that ``acefast bench --calibrate --json`` wrote on a GPU of MEASURED_SM."""
    found = json.loads(path.read_text("utf-8"))
    if found["sm"] != MEASURED_SM:
        raise SystemExit(f"{path} is of sm_{found['sm']}; the table's measurements are of sm_{MEASURED_SM}")
    return {
        (f"{k['kernel']}/{k['config']}", FAMILIES[k["family"]]): f"{k['measured_us']:.1f}" for k in found["kernels"]
    }


def orders(table: dict[tuple[str, str], tuple[str, str]]) -> dict[str, dict[int, str]]:
    """Which family goes first by op and sm: CUDA where its times are less, in the geometric mean over an op's twins,
    or over those of a class of shapes, where they are told apart.

    sm_80's are predicted. sm_90's, which later GPUs take too, are measured, or as predicted where they have not been.
    """
    ratios: dict[str, list[list[float]]] = defaultdict(lambda: [[], []])
    for name in {name for name, _ in table}:
        op, _, config = name.partition("/")
        row = f"{op}/{config.partition('-')[0]}" if op in BY_CLASS else op
        for i, found in enumerate(ratios[row]):
            cuda, triton = (table[name, FAMILIES[family]][i] for family in ("cuda", "triton"))
            if "-" not in (cuda, triton):
                found.append(math.log(float(cuda) / float(triton)))

    def first(logs: Iterable[float]) -> str:
        return "cuda" if sum(logs) < 0 else "triton"

    return {
        op: {80: first(predicted), 90: first(measured or predicted)}
        for op, (predicted, measured) in sorted(ratios.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measured", type=Path, help="times of a GPU (default: those of the committed table)")
    parser.add_argument("--write", action="store_true", help="csrc/twins.md, in place of printing it")
    parser.add_argument("--orders", action="store_true", help="what the committed table says of each op")
    args = parser.parse_args()
    committed = read(TABLE.read_text("utf-8"))
    if args.orders:
        for op, by_sm in orders(committed).items():
            print(f'    "{op}": {json.dumps(by_sm)},')
        return
    measured = {key: times[1] for key, times in committed.items()}
    measured |= measured_of(args.measured) if args.measured else {}
    text = "\n".join((HEAD, *(line(each, measured) for each in rows()), ""))
    if args.write:
        write_together({TABLE: lambda file: file.write_text(text, "utf-8")})
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
