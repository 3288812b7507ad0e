"""A rap from lyrics and a tempo.

python examples/rap.py --out rap.wav
"""

import argparse

import acefast

LYRICS = """[verse]
Two in the morning and the meter is running
Concrete and rain and the bass line is drumming
Pen on the paper till the paper is through
Rent is due Friday and the rhyme is due too

[chorus]
Count it in, count it in, kick and a snare
Count it in, count it in, hands in the air
"""

parser = argparse.ArgumentParser(description="Make a rap from lyrics and a tempo.")
parser.add_argument("--model", default="ace-step-1.5-turbo")
parser.add_argument("--out", default="rap.wav")
parser.add_argument("--bpm", type=int, default=90)
parser.add_argument("--duration", type=float, default=30, help="seconds")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

song = acefast.generate(
    "boom bap, dusty drums, warm bass, male rap vocals, confident flow",
    LYRICS,
    model=args.model,
    duration=args.duration,
    bpm=args.bpm,
    key="A minor",
    time_signature="4/4",
    language="en",
    seed=args.seed,
)
song.save(args.out)
stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in song.timings.items())
print(f"{args.out}: {song.duration:.2f} s, seed {song.seed}, made in {stages}")
