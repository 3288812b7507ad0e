"""A repaint: some seconds of a song are made anew, in several takes; the rest stays, sample for sample.

python examples/repaint.py song.wav --start 10 --end 14 --out fixed.wav
"""

import argparse
from pathlib import Path

import acefast

parser = argparse.ArgumentParser(description="Make a part of a song anew.")
parser.add_argument("source", help="wav, flac, mp3, ogg, ...")
parser.add_argument("--model", default="ace-step-1.5-turbo")
parser.add_argument("--out", default="repaint.wav", help="-SEED is added for each take")
parser.add_argument("--prompt", default="guitar solo, clean tone")
parser.add_argument("--start", type=float, default=10, help="seconds")
parser.add_argument("--end", type=float, default=14, help="seconds")
parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2], help="one take each")
args = parser.parse_args()

pipe = acefast.load(args.model)
takes = pipe.generate(args.prompt, task="repaint", source=args.source, start=args.start, end=args.end, seed=args.seeds)
out = Path(args.out)
for take in takes:
    path = take.save(out.with_stem(f"{out.stem}-{take.seed}"))
    print(f"{path}: {take.duration:.2f} s, new from {args.start:g} to {args.end:g} s")
