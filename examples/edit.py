"""An edit with ACE-Step v1: a song keeps its music and is sung other words, or keeps its shape and is played otherwise.

python examples/edit.py song.wav --lyrics old.txt --target-lyrics new.txt --out words.wav
python examples/edit.py song.wav --target-prompt "jazz trio" --edit-from 0.2 --edit-until 0.4 --out jazz.wav
"""

import argparse
from pathlib import Path

import acefast

parser = argparse.ArgumentParser(description="Change the words or the style of a song.")
parser.add_argument("source", help="wav, flac, mp3, ogg, ...")
parser.add_argument("--model", default="ace-step-v1-3.5b")
parser.add_argument("--out", default="edit.wav")
parser.add_argument("--prompt", default="boom bap, 90 bpm, dusty drums", help="what the source is like")
parser.add_argument("--lyrics", type=Path, help="the source's words")
parser.add_argument("--target-prompt", help="what it is to be like; as the source, if not given")
parser.add_argument("--target-lyrics", type=Path, help="its new words")
parser.add_argument("--language", default="en", help="of the lyrics")
parser.add_argument("--edit-from", type=float, default=0.6, help="share of the steps: later keeps more")
parser.add_argument("--edit-until", type=float, default=1.0, help="share of the steps after which the source is let go")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

pipe = acefast.load(args.model)
song = pipe.generate(
    args.prompt,
    args.lyrics.read_text(encoding="utf-8") if args.lyrics else "",
    task="edit",
    source=args.source,
    target_prompt=args.target_prompt,
    target_lyrics=args.target_lyrics.read_text(encoding="utf-8") if args.target_lyrics else None,
    language=args.language,
    edit_from=args.edit_from,
    edit_until=args.edit_until,
    steps=args.steps,
    seed=args.seed,
)
print(
    f"{song.save(args.out)}: {song.duration:.2f} s, steps {args.edit_from:g} to {args.edit_until:g} of the way edited"
)
