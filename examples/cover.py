"""A cover: the song that is given, in another style.

python examples/cover.py song.wav --style "jazz trio, brushes, upright bass" --out cover.wav
"""

import argparse

import acefast

parser = argparse.ArgumentParser(description="Make a cover of a song of 5 to 600 seconds.")
parser.add_argument("source", help="wav, flac, mp3, ogg, ...")
parser.add_argument("--model", default="ace-step-1.5-turbo")
parser.add_argument("--out", default="cover.wav")
parser.add_argument("--style", default="jazz trio, brushes, upright bass")
parser.add_argument("--lyrics", default="")
parser.add_argument("--strength", type=float, default=0.6, help="share of the steps that hear the source, 0 to 1")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

pipe = acefast.load(args.model)
cover = pipe.generate(args.style, args.lyrics, task="cover", source=args.source, strength=args.strength, seed=args.seed)
cover.save(args.out)
print(f"{args.out}: {cover.duration:.2f} s; the source came down to {len(cover.codes)} codes: {cover.codes[:8]} ...")
