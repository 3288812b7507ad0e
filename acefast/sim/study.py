"""One proved case of a kernel: compiled at real size, run in the simulator at a few tiles, held to its limits.

    row = study(case, sm=80)
    row["registers"], row["sectors"], row["error"], row["faults"]  # [] where every limit is kept

``acefast kernels`` shows the rows of all cases.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from acefast.cases import Arguments, Case
from acefast.cuda.toolkit import CompileError
from acefast.sim.driver import BLOCK_SHARED_LIMIT, Argument, Launch, dry_run
from acefast.sim.errors import SimError
from acefast.sim.launch import launch
from acefast.sim.resources import Resources, read_kernel
from acefast.sim.roofline import JUDGED, Judged, floor_us, predicted_us
from acefast.sim.tensors import Arrays, copy_of, share_memory, tensors_of

FIGURES = (
    *("launches", "registers", "spill_bytes", "local", "shared_bytes", "mma", "cp_async"),
    *("loop_mma", "loop_other", "loop_mix"),
    *("sectors", "sectors_min", "sectors_once", "wavefronts", "wavefronts_min"),
    *("simulated_mma", "simulated_cp_async", "error", "torch_error"),
)
SIMULATED = (80, 86, 89)  # whose PTX the simulator runs
LOOP_MIX_SM = 80  # where Case.loop_mix holds: others have smaller tiles, or another kind of tensor core
SM_REGISTERS, SM_THREADS = 65536, {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
WORSE_THAN_TORCH = 1.1  # times PyTorch's own error
_OF_GPU = re.compile(r"^\s*\.(target|file)\s.*$|\.section\s[\s\S]*", re.M)  # the target, and names of files
_known: dict[tuple[Any, ...], Simulated] = {}  # by what was run; the last one
FP32_ERROR = 1e-6  # relative L2 that the order of an fp32 sum may cost, whatever PyTorch's own error is


@dataclass(frozen=True)
class Compiled:
    """A case's launches at real size.

    Figures of several launches are the largest, instructions their sum; the main loop is the one with the worst mix.
    """

    sm: int
    launches: tuple[Launch, ...]
    resources: tuple[Resources, ...]

    @property
    def blocks_per_sm(self) -> int:
        """How many blocks of the largest launch a multiprocessor holds."""
        return min(blocks_per_sm(launch, of.registers) for launch, of in zip(self.launches, self.resources))

    def row(self) -> dict[str, int | float | None]:
        found = self.resources
        loop = max(found, key=lambda r: r.loop_mix or 0)
        return {
            "launches": len(found),
            "registers": max(r.registers for r in found),
            "spill_bytes": max(r.spill_bytes for r in found),
            "local": sum(r.local for r in found),
            "shared_bytes": max(r.shared_bytes for r in found),
            "mma": sum(r.tensor_core for r in found),
            "cp_async": sum(r.cp_async for r in found),
            "loop_mma": loop.loop_mma,
            "loop_other": loop.loop_other,
            "loop_mix": loop.loop_mix,
        }


@dataclass(frozen=True)
class Simulated:
    """A case's launches at a few tiles, run: counts over all of them, and the worst output's relative L2."""

    launches: tuple[Launch, ...]
    counts: dict[str, int]  # sectors, sectors_min, wavefronts, wavefronts_min
    sectors_once: int  # that would do if each counted byte moved once; what L1 and L2 serve again is beyond it
    mma: int  # executed by warps, as is cp_async
    cp_async: int
    errors: tuple[float, ...]  # per output; of one of integers the share of elements that differ
    torch_errors: tuple[float, ...]  # of PyTorch in the case's own dtypes
    dtypes: tuple[torch.dtype, ...]

    def row(self) -> dict[str, Any]:
        names = ("sectors", "sectors_min", "wavefronts", "wavefronts_min")
        return {
            **{name: self.counts[name] for name in names},
            "sectors_once": self.sectors_once,
            "simulated_mma": self.mma,
            "simulated_cp_async": self.cp_async,
            "error": max(self.errors),
            "torch_error": max(self.torch_errors),
        }


def study(case: Case, sm: int = 80, judged: Judged = JUDGED) -> dict[str, Any]:
    """All that is found out about a case, as plain data.

    A figure is None where there is none: the simulator does not run what is compiled for ``sm``, or the kernel has a
    fault that ends compiling or running it, which is then in "faults".

    Raises:
        RuntimeError: triton is not installed; of a CUDA kernel, there is no nvcc.
        ValueError: the case itself cannot be compared.
    """
    from triton.errors import TritonError

    real = case.real(torch.device("meta"))
    counted = case.flops(real), case.bytes(real), sm
    figures = dict.fromkeys(FIGURES)
    found: list[str] = []
    try:
        compiled = compile_case(case, sm)
    except (TritonError, CompileError) as error:
        found.append(f"does not compile: {' '.join(str(error).split())}")
    else:
        figures |= compiled.row()
        simulated = None
        try:
            simulated = simulate_case(case, sm) if sm in SIMULATED else None
        except SimError as error:
            found.append(str(error))
        figures |= simulated.row() if simulated else {}
        found += faults(case, compiled, simulated)
    words = {"attention": "attention" in case.kernel, "launches": figures["launches"] or 1, "judged": judged}
    return {
        "kernel": case.kernel,
        "config": case.config,
        "sm": sm,
        **figures,
        "floor_us": round(floor_us(*counted, dots=case.dots), 2),
        "predicted_us": round(predicted_us(*counted, dots=case.dots, **words), 2),
        "faults": found,
    }


def compile_case(case: Case, sm: int = 80) -> Compiled:
    """Compile a case at real size, on tensors without memory."""
    with dry_run(sm) as launches:
        case.launch(**case.real(torch.device("meta")))
    return Compiled(sm, tuple(launches), tuple(read_kernel(one.kernel) for one in launches))


def simulate_case(case: Case, sm: int = 80, *, approx: str = "random", seed: int = 0) -> Simulated:
    """Run a case at its small size and compare its outputs with the reference in fp64.

    Outputs that are not in place start as NaN; every check of the simulator is on.

    Raises:
        Finding: the kernel does something it must not.
        ValueError: it is launched on a tensor that is none of its arguments, or not launched at all.
    """
    given = case.small(torch.Generator().manual_seed(seed))
    poison_outputs(case, given)
    with dry_run(sm) as launches, torch.inference_mode():
        case.launch(**given)
    if not launches:
        raise ValueError(f"{case.name}: its small arguments launch nothing")
    program = case, approx, seed, *((_OF_GPU.sub("", one.ptx), one.grid, one.shared_bytes) for one in launches)
    if program in _known:  # the same code for another GPU
        return replace(_known[program], launches=tuple(launches))
    exact = case.reference(**copy_of(given, torch.float64))
    rounded = (case.plain or case.reference)(**copy_of(given))
    arrays = Arrays(tensors_of(given))
    reports = [_simulate(one, arrays, case, approx, seed) for one in launches]
    outputs = outputs_of(case, given)
    totals = [report.counters.totals() for report in reports]
    own = errors(case, [r.to(o.dtype) for r, o in zip(rounded, outputs)], exact)
    if any(math.isnan(error) for error in own):
        raise ValueError(f"{case.name}: what has a meaning in fp64 is NaN in the case's own dtypes")
    found = Simulated(
        launches=tuple(launches),
        counts={name: sum(total[name] for total in totals) for name in totals[0]},
        sectors_once=math.ceil(case.bytes(given) / 32),
        mma=sum(sum(report.counters.mma().values()) for report in reports),
        cp_async=sum(n for report in reports for op, n in report.counters.mix().items() if op == "cp.async"),
        errors=errors(case, outputs, exact),
        torch_errors=own,
        dtypes=tuple(o.dtype for o in outputs),
    )
    _known.clear()  # of one case
    _known[program] = found
    return found


def faults(case: Case, compiled: Compiled, simulated: Simulated | None = None) -> list[str]:
    """Which of a case's limits are not kept, one sentence each."""
    row, limit, found = compiled.row(), BLOCK_SHARED_LIMIT[compiled.sm], []
    if row["spill_bytes"] or row["local"]:
        found.append(f"spills {row['spill_bytes']} bytes, {row['local']} instructions on local memory")
    if row["shared_bytes"] > limit:
        found.append(f"{row['shared_bytes']} bytes of shared memory, a block has {limit}")
    found += [f"a matrix product without {name}" for name in ("mma", "cp_async") if case.dots and not row[name]]
    if case.loop_mix is not None and compiled.sm == LOOP_MIX_SM and (row["loop_mix"] or math.inf) > case.loop_mix:
        mix = f"{row['loop_other']} other instructions per {row['loop_mma']} on tensor cores"
        found.append(f"{mix} in the main loop; at most {case.loop_mix:.3f} times as many")
    if simulated is None:
        return found
    if _shape(simulated.launches) != _shape(compiled.launches):
        found.append(f"simulated as {_shape(simulated.launches)}, compiled as {_shape(compiled.launches)}")
    for name, most in (("sectors", case.sector_limit), ("wavefronts", case.wavefront_limit)):
        cost, least = simulated.counts[name], simulated.counts[f"{name}_min"]
        if cost > most * least:
            found.append(f"{cost} {name}, {cost / least:.3f} times the fewest possible; at most {most}")
    for error, own, dtype in zip(simulated.errors, simulated.torch_errors, simulated.dtypes):
        most = largest_error(case, own, dtype)
        if not error <= most:
            found.append(f"relative L2 {error:.2e} against fp64, PyTorch's own is {own:.2e}; at most {most:.2e}")
    return found


