"""Counts of the compiled kernels become times: the one place where that is done, all of it predicted.

For a call of a kernel its case gives flops and bytes at the call's own sizes. What the compiled kernel made of them is
counted, of its case at a few tiles in the simulator, and enters as ratios:

    products   the executed tensor-core instructions' flops over those of the call in whole tiles: what a kernel
               computes beyond them. They are done in waves, one program a multiprocessor at a time, at the judged
               fraction of the peak for its kind (library-like product by its tile, attention, convolution), or at the
               main loop's own limit where that is lower: a quarter of a multiprocessor issues one instruction a cycle,
               so ``mma_cycles`` per product against one cycle for it and for each of the others beside it
    memory     the case's bytes, times sectors over the fewest possible for what is asked
    L2         operands of each tile (of a kernel without products: the case's bytes) times sectors over those, at the
               L2's bandwidth

and the longest of the three, and a graph's cost per launch, is the time. The library's products and attention take what
``work.py`` says. GPUs whose code the simulator does not run (sm_90) get the counts of sm_80 on their own grid.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acefast.cases import Case, all_cases
from acefast.sim.roofline import JUDGED
from acefast.sim.study import SIMULATED, study
from acefast.sim.tensors import tensors_of
from bench.calculator.gpus import Device
from bench.calculator.recorded import Call, recorded_case
from bench.calculator.work import TUNING, memory_seconds

FILE = Path(__file__).parents[1] / "results/counted.json"
MMA_FLOPS = 2 * 16 * 8 * 16
SECTOR = 32
FIGURES = ("registers", "loop_mma", "loop_other", "sectors", "sectors_min", "sectors_once", "simulated_mma")
Counts = dict[str, Any]


def count(case: Case, sm: int) -> Counts:
    """A case's figures, and what its call at a few tiles would be by the formulas here.

    Raises:
        RuntimeError: the case does not keep its limits.
    """
    row = study(case, sm)
    if row["faults"]:
        raise RuntimeError(f"{case.name} on sm_{sm}: {row['faults'][0]}")
    small = case.small(torch.Generator().manual_seed(0))
    call = recorded_case(case, small, sm)
    found = {name: row[name] for name in FIGURES}
    if not case.dots:
        return found
    executed = row["simulated_mma"] * MMA_FLOPS
    return found | {"flops": tiled_flops(case, call), "operands": round(tile_bytes(case, call, executed))}


def read_counts() -> dict[str, dict[str, Counts]]:
    return json.loads(FILE.read_text())


def write_counts(cases: list[Case], kernels: list[str]) -> None:
    """Counts of these cases: new ones of ``kernels``, or of all if none is named, the others as they are."""
    found = read_counts() if FILE.exists() else {}
    found = {case.name: found.get(case.name) for case in cases}
    for case in cases:
        if found[case.name] is None or not kernels or case.kernel in kernels:
            found[case.name] = {str(sm): count(case, sm) for sm in SIMULATED}
    lines = []
    for name in sorted(found):
        rows = ",\n".join(f"  {json.dumps(sm)}: {json.dumps(counts)}" for sm, counts in found[name].items())
        lines.append(f" {json.dumps(name)}: {{\n{rows}\n }}")
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def case_of(call: Call, sm: int) -> Case:
    """The proved case that is compiled as a call's launches are: same tiles, warps and stages, most like it otherwise.

    That is in its other constants first, then in its arguments' dtypes and which of them there are.

    Raises:
        LookupError: there is none.
    """

    def alike(case: Case) -> tuple[int, int, int]:
        """How many constants, arguments that are there and dtypes agree; -1 if what has to be equal is not."""
        real = real_call(case, sm)
        if [one.name for one in real.launches] != [one.name for one in call.launches]:
            return -1, 0, 0
        pairs = [(a.constants, b.constants) for a, b in zip(real.launches, call.launches)]
        if any(a.get(name) != b.get(name) for a, b in pairs for name in {*a, *b} if _is_tile(name)):
            return -1, 0, 0
        constants = sum(a.get(name) == value for a, b in pairs for name, value in b.items())
        theirs, ours = (_dtypes(one.arguments) for one in (real, call))
        there = sum((theirs.get(name) is None) == (dtype is None) for name, dtype in ours.items())
        return constants, there, sum(theirs.get(name) == dtype for name, dtype in ours.items())

    known = [case for case in all_cases() if case.launch is call.wrapper]
    best = max(known, key=alike)
    if alike(best)[0] < 0:
        raise LookupError(f"{best.kernel}: no case is compiled like {call.launches}")
    return best


def seconds(call: Call, device: Device, counts: dict[str, dict[str, Counts]]) -> tuple[float, str, str]:
    """Predicted time of a call; whose it is, a case's name or the library's; what bounds it."""
    if call.library is not None:
        return call.library.target(device), call.library.name, "library"
    case = case_of(call, device.sm)
    counted = counts[case.name][str(device.sm if device.sm in SIMULATED else 80)]
    flops, moved = case.flops(call.arguments), case.bytes(call.arguments)
    weights = sum(t.nbytes for name, t in call.arguments.items() if name.startswith("weight") and t is not None)
    weights = min(weights, moved)
    over = counted["sectors"] / counted["sectors_min"]
    act, weights = (moved - weights) * over, weights * over
    share = TUNING.product_memory if case.dots else JUDGED.memory
    bounds = {"memory": memory_seconds(act, weights, device, share)}
    if case.dots:
        executed = tiled_flops(case, call) * counted["simulated_mma"] * MMA_FLOPS / counted["flops"]
        bounds["tensor cores"] = product_seconds(case, call, executed, counted, device)
        through = tile_bytes(case, call, executed) * counted["sectors"] * SECTOR / counted["operands"]
    else:
        bounds["arithmetic"] = flops / (device.flops(fp32=True) * JUDGED.fp32)
        through = moved * counted["sectors"] / counted["sectors_once"]
    bounds["L2"] = through / (device.bandwidth * JUDGED.l2_gain)
    bound = max(bounds, key=bounds.__getitem__)
    each = JUDGED.matmul_launch_us if case.dots else JUDGED.launch_us
    return bounds[bound] + len(call.launches) * each * 1e-6, case.name, bound


def product_seconds(case: Case, call: Call, executed: float, counted: Counts, device: Device) -> float:
    """Executed products in whole waves."""
    programs = call.launches[0].programs
    waves = math.ceil(programs / device.multiprocessors)
    rate = device.flops() / device.multiprocessors * judged_share(case, call)
    return waves * executed / programs / (rate * issue_share(counted, device))


def judged_share(case: Case, call: Call) -> float:
    """Of the tensor cores' peak that a program reaches."""
    if "attention" in case.kernel:
        return JUDGED.attention
    pointwise = call.launches[0].constants.get("TAPS") == 1  # a library-like product, as in the plan
    if ("conv" in case.kernel and not pointwise) or case.kernel == "residual_unit":
        return TUNING.convolution
    high, wide = _tile(case, call)
    shares = {frozenset(tile[:2]): tile[2] for tile in TUNING.tiles}
    return shares.get(frozenset((high, wide)), min(shares.values()))


