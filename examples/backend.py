"""Forcing a backend: the same song on every backend that runs here, and how far each is from the reference.

    python examples/backend.py --out song.wav

A backend that is asked for by name runs, or says why it cannot; nothing else takes its place silently.
"""

import argparse

import acefast

parser = argparse.ArgumentParser(description="Make one song on every backend.")
parser.add_argument("--model", default="ace-step-1.5-turbo")
parser.add_argument("--out", default="backend.wav")
parser.add_argument("--duration", type=float, default=10, help="seconds")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()

pipe = acefast.load(args.model)  # load(..., backend="triton") would fix one for all of its songs
with acefast.use_backend("reference"):
    reference = pipe.generate("synth bass, 100 bpm", duration=args.duration, seed=args.seed)
print(
    f"reference  {reference.timings['diffusion']:.2f} s of diffusion, {reference.timings['decode']:.2f} s of decoding"
)

for name in ("cpu", "triton", "cuda"):
    try:
        with acefast.use_backend(name):
            song = pipe.generate("synth bass, 100 bpm", duration=args.duration, seed=args.seed)
    except acefast.BackendUnavailable as reason:
        print(f"{name:10} {reason}")
        continue
    away = (song.latents - reference.latents).norm() / reference.latents.norm()
    times = f"{song.timings['diffusion']:.2f} s of diffusion, {song.timings['decode']:.2f} s of decoding"
    print(f"{name:10} {times}, {away:.1e} away from the reference")

print(reference.save(args.out))
