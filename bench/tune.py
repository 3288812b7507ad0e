"""Choose the configurations of Triton kernels for the GPU here: try, check, time, and put the best into the tables.

    python bench/tune.py residual_unit conv1d/last [--json FILE]  # candidates of these kernels or cases, best first
    python bench/tune.py residual_unit --compile-only --sm 90     # which of them compile without spills: no GPU needed
    python bench/tune.py --apply FILE                             # the best ones become lines of kernels/*.py

A candidate is a configuration of one shape class of a kernel, the same for every length and batch, so that a row's bits
do not depend on them. All are compiled first, in parallel, and dropped where they spill or break another limit of
acefast.sim.study; those left have to agree with the reference within the case's tolerance and are timed as
acefast.sim.kernel_times does. The best has the smallest geometric mean, over the cases of its class, of its times over
the current configuration's. ``--apply`` compiles it for every case of its class, with the Triton at hand, and takes
the next one where that spills; it leaves a class alone whose best gains less than 2 %. Format and test afterwards.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import itertools
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from acefast.cases import Case, all_cases  # noqa: E402
from acefast.kernel_config import Config, current_sm, pick  # noqa: E402
from acefast.sim import kernel_times  # noqa: E402
from acefast.sim.study import compile_case, errors, faults, outputs_of, poison_outputs  # noqa: E402
from acefast.sim.tensors import copy_of  # noqa: E402
from bench.tune_grids import grids  # noqa: E402

SCHEMA = "acefast-tuned/1"
GAIN = 0.98  # of the current time: what a change has to reach
ROUNDS = 2  # over all candidates of a case; the faster counts

Row = dict[str, Any]  # config, current, registers, shared_bytes, dropped (why; None where it is not), us by case
Each = Callable[[Callable[[Any], Any], list], list]
Found = dict[str, dict[str, list[Row]]]  # by kernel and shape class


class Trial(dict):
    """A kernel's table in which one class has the configuration on trial; it notes the classes it is asked for."""

    def __init__(self, table: dict, name: str | None = None, config: Config | None = None) -> None:
        super().__init__(table)
        self.name, self.config, self.asked = name, config, []

    def get(self, key: tuple[str, int], default: Config | None = None) -> Config | None:
        if key[0] not in self.asked:
            self.asked.append(key[0])
        return self.config if key[0] == self.name else super().get(key, default)


@contextlib.contextmanager
def trial(kernel: str, name: str | None = None, config: Config | None = None) -> Iterator[Trial]:
    """Within the block ``kernel`` launches shape class ``name`` with ``config``."""
    room = importlib.import_module(f"acefast.kernels.{kernel}")
    before, table = room.CONFIGS, Trial(room.CONFIGS, name, config)
    room.CONFIGS = table
    try:
        yield table
    finally:
        room.CONFIGS = before


def selected(names: Sequence[str]) -> list[Case]:
    """The cases of these kernels, or with these names; ValueError where there are none."""
    cases = all_cases()
    for name in names:
        if not any(name in (case.kernel, case.name) for case in cases):
            raise ValueError(f"there is no kernel or case {name!r}; `acefast kernels` lists them")
    return [case for case in cases if case.kernel in names or case.name in names]


