"""``acefast kernels``, and the fit of its predictions: all outside of acefast.sim that imports it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acefast.backends import BackendUnavailable, why_unavailable
from acefast.bench.command import outputs_of
from acefast.console import out, tell
from acefast.cuda import toolkit
from acefast.files import check_writable, write_together
from acefast.request import RequestError

OK, FAULTY_KERNEL = 0, 1
GPUS = (80, 86, 89, 90, 100, 120)  # sm's that acefast.sim compiles for


def add_arguments(study: argparse.ArgumentParser) -> None:
    """What the command takes."""
    study.add_argument("kernel", nargs="?", help="one kernel, such as residual_norm (default: all)")
    study.add_argument("--sm", type=int, choices=GPUS, default=80, help="the GPU, 80 for an A100 (default: 80)")
    study.add_argument("--family", choices=("triton", "cuda"), default="triton", help="(default: triton)")
    study.add_argument("--json", action="store_true", help="as a JSON list")
    study.add_argument(
        "--write-budgets",
        metavar="FILE",
        help="make these figures the budgets, kernels/budgets.json or csrc/budgets.json",
    )
    study.add_argument("--judged", metavar="FILE", help="predict with the constants that bench --calibrate has fitted")


def run(args: argparse.Namespace) -> int:
    """Compile, simulate and show the proved kernels; returns the exit code."""
    from acefast.sim.budgets import write_budgets
    from acefast.sim.calibrate import read_judged
    from acefast.sim.roofline import JUDGED
    from acefast.sim.study import study
    from acefast.sim.table import lines

    known = _known_cases(args.family)
    judged = read_judged(Path(args.judged)) if args.judged else JUDGED
    cases = [case for case in known if args.kernel in (None, case.kernel)]
    if not cases:
        names = sorted({case.kernel for case in known})
        raise RequestError(f"kernels: there is none called {args.kernel!r}; there are {', '.join(names) or 'none yet'}")
    if args.write_budgets:
        check_writable(Path(args.write_budgets))
    rows: list[dict[str, Any]] = []

    def studied() -> Iterator[dict[str, Any]]:
        for case in cases:
            rows.append(study(case, args.sm, judged))
            yield rows[-1]

    if args.json:
        out(json.dumps(list(studied()), indent=1))
    else:
        for line in lines(studied(), args.sm, [case.name for case in cases]):
            out(line)
    if faulty := sum(bool(row["faults"]) for row in rows):
        tell(f"kernels: {faulty} of {len(rows)} have a fault{'; no budget is written' if args.write_budgets else ''}")
        return FAULTY_KERNEL
    if args.write_budgets:
        write_budgets(Path(args.write_budgets), rows, [case.name for case in known])
    return OK


def _known_cases(family: str = "triton") -> tuple[Any, ...]:
    from acefast.cases import all_cases

    if family == "cuda" and toolkit.find_nvcc() is None:
        raise BackendUnavailable("kernels: nvcc compiles CUDA kernels and is not here; pip install nvidia-cuda-nvcc")
    try:
        return all_cases(family)
    except ModuleNotFoundError as error:
        way_out = "pip install acefast[gpu], on Linux, compiles kernels without a GPU"
        raise BackendUnavailable(f"kernels: {error.name} is not installed; {way_out}") from error


def _all_that_run() -> tuple[Any, ...]:
    """The cases of both families; without those of CUDA kernels where they cannot be loaded."""
    from acefast.cases import all_cases

    if reason := why_unavailable("cuda"):
        tell(f"bench: CUDA kernels are not measured: {reason}")
    return (*_known_cases(), *(() if reason else all_cases("cuda")))


def calibrate(args: argparse.Namespace) -> int:
    """Fit the constants that predictions judge by to measured times: ``acefast bench --calibrate``."""
    from acefast.sim import calibrate as fitting
    from acefast.sim.kernel_times import time_here

    if args.plot:
        raise RequestError("bench: --plot has no use with --calibrate, which draws nothing; leave it out")
    outputs = outputs_of(args)
    times = fitting.read_times(Path(args.kernel_times)) if args.kernel_times else time_here(_all_that_run, args.device)
    fitted = fitting.fit(fitting.fastest(times["kernels"]), times["sm"])
    text = "\n".join(fitting.lines(times["kernels"], times["sm"], fitted))
    texts = {"calibrate": fitting.as_file(fitted, times), "json": json.dumps(times, indent=1) + "\n"}
    texts["markdown"] = text + "\n"
    write_together({p: lambda file, n=name: file.write_text(texts[n], "utf-8") for name, p in outputs.items()})
    if not args.quiet:
        out(text)
    return OK
