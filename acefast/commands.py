"""What the command ``acefast`` does: ``generate`` songs; ``stream`` them (acefast/stream_command.py); tell ``info`` of
what is here; study ``kernels``; ``bench`` the machine; ``build`` CUDA kernels."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from acefast import build_command, kernels_command
from acefast.audio import check_output
from acefast.backends import BackendUnavailable
from acefast.bench import command as bench_command
from acefast.console import out, tell
from acefast.files import check_writable
from acefast.options import OTHER_NAMES, Option
from acefast.request import RequestError, options
from acefast.residence import POLICIES
from acefast.song import check_picture
from acefast.stages import memory_told
from acefast.values import nearest, number, real
from acefast.weights import CheckpointError

OK, BAD_REQUEST, NO_CHECKPOINT = 0, 2, 3
STREAMED = (  # options of a stream beside those of a song: name, unit, meaning
    ("segment", "seconds", "music to make at a time, 10 to 300; 20 above a duration of 600"),
    ("context", "seconds", "music that the next segment hears, 2 to 60 (default: 10)"),
    ("ahead", "seconds", "audio to keep ready, 0 to 600 (default: 15)"),
    ("gain", "dB", "before the limiter, whose ceiling is --normalize; -60 to 60 (default: 0)"),
)
SECONDS, WHOLE = "5 to 600 seconds", "a whole number above 0"
STAGES = {"text": "reading", "diffusion": "composing", "decode": "rendering", "finish": "finishing"}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. What goes wrong is one line on standard error."""
    try:
        known, unknown = _parser().parse_known_args(arguments)
        if unknown:
            raise RequestError(_unknown(unknown[0], known))
        with memory_told("the command"):
            return known.run(known)
    except (RequestError, BackendUnavailable) as error:
        tell(str(error))
        return BAD_REQUEST
    except CheckpointError as error:
        tell(str(error))
        return NO_CHECKPOINT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; '{self.prog} --help' tells more")

    def _print_message(self, message: str, file: Any = None) -> None:
        out(message.rstrip("\n"))  # only help comes this way


def _parser() -> argparse.ArgumentParser:
    about = "Make songs, stream them, see what is here, study the kernels, measure the machine."
    parser = _Parser(prog="acefast", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="generate|stream|info|kernels|bench|build")
    make = commands.add_parser("generate", help="make a song", allow_abbrev=False)
    make.set_defaults(run=_generate)
    make.add_argument("-o", "--output", metavar="FILE", help="wav, flac, mp3, ogg or opus; several songs add -SEED")
    make.add_argument("--json", action="store_true", help="write seed, options and timings beside the song, as .json")
    make.add_argument("--plot", metavar="PNG", help="draw waveform and spectrogram")
    _add_song(make, seed="; 1,2,3 makes three songs")
    live = commands.add_parser("stream", help="a song as sound while it is made, of any length", allow_abbrev=False)
    live.set_defaults(run=_stream)
    live.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="-",
        help="wav, flac, mp3, ogg or opus (default: - for wav on standard output)",
    )
    for name, unit, about in STREAMED:
        live.add_argument(f"--{name}", metavar="V", help=f"{about} [{unit}]")
    _add_song(live, duration="; inf for no end")
    info = commands.add_parser("info", help="models, devices and backends found here", allow_abbrev=False)
    info.set_defaults(run=_info)
    info.add_argument("model", nargs="?", help="one model in detail")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.add_argument("--plan", metavar="MODEL", help="the memory that a song of this model takes, here or not")
    info.add_argument("--duration", metavar="V", help="of --plan (default: 240) [seconds, 5 to 600]")
    info.add_argument("--batch", metavar="N", help="songs of --plan that are made together (default: 1)")
    info.add_argument("--dtype", help="of --plan: bfloat16, float16 or float32 (default: bfloat16)")
    study = commands.add_parser("kernels", help="GPU kernels, compiled and simulated without a GPU", allow_abbrev=False)
    study.set_defaults(run=_kernels)
    kernels_command.add_arguments(study)
    bench = commands.add_parser("bench", help="how long a song takes here, stage by stage", allow_abbrev=False)
    bench.set_defaults(run=_bench)
    bench_command.add_arguments(bench)
    build = commands.add_parser("build", help="compile CUDA kernels before their first use", allow_abbrev=False)
    build.set_defaults(run=_build)
    build_command.add_arguments(build)
    return parser