def issue_share(counted: Counts, device: Device) -> float:
    """What the main loop leaves of the tensor cores' time: 1 unless other instructions take longer to issue."""
    if not counted["loop_mma"] or device.mma_cycles is None:
        return 1.0
    mma, other = counted["loop_mma"], counted["loop_other"]
    return min(1.0, device.mma_cycles * mma / (mma + other))


def tiled_flops(case: Case, call: Call) -> float:
    """A call's flops where every tile is computed whole."""
    if "attention" in case.kernel:
        return _attended(call)
    high, wide = _tile(case, call)
    if case.kernel == "audio_conv1d":  # stores few of its columns, and rows that lie anywhere
        outputs = call.arguments["x"].shape[:2].numel() * wide
    else:
        outputs = max(t.numel() for t in _outputs(case, call)) * (2 if case.kernel == "linear_swiglu" else 1)
    return case.flops(call.arguments) * call.launches[0].programs * high * wide / outputs


def _attended(call: Call) -> float:
    """Of attention: a program's rows with the blocks of keys that its window or the keys' number leave it."""
    (tiles, heads, songs), c = call.launches[0].grid, call.launches[0].constants
    rows, window = c["M"] // c["GROUP"], c.get("WINDOW")
    keys = call.arguments["k"].shape[1 if window else 2]
    lengths = call.arguments["lengths"]
    blocks = 0
    for length in [keys] * songs if lengths is None or lengths.is_meta else lengths.tolist():
        for start in range(0, tiles * rows, rows):
            low, stop = (max(start - window, 0), min(start + rows + window, length)) if window else (0, length)
            if not window or start < length:
                blocks += math.ceil((stop - low) / c["KEYS"])
    return 4.0 * c["M"] * c["D"] * c["KEYS"] * heads * blocks


def tile_bytes(case: Case, call: Call, executed: float) -> float:
    """What programs ask of L2 for so many flops of 16-bit products: each tile's operands, what is added and stored."""
    high, wide = _tile(case, call)
    added = call.arguments["x" if case.kernel == "residual_unit" else "residual"] if _adds(call) else None
    stored = sum(t.numel() * t.itemsize for t in (*_outputs(case, call), added) if t is not None)
    if "attention" in case.kernel:
        return executed / high + 2 * stored  # keys and values a tile of queries; the queries
    return executed * (1 / high + 1 / wide) + stored


@functools.cache
def real_call(case: Case, sm: int) -> Call:
    """A case's call at real size."""
    return recorded_case(case, case.real(torch.device("meta")), sm)


def _tile(case: Case, call: Call) -> tuple[int, int]:
    """Rows and columns of the accumulator of a program."""
    constants = call.launches[0].constants
    if "attention" in case.kernel:
        return constants["M"], constants["KEYS"]
    wide = constants.get("BLOCK_N", constants.get("C"))
    return constants["BLOCK_M"], (2 if case.kernel == "linear_swiglu" else 1) * wide  # gate and up


def _adds(call: Call) -> bool:
    """Whether rows are added to the products' sums."""
    return "residual" in call.arguments or "weight2" in call.arguments


def _outputs(case: Case, call: Call) -> list[Tensor]:
    return tensors_of([call.arguments[name] for name in case.outputs])


def _dtypes(arguments: dict[str, Any]) -> dict[str, Any]:
    """Of each argument, and of those in a pair; of what is no tensor its type."""
    pairs = {f"{name}.{i}": t for name, v in arguments.items() if isinstance(v, tuple) for i, t in enumerate(v)}
    single = {name: v for name, v in arguments.items() if not isinstance(v, tuple)}
    return {
        k: v.dtype if isinstance(v, Tensor) else None if v is None else type(v) for k, v in (single | pairs).items()
    }


def _is_tile(name: str) -> bool:
    return name.startswith(("BLOCK", "num_")) or name in ("M", "KEYS", "ROWS", "GROUP", "CHUNK")
