"""Music that goes on, heard while it is made; a line that is typed becomes the prompt of the next segment.

python examples/stream.py --seconds 90 --out radio.wav
python examples/stream.py --seconds inf --player "aplay -q -f S16_LE -c 2 -r 48000"
"""

import argparse
import contextlib
import shlex
import subprocess
import sys
import threading

import soundfile

import acefast

parser = argparse.ArgumentParser(description="Make music segment by segment, and play it meanwhile.")
parser.add_argument("--model", default="ace-step-1.5-turbo")
parser.add_argument("--out", default="stream.wav", help="grows while the music plays")
parser.add_argument("--player", help="a command that plays 16-bit stereo samples from its standard input")
parser.add_argument("--prompt", default="boom bap, 90 bpm, dusty drums")
parser.add_argument("--seconds", type=float, default=60, help="how long; inf goes on until Ctrl-C")
parser.add_argument("--segment", type=float, default=20, help="seconds made at a time")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()


def listen(stream) -> None:
    """Every line typed is what the music is like from the next segment on."""
    for line in sys.stdin:
        try:
            stream.update(prompt=line.strip())
        except acefast.RequestError as error:
            print(error)


pipe = acefast.load(args.model)
with contextlib.ExitStack() as stack:
    stream = stack.enter_context(pipe.stream(args.prompt, duration=args.seconds, segment=args.segment, seed=args.seed))
    file = stack.enter_context(soundfile.SoundFile(args.out, "w", stream.sample_rate, 2))
    player = args.player and stack.enter_context(subprocess.Popen(shlex.split(args.player), stdin=subprocess.PIPE))
    if sys.stdin.isatty():
        threading.Thread(target=listen, args=(stream,), daemon=True).start()
    try:
        for chunk in stream:  # samples: float32 [2, n] within +-1
            print(f"{chunk.start:7.2f} s  {chunk.duration:.2f} s  segment {chunk.segment}  {chunk.request.prompt}")
            file.write(chunk.samples.T)
            if player:  # takes no more than it can play soon, so the loop goes as fast as the music
                player.stdin.write((chunk.samples.T * 32767).astype("<i2").tobytes())
    except KeyboardInterrupt:
        print(f"{args.out}: {file.frames / stream.sample_rate:.2f} s")
