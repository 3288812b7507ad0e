"""Listen to a checkpoint by numbers: is the tempo the one asked for, and is there a beat.

    python examples/demo_model/judge.py FOLDER [--songs 24]

Prompts are captions that no training clip has. One line a song, then the shares and means.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from dataset import Dataset

import acefast
from acefast import metrics

RATE = 48_000


def judge(folder: str, songs: int, seconds: float = 12.0, **request: object) -> dict[str, float]:
    """Generate ``songs`` songs for held-out captions, in fp32, and measure them; prints each.

    Returns:
        tempo: share within 3 % of what was asked; octave: share at half or double; beat: mean beat strength; and the
        mean seconds one song took.
    """
    pipeline, rows = acefast.load(folder, device="cpu", dtype="float32"), []
    for i, clip in enumerate(Dataset(songs, seed=99, split="held-out", seconds=seconds, vocals=0)):
        began = time.monotonic()
        song = pipeline.generate(
            clip.prompt, bpm=clip.bpm, key=clip.key, time_signature=clip.time_signature, instrumental=True,
            duration=seconds, seed=i, **request,
        )  # fmt: skip
        took = time.monotonic() - began
        measured = metrics.tempo(song.audio, RATE).bpm
        ratio = measured / clip.bpm
        near = [abs(ratio / factor - 1) <= 0.03 for factor in (1, 0.5, 2)]
        row = {"tempo": near[0], "octave": near[1] or near[2], "beat": metrics.beat_strength(song.audio, RATE)}
        row |= {"lufs": metrics.loudness(song.audio, RATE), "took": took}
        rows.append(row)
        shown = {name: round(float(value), 3) for name, value in row.items()}
        print(json.dumps({"style": clip.style, "asked": clip.bpm, "bpm": round(measured, 1), **shown}), flush=True)
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--songs", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=12)
    args = parser.parse_args(argv)
    print(json.dumps(judge(args.folder, args.songs, args.seconds)))


if __name__ == "__main__":
    main()
