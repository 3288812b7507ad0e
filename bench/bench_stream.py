"""How soon a stream is heard: seconds of CPU until its first second is there, until all of it is, and of segments.

    python bench/bench_stream.py [--model demo] [--dtype float32] [--seconds 12,30,60] [--long 100]

Seconds of CPU, not of the clock, so that other programs count little; medians of three rounds. The last line is what
the small first windows cost: a song decoded in them, and in windows of one length.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import acefast
from acefast.bench.environment import cpu_name
from acefast.models.v15 import vae
from acefast.models.v15.vae_tiling import TILE_FRAMES

ROUNDS = 3


def measure(pipe: acefast.Pipeline, **options: float) -> tuple[float, float]:
    """Seconds of CPU until the first chunk is there and until all are."""
    pipe.model.encodings.clear()  # of the round before
    begun = time.process_time()
    with pipe.stream("boom bap, 90 bpm, dusty drums", seed=1, ahead=0, **options) as stream:
        next(stream)
        first = time.process_time() - begun
        for _ in stream:
            pass
    return first, time.process_time() - begun


def medians(work: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Of either of two figures."""
    first, second = zip(*(work() for _ in range(ROUNDS)))
    return statistics.median(first), statistics.median(second)


def decoding(pipe: acefast.Pipeline, seconds: float) -> tuple[float, float]:
    """Seconds of CPU that a song's decoding takes with small first windows and without."""
    decoder, times = pipe.model.decoder, [time.process_time()]
    latents = torch.randn(1, round(25 * seconds), decoder.latent_channels, generator=torch.Generator().manual_seed(0))
    for frames in (None, TILE_FRAMES["decode"]):
        with pipe.at_work(pipe.model.coding):
            vae.decode(decoder, latents.to(pipe.model.device), frames)
        times.append(time.process_time())
    return times[1] - times[0], times[2] - times[1]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", default="12,30,60", help="of songs")
    parser.add_argument("--long", type=float, default=100, help="seconds of a stream in segments of 20")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pipe = acefast.load(args.model, device="cpu", dtype=args.dtype)
    lengths = [float(word) for word in args.seconds.split(",")]
    measure(pipe, duration=lengths[0])
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, {args.model} in {args.dtype}; seconds of CPU")
    for seconds in lengths:
        first, whole = medians(lambda seconds=seconds: measure(pipe, duration=seconds))
        print(f"song of {seconds:g} s: first second after {first:.2f}, whole after {whole:.2f}")
    first, whole = medians(lambda: measure(pipe, duration=args.long, segment=20))
    print(f"{args.long:g} s in segments of 20: first second after {first:.2f}, whole after {whole:.2f}")
    small, even = medians(lambda: decoding(pipe, lengths[0]))
    print(f"decoding {lengths[0]:g} s: {small:.3f} in windows that grow, {even:.3f} in windows of one length")


if __name__ == "__main__":
    main()
