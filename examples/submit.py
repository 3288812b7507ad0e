"""Many songs asked for at once: each is saved as soon as it is there, whatever becomes of the others.

python examples/submit.py "boom bap, dusty drums" "drill, 140 bpm" "lo-fi, slow" --out songs.wav
"""

import argparse
import concurrent.futures
from pathlib import Path

import acefast

parser = argparse.ArgumentParser(description="Make a song of each prompt; those of a like length together.")
parser.add_argument("prompts", nargs="+", help="what each song is like")
parser.add_argument("--model", default="ace-step-1.5-turbo")
parser.add_argument("--out", default="songs.wav", help="-1, -2, ... is added")
parser.add_argument("--durations", type=float, nargs="+", default=[30, 32], help="seconds, taken in turn")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

out, pipe, places = Path(args.out), acefast.load(args.model), {}
pipe.scheduler = acefast.Scheduler(batch=4, waiting=32)  # songs made together at most, songs that may wait
with pipe.scheduler:  # left by an error or Ctrl-C it cancels what is not done
    for i, prompt in enumerate(args.prompts):
        duration = args.durations[i % len(args.durations)]
        try:
            future = pipe.submit(prompt, duration=duration, seed=args.seed + i)  # waits while the queue is full
        except acefast.RequestError as error:
            print(f"{prompt}: {error}")
        else:
            places[future] = out.with_stem(f"{out.stem}-{i + 1}")
    for future in concurrent.futures.as_completed(places):  # future.cancel() would end one, also while it is made
        try:
            song = future.result()
            print(f"{song.save(places[future])}: {song.duration:.2f} s, {song.request.prompt}")
        except acefast.RequestError as error:
            print(f"{places[future]}: {error}")
