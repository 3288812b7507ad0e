"""``acefast bench``: cases in, a report out."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from acefast.console import out, tell
from acefast.files import check_writable, write_together
from acefast.request import RequestError
from acefast.song import check_picture
from acefast.values import nearest

OK, UNAVAILABLE, UNRELIABLE, INTERRUPTED = 0, 2, 4, 130
MODE_NAMES = ("eager", "compile", "fused", "graph")  # of acefast.bench.engines
FORCE = "end what else uses it, let it cool or raise its power limit, or report all the same with --force"


def add_arguments(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--model", help="name, folder or file (default: as in generate); random weights where none are")
    bench.add_argument("--random", action="store_true", help="random weights of full size, whatever is here")
    bench.add_argument("--weights", metavar="FOLDER", help="keep random weights there (default: a temporary folder)")
    bench.add_argument("--seconds", default="30", metavar="S,S", help="lengths of the song (default: 30)")
    bench.add_argument("--batch", default="1", metavar="N,N", help="songs at a time (default: 1)")
    bench.add_argument("--steps", default="8", metavar="N", help="(default: 8)")
    bench.add_argument("--mode", default="fused", metavar="M,M", help="eager, compile, fused, graph (default: fused)")
    bench.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is one)")
    bench.add_argument("--dtype", help="bfloat16, float16 or float32 (default: bfloat16)")
    bench.add_argument("--backend", help="of fused and graph: auto, reference, triton, cuda or cpu")
    bench.add_argument("--warmup-seconds", default="30", metavar="S", help="time to settle in (default: 30)")
    bench.add_argument("--runs", default="20", metavar="N", help="(default: 20)")
    bench.add_argument("--run-seconds", default="30", metavar="S", help="enough, even of fewer runs (default: 30)")
    bench.add_argument("--predicted", metavar="FILE", help="JSON of bench/predict.py, to be put beside")
    bench.add_argument("--json", metavar="FILE", help="write the report there, as docs/bench.md describes it")
    bench.add_argument("--markdown", metavar="FILE", help="write it there for people")
    bench.add_argument("--plot", metavar="PNG", help="draw stages stacked, measured and predicted")
    bench.add_argument("--force", action="store_true", help="report of a throttled or shared GPU, labelled")
    bench.add_argument("--quiet", action="store_true", help="files only")
    bench.add_argument(
        "--calibrate", metavar="FILE", help="instead of songs: fit the predictions' constants to kernels"
    )
    bench.add_argument("--kernel-times", metavar="FILE", help="measured kernels (default: measured here, on a GPU)")


def run(args: argparse.Namespace) -> int:
    """Measure songs; returns the exit code."""
    lengths, batches, modes = _list(args.seconds, "seconds", float), _list(args.batch, "batch", int), _modes(args.mode)
    steps = _number(args.steps, "steps", int)
    if args.kernel_times:
        raise RequestError("bench: --kernel-times has no use without --calibrate FILE, to which their fit goes")
    outputs = outputs_of(args)

    from acefast.bench import predictions
    from acefast.bench.cases import Session
    from acefast.bench.engines import LYRICS, PROMPT, why_unavailable
    from acefast.bench.environment import environment, watch
    from acefast.bench.procedure import Effort
    from acefast.bench.report import SCHEMA
    from acefast.devices import as_device, as_dtype
    from acefast.nvml import GpuLost, shared
    from acefast.request import Request

    for seconds in lengths:
        Request(PROMPT, LYRICS, duration=seconds, steps=steps)  # refuses what cannot be made
    effort = Effort(*(_number(getattr(args, name), name.replace("_", "-"), kind, least) for name, kind, least in
                      (("warmup_seconds", float, 0), ("runs", int, 1), ("run_seconds", float, 0))))  # fmt: skip
    predict = predictions.read(Path(args.predicted)) if args.predicted else None
    device = as_device(args.device)
    dtype = as_dtype(args.dtype, device)
    reasons = {mode: why_unavailable(mode) for mode in modes}
    if all(reasons.values()):  # before weights are written
        _nothing(reasons)
        return UNAVAILABLE
    gpu, why_not = watch(device)
    rows: list[dict[str, Any]] = []
    plan = list(itertools.product(modes, lengths, batches))
    ended = ""
    try:
        about = environment(device, gpu, why_not)
        if gpu and (others := gpu.others()) and not args.force:
            tell(f"bench: {shared(others)}, and nothing that is measured now would hold; {FORCE}")
            return UNRELIABLE
        with _weights(args, dtype) as weights:
            session = Session(device, dtype, args.backend, steps, effort, gpu, predict, _progress(args.quiet))
            for row in session.rows(weights, plan):
                rows.append(row)
    except KeyboardInterrupt:
        ended = "interrupted"
    except GpuLost as error:
        ended = f"the GPU was lost: {error}"
    report = {
        "schema": SCHEMA,
        "complete": not ended,
        "forced": bool(args.force and any(row.get("problems") for row in rows)),
        "environment": about if rows else None,
        "procedure": {**vars(effort), "settled": 0.01},
        "cases": rows if args.force else [_reliable(row) for row in rows],
    }
    return _finish(report, outputs, ended, len(plan), args.quiet)


def _reliable(row: dict[str, Any]) -> dict[str, Any]:
    from acefast.bench.cases import withheld

    return withheld(row) if row.get("problems") else row


def _finish(report: dict[str, Any], outputs: dict[str, Path], ended: str, planned: int, quiet: bool) -> int:
    """Print and write what there is to report; say what there is not. The exit code."""
    from acefast.bench.report import as_json, as_markdown, title

    rows = report["cases"]
    flagged = [row for row in rows if row.get("withheld")]
    measured = [row for row in rows if not row["unavailable"] and not row.get("withheld")]
    for row in flagged:
        tell(f"bench: {title(row)} is not reported: {'; '.join(row['problems'])}; {FORCE}")
    if not measured:
        if ended:
            tell(f"bench: {ended}; nothing was measured and no file is written")
        elif not flagged:
            _nothing({row["mode"]: row["unavailable"] for row in rows})
        return INTERRUPTED if ended == "interrupted" else UNRELIABLE if ended or flagged else UNAVAILABLE
    text = as_markdown(report)
    writers: dict[Path, Callable[[Path], Any]] = {}
    if path := outputs.get("json"):
        writers[path] = lambda file: file.write_text(as_json(report), "utf-8")
    if path := outputs.get("markdown"):
        writers[path] = lambda file: file.write_text(text, "utf-8")
    if path := outputs.get("plot"):
        writers[path] = lambda file: _draw(file, report)
    write_together(writers)
    if not quiet:
        out(text.rstrip("\n"))
    if ended:
        tell(f"bench: {ended}; {len(measured)} of {planned} cases had been measured, and they alone are reported")
    return INTERRUPTED if ended == "interrupted" else UNRELIABLE if ended or flagged else OK


def _nothing(reasons: dict[str, str]) -> None:
    tell(f"bench: nothing could be measured; {'; '.join(f'{mode}: {reason}' for mode, reason in reasons.items())}")


def _draw(file: Path, report: dict[str, Any]) -> None:
    from acefast.bench.plot import draw

    with open(file, "wb") as opened:
        draw(opened, report)


def _progress(quiet: bool) -> Callable[[str], None]:
    shown = not quiet and sys.stderr is not None and sys.stderr.isatty()
    return tell if shown else lambda line: None


@contextlib.contextmanager
def _weights(args: argparse.Namespace, dtype: Any) -> Iterator[Any]:
    """The weights to measure with, within the block: those found, else random ones."""
    from acefast.bench.weights import Weights, find, write_random
    from acefast.checkpoint import open_checkpoint
    from acefast.locate import DEMO, NAMES, variant_of
    from acefast.pipeline import default_model

    model = args.model or default_model()
    found = None if args.random else find(model)
    if found is not None:
        variant = variant_of(model)
        own = "demo" if found == DEMO else open_checkpoint(found, offline=True).name
        name = NAMES[variant] if variant else own
        yield Weights(name, found, "checkpoint")
        return
    tell_about = _progress(args.quiet)
    with contextlib.ExitStack() as stack:
        folder = args.weights or stack.enter_context(tempfile.TemporaryDirectory(prefix="acefast-bench-"))
        tell_about(f"writing random weights of the size of {model}, several GB, to {folder}")
        yield write_random(model, Path(folder), dtype)


# -- words -------------------------------------------------------------------------------------------------------------


def outputs_of(args: argparse.Namespace) -> dict[str, Path]:
    """Where the report goes, refused now rather than after the work."""
    names = ("calibrate", "json", "markdown")
    found = {name: Path(getattr(args, name)).expanduser() for name in names if getattr(args, name)}
    for path in found.values():
        check_writable(path)
    if args.plot:
        found["plot"] = check_picture(args.plot)
    if len(set(found.values())) < len(found):
        raise RequestError("bench: --calibrate, --json, --markdown and --plot must name different files")
    return found


def _modes(text: str) -> list[str]:
    modes = _list(text, "mode", str)
    for mode in modes:
        if mode not in MODE_NAMES:
            near = nearest(mode, MODE_NAMES)
            raise RequestError(f"mode must be one of {', '.join(MODE_NAMES)}, got {mode!r}{near and f'; try {near}'}")
    return modes


def _list(text: str, name: str, kind: type) -> list[Any]:
    found = [_number(word, name, kind) if kind is not str else word for word in text.split(",")]
    return list(dict.fromkeys(found))


def _number(text: str, name: str, kind: type, least: float = 1) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value < float("inf"):
        what = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name} must be {what} of at least {least:g}, got {text!r}")
    return value