def _add_song(parser: argparse.ArgumentParser, **more: str) -> None:
    """What says which song, on which model; ``more`` is added to an option's help."""
    parser.add_argument("prompt", nargs="?", default="", help="what the music is like")
    parser.add_argument(
        "--model", help="name, folder, file or hub repo (default: $ACEFAST_MODEL or ace-step-1.5-turbo)"
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu, mps (default: cuda where there is one)")
    parser.add_argument("--dtype", help="bfloat16, float16 or float32 (default: bfloat16; float32 on mps)")
    parser.add_argument("--backend", help="auto, reference, triton, cuda or cpu")
    parser.add_argument("--memory", choices=POLICIES, default="auto", help="fast keeps all networks on the device")
    parser.add_argument("--quantization", help="int8: the transformer in 8 bits, smaller and faster, on a CPU")
    parser.add_argument("--lora", metavar="PATH_OR_ID", help="a LoRA's file, folder or hub repo, merged into the model")
    parser.add_argument("--lora-weight", metavar="V", help="how strongly it acts [-3 to 3] (default: 1)")
    parser.add_argument("--subtype", choices=("int16", "int24", "float32"), help="sample format (default: int16)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no closing line")
    more = {"lyrics": "; a text file, or - for standard input", "target_lyrics": "; a text file", **more}
    for name, about in _typed_options().items():
        if about.kind == "flag":
            const, text = ("false", f"not so: {about.help}") if about.default else ("true", about.help)
            parser.add_argument(_flag(name), dest=f"option_{name}", action="store_const", const=const, help=text)
            continue
        default = "" if about.default in (None, "", ()) else f" (default: {about.default})"
        text = f"{about.help}{more.get(name, '')} [{about.needs}]{default}".replace("%", "%%")
        parser.add_argument(_flag(name), dest=f"option_{name}", metavar="V", help=text)


def _typed_options() -> dict[str, Option]:
    """The options that have a flag: what can be written as text, and audio files."""
    return {n: about for n, about in options().items() if n != "prompt" and (about.stored or about.kind == "audio")}


def _flag(name: str) -> str:
    about = options().get(name)
    return ("--no-" if about and about.kind == "flag" and about.default else "--") + name.replace("_", "-")


def _unknown(word: str, known: argparse.Namespace) -> str:
    """What to say of the first word that no option takes."""
    if not word.startswith("-"):
        return f"unexpected argument {word!r}; put a prompt of several words in quotes"
    word = word.split("=")[0]
    own = {_generate: "prompt", _stream: "prompt", _info: "model", _kernels: "kernel"}.get(known.run)  # has no flag
    flags = [_flag(n.removeprefix("option_")) for n in vars(known) if n not in ("run", own)]
    elsewhere = OTHER_NAMES.get(word.lstrip("-").replace("-", "_"), "")  # what other runtimes call it
    near = _flag(elsewhere) if _flag(elsewhere) in flags else nearest(word, flags)
    way_out = f"the nearest known one is {near}" if near else f"'acefast {known.run.__name__[1:]} --help' lists all"
    return f"unknown option {word}; {way_out}"


# -- generate ----------------------------------------------------------------------------------------------------------


def _generate(args: argparse.Namespace) -> int:
    if args.output is None:
        raise RequestError("the song has no place to go; give -o FILE, ending in .wav, .flac, .mp3, .ogg or .opus")
    request = _request(args)
    places = _places(args, request.get("seed"))

    from acefast.pipeline import check, default_model, load

    model = args.model or default_model()
    with _warnings_told():
        with _progress(args.quiet) as progress:
            progress("loading", 0, 1)
            check(args.prompt, model=model, **request)
            pipe = load(model, **_place(args))
            songs = pipe.generate(args.prompt, progress=progress, **request)
        lines = []
        for song, (path, plot) in zip(songs if isinstance(songs, list) else [songs], places):
            song.save(path, args.subtype, json=args.json, plot=plot)
            seconds = sum(song.timings.values())
            lines.append(f"{path}: {song.duration:.2f} s, seed {song.seed}, made in {seconds:.2f} s")
    if not args.quiet:
        out("\n".join(lines), "the songs are saved, and --quiet prints nothing")
    return OK


def _stream(args: argparse.Namespace) -> int:
    from acefast.stream_command import stream

    duration = args.option_duration and number("duration", args.option_duration, "seconds, or inf for no end")
    args.option_duration = None
    given = {n: number(n, v, f"a number of {u}") for n, u, _ in STREAMED if (v := getattr(args, n)) is not None}
    request = {**_request(args), "duration": duration, **given}
    with _warnings_told(), _progress(args.quiet) as progress:
        line = stream(args.prompt, request, args.output, args.subtype, args.model, progress, **_place(args))
    if line and not args.quiet:
        out(line, "the song is saved, and --quiet prints nothing")
    return OK


def _place(args: argparse.Namespace) -> dict[str, Any]:
    place = {name: getattr(args, name) for name in ("device", "dtype", "backend", "memory", "quantization")}
    if args.lora_weight is not None and args.lora is None:
        raise RequestError("--lora-weight has no use without --lora; give that too or leave it out")
    weight = 1.0 if args.lora_weight is None else number("lora_weight", args.lora_weight, "-3 to 3")
    return {**place, "lora": args.lora, "lora_weight": weight}


def _request(args: argparse.Namespace) -> dict[str, Any]:
    """The options given, read: what ``Pipeline.generate`` takes."""
    given = {n.removeprefix("option_"): v for n, v in vars(args).items() if n.startswith("option_") and v is not None}
    lyrics, seeds = _words("lyrics", given.pop("lyrics", "")), given.pop("seed", None)
    if "target_lyrics" in given:
        given["target_lyrics"] = _words("target_lyrics", given["target_lyrics"])
    request: dict[str, Any] = {name: options()[name].parse(name, text) for name, text in given.items()}
    if seeds is not None:
        found = [options()["seed"].parse("seed", word) for word in seeds.split(",")]
        if twice := [seed for seed in found if found.count(seed) > 1]:
            raise RequestError(f"seed {twice[0]} is given twice and makes the same song; name each one once")
        request["seed"] = found if len(found) > 1 else found[0]
    return {**request, "lyrics": lyrics}


def _places(args: argparse.Namespace, seeds: int | list[int] | None) -> list[tuple[Path, Path | None]]:
    """The song's file and its picture's, of each song; raises RequestError where one cannot be written."""
    output, plot = check_output(args.output, args.subtype), None
    if args.plot:
        plot = check_picture(args.plot)
    endings = [f"-{seed}" for seed in seeds] if isinstance(seeds, list) else [""]
    places = [(output.with_stem(output.stem + e), plot and plot.with_stem(plot.stem + e)) for e in endings]
    for path, picture in places:
        for file in (path, picture, path.with_suffix(".json") if args.json else None):
            if file:
                check_writable(file)
    return places


def _words(option: str, text: str) -> str:
    """Lyrics as given: "-" reads standard input, the name of a file reads it, anything else is the words themselves."""
    try:
        if text == "-":
            if sys.stdin is None:
                raise OSError(0, "it is closed")
            return sys.stdin.read()
        named = "\n" not in text and Path(text).suffix.lower() in (".txt", ".md", ".lrc")
        return Path(text).read_text("utf-8-sig") if named or os.path.isfile(text) else text
    except (OSError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
        what = "standard input" if text == "-" else f"file {text!r}"
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RequestError(f"{option}: {what} cannot be read: {reason}; give a text file or the words") from error


@contextlib.contextmanager
def _warnings_told() -> Iterator[None]:
    """Tell the block's warnings, one line each, once it has ended: in between they would tear the progress bar."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(w.message) for w in told if w.category is UserWarning):
                tell(message)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error with stage, step, elapsed and remaining time; nothing where that is no terminal."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description:>10}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if "loading" in tasks and stage != "loading":
                bar.update(tasks["loading"], completed=1)
            if stage not in tasks:
                tasks[stage] = bar.add_task(STAGES.get(stage, stage), total=total)
            elif done == 0:  # the next song of a deterministic batch
                bar.reset(tasks[stage], total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield report


# -- info --------------------------------------------------------------------------------------------------------------


def _info(args: argparse.Namespace) -> int:
    from acefast import report

    if args.plan:
        facts = _plan(args)
    elif given := [word for word in ("duration", "batch", "dtype") if getattr(args, word)]:
        raise RequestError(f"--{given[0]} has no use without --plan MODEL; give that too or leave it out")
    else:
        facts = report.model(args.model) if args.model else report.machine()
    out(json.dumps(facts, indent=1) if args.json else report.as_text(facts))
    return OK


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from acefast import report
    from acefast.devices import as_dtype

    if args.model:
        raise RequestError(f"info takes a model or --plan MODEL, got both {args.model!r} and {args.plan!r}")
    seconds = real("duration", number("duration", args.duration or "240", SECONDS), 5, 600, SECONDS)
    songs = number("batch", args.batch or "1", WHOLE)
    if not isinstance(songs, int) or songs < 1:
        raise RequestError(f"batch must be {WHOLE}, got {args.batch}")
    return report.plans(args.plan, seconds, songs, as_dtype(args.dtype or "bfloat16", torch.device("cpu")))


def _kernels(args: argparse.Namespace) -> int:
    return kernels_command.run(args)


def _build(args: argparse.Namespace) -> int:
    return build_command.run(args)


def _bench(args: argparse.Namespace) -> int:
    return kernels_command.calibrate(args) if args.calibrate else bench_command.run(args)