def blocks_per_sm(launch: Launch, registers: int) -> int:
    """How many blocks of a launch a multiprocessor holds, by registers, threads and shared memory."""
    threads, shared = 32 * launch.num_warps, BLOCK_SHARED_LIMIT[launch.sm] + 1024
    of_registers = SM_REGISTERS // (-(-registers // 8) * 8 * threads)
    return min(of_registers, SM_THREADS[launch.sm] // threads, shared // (launch.shared_bytes + 1024))


def largest_error(case: Case, own: float, dtype: torch.dtype) -> float:
    """The relative L2 that an output of ``dtype`` may have, where PyTorch's own is ``own``."""
    return min(case.tolerance, max(WORSE_THAN_TORCH * own, FP32_ERROR if dtype == torch.float32 else 0.0))


def poison_outputs(case: Case, given: Arguments) -> None:
    """Fill outputs with NaN, but for those in place: they share memory with an input, or the reference reads them."""
    inputs = tensors_of({name: value for name, value in given.items() if name not in case.outputs})

    def fill(arguments: Arguments, name: str) -> None:
        for t, own in zip(tensors_of(arguments[name]), tensors_of(given[name])):
            if t.is_floating_point() and not any(share_memory(own, i) for i in inputs):
                t.fill_(torch.nan)

    for name in case.outputs:
        trial = copy_of(given)
        fill(trial, name)
        meant, poisoned = case.reference(**copy_of(given)), case.reference(**trial)
        if all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(meant, poisoned)):
            fill(given, name)