def by_class(cases: Sequence[Case], sm: int, each: Each) -> dict[tuple[str, str], list[Case]]:
    """Cases by (kernel, shape class); one with several launches may be in several classes."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case, names in zip(cases, each(asked, [(case.name, sm) for case in cases])):
        for name in names:
            found.setdefault((case.kernel, name), []).append(case)
    return found


def asked(job: tuple[str, int]) -> list[str]:
    """The shape classes of (a case's name, sm)."""
    case = next(case for case in all_cases() if case.name == job[0])
    with trial(case.kernel) as table:
        compile_case(case, job[1])
    return table.asked


def candidates(kernel: str, name: str, current: Config) -> list[Config]:
    """The current configuration, then the others of its class's grids, in which what is left out is the current."""
    found = [current]
    for grid in grids(kernel, name):
        for values in itertools.product(*grid.values()):
            given = dict(zip(grid, values))
            launch = {key: given.pop(key) for key in ("num_warps", "num_stages") if key in given}
            if unknown := set(given) - set(current.tiles):
                raise ValueError(f"{kernel} has no {', '.join(sorted(unknown))}; it has {', '.join(current.tiles)}")
            config = Config(
                {**current.tiles, **given},
                launch.get("num_warps", current.num_warps),
                launch.get("num_stages", current.num_stages),
                current.compiler,
            )
            if config not in found:
                found.append(config)
    return found


def compiled(job: tuple[str, str, Config, int]) -> Row:
    """What became of (a case's name, its class, a configuration, sm): registers, shared_bytes, dropped."""
    from triton.errors import TritonError

    case_name, name, config, sm = job
    case = next(case for case in all_cases() if case.name == case_name)
    found: Row = {"registers": None, "shared_bytes": None, "dropped": None}
    try:
        with trial(case.kernel, name, config):
            made = compile_case(case, sm)
    except (TritonError, ValueError, RuntimeError) as error:
        return found | {"dropped": f"{case.config} does not compile: {' '.join(str(error).split())[:200]}"}
    row = made.row()
    found |= {key: row[key] for key in ("registers", "shared_bytes")}
    return found | {"dropped": next((f"{case.config}: {fault}" for fault in faults(case, made)), None)}


@contextlib.contextmanager
def pool(processes: int) -> Iterator[Each]:
    """A map over ``processes`` that leave what they compile in Triton's cache; in this one if it is 1."""
    if processes == 1:
        yield lambda function, jobs: list(map(function, jobs))
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as workers:
        yield lambda function, jobs: list(workers.map(function, jobs))


def tune(
    cases: Sequence[Case], sm: int, each: Each, device: torch.device | None, told: Callable[[Found], None]
) -> Found:
    """Rows by kernel and shape class, best first, not timed where ``device`` is None; ``told`` class by class."""
    classes = by_class(cases, sm, each)
    tables = {key: candidates(*key, current_of(*key, sm)) for key in classes}
    jobs = [(case.name, key[1], config, sm) for key in classes for config in tables[key] for case in classes[key]]
    made = iter(each(compiled, jobs))
    found: dict[str, dict[str, list[Row]]] = {}
    for key, members in classes.items():
        rows = []
        for number, config in enumerate(tables[key]):
            results = [next(made) for _ in members]
            rows.append(
                {
                    "config": as_dict(config),
                    "current": number == 0,
                    **{name: max(r[name] or 0 for r in results) for name in ("registers", "shared_bytes")},
                    "dropped": next((r["dropped"] for r in results if r["dropped"]), None),
                    "us": {},
                }
            )
        if device is not None:
            for case in members:
                time_candidates(case, key[1], rows, device, sm)
        found.setdefault(key[0], {})[key[1]] = sorted(rows, key=lambda row: (bool(row["dropped"]), score(row, rows)))
        print(table(*key, found[key[0]][key[1]]), flush=True)
        told(found)
    return found


def time_candidates(case: Case, name: str, rows: list[Row], device: torch.device, sm: int) -> None:
    """Check and time one case with every row's configuration that is left; one that is wrong is dropped."""
    from triton.errors import TritonError

    given = kernel_times.arguments(case, device)
    poison_outputs(case, given)
    meant = case.reference(**copy_of(given, torch.float32))
    for row in rows:
        if row["dropped"]:
            continue
        once = copy_of(given)
        try:
            with trial(case.kernel, name, as_config(row["config"])):
                case.launch(**once)
        except TritonError as error:  # more threads or memory than this GPU has
            row["dropped"] = f"{case.config} is not launched: {' '.join(str(error).split())[:200]}"
            continue
        error = max(errors(case, outputs_of(case, once), meant))
        if not error <= case.tolerance:
            row["dropped"] = f"{case.config}: relative L2 {error:.1e}, at most {case.tolerance:.1e}"
        del once
    sets = kernel_times.copies(given, sm)
    for _ in range(ROUNDS):
        for row in rows:
            if not row["dropped"]:
                with trial(case.kernel, name, as_config(row["config"])):
                    us = kernel_times.measured_us(case, sets, device)
                row["us"][case.config] = round(min(us, row["us"].get(case.config, math.inf)), 2)


def score(row: Row, rows: list[Row]) -> float:
    """Geometric mean of a row's times over the current configuration's, or the first's that is timed; 1 if none is."""
    base = next((r["us"] for r in sorted(rows, key=lambda r: not r["current"]) if r["us"]), {})
    logs = [math.log(row["us"][case] / base[case]) for case in base if case in row["us"]]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def table(kernel: str, name: str, rows: list[Row]) -> str:
    """Rows of a class as text."""
    cases = list(dict.fromkeys(case for row in rows for case in row["us"]))
    lines = [f"\n{kernel}, {name}", " | ".join(["", "configuration", "registers", "shared", "of current", *cases, ""])]
    for row in rows:
        config = row["config"]
        sizes = " ".join(f"{key}={value}" for key, value in config["tiles"].items())
        told = f"{sizes}, {config['num_warps']} warps, {config['num_stages']} stages{' (current)' * row['current']}"
        if row["dropped"]:
            lines.append(f"| {told} | {row['dropped']} |")
        else:
            times = [f"{row['us'][case]:.2f}" for case in cases]
            figures = str(row["registers"]), str(row["shared_bytes"]), f"{score(row, rows):.3f}" if times else "-"
            lines.append(" | ".join(["", told, *figures, *times, ""]).strip())
    return "\n".join(lines)


def as_dict(config: Config) -> dict[str, Any]:
    fixed = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return {"tiles": dict(config.tiles), **fixed, "compiler": dict(config.compiler)}


def as_config(told: dict[str, Any]) -> Config:
    return Config(**told)


def current_of(kernel: str, name: str, sm: int) -> Config:
    return pick(importlib.import_module(f"acefast.kernels.{kernel}").CONFIGS, name, sm)


def apply(found: dict[str, Any], each: Each) -> list[str]:
    """Write the best configurations of a report into their tables; returns what was done, a sentence per class."""
    sm, told = found["sm"], []
    for kernel, classes in found["kernels"].items():
        members = by_class(selected([kernel]), sm, each)
        room = importlib.import_module(f"acefast.kernels.{kernel}")
        for name, rows in classes.items():
            for row in (row for row in rows if row["us"] and not row["dropped"]):
                share, config = score(row, rows), as_config(row["config"])
                if share > GAIN:
                    told.append(f"{kernel}, {name}: nothing gains 2 %")
                    break
                jobs = [(case.name, name, config, sm) for case in members[kernel, name]]
                if fault := next((made["dropped"] for made in each(compiled, jobs) if made["dropped"]), None):
                    told.append(f"{kernel}, {name}: not {call(room, config)}: {fault}")
                    continue
                path = Path(room.__file__)
                path.write_text(with_line(path.read_text(), name, sm, call(room, config)))
                told.append(f"{kernel}, {name}: {call(room, config)}, {share:.3f} of the time before")
                break
    return told


def call(room: Any, config: Config) -> str:
    """The expression that makes ``config``: by the room's ``_tile`` where that can make it."""
    if make := getattr(room, "_tile", None):
        marks = range(-1, -1 - len(inspect.signature(make).parameters), -1)
        shape = as_dict(make(*marks))
        flat = {**shape.pop("tiles"), **shape}
        own = as_dict(config)
        values = {**own.pop("tiles"), **own}
        numbers = {flat[key]: value for key, value in values.items() if isinstance(flat.get(key), int)}
        arguments = [numbers[mark] for mark in marks]
        if make(*arguments) == config:
            return f"_tile({', '.join(map(str, arguments))})"
    words = [json.dumps(dict(config.tiles)), f"num_warps={config.num_warps}"]
    if config.num_stages != Config({}).num_stages:
        words.append(f"num_stages={config.num_stages}")
    if config.compiler:
        words.append(f"compiler={dict(config.compiler)!r}")
    return f"Config({', '.join(words)})"


def with_line(source: str, name: str, sm: int, expression: str) -> str:
    """``source`` with an entry (name, sm) in its CONFIGS: in place of the one there is, or where none behind wins."""
    body = ast.parse(source).body
    node = next(n.value for n in body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "CONFIGS")
    own, last = {}, node.lineno  # sm -> (first line, last line) of the class's entries; behind them and every ** entry
    for key, value in zip(node.keys, node.values):
        mine = isinstance(key, ast.Tuple) and key.elts[0].value == name
        if mine:
            own[key.elts[1].value] = key.lineno - 1, value.end_lineno
        last = value.end_lineno if mine or key is None else last
    lines = source.splitlines(keepends=True)
    start, end = own.get(sm, (last, last))
    lines[start:end] = [f'    ("{name}", {sm}): {expression},\n']
    return "".join(lines)


def main(argv: list[str] | None = None, now: Callable[[], int] = current_sm) -> int:
    """Run the command; prints tables and, of ``--apply``, what changed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help="an op's name, or a case's: residual_unit/c128-d1")
    parser.add_argument("--compile-only", action="store_true", help="time nothing; needs no GPU")
    parser.add_argument("--sm", type=int, default=90, help="of --compile-only, 90 by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--apply", type=Path, metavar="FILE", help="put the best of a file into kernels/*.py")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that compile; one per CPU")
    args = parser.parse_args(argv)
    if args.apply:
        with pool(args.processes) as each:
            print("\n".join(apply(json.loads(args.apply.read_text()), each)))
        return 0
    if not args.kernels:
        parser.error("name a kernel or a case; `acefast kernels` lists them")
    try:
        cases = selected(args.kernels)
    except ValueError as error:
        parser.error(str(error))
    if not args.compile_only and not torch.cuda.is_available():
        parser.error("torch sees no CUDA GPU to time kernels on; --compile-only needs none")
    device = None if args.compile_only else torch.device("cuda")
    gpu = None if device is None else torch.cuda.get_device_name()
    sm = args.sm if device is None else now()
    versions = {"triton": importlib.import_module("triton").__version__, "torch": torch.__version__}
    about = {"schema": SCHEMA, "sm": sm, "gpu": gpu, **versions}

    def write(found: Found) -> None:
        if args.json:
            args.json.write_text(json.dumps({**about, "kernels": found}, indent=1) + "\n")

    flags = torch.backends.cudnn.flags(allow_tf32=False)
    with pool(args.processes) as each, torch.inference_mode(), flags:
        tune(cases, sm, each, device, write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
