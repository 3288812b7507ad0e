"""A hook that runs after every step: shows where the song stands, and may stop it.

python examples/step_hook.py --out hooked.wav
python examples/step_hook.py --stop-after 3
"""

import argparse

import acefast

parser = argparse.ArgumentParser(description="Watch a song being made, or stop it.")
parser.add_argument("--model", default="ace-step-1.5-turbo")
parser.add_argument("--out", default="hooked.wav")
parser.add_argument("--duration", type=float, default=30, help="seconds")
parser.add_argument("--stop-after", type=int, help="cancel after this many steps")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()


def watch(info: acefast.StepInfo) -> None:
    """Draw how much goes on in each second of the song as it is expected to become.

    ``info.denoised`` are clean latents, [B, T, 64] at 25 frames a second. A hook that returns a tensor of that shape
    replaces ``info.latents``.
    """
    seconds = info.denoised[0].std(dim=1).split(25)
    bars = "".join(" ▁▂▃▄▅▆▇█"[min(8, int(4 * second.mean()))] for second in seconds)
    print(f"step {info.step + 1}/{info.steps}  t {info.t:.3f} -> {info.t_next:.3f}  |{bars}|")
    if info.step + 1 == args.stop_after:
        info.cancel()


try:
    song = acefast.generate(
        "lo-fi, slow, vinyl noise", model=args.model, duration=args.duration, seed=args.seed, on_step=watch
    )
except acefast.Cancelled as stopped:
    print(f"{stopped}: nothing was saved")
else:
    print(song.save(args.out))