def outputs_of(case: Case, given: Arguments) -> list[Tensor]:
    return tensors_of([given[name] for name in case.outputs])


def errors(case: Case, outputs: list[Tensor], meant: tuple[Tensor, ...]) -> tuple[float, ...]:
    """Relative L2 of each output over the elements that have a meaning; of integers the share that differs.

    Raises:
        ValueError: outputs and reference do not match, or nothing of an output has a meaning.
    """
    shapes = [tuple(t.shape) for t in outputs], [tuple(t.shape) for t in meant]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{case.name}: outputs are {shapes[0]}, the reference's {shapes[1]}")
    found = []
    for output, right in zip(outputs, meant):
        right = right.to(output.device)  # some references are of the CPU wherever the kernel runs
        if not right.is_floating_point():
            found.append((output != right).double().mean().item())
            continue
        counts = ~right.isnan()
        if not counts.any():
            raise ValueError(f"{case.name}: the reference is NaN everywhere")
        off, size = (output.double() - right.double())[counts].norm(), right.double()[counts].norm()
        found.append((off / size.clamp_min(1e-30)).item())
    return tuple(found)


def _simulate(one: Launch, arrays: Arrays, case: Case, approx: str, seed: int):
    values = [_value(one, n, a, arrays) for n, a in one.arguments.items() if a.type != "constexpr"]
    sizes = {"grid": one.grid, "block": 32 * one.num_warps, "shared": one.shared_bytes}
    checks = {"registers": True, "races_between_blocks": not case.ordered}
    return launch(one.ptx, one.name, values, **sizes, **checks, approx=approx, seed=seed)


def _value(one: Launch, name: str, argument: Argument, arrays: Arrays) -> Any:
    if argument.address is None:
        return argument.value or 0  # a null pointer is None
    pointer = arrays.at(argument.address)
    if pointer is None:
        raise ValueError(f"{one.name}: {name} is no argument of its wrapper, which must allocate nothing")
    return pointer


def _shape(launches: tuple[Launch, ...]) -> str:
    """What two launches of one configuration have in common, whatever their sizes."""
    return ", ".join(f"{one.name} with {one.num_warps} warps and {one.num_stages} stages" for one in launches)
