"""Make the demo model from nothing: render, train the autoencoder, train the transformer, export.

    python examples/demo_model/make.py RUN FOLDER [--threads 2]

Under three hours on two cores, *predicted* from the stages, each of which was run by itself; stopped, the same command
goes on where it was. FOLDER is then what ``acefast generate --model FOLDER`` takes; with FOLDER = acefast/demo it is
the model that the package ships.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import train_dit
import train_vae
from export import DTYPES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vae-minutes", type=float, default=11)
    parser.add_argument("--refine-minutes", type=float, default=30, help="of the decoder alone, for the latents it has")
    parser.add_argument("--dit-minutes", type=float, default=95)
    parser.add_argument("--clips", type=int, default=1900)
    args = parser.parse_args(argv)
    run, threads = str(args.run), ("--threads", str(args.threads))
    torch.set_flush_denormal(True)
    few = ("--clips", str(min(args.clips, 400)))
    train_vae.main([run, "--minutes", str(args.vae_minutes), *few, *threads])
    train_dit.main([run, "--minutes", str(args.dit_minutes), "--clips", str(args.clips), *threads])
    train_vae.main([run, "--minutes", str(args.refine_minutes), "--refine", *few, *threads])
    train_dit.Run(args.run).export(args.folder, DTYPES["fp16"])


if __name__ == "__main__":
    main()
