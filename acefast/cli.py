"""The command ``acefast``: ``generate`` makes songs, ``info`` tells what is here.

Exit codes: 0 done, 2 a request that cannot work, 3 no usable checkpoint, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from acefast.audio import check_output, check_writable
from acefast.backends import BackendUnavailable
from acefast.request import RequestError, expand, options
from acefast.values import nearest
from acefast.weights import CheckpointError

OK, BAD_REQUEST, NO_CHECKPOINT, INTERRUPTED = 0, 2, 3, 130
STAGES = {"text": "reading", "diffusion": "composing", "decode": "rendering", "finish": "finishing"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    try:
        known, unknown = parser.parse_known_args(arguments)
        if unknown:
            raise RequestError(_unknown(unknown[0], known))
        return known.run(known)
    except (RequestError, BackendUnavailable) as error:
        print(f"acefast: {error}", file=sys.stderr)
        return BAD_REQUEST
    except CheckpointError as error:
        print(f"acefast: {error}", file=sys.stderr)
        return NO_CHECKPOINT
    except KeyboardInterrupt:
        print("acefast: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="acefast", description=__doc__.splitlines()[0], allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="generate|info")
    make = commands.add_parser("generate", help="make a song", allow_abbrev=False)
    make.set_defaults(run=_generate)
    make.add_argument("prompt", nargs="?", default="", help="what the music is like")
    make.add_argument("-o", "--output", required=True, help="wav, flac, mp3, ogg or opus file; -SEED is added for several")
    make.add_argument("--model", help="name, folder, file or hub repo id (default: $ACEFAST_MODEL or ace-step-1.5-turbo)")
    make.add_argument("--device", help="cuda, cuda:1, cpu, mps (default: cuda where there is one)")
    make.add_argument("--dtype", help="bfloat16, float16 or float32 (default: the device's fastest)")
    make.add_argument("--backend", help="auto, reference, triton, cuda or cpu")
    make.add_argument("--subtype", choices=("int16", "int24", "float32"), help="sample format (default: int16)")
    make.add_argument("--json", action="store_true", help="write seed, options and timings beside the song, as .json")
    make.add_argument("--plot", metavar="PNG", help="draw waveform and spectrogram")
    make.add_argument("--quiet", action="store_true", help="no progress bar, no closing line")
    for name, about in options().items():
        if name == "prompt" or not (about.stored or about.kind == "audio"):
            continue
        takes = f"{about.help} [{about.needs}]" if about.kind != "flag" else about.help
        default = "" if about.default in (None, "", False, ()) else f" (default: {about.default})"
        extra: dict[str, Any] = {"nargs": "?", "const": "true"} if about.kind == "flag" else {}
        make.add_argument(_flag(name), dest=f"option_{name}", metavar="V", help=(takes + default).replace("%", "%%"), **extra)
    info = commands.add_parser("info", help="models, devices and backends found here", allow_abbrev=False)
    info.set_defaults(run=_info)
    info.add_argument("model", nargs="?", help="one model in detail")
    info.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unknown(word: str, known: argparse.Namespace) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; put a prompt of several words in quotes"
    flags = [_flag(name) for name in options()] + ["--output", "--model", "--device", "--dtype", "--backend", "--json"]
    near = nearest(word.split("=")[0], flags)
    way_out = f"the nearest known one is {near}" if near else "'acefast generate --help' lists all"
    return f"unknown option {word.split('=')[0]}; {way_out}"


# -- generate ----------------------------------------------------------------------------------------------------------


def _generate(args: argparse.Namespace) -> int:
    given = {n.removeprefix("option_"): v for n, v in vars(args).items() if n.startswith("option_") and v is not None}
    lyrics, seeds = _lyrics(given.pop("lyrics", "")), given.pop("seed", None)
    request: dict[str, Any] = {name: options()[name].parse(name, text) for name, text in given.items()}
    if seeds is not None:
        found = [options()["seed"].parse("seed", word) for word in seeds.split(",")]
        request["seed"] = found if len(found) > 1 else found[0]
    output = check_output(args.output, args.subtype)
    if args.json:
        check_writable(output.with_suffix(".json"))
    if args.plot:
        check_writable(Path(args.plot))
    expand(args.prompt, lyrics, **request)  # refuse a bad request before a model is loaded

    from acefast.pipeline import default_model, load

    with _progress(args.quiet) as progress:
        progress("loading", 0, 1)
        pipe = load(args.model or default_model(), device=args.device, dtype=args.dtype, backend=args.backend)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            songs = pipe.generate(args.prompt, lyrics, progress=progress, **request)
    for warning in told:
        if warning.category is UserWarning:
            print(f"acefast: {warning.message}", file=sys.stderr)
    several = isinstance(songs, list)
    for song in songs if several else [songs]:
        path = output.with_stem(f"{output.stem}-{song.seed}") if several else output
        song.save(path, args.subtype, json=args.json)
        if args.plot:
            plot = Path(args.plot)
            song.plot(plot.with_stem(f"{plot.stem}-{song.seed}") if several else plot)
        if not args.quiet:
            print(f"{path}: {song.duration:.2f} s, seed {song.seed}, made in {sum(song.timings.values()):.2f} s")
    return OK


def _lyrics(text: str) -> str:
    """Lyrics as given: "-" reads standard input, the name of a file reads it, anything else is the words themselves."""
    if text == "-":
        return sys.stdin.read()
    looks_like_file = "\n" not in text and Path(text).suffix.lower() in (".txt", ".md", ".lrc")
    if not looks_like_file and (len(text) > 200 or "\n" in text or not Path(text).is_file()):
        return text
    try:
        return Path(text).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RequestError(f"lyrics file {text!r} cannot be read: {reason}; give a text file or the words") from error


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error with stage, step, elapsed and remaining time; nothing where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if "loading" in tasks and stage != "loading":
                bar.update(tasks["loading"], completed=1)
            if stage not in tasks:
                tasks[stage] = bar.add_task(STAGES.get(stage, stage), total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield report


# -- info --------------------------------------------------------------------------------------------------------------


def _info(args: argparse.Namespace) -> int:
    from acefast import report

    facts = report.model(args.model) if args.model else report.machine()
    print(json.dumps(facts, indent=1) if args.json else report.as_text(facts))
    return OK


if __name__ == "__main__":
    sys.exit(main())
